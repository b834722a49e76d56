/* SPDX-License-Identifier: GPL-2.0-or-later */
/* How an image fills itself from its base: what is asked of it, and what is told about it. */
#include "fvd/engine/image.h"
#include "fvd/engine/prefetch_pace.h"

namespace fvd {

namespace {

/* The C ABI's words are the pace's, in its order. */
static_assert(static_cast<int>(PaceReason::none) == FVD_HOLD_NONE &&
              static_cast<int>(PaceReason::finished) == FVD_HOLD_FINISHED &&
              static_cast<int>(PaceReason::off) == FVD_HOLD_OFF &&
              static_cast<int>(PaceReason::paused) == FVD_HOLD_PAUSED &&
              static_cast<int>(PaceReason::start_delay) == FVD_HOLD_START_DELAY &&
              static_cast<int>(PaceReason::base_error) == FVD_HOLD_BASE_ERROR &&
              static_cast<int>(PaceReason::store_error) == FVD_HOLD_STORE_ERROR &&
              static_cast<int>(PaceReason::below_minimum) == FVD_HOLD_BELOW_MINIMUM &&
              static_cast<int>(PaceReason::storing) == FVD_HOLD_STORING &&
              static_cast<int>(PaceReason::rate_limit) == FVD_HOLD_RATE_LIMIT &&
              static_cast<int>(PaceReason::guest_active) == FVD_HOLD_GUEST_ACTIVE &&
              static_cast<int>(PaceReason::pipe_full) == FVD_HOLD_PIPE_FULL &&
              static_cast<int>(PaceReason::count) == FVD_HOLD_COUNT);

}  // namespace

Error Image::set_fill(const fvd_fill& options) {
    if (Error error = check_fill(options, false); !error.ok()) {
        return error;
    }
    HostLock lock(host_);
    fill_options_ = options;
    return Error::none();
}

fvd_fill Image::fill(bool in_header) const {
    HostLock lock(host_);
    return in_header ? fill_of(header_) : describe_plan(plan_fill(fill_options_, header_));
}

Error Image::amend(const fvd_fill& fill) {
    FVD_ASSERT(started_ && writable_);
    if (Error error = check_fill(fill, true); !error.ok()) {
        return error;
    }
    fvd_fill before;
    const auto change = [&](Header& header) {
        before = fill_of(header);
        put_fill(fill, &header);
    };
    const auto undo = [&](Header& header) { put_fill(before, &header); };
    const Status status = committer_.change_header(change, undo);
    return status.ok() ? Error::none()
                       : Error::make(status.value(), "the header cannot be written");
}

void Image::pause_prefetch(bool paused) {
    HostLock lock(host_);
    prefetch_paused_ = paused;
}

void Image::quiesce(bool quiesce) {
    HostLock lock(host_);
    FVD_ASSERT(quiesce || quiesced_ != 0);
    quiesced_ += quiesce ? 1u : -1u;
}

void Image::progress(fvd_progress* progress) const {
    HostLock lock(host_);
    *progress = {};
    const FillPlan plan = plan_fill(fill_options_, header_);
    progress->block_size = header_.block_size;
    if (started_ && uses_bitmap()) {
        progress->blocks = header_.block_count();
        progress->blocks_here = current_.count();
    }
    progress->copy_on_read = plan.copy_on_read;
    progress->prefetch = plan.prefetch();
    progress->paused = prefetch_paused_;
    progress->filled = header_.base_fully_prefetched;
    progress->hold = FVD_HOLD_OFF;
    progress->hold_ends = progress->ends_in_s = UINT64_MAX;
}

}  // namespace fvd
