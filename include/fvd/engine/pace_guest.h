/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once
/*
 * What the pace of prefetch knows of the guest's reads of the base: when the next one may come, and
 * whether they suffer. Pure units, as PrefetchPace is; times in ns, rates in bytes/ns.
 */

#include <array>
#include <cstddef>

#include "fvd/engine/pace_parts.h"

namespace fvd {

/** The guest's reads in flight, and how it goes on after their answers. */
class GuestReads {
  public:
    static constexpr size_t kSlots = 32;

    /** A read that will take @p least at the least. The slot (kSlots: there was none left) is
     *  handed back to ended(). */
    size_t begun(PaceTime now, PaceTime least);
    void ended(PaceTime now, size_t slot);

    uint64_t count() const { return count_; }
    PaceTime last_begun() const { return last_begun_; }
    /** How many it has in flight at times. */
    double depth() const { return depth_.value(); }
    void forget_depth() { depth_.forget(); }

    /** It is active until nothing came for @p idle, or for longer where it reads seldom. */
    bool active(PaceTime now, PaceTime idle) const;
    /** When its next read may come: @p now, or when the first of those in flight can end if the
     *  guest is not known to have more in flight. */
    PaceTime next(PaceTime now) const;
    /** A guest that reads one after the other is back in a moment, before @p until; not so one that
     *  thinks for longer than @p longest. */
    bool thinks(PaceTime now, double longest, PaceTime* until) const;

  private:
    std::array<PaceTime, kSlots> ends_{}; /* when they may end at the earliest */
    uint32_t used_ = 0;                   /* bit set */
    uint64_t count_ = 0;
    RecentMax depth_;
    double think_ = 0;
    double interval_ = 0;
    PaceTime last_begun_ = 0;
    PaceTime last_ended_ = 0;
    bool seen_ = false; /* the end of one */
};

/**
 * Whether the guest's reads take longer beside prefetch than without: from time to time it reads
 * alone, in a gap. Only a difference that is larger than tolerated, and than chance makes it,
 * counts.
 */
class GuestComparison {
  public:
    /** Of the base's rate; what the guest lets guest and prefetch take together. */
    double share() const { return share_; }
    /** Now is a gap, which ends at gap_until(). */
    bool in_gap(PaceTime now, double latency);
    PaceTime gap_until() const { return gap_until_; }

    void begun() { since_gap_++; }
    /** A read took so many ns; @p alone: without prefetch. @p tolerated: slowdown, 0.03 is 3 %. */
    void note(double took, bool alone, double tolerated);
    /** The guest came, or went. */
    void restart();

  private:
    bool sure() const;
    void judge(double tolerated);

    double share_ = kPaceFirstShare;
    bool gap_ = false;
    PaceTime gap_until_ = 0;
    uint64_t since_gap_ = 0; /* reads */
    uint64_t in_gap_ = 0;
    Samples alone_;
    Samples beside_;
};

}  // namespace fvd
