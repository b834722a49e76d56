/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once
/*
 * Copy-on-read and prefetch as people ask for them: in the header, and for one process. A number
 * that was not given is FVD_UNSET.
 */

#include <span>

#include "fvd/base/result.h"
#include "fvd/engine/pace_parameters.h"
#include "fvd/format/header.h"
#include "fvd/fvd.h"

namespace fvd {

/** One for each number of struct fvd_fill, in its order. */
std::span<const fvd_fill_parameter> fill_parameters();

/** The number of @p fill that @p parameter is about. */
int64_t& number_of(fvd_fill& fill, const fvd_fill_parameter& parameter);
int64_t number_of(const fvd_fill& fill, const fvd_fill_parameter& parameter);

/** Nothing is given. */
fvd_fill empty_fill();

/** EINVAL: a number out of range; ENOTSUP: @p for_header, and the header has no field for it. */
Error check_fill(const fvd_fill& fill, bool for_header);

/** What a header says. */
fvd_fill fill_of(const Header& header);

/** Write what is given in @p fill into @p header. */
void put_fill(const fvd_fill& fill, Header* header);

/** What is to be done. */
struct FillPlan {
    bool copy_on_read = false;
    uint64_t copy_on_read_memory = 0; /* bytes, at most */
    PaceParameters pace;              /* resolved */
    bool prefetch() const { return pace.start_delay >= 0; }
};

/** @p options, and where they say nothing, @p header. */
FillPlan plan_fill(const fvd_fill& options, const Header& header);
/** The same in numbers that people can look at. */
fvd_fill describe_plan(const FillPlan& plan);

}  // namespace fvd
