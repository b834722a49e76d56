/* SPDX-License-Identifier: GPL-2.0-or-later */
/* How an image fills itself from its base: what is asked of it, and what is told about it. */
#include "fvd/base/arith.h"
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

/* ---------------------------------------------------------------------------- options */

Error Image::set_fill(const fvd_fill& options) {
    if (Error error = check_fill(options, false); !error.ok()) {
        return error;
    }
    HostLock lock(host_);
    fill_options_ = options;
    apply_plan();
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
    if (Status status = committer_.change_header(change, undo); !status.ok()) {
        return Error::make(status.value(), "the header cannot be written");
    }
    HostLock lock(host_);
    apply_plan();
    return Error::none();
}

/* With the mutex held. */
void Image::apply_plan() {
    const bool possible = started_ && writable_ && tracked_size_ != 0;
    plan_ = plan_fill(fill_options_, header_);
    keeping_.store(possible && plan_.copy_on_read, std::memory_order_release);
    prefetcher_.set_parameters(plan_.pace, plan_.copy_on_read);
}

void Image::pause_prefetch(bool paused) {
    HostLock lock(host_);
    prefetcher_.set_paused(paused);
}

/* ---------------------------------------------------------------------------- beginning and end */

void Image::begin_filling() {
    HostLock lock(host_);
    progress_ = {};
    bytes_guest_ = 0;
    keep_again_at_ = 0;
    prefetcher_.begin(&committer_.bitmap(), header_.block_size,
                      writable_ ? tracked_size_.load() : 0);
    apply_plan();
}

void Image::end_filling() {
    wait_for_fetches();
    HostLock lock(host_);
    keeping_.store(false, std::memory_order_release);
    prefetcher_.end();
    prefetcher_.release();
}

void Image::quiesce(bool quiesce) {
    HostLock lock(host_);
    quiesce ? prefetcher_.hold() : prefetcher_.release();
}

/* Afterwards nothing is fetched or stored, until quiesce(false). May suspend. */
void Image::wait_for_fetches() {
    HostLock lock(host_);
    prefetcher_.hold();
    prefetcher_.wait_until_idle();
}

/* ---------------------------------------------------------------------------- telling */

void Image::progress(fvd_progress* progress) const {
    HostLock lock(host_);
    *progress = progress_;
    progress->block_size = header_.block_size;
    progress->blocks = uses_bitmap_ ? header_.block_count() : 0;
    const uint64_t missing = writable_ ? committer_.bitmap().missing() : 0;
    progress->blocks_here = writable_ || !started_ ? progress->blocks - missing : current_.count();
    progress->copy_on_read = plan_.copy_on_read;
    progress->prefetch = plan_.prefetch();
    progress->filled = header_.base_fully_prefetched;
    progress->bytes_guest = bytes_guest_;
    progress->bytes_dropped += prefetcher_.forgotten();
    progress->memory = fetches_.memory();
    describe_pace(host_.now(), missing * header_.block_size, progress);
}

void Image::describe_pace(PaceTime now, uint64_t to_go, fvd_progress* progress) const {
    const PaceDecision& decision = prefetcher_.decision();
    progress->hold = static_cast<fvd_hold>(decision.reason);
    progress->hold_ends = decision.until == kPaceNever ? UINT64_MAX
                          : decision.until > now       ? decision.until - now
                                                       : 0;
    progress->ends_in_s = UINT64_MAX;
    if (!prefetcher_.pace()) {
        return;
    }
    progress->paused = prefetcher_.pace()->user_paused();
    const PaceReport report = prefetcher_.pace()->report(now);
    for (size_t i = 0; i < FVD_HOLD_COUNT; i++) {
        progress->holds[i] = report.holds[i];
        progress->held_ns[i] = report.held[i];
    }
    progress->rate = report.rate;
    progress->base_rate = report.base_rate;
    progress->base_latency_ns = report.latency;
    progress->window = report.window;
    progress->in_flight = report.in_flight;
    progress->share_percent = static_cast<uint32_t>(report.share * 100);
    if (report.rate != 0) {
        progress->ends_in_s = div_ceil(to_go, report.rate);
    }
}

}  // namespace fvd
