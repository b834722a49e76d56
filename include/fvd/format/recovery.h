/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once
/*
 * Which units of the ring to replay, judged from all of them; and how a unit changes bitmap and
 * table.
 * Pure: the engine reads the ring and feeds it in any pieces.
 *
 * A group is written only after the previous one is durable. So a cut can tear only the last group:
 * the newest unit M names its group's first unit and the tail; every unit from the tail to the unit
 * before that group must be there, and of the last group the prefix without a gap is replayed. A
 * gap earlier than that no cut can explain: it is damage, and said so.
 */

#include <span>

#include "fvd/format/block_bitmap.h"
#include "fvd/format/chunk_table.h"
#include "fvd/format/journal_unit.h"

namespace fvd {

/** What replay will do. first == end: nothing to replay. */
struct ReplayPlan {
    uint64_t first_sequence = 0;
    uint64_t end_sequence = 0;
    uint64_t torn_units = 0; /* valid units after the first gap of the last group: never replayed */
    bool damaged = false;    /* a unit that must be there is not; the range ends before it */
    uint64_t units() const { return end_sequence - first_sequence; }
};

class JournalScan {
  public:
    /** @p sequences: caller's memory, one word a unit of the ring, any content. */
    JournalScan(std::span<uint64_t> sequences, uint64_t epoch, const ImageId& image_id);

    /** Feed the unit at place @p ring_index. Invalid units and other epochs are passed over. */
    void add(uint64_t ring_index, ConstBytes unit);

    ReplayPlan plan() const;
    uint64_t valid_units() const { return valid_; }
    /** Of any unit with a right checksum, whatever its epoch; 0 without one. */
    uint64_t newest_epoch() const { return newest_epoch_; }
    /** Sequence of the newest valid unit; 0 without any. */
    uint64_t newest_sequence() const { return newest_.sequence; }
    /** True when the unit of this sequence is in the ring and valid. */
    bool has(uint64_t sequence) const;

  private:
    std::span<uint64_t> sequences_; /* sequence + 1 of the valid unit at each place, 0 = none */
    uint64_t epoch_;
    ImageId image_id_;
    uint64_t valid_ = 0;
    uint64_t newest_epoch_ = 0;
    UnitHeader newest_;
};

/** Where the changes of records go, and what they may touch. */
struct ReplayTarget {
    BlockBitmap bitmap;          /* current view; of no bits in an image without */
    BlockBitmap dirty_pages;     /* one bit a 4 KiB page of the bitmap's home */
    ChunkTable table{};          /* current view; of no chunks in a linear image */
    BlockBitmap dirty_entries{}; /* one bit a 4 KiB page of the table's home */
    uint64_t slots = 0;          /* an entry names one below this, or none */
};

/**
 * Apply the records of one unit. False, with nothing applied, when a record reaches outside the
 * bitmap or the table, or names a slot that cannot exist. Whether two chunks name the same slot is
 * not looked at here.
 */
bool apply_unit(const UnitView& unit, ReplayTarget& target);

/** Blocks whose bits one page of the bitmap's home holds. */
inline constexpr uint64_t kBlocksPerPage = 4096 * 8;
/** Chunks whose entries one page of the table's home holds. */
inline constexpr uint64_t kChunksPerPage = 4096 / sizeof(uint32_t);

}  // namespace fvd
