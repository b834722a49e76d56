/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "fvd/engine/prefetcher.h"

#include <algorithm>

#include "fvd/base/arith.h"
#include "fvd/base/plant.h"

namespace fvd {

namespace {

constexpr uint64_t kMiB = 1024 * 1024;

/* The smallest request, which a guest's read may meet: as large as blocks usually are. */
constexpr uint64_t kGranule = 4 * 1024;
/* How far ahead the base is asked for its zeros, in how large steps, and how much is zeroed at
 * once: a guest's first write waits for that. */
constexpr uint64_t kLookAhead = 128 * kMiB;
constexpr uint64_t kLookStep = 64 * kMiB;
constexpr uint64_t kZerosAtOnce = 16 * kMiB;
/* Where asking takes longer than fetching, so much is fetched unasked. */
constexpr uint64_t kLookSkip = 16 * kMiB;
constexpr uint64_t kUsualRate = 128 * kMiB; /* bytes/s, of a base that is not known */

constexpr PaceTime kRetry = kPaceSecond; /* without memory; and of the last header update */

}  // namespace

/* ---------------------------------------------------------------------------------- a life */

void Prefetcher::begin(const TrackedBitmap* bitmap, uint64_t block_size, uint64_t tracked) {
    bitmap_ = bitmap;
    block_size_ = block_size;
    tracked_ = tracked;
    pace_.reset();
    wanted_.store(false, std::memory_order_release);
    decision_ = {PaceReason::off, 0, kPaceNever};
    cursor_ = looked_ = 0;
    looking_ = finishing_ = finished_ = false;
    armed_ = kPaceNever;
    retry_at_ = 0;
    forgotten_ = 0;
    alive_ = tracked != 0;
}

void Prefetcher::end() {
    alive_ = false;
    fetches_.keep_memory(false);
    armed_ = kPaceNever;
    decision_ = {PaceReason::off, 0, kPaceNever};
    wanted_.store(false, std::memory_order_release);
    host_.cancel_timer(FVD_TIMER_PREFETCH);
}

void Prefetcher::set_parameters(const PaceParameters& parameters, bool copy_on_read) {
    keeps_ = copy_on_read;
    if (!alive_) {
        return;
    }
    const PaceTime now = host_.now();
    if (pace_) {
        pace_->set_parameters(parameters, now);
    } else if (parameters.start_delay >= 0) {
        uint64_t seed = 0;
        host_.random(std::as_writable_bytes(std::span(&seed, 1)));
        const uint64_t granule = round_up(std::max(kGranule, block_size_), block_size_);
        pace_.emplace(parameters, granule, seed, now);
        set_paused(paused_);
        if (finished_) {
            pace_->finish(now);
            decision_ = pace_->decide(now);
        }
    }
    wanted_.store(parameters.start_delay >= 0, std::memory_order_release);
    keep_memory();
    wake();
}

/* For those who will soon fetch more. */
void Prefetcher::keep_memory() {
    fetches_.keep_memory(!finished_ && (keeps_ || (wanted_.load() && !paused_)));
}

void Prefetcher::set_paused(bool paused) {
    paused_ = paused;
    keep_memory();
    if (pace_) {
        paused ? pace_->pause(host_.now()) : pace_->resume(host_.now());
        if (!FVD_PLANT(pause_for_ever)) {
            wake();
        }
    }
}

void Prefetcher::release() {
    FVD_ASSERT(holds_ != 0);
    if (--holds_ == 0) {
        wake();
    }
}

void Prefetcher::wait_until_idle() {
    FVD_ASSERT(holds_ != 0);
    drop_waiting();
    while (!fetches_.empty() || running_ != 0) {
        idle_.wait(host_);
        drop_waiting();
    }
}

void Prefetcher::drop_waiting() {
    for (Fetch* fetch = fetches_.first(); fetch != nullptr;) {
        Fetch* const next = fetch->next;
        if (fetch->state == FetchState::waiting) {
            forgotten_ += fetch->bytes.count();
            stored(*fetch, 0, true);
            remove(*fetch);
        }
        fetch = next;
    }
}

/* ---------------------------------------------------------------------------------- the guest */

PaceGuestTicket Prefetcher::guest_begun(uint64_t bytes) {
    const PaceGuestTicket ticket = pace_->guest_begun(host_.now(), bytes);
    wake();
    return ticket;
}

void Prefetcher::guest_ended(const PaceGuestTicket& ticket, bool ok) {
    pace_->guest_ended(host_.now(), ticket, ok);
    wake();
}

/* ---------------------------------------------------------------------------------- pumping */

void Prefetcher::pump() {
    if (!may_start()) {
        return;
    }
    const PaceTime now = host_.now();
    const PaceTime next_store = store_due(now);
    arm(now, std::min(next_store, finish_due() ? finish_if_quiet(now) : fetch_more(now)));
}

bool Prefetcher::may_start() const {
    return alive_ && holds_ == 0 && (pace_.has_value() || finish_due());
}

/* Copy-on-read, and the guest itself, may bring the last block, too. That needs no pace. */
bool Prefetcher::finish_due() const {
    return alive_ && keeps_ && !finished_ && bitmap_->missing() == 0;
}

void Prefetcher::wake() {
    if (may_start()) {
        const PaceTime now = host_.now();
        arm(now, now);
    }
}

void Prefetcher::arm(PaceTime now, PaceTime when) {
    if (when < armed_ && when != kPaceNever) {
        armed_ = when;
        host_.arm_timer(FVD_TIMER_PREFETCH, when > now ? when - now : 0);
    }
}

void Prefetcher::timer_expired() {
    armed_ = kPaceNever;
    pump();
}

void Prefetcher::start(Host::Task task, void* of) {
    running_++;
    host_.start_task(task, of);
}

void Prefetcher::task_ended() {
    running_--;
    pump();
    if (running_ == 0) {
        idle_.wake_all(host_);
    }
}

void Prefetcher::remove(Fetch& fetch) {
    fetches_.remove(fetch);
    if (fetches_.empty()) {
        idle_.wake_all(host_);
        if (finish_due()) {
            wake();
        }
    }
}

/* Start storing what had to wait; when is the next due? */
PaceTime Prefetcher::store_due(PaceTime now) {
    PaceTime next = kPaceNever;
    for (Fetch* fetch = fetches_.first(); fetch != nullptr; fetch = fetch->next) {
        if (fetch->state != FetchState::waiting) {
            continue;
        }
        if (fetch->store_at <= now) {
            fetch->state = FetchState::storing;
            start(tasks_.store, fetch);
        } else {
            next = std::min(next, fetch->store_at);
        }
    }
    return next;
}

/* Fetch as much as the pace allows; when is it to be asked again? */
PaceTime Prefetcher::fetch_more(PaceTime now) {
    if (now < retry_at_) {
        return retry_at_;
    }
    for (;;) {
        decision_ = pace_->decide(now);
        if (decision_.reason != PaceReason::none) {
            return decision_.until;
        }
        if (bitmap_->missing() == 0) {
            return finish_if_quiet(now);
        }
        if (!fetch_one(now)) {
            pace_->idle(now);
            /* All that is missing is on its way, and its end pumps; or memory was short. */
            return now < retry_at_ ? retry_at_ : kPaceNever;
        }
    }
}

bool Prefetcher::fetch_one(PaceTime now) {
    const uint64_t most = std::max<uint64_t>(1, decision_.bytes / block_size_);
    BlockRange run = next_missing(cursor_, blocks(), most);
    if (run.empty()) {
        run = next_missing(0, blocks(), most); /* what failed before */
    }
    if (run.empty()) {
        return false;
    }
    if (run.begin.value >= looked_) {
        look();
        return false;
    }
    run.end = std::min(run.end, BlockIndex(looked_));
    Fetch* const fetch = fetches_.add(
        {.image = &image_, .blocks = run, .bytes = bytes_of(run), .who = FetchFor::prefetch});
    if (fetch == nullptr) {
        retry_at_ = pace_after(now, kRetry);
        return false;
    }
    fetch->ticket = pace_->issued(now, fetch->bytes.count());
    cursor_ = run.end.value;
    start(tasks_.fetch, fetch);
    if (looked_ - std::min(looked_, cursor_) < kLookAhead / block_size_) {
        look();
    }
    return true;
}

uint64_t Prefetcher::blocks() const {
    return div_ceil(tracked_, block_size_);
}

ByteRange Prefetcher::bytes_of(BlockRange blocks) const {
    const uint64_t end = blocks.end.value * block_size_;
    return {blocks.begin.value * block_size_,
            FVD_PLANT(fetch_past_base) ? end : std::min(end, tracked_)};
}

/* The first run in [from, end) of at most @p most blocks that are neither here nor on their way. */
BlockRange Prefetcher::next_missing(uint64_t from, uint64_t end, uint64_t most) const {
    const BlockBitmap& bits = bitmap_->current;
    while (from < end) {
        if (bits.test(from)) {
            from = bits.run_end(from, end, true);
            continue;
        }
        const Fetch* const fetch = fetches_.first_behind(from);
        if (fetch != nullptr && fetch->blocks.begin.value <= from) {
            from = fetch->blocks.end.value;
            continue;
        }
        uint64_t stop = from + std::min(end - from, most);
        stop = fetch != nullptr ? std::min(stop, fetch->blocks.begin.value) : stop;
        return {BlockIndex(from), BlockIndex(bits.run_end(from, stop, false))};
    }
    return {};
}

/* ---------------------------------------------------------------------------------- a fetch */

bool Prefetcher::fetched(Fetch& fetch, bool ok) {
    const PaceTime now = host_.now();
    pace_->fetched(now, fetch.ticket, ok);
    if (!ok) {
        fetch.state = FetchState::failed;
    } else {
        fetch.store_at = pace_->store_from(now, fetch.bytes.count());
        fetch.state = fetch.store_at <= now ? FetchState::storing : FetchState::waiting;
    }
    if (!FVD_PLANT(forget_reader)) {
        fetch.readers.wake_all(host_);
    }
    if (!ok) {
        remove(fetch);
    }
    return ok && fetch.state == FetchState::storing;
}

void Prefetcher::stored(const Fetch& fetch, uint64_t kept, bool ok) {
    if (fetch.who != FetchFor::prefetch) {
        return;
    }
    const PaceTime now = host_.now();
    const uint64_t rest = fetch.bytes.count() - kept;
    if (kept != 0 || !ok) {
        pace_->stored(now, ok ? kept : fetch.bytes.count(), ok);
    }
    if (rest != 0 && ok) {
        pace_->dropped(now, rest);
    }
}

/* ---------------------------------------------------------------------------------- zeros */

void Prefetcher::look() {
    if (!looking_ && looked_ < blocks()) {
        looking_ = true;
        start(tasks_.look, &image_);
    }
}

ByteRange Prefetcher::begin_look() const {
    const BlockRange run = next_missing(looked_, blocks(), UINT64_MAX);
    const uint64_t begin = run.empty() ? tracked_ : run.begin.value * block_size_;
    return {begin, std::min(tracked_, begin + round_up(kLookStep, block_size_))};
}

Fetch* Prefetcher::claim_zeros(ByteRange zeros) {
    const uint64_t first = div_ceil(zeros.begin, block_size_);
    const uint64_t end = zeros.end >= tracked_ || FVD_PLANT(zeros_too_long)
                             ? div_ceil(zeros.end, block_size_)
                             : zeros.end / block_size_;
    const uint64_t most = std::max<uint64_t>(1, kZerosAtOnce / block_size_);
    const BlockRange run = next_missing(first, std::min(end, blocks()), most);
    if (!may_start() || run.empty()) {
        return nullptr;
    }
    return fetches_.add({.image = &image_,
                         .blocks = run,
                         .bytes = bytes_of(run),
                         .state = FetchState::storing,
                         .who = FetchFor::zeros});
}

void Prefetcher::end_look(uint64_t from, uint64_t run, bool zero, PaceTime took) {
    const uint64_t known = pace_ ? pace_->report(host_.now()).base_rate : 0;
    const double rate = static_cast<double>(known != 0 ? known : kUsualRate);
    const double fetching = static_cast<double>(run) / rate * static_cast<double>(kPaceSecond);
    if (static_cast<double>(took) > fetching) {
        run = std::max(run, kLookSkip);
    }
    const uint64_t end = from + run;
    const uint64_t whole = zero ? end / block_size_ : div_ceil(end, block_size_);
    looked_ = std::max(from / block_size_ + 1, whole);
    looking_ = false;
}

/* ---------------------------------------------------------------------------------- the end */

/* Whoever brought the last block here. When is it to be tried again? */
PaceTime Prefetcher::finish_if_quiet(PaceTime now) {
    if (now < retry_at_) {
        return retry_at_;
    }
    if (fetches_.empty() && !looking_ && !finishing_) {
        finishing_ = true;
        start(tasks_.finish, &image_);
    }
    return kPaceNever;
}

void Prefetcher::finished(bool ok) {
    const PaceTime now = host_.now();
    finishing_ = false;
    finished_ = ok;
    keep_memory();
    if (ok && pace_) {
        pace_->finish(now);
        decision_ = pace_->decide(now);
    } else if (!ok) {
        retry_at_ = pace_after(now, kRetry);
    }
}

}  // namespace fvd
