/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once
/*
 * Create, with every call of its host failing in turn and the power cut at every flush and at its
 * end. What it leaves is a whole image, or one that open refuses; on a device that held an image,
 * perhaps still that one, whole. Where create said that it succeeded it is the new one, whatever
 * happens then.
 */

#include <cstdint>
#include <optional>

#include "crash_explorer.h"

namespace fvd::sim {

struct CreateOutcome {
    std::optional<Violation> violation;
    uint64_t runs = 0;   /* of create */
    uint64_t images = 0; /* judged */
};

/** Number of layouts to create. */
uint64_t create_shape_count();
CreateOutcome run_create_loop(uint64_t index);

}  // namespace fvd::sim
