/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "fvd/engine/pace_guest.h"

#include <gtest/gtest.h>

#include <vector>

namespace fvd {
namespace {

constexpr PaceTime kMs = kPaceMs;
constexpr PaceTime kSecond = kPaceSecond;

/* ------------------------------------------------------------------------ reads */

/** @p count reads, one after the other; returns the end of the last. */
PaceTime read_in_turn(GuestReads& guest, PaceTime now, int count, PaceTime takes, PaceTime thinks) {
    for (int i = 0; i < count; i++) {
        const size_t slot = guest.begun(now, takes);
        guest.ended(now + takes, slot);
        now += takes + thinks;
    }
    return now - thinks;
}

TEST(GuestReads, TheNextComesWhenTheFirstOfThemEnds) {
    GuestReads guest;
    const PaceTime now = read_in_turn(guest, kSecond, 10, 2 * kMs, kMs / 10) + kMs;
    EXPECT_EQ(guest.next(now), now); /* none is in flight */
    const size_t slot = guest.begun(now, 3 * kMs);
    EXPECT_EQ(guest.next(now + kMs), now + 3 * kMs);
    EXPECT_EQ(guest.next(now + 4 * kMs), now + 4 * kMs); /* it is late, and may end now */
    guest.ended(now + 4 * kMs, slot);
    EXPECT_EQ(guest.next(now + 4 * kMs), now + 4 * kMs);
}

TEST(GuestReads, WhoHadMoreInFlightMaySendAtAnyTime) {
    GuestReads guest;
    const size_t first = guest.begun(kSecond, 5 * kMs);
    const size_t second = guest.begun(kSecond, 2 * kMs);
    EXPECT_EQ(guest.next(kSecond), kSecond + 2 * kMs);
    guest.ended(kSecond + kMs, second);
    EXPECT_EQ(guest.next(kSecond + kMs), kSecond + kMs);
    EXPECT_EQ(guest.depth(), 2);
    guest.forget_depth();
    guest.ended(kSecond + 2 * kMs, first);
    (void)guest.begun(kSecond + 3 * kMs, 2 * kMs);
    EXPECT_EQ(guest.next(kSecond + 3 * kMs), kSecond + 5 * kMs);
}

TEST(GuestReads, OfMoreThanThereAreSlotsForNothingIsForetold) {
    GuestReads guest;
    std::vector<size_t> slots;
    for (size_t i = 0; i < GuestReads::kSlots + 3; i++) {
        slots.push_back(guest.begun(kSecond, kMs));
    }
    EXPECT_EQ(slots.back(), GuestReads::kSlots);
    EXPECT_EQ(guest.next(kSecond), kSecond);
    for (const size_t slot : slots) {
        guest.ended(kSecond + kMs, slot);
    }
    EXPECT_EQ(guest.count(), 0U);
}

TEST(GuestReads, WhoReadsOneByOneIsBackInAMoment) {
    GuestReads guest;
    PaceTime until = 0;
    EXPECT_FALSE(guest.thinks(kSecond, 1e6, &until));
    const PaceTime end = read_in_turn(guest, kSecond, 50, 2 * kMs, kMs / 10);
    EXPECT_TRUE(guest.thinks(end + kMs / 20, 1e6, &until));
    EXPECT_NEAR(pace_ns(until), pace_ns(end + kMs / 4), 1e3); /* twice as long, and 50 us */
    EXPECT_FALSE(guest.thinks(until, 1e6, &until));
    EXPECT_FALSE(guest.thinks(end, 5e4, &until)); /* who thinks for so long is not waited for */
}

TEST(GuestReads, WhoReadsSeldomIsActiveForLonger) {
    constexpr PaceTime kIdle = 250 * kMs;
    GuestReads often;
    EXPECT_FALSE(often.active(0, kIdle));
    PaceTime end = read_in_turn(often, kSecond, 20, kMs, kMs);
    EXPECT_TRUE(often.active(end + kIdle - 1, kIdle));
    EXPECT_FALSE(often.active(end + kIdle, kIdle));
    GuestReads seldom;
    end = read_in_turn(seldom, kSecond, 20, kMs, 99 * kMs);
    EXPECT_TRUE(seldom.active(end + 399 * kMs, kIdle));
    EXPECT_FALSE(seldom.active(end + 401 * kMs, kIdle));
    (void)seldom.begun(end + kSecond, kMs);
    EXPECT_TRUE(seldom.active(end + 100 * kSecond, kIdle)); /* one is in flight */
}

/* ------------------------------------------------------------------------ comparison */

constexpr double kLatency = 2e6;
constexpr double kTolerated = 0.03;

/** A guest whose reads take @p alone in gaps and @p beside else, one of them a little more, the
 *  next a little less. */
struct Guest {
    double alone;
    double beside;
    double uneven = 0.001; /* of the time */
    GuestComparison comparison{};
    PaceTime now = kSecond;
    bool in_gap = false;
    int gaps = 0;
    int reads_alone = 0;

    void read(int count) {
        for (int i = 0; i < count; i++) {
            const bool was_in_gap = in_gap;
            in_gap = comparison.in_gap(now, kLatency);
            gaps += in_gap && !was_in_gap ? 1 : 0;
            reads_alone += in_gap ? 1 : 0;
            const double took = (in_gap ? alone : beside) * (1 + (i % 2 == 0 ? uneven : -uneven));
            comparison.begun();
            now += pace_whole(took);
            comparison.note(took, in_gap, kTolerated);
        }
    }
};

TEST(GuestComparison, WhatTheGuestDoesNotNoticeMayGrow) {
    Guest guest{2e6, 2.05e6}; /* 2.5 % more are tolerated */
    EXPECT_EQ(guest.comparison.share(), kPaceFirstShare);
    guest.read(1000);
    EXPECT_EQ(guest.comparison.share(), kPaceMostShare);
}

TEST(GuestComparison, WhatHarmsItShrinksButNotToNothing) {
    Guest guest{2e6, 2.08e6};
    guest.read(300);
    EXPECT_LT(guest.comparison.share(), 0.8);
    guest.read(5000);
    EXPECT_EQ(guest.comparison.share(), kPaceLeastShare);
    guest.beside = 2e6; /* what harmed it is over */
    guest.read(5000);
    EXPECT_EQ(guest.comparison.share(), kPaceMostShare);
}

TEST(GuestComparison, ADifferenceThatChanceMakesCountsNotAtAll) {
    Guest guest{2e6, 2.08e6, 0.5};
    guest.read(300);
    EXPECT_GE(guest.comparison.share(), kPaceFirstShare);
}

TEST(GuestComparison, GapsAreFewWhereReadsAreAllAlike) {
    Guest even{2e6, 2e6};
    even.read(1000); /* a gap costs four reads until eight are known, and then one */
    const int early = even.gaps;
    even.read(2000);
    EXPECT_NEAR(even.gaps - early, 20, 1);
    EXPECT_EQ(even.reads_alone, 8 + (even.gaps - 2));
    Guest uneven{2e6, 2e6, 0.5};
    uneven.read(3000);
    EXPECT_NEAR(uneven.gaps, 3000 / 44, 5);
    EXPECT_NEAR(uneven.reads_alone, 4 * uneven.gaps, 4);
}

TEST(GuestComparison, AGapEndsAlsoWithoutAnyRead) {
    GuestComparison comparison;
    for (int i = 0; i < 40; i++) {
        EXPECT_FALSE(comparison.in_gap(kSecond, kLatency));
        comparison.begun();
    }
    EXPECT_TRUE(comparison.in_gap(kSecond, kLatency));
    EXPECT_EQ(comparison.gap_until(), kSecond + 100 * kMs);
    EXPECT_TRUE(comparison.in_gap(kSecond + 100 * kMs - 1, kLatency));
    EXPECT_FALSE(comparison.in_gap(kSecond + 100 * kMs, kLatency));
    for (int i = 0; i < 40; i++) {
        comparison.begun();
    }
    EXPECT_TRUE(comparison.in_gap(2 * kSecond, 50e6)); /* far: eight round trips */
    EXPECT_EQ(comparison.gap_until(), 2 * kSecond + 400 * kMs);
    comparison.restart();
    EXPECT_FALSE(comparison.in_gap(2 * kSecond, 50e6));
}

}  // namespace
}  // namespace fvd
