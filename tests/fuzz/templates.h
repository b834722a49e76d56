/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once
/* Valid images that whole-image targets start from, and the steps that spoil them. */

#include <vector>

#include "flat_host.h"
#include "fvd/engine/image.h"

namespace fvd::fuzz {

struct Template {
    std::vector<std::byte> image, data, base;
    bool separate_data = false;
};

/** Different blocks, units, bases; clean, cut in the middle of a session, with and without data
 * file. */
const Template& template_of(unsigned number);

/** Put the template in the host's files and apply all steps that are edits. */
void prepare(FlatHost& host, const Program& program);

/** Steps below this many (of 32) are edits; the others are requests. */
inline constexpr unsigned kEdits = 12;
inline unsigned kind_of(const Step& step) {
    return step.op % 32;
}

}  // namespace fvd::fuzz
