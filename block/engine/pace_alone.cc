/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The pace while the guest does not read from the base: a window of bytes in flight, which grows
 * until requests begin to wait for each other, and is cut to what the pipe holds.
 */
#include <algorithm>
#include <cmath>

#include "fvd/engine/prefetch_pace.h"

namespace fvd {

namespace {

constexpr double kMs = pace_ns(kPaceMs);
constexpr double kKiB = 1024;

/* A queue counts as one when it makes requests this much longer: a fifth, and what machines lose
 * to scheduling. */
constexpr double kQueueShare = 0.2;
constexpr double kQueueNs = 1.0 * kMs;
/* From here on (1 Gbit/s) more of it is no queue: so much for each time that rate. */
constexpr double kFastRate = 0.125;
constexpr double kFastQueueNs = 3 * kMs;
constexpr double kMostFastQueueNs = 8 * kMs;
/* After a queue the window is what the pipe holds, and a little for requests that do not fit. */
constexpr double kDrain = 1.1;
constexpr double kLeastCut = 0.5;
constexpr double kSureContent = 0.9;
/* The window at the start: this, and what the base gives in one latency. */
constexpr double kFirstWindow = 64 * kKiB;
constexpr double kFirstLatency = 200 * kMs;
/* From here on requests are spread over the round trip, or over a little less of it. */
constexpr double kSpreadLatency = 1 * kMs;
constexpr double kSpread = 0.9;
/* A start that brings less than this is over after three rounds. */
constexpr double kStartGain = 1.25;
constexpr uint32_t kFlatRounds = 3;
/* The start goes on when these rounds after its end were clear. */
constexpr uint32_t kClearRounds = 2;
constexpr double kResumeLatency = 1 * kMs;
constexpr double kClearShare = 0.5; /* of what counts as a queue */
/* When so many in a row found the pipe empty, the window grows by this each round. */
constexpr uint32_t kEmptyRounds = 4;
constexpr double kEmptyShare = 0.125; /* of what counts as a queue */
constexpr double kEmptyGrowth = 1.5;

/* Growth per round is as if rounds were no longer than this. */
constexpr double kStepLatency = 25 * kMs;
constexpr double kStep = 8 * kKiB;
constexpr double kMostSteps = 4;

/* Requests are a tenth of the window: enough to keep the pipe full, few enough, with the scouts,
 * for NBD. */
constexpr double kRequestsInWindow = 10;
constexpr double kLeastRequest = 16 * kKiB;

}  // namespace

PaceDecision PrefetchPace::fill(PaceTime now) {
    const double usual = request_size();
    const double size = scout_due() ? granule_ : usual;
    if (in_flight_ != 0 && static_cast<double>(in_flight_) + size > window_) {
        round_.window_was_limit = true;
        return hold(PaceReason::pipe_full, kPaceNever);
    }
    if (latency() > kSpreadLatency && in_flight_ != 0 && now < spread_until_) {
        round_.window_was_limit = true;
        return hold(PaceReason::pipe_full, spread_until_);
    }
    return limited(now, size);
}

double PrefetchPace::request_size() const {
    const double most = static_cast<double>(parameters_.bytes_per_prefetch);
    const double least = std::min(kLeastRequest, window_ / 2);
    return whole_granules(std::min(most, std::max(least, window_ / kRequestsInWindow)));
}

/* When the next request may follow, so that what comes back is no burst. */
void PrefetchPace::spread_from(PaceTime now, double bytes) {
    const double spread = latency() * bytes / window_ * (starting_ ? 1 : kSpread);
    const PaceTime next = pace_after(std::max(spread_until_, now), pace_whole(spread));
    spread_until_ = std::min(next, pace_after(now, pace_whole(latency())));
}

/* ---------------------------------------------------------------------------------- the window */

double PrefetchPace::first_window() const {
    const double window = kFirstWindow + first_rate() * std::min(latency(), kFirstLatency);
    const double most = static_cast<double>(parameters_.max_in_flight);
    return std::clamp(window, std::min(2 * granule_, most), most);
}

/* A request that was issued under @p window met a queue: so much of it the pipe holds. Meanwhile
 * the window has grown on. */
void PrefetchPace::end_start(double window, double delay) {
    window_ = std::max(granule_, window * kDrain * latency() / (latency() + delay));
    starting_ = false;
    late_scouts_ = 0;
    guessing_ = false;
    resume_after_ = latency() > kResumeLatency ? kClearRounds : 0;
    begin_round(now_);
}

/* When all was clear after the start's end, what ended it was no queue, and the start goes on. And
 * where nothing waits at all, round after round, the pipe is far from full, whoever else uses it.
 */
void PrefetchPace::regain_window(double delay) {
    if (starting_) {
        return;
    }
    const bool clear = delay < queue_limit() * kClearShare;
    const bool ended_early = clear && resume_after_ == 1;
    resume_after_ = clear ? resume_after_ - std::min(resume_after_, 1U) : 0;
    const bool empty = round_.window_was_limit && delay < queue_limit() * kEmptyShare &&
                       window_ < static_cast<double>(parameters_.max_in_flight);
    empty_rounds_ = empty ? empty_rounds_ + 1 : 0;
    if (ended_early) {
        starting_ = true;
        flat_rounds_ = empty_rounds_ = 0;
        stop_measuring();
    } else if (empty_rounds_ >= kEmptyRounds && latency() > kResumeLatency) {
        window_ *= kEmptyGrowth;
    }
}

void PrefetchPace::adjust_window(double rate, double delay) {
    const bool queue = delay > queue_limit();
    regain_window(delay);
    rates_.note(rate, (round_.window_was_limit || queue) && !round_.held_back);
    guessing_ = false;
    const double most = static_cast<double>(parameters_.max_in_flight);
    if (queue) {
        const double cut = std::max(kLeastCut, kDrain * latency() / (latency() + delay));
        window_ = std::max(window_ * cut, std::min(window_, pipe_content()));
        starting_ = false;
        clear_rounds_ = 0;
    } else if (round_.window_was_limit && starting_) {
        flat_rounds_ = rate < kStartGain * last_rate_ ? flat_rounds_ + 1 : 0;
        starting_ = flat_rounds_ < kFlatRounds;
        last_rate_ = rate;
    } else if (round_.window_was_limit) {
        /* Steps do not grow with the window, so that several machines come to equal shares, but
         * they do with the time for which all was clear; and where rounds are long, each makes up
         * for several. Windows of a few requests take smaller ones: there may be many of them. */
        const double rounds = std::clamp(latency() / kStepLatency, 1.0, kMostSteps);
        const double step = std::min(kStep, std::sqrt(window_ * kLeastRequest) / 4);
        const double speed = 1 + clear_rounds_ / 4.0;
        window_ += std::min(rounds * step * speed * speed, window_ / 4 + kLeastRequest);
        clear_rounds_++;
    }
    window_ = std::clamp(window_, std::min(granule_, most), most);
}

/* Where much is carried, machines take turns that look like a queue; and it is soon over. */
double PrefetchPace::queue_limit() const {
    const double fast = (base_rate() - kFastRate) / kFastRate * kFastQueueNs;
    return kQueueShare * latency() + kQueueNs + latency_.spread() +
           std::clamp(fast, 0.0, kMostFastQueueNs);
}

/* Where latency varies, the pipe holds more than the least latency tells, and what looks like a
 * queue often is none: so much was in flight when the base gave what it last gave. */
double PrefetchPace::pipe_content() const {
    return latency_.spread() == 0 ? 0
                                  : kSureContent * base_rate() * (latency() + latency_.spread());
}

}  // namespace fvd
