/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once
/*
 * The small measuring and limiting parts that a pace is made of. None has a clock: times are
 * nanoseconds of one monotonic clock and are handed in; rates are bytes a nanosecond (GB/s).
 */

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

namespace fvd {

using PaceTime = uint64_t;

inline constexpr PaceTime kPaceNever = UINT64_MAX;
inline constexpr PaceTime kPaceMs = 1'000'000;
inline constexpr PaceTime kPaceSecond = 1000 * kPaceMs;

constexpr double rate_of_kib(int64_t kib_a_second) {
    return static_cast<double>(kib_a_second) * 1024 / static_cast<double>(kPaceSecond);
}

/** @p from + @p span, where kPaceNever stays never. */
constexpr PaceTime pace_after(PaceTime from, PaceTime span) {
    return span > kPaceNever - from ? kPaceNever : from + span;
}

constexpr PaceTime pace_ms(int64_t ms) {
    return static_cast<PaceTime>(ms) * kPaceMs;
}

constexpr double pace_ns(PaceTime time) {
    return static_cast<double>(time);
}

/** At least 0. */
constexpr PaceTime pace_whole(double ns) {
    return ns <= 0 ? 0 : static_cast<PaceTime>(std::min(ns, 4e18)); /* 126 years */
}

/* Parts of the base's rate that guest and prefetch together take. */
inline constexpr double kPaceFirstShare = 0.9;
inline constexpr double kPaceLeastShare = 1.0 / 32;
inline constexpr double kPaceMostShare = 0.95;

/** Random numbers from a seed (splitmix64): the same seed, the same decisions. */
class PaceRandom {
  public:
    explicit PaceRandom(uint64_t seed) : state_(seed) {}
    uint64_t next();
    /** 0 <= result < 1. */
    double fraction();

  private:
    uint64_t state_;
};

/** The largest of the last one to two spans. */
class RecentMax {
  public:
    void note(PaceTime now, PaceTime span, double value) {
        if (!known_) {
            known_ = true;
            since_ = now;
            current_ = previous_ = value;
        }
        if (now - since_ > span) {
            previous_ = now - since_ > 2 * span ? value : current_;
            current_ = value;
            since_ = now;
        }
        current_ = std::max(value, current_);
    }
    bool known() const { return known_; }
    /** 0 where nothing is known. */
    double value() const { return known_ ? std::max(current_, previous_) : 0; }
    void forget() { known_ = false; }

  private:
    bool known_ = false;
    PaceTime since_ = 0;
    double current_ = 0;
    double previous_ = 0;
};

/**
 * The latency of the unloaded base. Load only ever adds to it, so the least that was seen is what
 * counts. A longer one is believed only when the old one was not seen again for long, and when
 * nothing else of ours was in flight: the way to the base has changed, or others fill it for good.
 */
class BaseLatency {
  public:
    bool known() const { return known_; }
    double value() const { return value_; }
    /** By how much a request takes longer than that on average, as measured of late. */
    double mean_spread() const;
    /** The same, but 0 where it is little or may come from others. */
    double spread() const;
    /** True when @p value is news: the first, clearly less than the known one, or believed. */
    bool note(PaceTime now, double value, bool alone);
    /** Requests of one moment, which met the same queue, took @p least to @p mean. */
    void note_spread(double least, double mean, uint32_t count);

  private:
    static constexpr size_t kSpreads = 4;

    bool known_ = false;
    double value_ = 0;
    /* The last few measurements. Others who measure at the same time can only add to them. */
    std::array<double, kSpreads> spreads_{};
    size_t spread_count_ = 0;
    PaceTime seen_ = 0;
};

/**
 * What the base gives (bytes/ns): the best that was seen lately. Whole rounds of requests tell it,
 * and trains (small requests sent at once, the distance of whose answers tells) where little is
 * asked for. A bucket of tokens on the way lets a train pass faster than it lets others: what turns
 * out to be too much is refuted, and from then on trains are believed a little at a time.
 */
class BaseRate {
  public:
    /** 0: nothing is known. */
    double value() const;
    /** @p below: it counts even if it is less than what was seen. */
    void note(double rate, bool below);
    /** @p used: as much as was known has been asked for, and came without a queue. */
    void note_train(double rate, bool used);
    /** In a round beside the guest requests waited, or did not. True when it refutes what was
     *  known. */
    bool note_round(double rate, bool queue);
    bool doubted() const { return doubted_; }
    /** From the train that begins now to the next. */
    PaceTime next_train();
    /** From what refuted the last one to the next. */
    PaceTime train_span() const;

  private:
    static constexpr size_t kKept = 8;

    std::array<double, kKept> seen_{};
    size_t next_ = 0;
    uint32_t trains_ = 0;
    double queued_rate_ = 0;   /* that came in the last round, where requests waited in it */
    bool doubted_ = false;     /* once refuted */
    bool refuted_ = false;     /* what the last train told */
    uint32_t refutations_ = 0; /* of trains in a row */
};

/** Count, mean and variance of samples (Welford). */
class Samples {
  public:
    void note(double value);
    /** Keep the mean, halve its weight: newer samples count for more. */
    void halve();
    void clear() { *this = Samples(); }
    double count() const { return count_; }
    double mean() const { return mean_; }
    /** Of the mean. */
    double squared_error() const;

  private:
    double count_ = 0;
    double mean_ = 0;
    double squares_ = 0;
};

/**
 * Token bucket. What is taken in any span is at most rate x span + burst(), and a request smaller
 * than burst() is taken at once or not at all.
 */
class RateLimit {
  public:
    void set(double rate, double least_burst);
    double burst() const { return burst_; }
    /** When @p bytes may be taken; @p now: at once. More than burst() counts as burst(). */
    PaceTime ready_at(PaceTime now, double bytes);
    /** Tokens there are now. */
    double tokens(PaceTime now);
    void take(PaceTime now, double bytes);

  private:
    void refill(PaceTime now);

    double rate_ = 0;
    double burst_ = 0;
    double tokens_ = 0;
    PaceTime filled_at_ = 0;
};

/** Pauses after errors: each up to twice as long as the one before; a random part of the second
 *  half is left out, so that machines that failed together do not come back together. */
class Backoff {
  public:
    /** A pause under way becomes no longer than @p longest. */
    void set(PaceTime now, PaceTime shortest, PaceTime longest);
    /** A request that was issued at @p issued failed at @p now. Requests that were in flight
     *  together fail together: they count once. */
    void failed(PaceTime now, PaceTime issued, PaceRandom& random);
    void succeeded(PaceTime issued);
    bool active() const { return failures_ != 0; }
    PaceTime until() const { return until_; }
    uint32_t failures() const { return failures_; }

  private:
    PaceTime shortest_ = 0;
    PaceTime longest_ = 0;
    PaceTime failed_at_ = 0;
    PaceTime until_ = 0;
    uint32_t failures_ = 0;
};

/**
 * The contention check of 2011: throughput is measured over windows and smoothed with history; when
 * it is below the minimum, a coin decides between a pause and going on with a clean slate, so that
 * contending machines do not all stop together.
 *
 * New is that a minimum above half of what was seen to be possible counts as that half: a base that
 * is merely slow is no contention.
 */
class ThroughputGuard {
  public:
    void set(double minimum, PaceTime measure_time);
    /** @p bytes in @p span of undisturbed work. True: pause now. */
    bool note(double bytes, PaceTime span, PaceRandom& random);
    /** Forget the unfinished window; @p and_history: also what came before. */
    void restart(bool and_history);
    PaceTime measure_time() const { return measure_time_; }
    double average() const { return average_; }

  private:
    double minimum_ = 0;
    PaceTime measure_time_ = 0;
    double bytes_ = 0;
    PaceTime span_ = 0;
    double average_ = 0; /* 0: not known */
    double best_ = 0;
};

}  // namespace fvd
