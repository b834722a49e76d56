/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "fvd/engine/pace_parts.h"

#include <algorithm>

namespace fvd {

namespace {

/* A bucket this deep smooths over late timers and shows in no chart. */
constexpr double kBurstNs = 20.0 * static_cast<double>(kPaceMs);

/* Weight of history in the average, PREFETCH_PERF_CALC_ALPHA of 2011. */
constexpr double kHistory = 0.8;
/* What was once possible fades: half of it is forgotten in 700 windows. */
constexpr double kFade = 0.999;

constexpr uint32_t kMaxDoublings = 20;

/* The base's latency was seen again when it was not longer than this. */
constexpr double kSeenAgain = 1.05;
constexpr double kSeenAgainNs = 0.1 * static_cast<double>(kPaceMs);
/* Requests of one moment wait for each other, too: so much is no sign of an uneven base. */
constexpr double kLittleSpread = 0.25;
constexpr double kLittleSpreadNs = 0.5 * static_cast<double>(kPaceMs);
constexpr PaceTime kLatencySpan = 30 * kPaceSecond;

/* Trains cost the guest little, so there are some at once, and then few. */
constexpr uint32_t kEarlyTrains = 4;
constexpr PaceTime kEarlyTrainSpan = 500 * kPaceMs;
constexpr PaceTime kTrainSpan = 10 * kPaceSecond;
/* Once refuted, they lead to a queue now and then. */
constexpr double kDoubtedGrowth = 1.25;
constexpr PaceTime kDoubtedTrainSpan = 4 * kPaceSecond;
constexpr PaceTime kMostTrainSpan = 60 * kPaceSecond;

}  // namespace

uint64_t PaceRandom::next() {
    uint64_t v = state_ += 0x9e3779b97f4a7c15;
    v = (v ^ (v >> 30)) * 0xbf58476d1ce4e5b9;
    v = (v ^ (v >> 27)) * 0x94d049bb133111eb;
    return v ^ (v >> 31);
}

double PaceRandom::fraction() {
    return static_cast<double>(next() >> 11) / static_cast<double>(uint64_t{1} << 53);
}

/* ------------------------------------------------------------------------------------ rate */

double BaseRate::value() const {
    return *std::max_element(seen_.begin(), seen_.end());
}

void BaseRate::note(double rate, bool below) {
    if (below || rate > value()) {
        seen_[next_] = rate;
        next_ = (next_ + 1) % kKept;
    }
}

void BaseRate::note_train(double rate, bool used) {
    trains_++;
    if (!doubted_) {
        note(rate, true);
    } else if (used) {
        note(std::min(rate, kDoubtedGrowth * value()), true);
    }
}

/* One round may have met a machine that was busy. What came in two in a row is what the base gives.
 */
bool BaseRate::note_round(double rate, bool queue) {
    const double carried = std::max(rate, queued_rate_);
    const bool refuted = queue && queued_rate_ != 0 && carried < value();
    queued_rate_ = queue ? rate : 0;
    if (refuted) {
        seen_.fill(0);
        note(carried, true);
        refutations_ += refuted_ ? 0 : 1;
        doubted_ = refuted_ = true;
    }
    return refuted;
}

PaceTime BaseRate::next_train() {
    refutations_ = refuted_ ? refutations_ : 0;
    refuted_ = false;
    return train_span();
}

PaceTime BaseRate::train_span() const {
    if (refutations_ != 0) {
        return std::min(kDoubtedTrainSpan << std::min(refutations_ - 1, 10U), kMostTrainSpan);
    }
    return trains_ < kEarlyTrains ? kEarlyTrainSpan : doubted_ ? kDoubtedTrainSpan : kTrainSpan;
}

/* ------------------------------------------------------------------------------------ samples */

void Samples::note(double value) {
    count_ += 1;
    const double off = value - mean_;
    mean_ += off / count_;
    squares_ += off * (value - mean_);
}

void Samples::halve() {
    count_ /= 2;
    squares_ /= 2;
}

double Samples::squared_error() const {
    return count_ > 1 ? squares_ / (count_ - 1) / count_ : 0;
}

/* ------------------------------------------------------------------------------------ latency */

bool BaseLatency::note(PaceTime now, double value, bool alone) {
    const bool again = value <= value_ * kSeenAgain + kSeenAgainNs;
    const bool forgotten = alone && now - std::min(now, seen_) > kLatencySpan;
    const bool less = value < value_ / kSeenAgain - kSeenAgainNs;
    const bool news = !known_ || less || (!again && forgotten);
    if (news) {
        known_ = true;
        value_ = value;
    }
    if (news || again) {
        value_ = std::min(value_, value);
        seen_ = now;
    }
    return news;
}

/* Of exponential times the least of n is 1/n of the mean: that part is missing. */
void BaseLatency::note_spread(double least, double mean, uint32_t count) {
    spreads_[spread_count_ % spreads_.size()] = (mean - least) * count / (count - 1);
    spread_count_++;
}

double BaseLatency::mean_spread() const {
    const size_t count = std::min(spread_count_, kSpreads);
    double sum = 0;
    for (size_t i = 0; i < count; i++) {
        sum += spreads_[i];
    }
    return count == 0 ? 0 : sum / static_cast<double>(count);
}

/* Others may have been in the way of a measurement: the second least of a few is what decides. */
double BaseLatency::spread() const {
    const size_t count = std::min(spread_count_, kSpreads);
    if (count == 0) {
        return 0;
    }
    std::array<double, kSpreads> sorted = spreads_;
    const auto end = sorted.begin() + static_cast<std::ptrdiff_t>(count);
    /* No std::sort: g++ 12 sees it pass the end of so short an array when sanitizers are on. */
    std::partial_sort(sorted.begin(), sorted.begin() + static_cast<std::ptrdiff_t>(count / 3 + 1),
                      end);
    return sorted[count / 3] > kLittleSpread * value_ + kLittleSpreadNs ? mean_spread() : 0;
}

/* ------------------------------------------------------------------------------------ limits */

void RateLimit::set(double rate, double least_burst) {
    const bool first = rate_ == 0;
    rate_ = rate;
    burst_ = std::max(least_burst, rate * kBurstNs);
    tokens_ = first ? burst_ : std::min(tokens_, burst_);
}

void RateLimit::refill(PaceTime now) {
    if (now > filled_at_) {
        tokens_ = std::min(burst_, tokens_ + rate_ * static_cast<double>(now - filled_at_));
        filled_at_ = now;
    }
}

double RateLimit::tokens(PaceTime now) {
    refill(now);
    return tokens_;
}

PaceTime RateLimit::ready_at(PaceTime now, double bytes) {
    refill(now);
    const double missing = std::min(bytes, burst_) - tokens_;
    if (missing <= 0) {
        return now;
    }
    /* One more, lest the time be rounded to one where a fraction is missing. */
    return pace_after(now, pace_whole(missing / rate_) + 1);
}

void RateLimit::take(PaceTime now, double bytes) {
    refill(now);
    tokens_ -= bytes;
}

/* ------------------------------------------------------------------------------------ errors */

void Backoff::set(PaceTime now, PaceTime shortest, PaceTime longest) {
    shortest_ = shortest;
    longest_ = longest;
    until_ = std::min(until_, pace_after(now, longest));
}

void Backoff::failed(PaceTime now, PaceTime issued, PaceRandom& random) {
    if (active() && issued < failed_at_) {
        return;
    }
    const double doubled = static_cast<double>(shortest_) *
                           static_cast<double>(uint64_t{1} << std::min(failures_, kMaxDoublings));
    const double nominal = std::min(doubled, static_cast<double>(longest_));
    const double pause = nominal * (1 + random.fraction()) / 2;
    failures_++;
    failed_at_ = now;
    until_ = pace_after(now, static_cast<PaceTime>(pause) + 1);
}

void Backoff::succeeded(PaceTime issued) {
    /* What was on its way when the error came says nothing of the time after it. */
    if (issued >= failed_at_) {
        failures_ = 0;
        until_ = 0;
    }
}

/* ------------------------------------------------------------------------------------ contention
 */

void ThroughputGuard::set(double minimum, PaceTime measure_time) {
    minimum_ = minimum;
    measure_time_ = measure_time;
}

void ThroughputGuard::restart(bool and_history) {
    bytes_ = 0;
    span_ = 0;
    average_ = and_history ? 0 : average_;
}

bool ThroughputGuard::note(double bytes, PaceTime span, PaceRandom& random) {
    bytes_ += bytes;
    span_ += span;
    if (span_ <= measure_time_) {
        return false;
    }
    const double measured = bytes_ / static_cast<double>(span_);
    average_ = average_ == 0 ? measured : kHistory * average_ + (1 - kHistory) * measured;
    best_ = std::max(best_ * kFade, average_);
    restart(false);
    if (average_ >= std::min(minimum_, best_ / 2)) {
        return false;
    }
    restart(true);
    return random.fraction() < 0.5;
}

}  // namespace fvd
