/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "fvd/engine/pace_guest.h"

#include <algorithm>

#include "fvd/base/assert.h"

namespace fvd {

namespace {

constexpr PaceTime kDepthSpan = 2 * kPaceSecond;
constexpr PaceTime kThinkSlack = 50'000;
constexpr PaceTime kLongestIdle = 600 * kPaceMs;

/* Squared: so many standard deviations are no chance any more. */
constexpr double kChance = 3;
constexpr double kShareCut = 0.8;
constexpr double kShareStep = 0.03;
/* Gaps cost what prefetch could have done in them: they are few and short when it is known to so
 * much what reads alone are like. */
constexpr double kSure = 0.01;
constexpr uint64_t kReadsBetweenGaps = 100;
constexpr uint64_t kReadsBetweenGapsUnsure = 40;
constexpr uint64_t kReadsInGapUnsure = 4;
constexpr PaceTime kGapTime = 100 * kPaceMs;
constexpr double kSamplesToCut = 16;
constexpr double kSamplesToRaise = 64;
constexpr double kSamplesAlone = 8;

/* An average of about the last eight. */
void smooth(double* average, double value) {
    *average = *average == 0 ? value : *average + (value - *average) / 8;
}

}  // namespace

/* ------------------------------------------------------------------------------ reads */

size_t GuestReads::begun(PaceTime now, PaceTime least) {
    size_t slot = kSlots;
    if (const uint32_t free = ~used_; free != 0) {
        slot = static_cast<size_t>(__builtin_ctz(free));
        used_ |= uint32_t{1} << slot;
        ends_[slot] = pace_after(now, least);
    }
    const bool last_missing = static_cast<double>(count_ + 1) >= depth_.value();
    if (seen_ && last_missing && now - last_ended_ < kPaceSecond) {
        smooth(&think_, pace_ns(now - last_ended_) + 1);
    }
    if (last_begun_ != 0 && now - last_begun_ < kPaceSecond) {
        smooth(&interval_, pace_ns(now - last_begun_) + 1);
    }
    last_begun_ = now;
    count_++;
    depth_.note(now, kDepthSpan, static_cast<double>(count_));
    return slot;
}

void GuestReads::ended(PaceTime now, size_t slot) {
    FVD_ASSERT(count_ != 0);
    count_--;
    if (slot < kSlots) {
        used_ &= ~(uint32_t{1} << slot);
    }
    last_ended_ = now;
    seen_ = true;
}

/* Few reads a second are a busy guest, too. */
bool GuestReads::active(PaceTime now, PaceTime idle) const {
    const PaceTime usual = pace_whole(4 * interval_);
    const PaceTime span = std::clamp(usual, idle, std::max(idle, kLongestIdle));
    return count_ != 0 || (seen_ && now < pace_after(last_ended_, span));
}

PaceTime GuestReads::next(PaceTime now) const {
    const bool all_in_flight =
        count_ != 0 && used_ != ~uint32_t{0} && static_cast<double>(count_) >= depth_.value();
    if (!all_in_flight) {
        return now;
    }
    PaceTime first = kPaceNever;
    for (size_t slot = 0; slot < kSlots; slot++) {
        if ((used_ >> slot & 1) != 0) {
            first = std::min(first, ends_[slot]);
        }
    }
    return std::max(now, first);
}

bool GuestReads::thinks(PaceTime now, double longest, PaceTime* until) const {
    const bool one_missing = static_cast<double>(count_ + 1) == depth_.value();
    if (!one_missing || !seen_ || think_ > longest) {
        return false;
    }
    *until = pace_after(last_ended_, pace_whole(2 * think_) + kThinkSlack);
    return now < *until;
}

/* ------------------------------------------------------------------------------ comparison */

bool GuestComparison::in_gap(PaceTime now, double latency) {
    if (gap_ && now >= gap_until_) {
        restart();
    } else if (!gap_ && since_gap_ >= (sure() ? kReadsBetweenGaps : kReadsBetweenGapsUnsure)) {
        gap_ = true;
        gap_until_ = pace_after(now, std::max(kGapTime, pace_whole(8 * latency)));
    }
    return gap_;
}

bool GuestComparison::sure() const {
    const double error = kSure * alone_.mean();
    return alone_.count() >= kSamplesAlone && alone_.squared_error() <= error * error;
}

void GuestComparison::restart() {
    gap_ = false;
    since_gap_ = in_gap_ = 0;
}

void GuestComparison::note(double took, bool alone, double tolerated) {
    (alone ? alone_ : beside_).note(took);
    in_gap_ += alone ? 1 : 0;
    if (in_gap_ >= (sure() ? 1 : kReadsInGapUnsure)) {
        restart();
    }
    judge(tolerated);
}

void GuestComparison::judge(double tolerated) {
    if (alone_.count() >= 2 * kSamplesToRaise) {
        alone_.halve();
    }
    if (alone_.count() < kSamplesAlone || beside_.count() < kSamplesToCut) {
        return;
    }
    const double too_much = beside_.mean() - (1 + tolerated) * alone_.mean();
    const double error = alone_.squared_error() + beside_.squared_error();
    if (too_much > 0 && too_much * too_much > kChance * error) {
        share_ = std::max(kPaceLeastShare, share_ * kShareCut);
        beside_.clear();
    } else if (beside_.count() >= kSamplesToRaise) {
        share_ = std::min(kPaceMostShare, share_ + kShareStep);
        beside_.clear();
    }
}

}  // namespace fvd
