/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "fvd/engine/prefetch_pace.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <optional>
#include <string>
#include <vector>

#include "fvd/format/limits.h"

namespace fvd::testing {
namespace {

constexpr uint64_t kGranule = 4096;
constexpr PaceTime kMs = kPaceMs;
constexpr PaceTime kSecond = kPaceSecond;

PaceParameters at_once() {
    return {.start_delay = 0};
}

/* ------------------------------------------------------------------------ parameters */

TEST(PaceParameters, ZerosAreStandardValues) {
    const PaceParameters all = resolved({});
    for (const PaceParameter& parameter : pace_parameter_table()) {
        SCOPED_TRACE(parameter.name);
        EXPECT_EQ(all.*parameter.field, parameter.standard);
        EXPECT_LE(parameter.min, parameter.standard);
        EXPECT_LE(parameter.standard, parameter.max);
    }
}

TEST(PaceParameters, WhatIsOutOfRangeIsClamped) {
    for (const PaceParameter& parameter : pace_parameter_table()) {
        SCOPED_TRACE(parameter.name);
        PaceParameters high{.max_in_flight = 1 << 30, .retry_max_time = 3600 * 1000};
        high.*parameter.field = INT64_MAX;
        EXPECT_EQ(resolved(high).*parameter.field, parameter.max);
        PaceParameters low;
        low.*parameter.field = INT64_MIN;
        const int64_t least =
            parameter.field == &PaceParameters::retry_max_time ? 500 : parameter.min;
        EXPECT_EQ(resolved(low).*parameter.field, least);
        PaceParameters edge{.max_in_flight = 1 << 30, .retry_max_time = 3600 * 1000};
        edge.*parameter.field = parameter.max;
        EXPECT_EQ(resolved(edge).*parameter.field, parameter.max);
    }
}

TEST(PaceParameters, TableHasEveryNameOnceAndTheFormatsBounds) {
    std::vector<std::string> names;
    for (const PaceParameter& parameter : pace_parameter_table()) {
        names.emplace_back(parameter.name);
    }
    std::sort(names.begin(), names.end());
    EXPECT_EQ(std::adjacent_find(names.begin(), names.end()), names.end());
    EXPECT_EQ(names.size() * sizeof(int64_t), sizeof(PaceParameters));
}

TEST(PaceParameters, HeaderOfAFreshImageAsksForNoPrefetch) {
    const PaceParameters parameters = resolved(pace_parameters_of(Header{}));
    EXPECT_EQ(parameters.start_delay, -1);
    EXPECT_EQ(parameters.slots, 15);
    EXPECT_EQ(parameters.throttle_time, 30000);
    EXPECT_EQ(parameters.min_read_throughput, 5120);
}

TEST(PaceParameters, EachFieldOfTheHeaderArrives) {
    Header header;
    header.prefetch_start_delay = 7;
    header.num_prefetch_slots = 3;
    header.bytes_per_prefetch = 65536;
    header.prefetch_min_read_throughput = 11;
    header.prefetch_max_read_throughput = 12;
    header.prefetch_min_write_throughput = 13;
    header.prefetch_max_write_throughput = 14;
    header.prefetch_throttle_time = 15;
    header.prefetch_read_throughput_measure_time = 16;
    header.prefetch_write_throughput_measure_time = 17;
    const PaceParameters expected{.start_delay = 7,
                                  .slots = 3,
                                  .bytes_per_prefetch = 65536,
                                  .min_read_throughput = 11,
                                  .max_read_throughput = 12,
                                  .min_write_throughput = 13,
                                  .max_write_throughput = 14,
                                  .throttle_time = 15,
                                  .read_measure_time = 16,
                                  .write_measure_time = 17};
    EXPECT_EQ(pace_parameters_of(header), expected);
}

/* ------------------------------------------------------------------------ parts */

TEST(RateLimit, NoSpanHasMoreThanRateAndBurst) {
    RateLimit limit;
    limit.set(0.005, 4096);
    PaceRandom random(1);
    struct Take {
        PaceTime time;
        double bytes;
    };
    std::vector<Take> takes;
    PaceTime now = 0;
    while (takes.size() < 2000) {
        const double want = 4096.0 * static_cast<double>(1 + random.next() % 40);
        now = std::max(now + random.next() % (2 * kMs), limit.ready_at(now, want));
        const double bytes = std::min(want, limit.burst());
        ASSERT_GE(limit.tokens(now), bytes);
        limit.take(now, bytes);
        takes.push_back({now, bytes});
    }
    for (size_t from = 0; from < takes.size(); from += 7) {
        double sum = 0;
        for (size_t to = from; to < takes.size(); to++) {
            sum += takes[to].bytes;
            const double span = static_cast<double>(takes[to].time - takes[from].time);
            ASSERT_LE(sum, 0.005 * span + limit.burst() + 1);
        }
    }
}

TEST(RateLimit, ATinyRateStillComesToOneGranule) {
    RateLimit limit;
    limit.set(rate_of_kib(1), 2 * 1024 * 1024);
    limit.take(0, 2 * 1024 * 1024);
    const PaceTime ready = limit.ready_at(0, 2 * 1024 * 1024);
    EXPECT_NEAR(static_cast<double>(ready) / static_cast<double>(kSecond), 2048, 1);
    EXPECT_EQ(limit.ready_at(ready, 2 * 1024 * 1024), ready);
}

TEST(Backoff, DoublesToItsLongestAndForgetsAfterSuccess) {
    Backoff backoff;
    backoff.set(0, 100 * kMs, 1000 * kMs);
    PaceRandom random(3);
    PaceTime now = 0;
    PaceTime nominal = 100 * kMs;
    for (int i = 0; i < 100; i++) {
        backoff.failed(now, now, random);
        EXPECT_GE(backoff.until() - now, nominal / 2);
        EXPECT_LE(backoff.until() - now, nominal + 1);
        nominal = std::min(2 * nominal, 1000 * kMs);
        now = backoff.until();
    }
    backoff.succeeded(now);
    EXPECT_FALSE(backoff.active());
}

TEST(Backoff, AShorterLongestShortensThePauseUnderWay) {
    Backoff backoff;
    backoff.set(0, 3600 * kSecond, 3600 * kSecond);
    PaceRandom random(3);
    backoff.failed(0, 0, random);
    EXPECT_GE(backoff.until(), 1800 * kSecond);
    backoff.set(kSecond, 100 * kMs, kSecond);
    EXPECT_EQ(backoff.until(), 2 * kSecond);
}

TEST(Backoff, WhatWasInFlightTogetherFailsOnce) {
    Backoff backoff;
    backoff.set(0, 100 * kMs, 1000 * kMs);
    PaceRandom random(3);
    backoff.failed(10, 1, random);
    const PaceTime until = backoff.until();
    for (PaceTime issued = 2; issued < 10; issued++) {
        backoff.failed(20, issued, random);
    }
    EXPECT_EQ(backoff.failures(), 1U);
    EXPECT_EQ(backoff.until(), until);
    backoff.succeeded(5); /* issued before the failure: says nothing */
    EXPECT_TRUE(backoff.active());
}

TEST(BaseLatency, KeepsTheLeastUntilItWasNotSeenForLong) {
    BaseLatency latency;
    EXPECT_FALSE(latency.known());
    EXPECT_TRUE(latency.note(0, 5e6, false));
    EXPECT_FALSE(latency.note(1, 9e6, true));
    EXPECT_EQ(latency.value(), 5e6);
    EXPECT_TRUE(latency.note(2, 2e6, false));
    EXPECT_EQ(latency.value(), 2e6);
    EXPECT_FALSE(latency.note(20 * kSecond, 2.05e6, false)); /* seen again */
    EXPECT_FALSE(latency.note(45 * kSecond, 50e6, true));
    EXPECT_FALSE(latency.note(51 * kSecond, 50e6, false)); /* long, but not alone */
    EXPECT_TRUE(latency.note(51 * kSecond, 50e6, true));
    EXPECT_EQ(latency.value(), 50e6);
}

TEST(BaseRate, TheBestOfTheLastEightCounts) {
    BaseRate rate;
    EXPECT_EQ(rate.value(), 0);
    rate.note(0.5, false);
    rate.note(0.4, false); /* it is no news that less came where less was asked for */
    EXPECT_EQ(rate.value(), 0.5);
    for (int i = 0; i < 8; i++) {
        EXPECT_EQ(rate.value(), 0.5);
        rate.note(0.4, true);
    }
    EXPECT_EQ(rate.value(), 0.4);
    rate.note_train(0.6, false);
    EXPECT_EQ(rate.value(), 0.6);
}

TEST(BaseRate, WhatABucketLetPassIsRefutedAndThenBelievedALittleAtATime) {
    BaseRate rate;
    rate.note_train(1.0, false);
    EXPECT_FALSE(rate.note_round(0.020, true)); /* a machine that was busy, perhaps */
    EXPECT_FALSE(rate.note_round(0.020, false));
    EXPECT_FALSE(rate.note_round(0.025, true));
    EXPECT_FALSE(rate.doubted());
    EXPECT_TRUE(rate.note_round(0.020, true));
    EXPECT_TRUE(rate.doubted());
    EXPECT_EQ(rate.value(), 0.025);
    rate.note_train(1.0, false); /* what is believed now was not used */
    EXPECT_EQ(rate.value(), 0.025);
    rate.note_train(1.0, true);
    EXPECT_EQ(rate.value(), 0.025 * 1.25);
}

TEST(BaseRate, MoreThanWasKnownRefutesNothing) {
    BaseRate rate;
    rate.note_train(0.020, false);
    EXPECT_FALSE(rate.note_round(0.025, true));
    EXPECT_FALSE(rate.note_round(0.025, true));
    EXPECT_EQ(rate.value(), 0.020);
}

TEST(BaseRate, TrainsThatAreRefutedComeMoreAndMoreSeldom) {
    BaseRate rate;
    for (const PaceTime span : {kSecond / 2, kSecond / 2, kSecond / 2, kSecond / 2, 10 * kSecond}) {
        EXPECT_EQ(rate.next_train(), span);
        rate.note_train(1.0, true);
    }
    for (const PaceTime span : {4U, 8U, 16U, 32U, 60U, 60U}) {
        const double known = rate.value();
        EXPECT_FALSE(rate.note_round(known / 2, true));
        EXPECT_TRUE(rate.note_round(known / 2, true));
        EXPECT_FALSE(rate.note_round(known / 4, true)); /* the queue is still there */
        EXPECT_TRUE(rate.note_round(known / 4, true));
        EXPECT_FALSE(rate.note_round(known / 4, false));
        EXPECT_EQ(rate.train_span(), span * kSecond);
        EXPECT_EQ(rate.next_train(), span * kSecond);
        rate.note_train(1.0, true);
    }
    EXPECT_EQ(rate.next_train(), 4 * kSecond); /* the last one was not refuted */
}

TEST(Samples, MeanAndErrorAreThoseOfTheTextbook) {
    Samples samples;
    for (const double value : {2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0}) {
        samples.note(value);
    }
    EXPECT_DOUBLE_EQ(samples.mean(), 5);
    EXPECT_NEAR(samples.squared_error(), 32.0 / 7 / 8, 1e-12);
}

TEST(ThroughputGuard, PausesAboutEverySecondTimeBelowBothMinima) {
    ThroughputGuard guard;
    guard.set(0.005, 100 * kMs);
    PaceRandom random(7);
    for (int i = 0; i < 50; i++) { /* 50 MB/s were possible */
        EXPECT_FALSE(guard.note(50e6 * 0.11, 110 * kMs, random));
    }
    int pauses = 0;
    guard.restart(true);
    for (int i = 0; i < 400; i++) {
        pauses += guard.note(1e6 * 0.11, 110 * kMs, random) ? 1 : 0;
    }
    EXPECT_GT(pauses, 120);
    EXPECT_LT(pauses, 280);
}

TEST(ThroughputGuard, ASlowBaseIsNoContention) {
    ThroughputGuard guard;
    guard.set(0.005, 100 * kMs);
    PaceRandom random(7);
    for (int i = 0; i < 1000; i++) {
        EXPECT_FALSE(guard.note(1e6 * 0.11, 110 * kMs, random));
    }
}

/* ------------------------------------------------------------------------ decisions */

/** The first few requests, answered after a millisecond, so that the base is known. */
PaceTime get_acquainted(PrefetchPace& pace, PaceTime now, PaceTime takes = kMs) {
    constexpr int kAsked = 4;
    for (int i = 0; i < kAsked; i++) {
        const PaceDecision decision = pace.decide(now);
        EXPECT_EQ(decision.reason, PaceReason::none);
        EXPECT_EQ(decision.bytes, kGranule);
        const PaceTicket ticket = pace.issued(now, decision.bytes);
        EXPECT_TRUE(i == kAsked - 1 || pace.decide(now).reason == PaceReason::pipe_full);
        now += takes;
        pace.fetched(now, ticket, true);
        pace.stored(now, ticket.bytes, true);
    }
    return now;
}

/* All that is issued comes back after a time; nothing else happens. At the end what is in flight
 * comes back at once; @p whole: nothing is issued that would. */
PaceTime run_for(PrefetchPace& pace, PaceTime now, PaceTime span, PaceTime takes,
                 bool whole = false) {
    std::deque<PaceTicket> in_flight;
    const auto take_back = [&] {
        pace.fetched(now, in_flight.front(), true);
        pace.stored(now, in_flight.front().bytes, true);
        in_flight.pop_front();
    };
    const PaceTime end = now + span;
    while (now < end) {
        const PaceDecision decision = pace.decide(now);
        const bool may_issue = decision.reason == PaceReason::none;
        if (may_issue && (!whole || now + takes < end)) {
            in_flight.push_back(pace.issued(now, decision.bytes));
            continue;
        }
        const PaceTime back = in_flight.empty() ? kPaceNever : in_flight.front().issued + takes;
        now = std::max(now, std::min({may_issue ? kPaceNever : decision.until, back, end}));
        if (now == back) {
            take_back();
        }
    }
    while (!in_flight.empty()) {
        take_back();
    }
    return now;
}

TEST(PrefetchPace, EachReasonHoldsAndNamesItsEnd) {
    PrefetchPace off({.start_delay = -1}, kGranule, 1, 0);
    EXPECT_EQ(off.decide(99 * kSecond).reason, PaceReason::off);
    EXPECT_EQ(off.decide(99 * kSecond).until, kPaceNever);

    PrefetchPace delayed({.start_delay = 5}, kGranule, 1, 10 * kSecond);
    PaceDecision decision = delayed.decide(15 * kSecond - 1);
    EXPECT_EQ(decision.reason, PaceReason::start_delay);
    EXPECT_EQ(decision.until, 15 * kSecond);
    EXPECT_EQ(delayed.decide(15 * kSecond).reason, PaceReason::none);

    delayed.pause(16 * kSecond);
    EXPECT_EQ(delayed.decide(17 * kSecond).reason, PaceReason::paused);
    delayed.resume(18 * kSecond);
    EXPECT_EQ(delayed.decide(18 * kSecond).reason, PaceReason::none);
    delayed.finish(18 * kSecond);
    EXPECT_EQ(delayed.decide(19 * kSecond).reason, PaceReason::finished);
}

TEST(PrefetchPace, RateLimitSaysWhen) {
    PaceParameters parameters = at_once();
    parameters.max_read_throughput = 1024;
    PrefetchPace pace(parameters, kGranule, 1, 0);
    /* The burst is a train, eight granules: four are asked for first, then a request of four. */
    const PaceTime now = 0;
    for (int i = 0; i < 5; i++) {
        const PaceTicket ticket = pace.issued(now, pace.decide(now).bytes);
        pace.fetched(now, ticket, true);
        pace.dropped(now, ticket.bytes);
    }
    const PaceDecision held = pace.decide(now);
    EXPECT_EQ(held.reason, PaceReason::rate_limit);
    EXPECT_EQ(pace.decide(held.until - 2).reason, PaceReason::rate_limit);
    const PaceDecision next = pace.decide(held.until);
    EXPECT_EQ(next.reason, PaceReason::none);
    EXPECT_NEAR(static_cast<double>(held.until),
                static_cast<double>(next.bytes) * 1e9 / (1024 * 1024), 1e6);
}

TEST(PrefetchPace, BaseErrorBacksOffAndAsksWithOneSmallRequest) {
    PrefetchPace pace(at_once(), kGranule, 1, 0);
    PaceTime now = get_acquainted(pace, 0);
    std::vector<PaceTicket> tickets;
    for (PaceDecision d = pace.decide(now); d.reason == PaceReason::none; d = pace.decide(now)) {
        tickets.push_back(pace.issued(now, d.bytes));
    }
    ASSERT_GT(tickets.size(), 2U);
    now += kMs;
    for (const PaceTicket& ticket : tickets) {
        pace.fetched(now, ticket, false);
    }
    const PaceDecision held = pace.decide(now);
    EXPECT_EQ(held.reason, PaceReason::base_error);
    EXPECT_LE(held.until, now + 500 * kMs + 1); /* one error, however many requests */
    now = held.until;
    const PaceDecision probe = pace.decide(now);
    EXPECT_EQ(probe.bytes, kGranule);
    const PaceTicket ticket = pace.issued(now, probe.bytes);
    EXPECT_EQ(pace.decide(now).reason, PaceReason::base_error);
    pace.fetched(now + kMs, ticket, true);
    EXPECT_EQ(pace.decide(now + kMs).reason, PaceReason::none);
    EXPECT_EQ(pace.report(now + kMs).base_errors, tickets.size());
}

TEST(PrefetchPace, StoreErrorBacksOffToo) {
    PrefetchPace pace(at_once(), kGranule, 1, 0);
    const PaceTicket ticket = pace.issued(0, pace.decide(0).bytes);
    pace.fetched(kMs, ticket, true);
    pace.stored(2 * kMs, ticket.bytes, false);
    const PaceDecision held = pace.decide(2 * kMs);
    EXPECT_EQ(held.reason, PaceReason::store_error);
    EXPECT_EQ(pace.report(2 * kMs).store_errors, 1U);
    /* One small request until one was stored; then as before. */
    const PaceDecision probe = pace.decide(held.until);
    EXPECT_EQ(probe.bytes, kGranule);
    pace.fetched(held.until, pace.issued(held.until, probe.bytes), true);
    EXPECT_EQ(pace.decide(held.until).reason, PaceReason::store_error);
    pace.stored(held.until + kMs, probe.bytes, true);
    (void)pace.issued(held.until + kMs, pace.decide(held.until + kMs).bytes);
    EXPECT_NE(pace.decide(held.until + kMs).reason, PaceReason::store_error);
}

TEST(PrefetchPace, MemoryIsBoundedWhenStoringStalls) {
    PaceParameters parameters = at_once();
    parameters.max_in_flight = 1024 * 1024;
    PrefetchPace pace(parameters, kGranule, 1, 0);
    PaceTime now = run_for(pace, 0, kSecond, kMs); /* the window is as large as it may be */
    std::deque<PaceTicket> in_flight;
    PaceDecision decision;
    for (int i = 0; i < 10000; i++) {
        decision = pace.decide(now);
        if (decision.reason == PaceReason::none) {
            in_flight.push_back(pace.issued(now, decision.bytes));
        } else if (!in_flight.empty()) {
            now = std::max(now, in_flight.front().issued + kMs);
            pace.fetched(now, in_flight.front(), true);
            in_flight.pop_front();
        } else {
            break;
        }
        const PaceReport report = pace.report(now);
        ASSERT_LE(report.in_flight + report.storing, uint64_t{1024 * 1024});
    }
    EXPECT_EQ(decision.reason, PaceReason::storing);
    EXPECT_GE(pace.report(now).storing, uint64_t{512 * 1024});
    pace.stored(now, pace.report(now).storing, true);
    EXPECT_EQ(pace.decide(now).reason, PaceReason::none);
}

TEST(PrefetchPace, NothingIsSentInFrontOfAGuestThatReadsOneByOne) {
    PrefetchPace pace(at_once(), kGranule, 1, 0);
    PaceTime now = get_acquainted(pace, 0, 2 * kMs);
    PaceGuestTicket guest = pace.guest_begun(now, 4096);
    for (int i = 0; i < 8; i++) { /* think time is learnt */
        now += 2 * kMs;
        pace.guest_ended(now, guest, true);
        EXPECT_EQ(pace.decide(now).reason, PaceReason::guest_active);
        now += 20'000;
        guest = pace.guest_begun(now, 4096);
    }
    /* Behind it, as the model has room, and only until the next one may come. */
    uint64_t sent = 0;
    const PaceTime next = now + 2 * kMs;
    for (PaceDecision d = pace.decide(now); now < next + kMs; d = pace.decide(now)) {
        if (d.reason == PaceReason::none) {
            sent += d.bytes;
            (void)pace.issued(now, d.bytes);
        } else {
            EXPECT_EQ(d.reason, PaceReason::guest_active);
            now = std::min(d.until, next + kMs);
        }
    }
    EXPECT_GE(sent, kGranule);
    EXPECT_LE(sent, 8 * kGranule); /* at once, to learn what the base can give */
}

TEST(PrefetchPace, BelowTheMinimumItPausesForARandomTimeAndGoesOn) {
    PaceParameters parameters = at_once();
    parameters.min_read_throughput = limits::kMaxPrefetchThroughput; /* half of what was possible */
    parameters.throttle_time = 1000;
    PrefetchPace pace(parameters, kGranule, 1, 0);
    PaceTime now = run_for(pace, 0, 10 * kSecond, kMs); /* as fast as memory allows */
    /* The base becomes a hundred times as slow. */
    PaceTime longest = 0;
    for (int i = 0; i < 100; i++) {
        now = run_for(pace, now, kSecond, 100 * kMs);
        const PaceDecision decision = pace.decide(now);
        if (decision.reason == PaceReason::below_minimum) {
            ASSERT_NE(decision.until, kPaceNever);
            longest = std::max(longest, decision.until - now);
            now = decision.until;
            EXPECT_NE(pace.decide(now).reason, PaceReason::below_minimum);
        }
    }
    EXPECT_GT(pace.report(now).holds[static_cast<size_t>(PaceReason::below_minimum)], 0U);
    EXPECT_LE(longest, kSecond + kMs);
}

TEST(PrefetchPace, WhatHarmsTheGuestIsSlowedDownAlsoWhereNoQueueShows) {
    const auto share_after = [](PaceTime beside) {
        PrefetchPace pace(at_once(), kGranule, 1, 0);
        PaceTime now = run_for(pace, 0, kSecond, 2 * kMs, true);
        for (int i = 0; i < 2000; i++) {
            const uint64_t before = pace.report(now).fetched;
            const PaceGuestTicket guest = pace.guest_begun(now, 4096);
            run_for(pace, now, 2 * kMs - 1, kMs, true);
            const bool alone = pace.report(now).fetched == before;
            now += alone ? 2 * kMs : beside;
            pace.guest_ended(now, guest, true);
            now += 20'000;
        }
        return pace.report(now).share;
    };
    EXPECT_GT(share_after(2 * kMs), 0.9);
    EXPECT_LT(share_after(3 * kMs), 0.2);
}

TEST(PrefetchPace, AQuietGuestIsIdleAfterItsTime) {
    PrefetchPace pace(at_once(), kGranule, 1, 0);
    const PaceTime now = get_acquainted(pace, 0);
    const PaceGuestTicket guest = pace.guest_begun(now, 4096);
    pace.guest_ended(now + kMs, guest, true);
    EXPECT_TRUE(pace.report(now + kMs).guest_active);
    (void)pace.decide(now + 251 * kMs - 1);
    EXPECT_TRUE(pace.report(now + 251 * kMs - 1).guest_active);
    (void)pace.decide(now + 251 * kMs);
    EXPECT_FALSE(pace.report(now + 251 * kMs).guest_active);
}

TEST(PrefetchPace, StoringKeepsItsLimit) {
    PaceParameters parameters = at_once();
    parameters.max_write_throughput = 1024;
    PrefetchPace pace(parameters, kGranule, 1, 0);
    EXPECT_EQ(pace.store_from(0, 1024 * 1024), 0U);
    EXPECT_NEAR(static_cast<double>(pace.store_from(0, 4096)), 1e9, 1);
    EXPECT_EQ(pace.store_from(5 * kSecond, 4096), 5 * kSecond);
}

TEST(PrefetchPace, ParametersMayChangeAtAnyTime) {
    PrefetchPace pace({.start_delay = -1}, kGranule, 1, 0);
    EXPECT_EQ(pace.decide(kSecond).reason, PaceReason::off);
    pace.set_parameters({.start_delay = 3}, 2 * kSecond);
    EXPECT_EQ(pace.decide(2 * kSecond).until, 3 * kSecond);
    pace.set_parameters(at_once(), 2 * kSecond);
    EXPECT_EQ(pace.decide(2 * kSecond).reason, PaceReason::none);
}

TEST(PrefetchPace, ATimeThatRunsBackwardsCountsAsTheLatest) {
    PrefetchPace pace({.start_delay = 5}, kGranule, 1, 0);
    EXPECT_EQ(pace.decide(5 * kSecond).reason, PaceReason::none);
    EXPECT_EQ(pace.decide(1).reason, PaceReason::none);
}

TEST(PrefetchPace, ReasonsHaveNames) {
    for (int i = 0; i < static_cast<int>(PaceReason::count); i++) {
        EXPECT_GT(std::string(pace_reason_name(static_cast<PaceReason>(i))).size(), 1U);
    }
    EXPECT_STREQ(pace_reason_name(PaceReason::pipe_full), "pipe-full");
    EXPECT_STREQ(pace_reason_name(PaceReason::below_minimum), "below-minimum");
}

/* ------------------------------------------------------------------------ liveness */

/** Events in any order, with any outcome and at any time; what the unit promises is checked on the
 *  way. */
class AnyEvents {
  public:
    explicit AnyEvents(uint64_t seed) : random_(seed), parameters_(any_parameters()) {
        granule_ = kGranule << below(6);
        pace_.emplace(parameters_, granule_, seed, now_);
    }

    void step() {
        now_ += below(4) == 0 ? 0 : random_.next() % (uint64_t{1} << (8 + below(24)));
        switch (below(12)) {
            case 0:
            case 1:
            case 2:
            case 3:
                ask();
                break;
            case 4:
            case 5:
                answer(below(10) != 0);
                break;
            case 6:
            case 7:
                store(below(20) != 0);
                break;
            case 8:
                guest_.push_back(pace_->guest_begun(now_, uint64_t{512} << below(12)));
                break;
            case 9:
            case 10:
                end_guest(below(10) != 0);
                break;
            default:
                turn_a_knob();
        }
    }

    /** From here on all is well; how long until the next request is issued? */
    PaceTime time_to_issue() {
        pace_->resume(now_);
        while (!guest_.empty()) {
            end_guest(true);
        }
        const PaceTime begin = now_;
        for (int i = 0; i < 10000; i++) {
            const PaceDecision decision = pace_->decide(now_);
            if (decision.reason == PaceReason::none) {
                return now_ - begin;
            }
            if (!tickets_.empty()) {
                now_ += kMs;
                answer(true);
            } else if (!to_store_.empty()) {
                now_ += kMs;
                store(true);
            } else {
                EXPECT_NE(decision.until, kPaceNever) << pace_reason_name(decision.reason);
                EXPECT_GT(decision.until, now_) << pace_reason_name(decision.reason);
                if (decision.until == kPaceNever || decision.until <= now_) {
                    return kPaceNever;
                }
                now_ = decision.until;
            }
        }
        return kPaceNever;
    }

    const PaceParameters& parameters() const { return parameters_; }
    uint64_t granule() const { return granule_; }

  private:
    uint64_t below(uint64_t bound) { return random_.next() % bound; }

    PaceParameters any_parameters() {
        PaceParameters any;
        for (const PaceParameter& parameter : pace_parameter_table()) {
            const auto range = static_cast<uint64_t>(parameter.max - parameter.min) + 1;
            any.*parameter.field =
                below(2) == 0 ? 0 : parameter.min + static_cast<int64_t>(random_.next() % range);
        }
        any.start_delay = static_cast<int64_t>(below(3));
        if (any.max_read_throughput != 0) { /* small limits are the interesting ones */
            any.max_read_throughput = 1 + static_cast<int64_t>(below(100000));
        }
        if (any.max_in_flight != 0) { /* so is little memory */
            any.max_in_flight = 65536 + static_cast<int64_t>(below(1 << 20));
        }
        return resolved(any);
    }

    void ask() {
        const PaceDecision decision = pace_->decide(now_);
        if (decision.reason != PaceReason::none) {
            const bool bound_to_come = !tickets_.empty() || !to_store_.empty();
            const bool by_user = decision.reason == PaceReason::paused;
            ASSERT_TRUE(decision.until != kPaceNever || bound_to_come || by_user)
                << pace_reason_name(decision.reason);
            ASSERT_TRUE(decision.until == kPaceNever || decision.until > now_)
                << pace_reason_name(decision.reason);
            return;
        }
        ASSERT_NE(decision.bytes, 0U);
        ASSERT_EQ(decision.bytes % granule_, 0U);
        const uint64_t most =
            std::max(granule_, static_cast<uint64_t>(parameters_.bytes_per_prefetch));
        ASSERT_LE(decision.bytes, most);
        tickets_.push_back(
            pace_->issued(now_, below(10) == 0 ? 1 + below(decision.bytes) : decision.bytes));
        ASSERT_LE(tickets_.size(), static_cast<size_t>(parameters_.slots));
        const PaceReport report = pace_->report(now_);
        const auto memory = static_cast<uint64_t>(parameters_.max_in_flight);
        ASSERT_LE(report.in_flight + report.storing, std::max(memory, granule_));
    }

    void answer(bool ok) {
        if (tickets_.empty()) {
            return;
        }
        const size_t which = below(tickets_.size());
        const PaceTicket ticket = tickets_[which];
        tickets_.erase(tickets_.begin() + static_cast<std::ptrdiff_t>(which));
        pace_->fetched(now_, ticket, ok);
        if (ok) {
            to_store_.push_back(ticket.bytes);
        }
    }

    void store(bool ok) {
        if (to_store_.empty()) {
            return;
        }
        const uint64_t bytes = to_store_.front();
        to_store_.pop_front();
        if (below(5) == 0) {
            pace_->dropped(now_, bytes);
        } else {
            (void)pace_->store_from(now_, bytes);
            pace_->stored(now_, bytes, ok);
        }
    }

    void end_guest(bool ok) {
        if (!guest_.empty()) {
            pace_->guest_ended(now_, guest_.front(), ok);
            guest_.pop_front();
        }
    }

    void turn_a_knob() {
        switch (below(8)) {
            case 0:
                pace_->pause(now_);
                break;
            case 1:
                pace_->resume(now_);
                break;
            case 2: {
                const PaceParameters old = parameters_;
                parameters_ = any_parameters();
                /* What is in flight already was issued under the old limits. */
                parameters_.slots = std::max(old.slots, parameters_.slots);
                parameters_.max_in_flight = std::max(old.max_in_flight, parameters_.max_in_flight);
                pace_->set_parameters(parameters_, now_);
                break;
            }
            default:
                break;
        }
    }

    PaceRandom random_;
    PaceParameters parameters_;
    uint64_t granule_ = 0;
    std::optional<PrefetchPace> pace_;
    PaceTime now_ = 0;
    std::vector<PaceTicket> tickets_;
    std::deque<uint64_t> to_store_;
    std::deque<PaceGuestTicket> guest_;
};

TEST(PrefetchPace, FromAnyStateItIssuesAgain) {
    for (uint64_t seed = 0; seed < 3000; seed++) {
        SCOPED_TRACE(seed);
        AnyEvents events(seed);
        const uint64_t steps = seed % 300;
        for (uint64_t i = 0; i < steps; i++) {
            events.step();
            ASSERT_FALSE(HasFatalFailure());
        }
        const PaceParameters& parameters = events.parameters();
        /* The longest of what it may wait for on purpose, each at most once. */
        const double rate = rate_of_kib(parameters.max_read_throughput);
        const PaceTime bound =
            static_cast<PaceTime>(static_cast<double>(events.granule()) / rate * 2) +
            static_cast<PaceTime>(parameters.throttle_time + parameters.guest_idle_time +
                                  2 * parameters.retry_max_time) *
                kMs +
            static_cast<PaceTime>(parameters.start_delay) * kSecond + 120 * kSecond;
        ASSERT_LE(events.time_to_issue(), bound);
    }
}

TEST(PrefetchPace, TheSameSeedAndEventsGiveTheSameDecisions) {
    const auto run = [] {
        PrefetchPace pace(at_once(), kGranule, 42, 0);
        std::string log;
        PaceTime now = 0;
        for (int i = 0; i < 200; i++) {
            const PaceDecision decision = pace.decide(now);
            log += std::to_string(decision.bytes) + ":" + std::to_string(decision.until) + " ";
            if (decision.reason == PaceReason::none) {
                pace.fetched(now + kMs, pace.issued(now, decision.bytes), i % 7 != 0);
                pace.dropped(now + kMs, i % 7 != 0 ? decision.bytes : 0);
            }
            now = std::max(now + kMs, decision.until == kPaceNever ? 0 : decision.until);
        }
        return log;
    };
    EXPECT_EQ(run(), run());
}

/* A fast base, and then long breaks because nothing is known to be worth fetching. How often does
 * that pass for contention? */
uint64_t pauses_after_breaks(bool told) {
    PrefetchPace pace({.start_delay = 0}, 16384, 7, 0);
    PaceTime now = 0;
    const auto work = [&](PaceTime until) {
        while (now < until) {
            std::vector<PaceTicket> tickets;
            PaceDecision decision = pace.decide(now);
            for (; decision.reason == PaceReason::none; decision = pace.decide(now)) {
                tickets.push_back(pace.issued(now, decision.bytes));
            }
            now += kPaceMs + (tickets.empty() ? 100 * kPaceMs : 0);
            for (const PaceTicket& ticket : tickets) {
                now += ticket.bytes / 200; /* ns: 200 MB/s */
                pace.fetched(now, ticket, true);
                pace.stored(now, ticket.bytes, true);
            }
        }
    };
    work(5 * kPaceSecond);
    for (int i = 0; i < 300; i++) {
        work(now + 1);
        if (told) {
            pace.idle(now);
        }
        now += 8 * kPaceSecond; /* shorter than from one question about the latency to the next */
    }
    return pace.report(now).holds[static_cast<size_t>(PaceReason::below_minimum)];
}

TEST(PrefetchPace, ABreakIsNoContention) {
    EXPECT_NE(pauses_after_breaks(false), 0u);
    EXPECT_EQ(pauses_after_breaks(true), 0u);
}

/* A base that answers each request after @p takes(ticket). */
class AnsweringBase {
  public:
    explicit AnsweringBase(uint64_t granule = 16384) : pace({.start_delay = 0}, granule, 7, 0) {}

    template <typename Takes>
    void run(PaceTime end, Takes takes) {
        for (; now_ < end; now_ += kPaceMs / 4) {
            std::erase_if(under_way_, [this](const auto& request) {
                const bool back = request.first <= now_;
                if (back) {
                    pace.fetched(now_, request.second, true);
                    pace.stored(now_, request.second.bytes, true);
                }
                return back;
            });
            for (PaceDecision decision = pace.decide(now_); decision.reason == PaceReason::none;
                 decision = pace.decide(now_)) {
                const PaceTicket ticket = pace.issued(now_, decision.bytes);
                under_way_.emplace_back(now_ + takes(ticket), ticket);
            }
        }
    }
    /* Nothing is noticed for a while. */
    void hang(PaceTime span) { now_ += span; }
    uint64_t window() const { return pace.report(now_).window; }

    PrefetchPace pace;

  private:
    PaceTime now_ = 0;
    std::vector<std::pair<PaceTime, PaceTicket>> under_way_;
};

constexpr PaceTime kFar = 50 * kPaceMs;
constexpr uint64_t kMostInFlight = uint64_t{64} << 20; /* the standard */

TEST(PrefetchPace, WhatGoesBehindTheFirstScoutsDoesNotWaitForThem) {
    AnsweringBase base;
    PaceTime first = 0;
    base.run(kPaceSecond, [&](const PaceTicket& ticket) {
        first = first == 0 && !ticket.scout && ticket.train == 0 ? ticket.issued : first;
        return kFar;
    });
    EXPECT_LT(first, 3 * kFar / 2);
}

/* The time at which a base of 50 ms, which gives @p rate bytes/ns, is asked for two fifths of that
 * rate. */
PaceTime fast_at(double rate) {
    AnsweringBase base;
    PaceTime free_at = 0;
    PaceTime now = 0;
    while (static_cast<double>(base.window()) < 0.4 * rate * static_cast<double>(kFar) &&
           now < 10 * kFar) {
        now += kPaceMs;
        base.run(now, [&](const PaceTicket& ticket) {
            free_at = std::max(free_at, ticket.issued + kFar) +
                      static_cast<PaceTime>(static_cast<double>(ticket.bytes) / rate);
            return free_at - ticket.issued;
        });
    }
    return now;
}

TEST(PrefetchPace, ABurstBehindTheFirstScoutsTellsWithHowMuchToBegin) {
    /* A round trip, the burst of 256 KiB, and the scouts in front of it. */
    EXPECT_LT(fast_at(0.1), kFar + 20 * kPaceMs);
}

TEST(PrefetchPace, ASlowBaseIsNotFloodedAtTheStart) {
    AnsweringBase base;
    PaceTime free_at = 0;
    PaceTime longest = 0;
    base.run(2 * kPaceSecond, [&](const PaceTicket& ticket) {
        free_at = std::max(free_at, ticket.issued + kFar) + ticket.bytes * 1000; /* 1 MB/s */
        longest = std::max(longest, free_at - ticket.issued - kFar);
        return free_at - ticket.issued;
    });
    /* The burst, and the scouts in front of it. */
    EXPECT_LT(longest, 350 * kPaceMs);
}

TEST(PrefetchPace, OfAnErrorInTheFirstBurstNothingIsLeft) {
    AnsweringBase base;
    PrefetchPace& pace = base.pace;
    std::vector<PaceTicket> tickets;
    base.run(kFar, [&](const PaceTicket& ticket) {
        tickets.push_back(ticket);
        return kPaceSecond;
    });
    ASSERT_EQ(tickets.size(), 12U);
    EXPECT_EQ(pace.decide(kFar).reason, PaceReason::pipe_full);
    for (const PaceTicket& ticket : tickets) {
        pace.fetched(kFar, ticket, ticket.ask != 0);
        if (ticket.ask != 0) {
            pace.stored(kFar, ticket.bytes, true);
        }
    }
    PaceDecision decision = pace.decide(kFar);
    EXPECT_EQ(decision.reason, PaceReason::base_error);
    const PaceTime now = decision.until;
    decision = pace.decide(now);
    ASSERT_EQ(decision.reason, PaceReason::none);
    const PaceTicket probe = pace.issued(now, decision.bytes);
    pace.fetched(now + kFar, probe, true);
    pace.stored(now + kFar, probe.bytes, true);
    EXPECT_EQ(pace.decide(now + kFar).reason, PaceReason::none);
}

/* Answers that were noticed together, of a burst that the guest came into the way of, are no rate.
 */
TEST(PrefetchPace, ABurstThatWasCutOffSaysNothing) {
    AnsweringBase base;
    const auto takes = [](const PaceTicket&) { return kFar; };
    base.run(kFar / 2, takes);
    const PaceGuestTicket guest = base.pace.guest_begun(kFar / 2, 4096);
    base.hang(kFar);
    base.run(kFar * 7 / 4, takes);
    base.pace.guest_ended(kFar * 7 / 4, guest, true);
    EXPECT_LT(base.pace.report(kFar * 2).base_rate, 100'000'000U);
}

TEST(PrefetchPace, WithLargeBlocksThereIsNoBurst) {
    AnsweringBase base(uint64_t{2} << 20);
    uint64_t bytes = 0;
    base.run(kFar, [&](const PaceTicket& ticket) {
        bytes += ticket.bytes;
        return kFar;
    });
    EXPECT_LE(bytes, uint64_t{10} << 20);
}

/* Where nothing waits, window grows by more than steps: a queue that was none is soon forgotten. */
TEST(PrefetchPace, AWindowThatWasCutForNothingIsSoonBack) {
    AnsweringBase base;
    const auto even = [](const PaceTicket&) { return kFar; };
    base.run(kPaceSecond, even);
    base.run(kPaceSecond + 4 * kFar, [](const PaceTicket&) { return 3 * kFar; });
    const uint64_t cut = base.window();
    EXPECT_LE(cut, kMostInFlight / 2);
    base.run(2 * kPaceSecond, even);
    EXPECT_EQ(base.window(), kMostInFlight);
}

TEST(PrefetchPace, TheQueueThatTheFirstWindowMeetsEndsTheStart) {
    AnsweringBase base;
    int asked = 0;
    const auto takes = [&](const PaceTicket&) { return asked++ < 4 + 8 ? kFar : 2 * kFar; };
    base.run(5 * kFar / 2, takes);
    const uint64_t first = base.window();
    base.run(5 * kFar, takes);
    EXPECT_LT(base.window(), first * 2 / 3);
}

TEST(PrefetchPace, AFirstAnswerThatWasLateMakesNoLargeWindow) {
    AnsweringBase base;
    int asked = 0;
    base.run(209 * kPaceMs, [&](const PaceTicket&) { return (asked++ == 0 ? 200 : 2) * kPaceMs; });
    EXPECT_GT(asked, 4);
    EXPECT_LT(base.window(), uint64_t{1} << 20);
}

TEST(PrefetchPace, WhereSmallRequestsAreRareLargeOnesTellOfTheQueue) {
    AnsweringBase base;
    base.run(kPaceSecond, [](const PaceTicket&) { return kFar; });
    const uint64_t full = base.window();
    EXPECT_EQ(full, kMostInFlight);
    base.run(2 * kPaceSecond,
             [](const PaceTicket& ticket) { return ticket.scout ? kFar : 4 * kFar; });
    EXPECT_LT(base.window(), full * 3 / 4);
}

TEST(PrefetchPace, ALateScoutAmongSeveralIsNoQueue) {
    AnsweringBase base;
    uint32_t scouts = 0;
    uint64_t most = 0;
    for (PaceTime end = kPaceSecond / 10; end < 2 * kPaceSecond; end += kPaceSecond / 10) {
        base.run(end, [&](const PaceTicket& ticket) {
            return kFar + (ticket.scout && ++scouts % 4 == 0 ? 30 * kPaceMs : 0);
        });
        EXPECT_GE(base.window(), most) << end / kPaceMs;
        most = std::max(most, base.window());
    }
}

/* A base of 50 ms that gives whatever is asked for; our own machine hangs for 40 ms at @p hangs.
 * The window after @p end. */
uint64_t window_after_hanging(PaceTime hangs, PaceTime end) {
    const auto takes = [](const PaceTicket&) { return kFar; };
    AnsweringBase base;
    base.run(hangs, takes);
    base.hang(40 * kPaceMs);
    base.run(end, takes);
    return base.window();
}

TEST(PrefetchPace, HangingOnceDoesNotEndTheStart) {
    const PaceTime end = kPaceSecond;
    const uint64_t undisturbed = window_after_hanging(end, end);
    EXPECT_EQ(undisturbed, kMostInFlight);
    for (PaceTime hangs = 150 * kPaceMs; hangs < 350 * kPaceMs; hangs += 10 * kPaceMs) {
        EXPECT_GE(window_after_hanging(hangs, end), undisturbed / 2) << hangs / kPaceMs;
    }
}

}  // namespace
}  // namespace fvd::testing
