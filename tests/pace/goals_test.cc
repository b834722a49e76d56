/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the pace of prefetch has to reach, on the simulated link. */
#include <gtest/gtest.h>

#include "scenarios.h"

namespace fvd::pace {
namespace {

constexpr GuestLoad kBusyGuest{.size = 16384, .think = 150 * kUs};

TEST(FillsThePipe, WithinATenthOfSixteenLargeRequestsAtAnyRoundTrip) {
    for (const PaceTime round_trip : kRoundTrips) {
        SCOPED_TRACE(round_trip / kMs);
        const LinkShape link{.rate = kFastLink, .round_trip = round_trip};
        const uint64_t bytes = uint64_t{2} << 30;
        EXPECT_GE(fill_rate(Contender::paced, link, bytes),
                  0.9 * fill_rate(Contender::convert, link, bytes));
    }
}

TEST(FillsThePipe, NinetyMiBASecondAtFiftyMilliseconds) {
    const LinkShape link{.rate = kFastLink, .round_trip = 50 * kMs};
    EXPECT_GE(fill_rate(Contender::paced, link, uint64_t{1} << 30), 90);
    /* The model is right: this is what was measured of block-stream. */
    EXPECT_NEAR(fill_rate(Contender::stream, link, uint64_t{1} << 28), 9.1, 0.3);
}

TEST(FillsThePipe, AlsoWhereTheBaseTakesDifferentTimes) {
    for (const PaceTime mean : {kMs / 2, 5 * kMs, 20 * kMs}) {
        for (const PaceTime round_trip : kRoundTrips) {
            SCOPED_TRACE(round_trip / kMs);
            const LinkShape link{.rate = kFastLink, .round_trip = round_trip, .base_time = mean};
            EXPECT_GE(fill_rate(Contender::paced, link, uint64_t{1} << 30),
                      0.5 * fill_rate(Contender::convert, link, uint64_t{1} << 30));
        }
    }
}

/* Both the machine's program and the base's server stand still for 15 ms, seven times a second. */
TEST(FillsThePipe, AlsoWhereProgramsHang) {
    for (const PaceTime round_trip : kRoundTrips) {
        SCOPED_TRACE(round_trip / kMs);
        const LinkShape link{.rate = kFastLink, .round_trip = round_trip, .hangs = kBusyMachine};
        const uint64_t bytes = uint64_t{1} << 30;
        const double convert = mean_fill_rate(Contender::convert, link, bytes, kBusyMachine);
        ASSERT_GT(convert, 100);
        EXPECT_GE(mean_fill_rate(Contender::paced, link, bytes, kBusyMachine), 0.78 * convert);
    }
}

TEST(GivesWay, AGuestThatReadsOneByOneDoesNotNotice) {
    const GuestLoad load;
    const BesideGuest alone = beside_guest(std::nullopt, kNear, load);
    const BesideGuest both = beside_guest(Contender::paced, kNear, load);
    EXPECT_GE(both.guest_rate, 0.95 * alone.guest_rate);
    EXPECT_LE(static_cast<double>(both.p99), 1.15 * static_cast<double>(alone.p99));
    const double left = kSlowLink * 1e9 - alone.guest_rate * static_cast<double>(load.size);
    EXPECT_GE(both.prefetch_rate, 0.8 * left);
}

/* Also where its reads take a part of the link that counts, the base is a little uneven as real
 * ones are, and where a bucket of tokens on the way lets requests pass too fast that are sent at
 * once. */
TEST(GivesWay, AndUsesTheRestAlsoWhenTheGuestWasThereFirst) {
    for (const GuestLoad& load : {GuestLoad{}, GuestLoad{.size = 16384, .think = 150 * kUs},
                                  GuestLoad{.size = 65536, .think = 150 * kUs}}) {
        for (const LinkShape& link : {kNear, kNearUneven, kNearBucket}) {
            SCOPED_TRACE(testing::Message() << load.size << ", base " << link.base_time / kUs
                                            << " us, bucket " << link.burst / kUs << " us");
            const Manners manners = mean_manners(link, load, 4 * kSecond);
            EXPECT_GE(manners.kept, 0.95);
            EXPECT_LE(manners.longer, 1.15);
            EXPECT_TRUE(manners.little_left || manners.used >= 0.8) << manners.used;
            EXPECT_EQ(manners.little_left, load.size == 65536 && link.burst != 0);
        }
    }
}

TEST(GivesWay, OtherGuestsKeepTheirThroughputToo) {
    for (const PaceTime round_trip : kRoundTrips) {
        for (const GuestLoad& load :
             {GuestLoad{}, GuestLoad{.depth = 4}, GuestLoad{.open_rate = 50},
              GuestLoad{.size = 256 * 1024}, GuestLoad{.think = 5 * kMs}}) {
            SCOPED_TRACE(testing::Message()
                         << round_trip / kMs << " ms, depth " << load.depth << ", open "
                         << load.open_rate << ", size " << load.size);
            const LinkShape link{.rate = kSlowLink, .round_trip = round_trip};
            const BesideGuest alone = beside_guest(std::nullopt, link, load);
            const BesideGuest both = beside_guest(Contender::paced, link, load);
            EXPECT_GE(both.guest_rate, 0.95 * alone.guest_rate);
        }
    }
}

TEST(GivesWay, AlsoWhereTheBaseTakesDifferentTimes) {
    for (const PaceTime round_trip : {2 * kMs, 10 * kMs, 50 * kMs}) {
        SCOPED_TRACE(round_trip / kMs);
        const Manners manners = mean_manners(
            {.rate = kSlowLink, .round_trip = round_trip, .base_time = kMs / 2}, GuestLoad{});
        EXPECT_GE(manners.kept, 0.95);
        EXPECT_LE(manners.longer, 1.15);
        EXPECT_GE(manners.used, 0.4);
    }
}

/* What prefetch does not get then says nothing about the base. */
TEST(GivesWay, AndUsesAllThatALimitAllows) {
    for (const int64_t kib : {128, 512, 1024, 4096}) {
        for (const PaceTime starts : {PaceTime{0}, 4 * kSecond}) {
            SCOPED_TRACE(testing::Message() << kib << " KiB/s, from " << starts / kSecond << " s");
            const BesideGuest alone = beside_guest(std::nullopt, kNearUneven, kBusyGuest);
            MachineShape limited{.starts = starts};
            limited.parameters.max_read_throughput = kib;
            const BesideGuest both = beside_guest(limited, kNearUneven, kBusyGuest);
            EXPECT_GE(both.guest_rate, 0.95 * alone.guest_rate);
            EXPECT_GE(both.prefetch_rate, 0.98 * 1024 * static_cast<double>(kib));
        }
    }
}

TEST(GivesWay, AndGoesOnWithFewRequestsInFlight) {
    for (const int64_t slots : {1, 2, 4}) {
        for (const PaceTime starts : {PaceTime{0}, 4 * kSecond}) {
            SCOPED_TRACE(testing::Message()
                         << slots << " slots, from " << starts / kSecond << " s");
            const BesideGuest alone = beside_guest(std::nullopt, kNearUneven, kBusyGuest);
            MachineShape few{.starts = starts};
            few.parameters.slots = slots;
            const BesideGuest both = beside_guest(few, kNearUneven, kBusyGuest);
            EXPECT_GE(both.guest_rate, 0.95 * alone.guest_rate);
            EXPECT_GE(both.prefetch_rate, slots == 1 ? 100e3 : 5e6);
        }
    }
}

/* They do not fit between two reads of a guest that always reads. */
TEST(GivesWay, AndGoesOnWithLargeBlocks) {
    for (const uint64_t granule : {64 * 1024, 256 * 1024}) {
        SCOPED_TRACE(granule);
        const BesideGuest alone = beside_guest(std::nullopt, kNear, kBusyGuest);
        const BesideGuest both = beside_guest({.granule = granule}, kNear, kBusyGuest);
        EXPECT_GE(both.guest_rate, 0.95 * alone.guest_rate);
        EXPECT_LE(both.p99, alone.p99 * 115 / 100);
        EXPECT_GE(both.prefetch_rate, 50e3);
    }
}

TEST(GivesWay, FullSpeedWithinASecondAfterTheGuestGoesIdle) {
    for (const PaceTime round_trip : {PaceTime{0}, 2 * kMs, 10 * kMs, 50 * kMs}) {
        SCOPED_TRACE(round_trip / kMs);
        EXPECT_LE(recovery_time({.rate = kSlowLink, .round_trip = round_trip}), kSecond);
    }
}

TEST(GivesWay, SoonFastAgainAfterALongTimeBesideTheGuest) {
    for (const PaceTime round_trip : {2 * kMs, 10 * kMs, 50 * kMs}) {
        SCOPED_TRACE(round_trip / kMs);
        EXPECT_LE(recovery_time({.rate = 0.125, .round_trip = round_trip}, 0, 30 * kSecond),
                  2 * kSecond);
    }
}

TEST(KeepsLimits, InAnySpan) {
    for (const int64_t kib : {512, 5120, 51200}) {
        SCOPED_TRACE(kib);
        /* A burst of 20 ms or 32 KiB, and what comes late: requests of several bursts may end
         * together when the base answers unevenly, here within some 10 ms. */
        const double in_20_ms = static_cast<double>(kib) * 1024 * 0.02;
        EXPECT_LE(worst_excess(kib), std::max(in_20_ms, 32.0 * 1024) + in_20_ms + 4096);
    }
}

TEST(Survives, AnyFailureAndGoesOn) {
    for (const PaceTime span : {kSecond, 10 * kSecond, 60 * kSecond, 600 * kSecond}) {
        SCOPED_TRACE(span / kSecond);
        const PaceTime until = 5 * kSecond + span;
        /* Pauses double up to a minute, so at most as long as the failure took, or that minute. */
        EXPECT_LE(first_bytes_after_failure(until) - until, std::min(60 * kSecond, span + kSecond));
    }
}

TEST(Shares, NoCollapseAndNoneStarves) {
    for (const PaceTime round_trip : {PaceTime{0}, 2 * kMs, 10 * kMs, 50 * kMs}) {
        for (const size_t count : {2U, 4U, 8U, 16U}) {
            SCOPED_TRACE(testing::Message() << round_trip / kMs << " ms, " << count);
            const LinkShape link{.rate = kSlowLink, .round_trip = round_trip};
            const Sharing sharing = share_link(count, link, Contender::paced, false);
            EXPECT_GE(sharing.total, 0.95);
            EXPECT_LE(sharing.queue, 20);
            if (count <= 4) {
                EXPECT_GE(sharing.jain, 0.9);
            }
        }
    }
}

}  // namespace
}  // namespace fvd::pace
