/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once
/* The questions of the study, and what a run answers. */

#include <optional>
#include <string>
#include <vector>

#include "machine.h"

namespace fvd::pace {

inline constexpr PaceTime kRoundTrips[] = {0, 2 * kMs, 10 * kMs, 50 * kMs, 200 * kMs};
inline constexpr double kSlowLink = 0.025; /* 200 Mbit/s */
inline constexpr double kFastLink = 0.125; /* 1 Gbit/s */
/* A slow link that is near; with a base as uneven as real ones are; and with a bucket of 64 KiB. */
inline constexpr LinkShape kNear{.rate = kSlowLink, .round_trip = 2 * kMs};
inline constexpr LinkShape kNearUneven{
    .rate = kSlowLink, .round_trip = 2 * kMs, .base_time = 130 * kUs};
inline constexpr LinkShape kNearBucket{
    .rate = kSlowLink, .round_trip = 2 * kMs, .base_time = 130 * kUs, .burst = 2600 * kUs};
inline constexpr Hangs kBusyMachine{.every = 150 * kMs, .length = 15 * kMs};

/** Copy an image of @p bytes with a program that @p hangs; MiB/s, or 0 when ten minutes were not
 *  enough. */
double fill_rate(Contender contender, const LinkShape& link, uint64_t bytes,
                 const Hangs& hangs = {}, uint64_t seed = 1);

/** The mean of six runs. */
double mean_fill_rate(Contender contender, const LinkShape& link, uint64_t bytes,
                      const Hangs& hangs);

struct BesideGuest {
    double guest_rate = 0; /* reads a second */
    PaceTime p99 = 0;
    double prefetch_rate = 0; /* bytes/s */
};
/** A guest that reads from 3 s on, measured from 5 s to 30 s, on @p machine, or on a usual one:
 *  nobody prefetches there where @p contender is not given, else from @p starts on. */
BesideGuest beside_guest(const MachineShape& machine, const LinkShape& link, const GuestLoad& load,
                         uint64_t seed = 1);
BesideGuest beside_guest(std::optional<Contender> contender, const LinkShape& link,
                         const GuestLoad& load, PaceTime starts = 0, uint64_t seed = 1);

struct Manners {
    double kept = 0;          /* part of its throughput that the guest has beside prefetch */
    double longer = 0;        /* its 99th percentile beside prefetch, as a multiple */
    double used = 0;          /* by prefetch, of what the guest leaves */
    bool little_left = false; /* next to nothing, and used says nothing */
};
/** Means of six runs. */
Manners mean_manners(const LinkShape& link, const GuestLoad& load, PaceTime starts = 0);

/** From the guest's last read until prefetch has nine tenths of the link, in steps of 50 ms. */
PaceTime recovery_time(const LinkShape& link, PaceTime from = 3 * kPaceSecond,
                       PaceTime until = 8 * kPaceSecond);

struct Sharing {
    double total = 0; /* of the link's rate */
    double jain = 0;  /* fairness: 1 when all get the same, 1/n when one gets all */
    double queue = 0; /* mean, ms */
    double longest_queue = 0;
    std::vector<double> rates; /* bytes/s */
};
/** @p count machines that join one after the other, half a second apart; measured from 20 s to 60
 * s.
 *  @p pauses: with the random pauses below a minimum that are standard. */
Sharing share_link(size_t count, const LinkShape& link, Contender contender, bool pauses,
                   uint64_t seed = 100);

/** MB/s of each of @p count machines, second by second; one joins every @p apart. */
std::vector<std::vector<double>> joining(const LinkShape& link, size_t count, PaceTime apart,
                                         PaceTime until);

/** Rate of prefetch (MB/s) in steps of 100 ms around a guest that reads from 5 s to 10 s. */
std::vector<double> around_guest(Contender contender, const LinkShape& link);

/** The base fails from 5 s to @p until; when prefetch got its first bytes after that. */
PaceTime first_bytes_after_failure(PaceTime until);

/** Largest excess, in bytes, of any span of a run over a limit of @p kib KiB/s. */
double worst_excess(int64_t kib);

}  // namespace fvd::pace
