/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once
/*
 * The journal is a ring of self-checking units of 512 or 4096 bytes. A unit is written once, in one
 * piece, and holds whole records. It is valid iff its magic is right, its crc32c over image id and
 * unit matches, its epoch is the header's, and its sequence number modulo the number of units is
 * its place in the ring. See docs/format.md.
 */

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "fvd/base/bytes.h"
#include "fvd/base/units.h"
#include "fvd/format/header.h"

namespace fvd {

inline constexpr uint32_t kUnitMagic = 0x4A445646; /* "FVDJ" */
inline constexpr uint32_t kBitmapRecord = 0x3F2AB8ED;
inline constexpr uint32_t kTableRecord = 0xB4E6F7AC;
inline constexpr size_t kUnitHeaderSize = 64;
inline constexpr size_t kBitmapRecordSize = 16; /* type u32, count u32, first block u64 */
inline constexpr size_t kTableRecordHeaderSize =
    16; /* type u32, count u32, first chunk u32, zero u32 */

/** Fields of a unit other than its records. */
struct UnitHeader {
    uint64_t epoch = 0;
    uint64_t sequence = 0;      /* counts units from 0 within the epoch */
    uint64_t tail_sequence = 0; /* oldest unit that replay still needs; <= sequence */
    uint32_t group_index = 0;   /* place of this unit in its commit group */
    uint32_t group_size = 1;    /* units of the group; group_index < group_size */
    uint32_t record_bytes = 0;  /* bytes of records after the unit header */
};

/** Fills one unit. The unit's bytes are zeroed first: nothing of the process's memory leaks out. */
class UnitWriter {
  public:
    explicit UnitWriter(MutableBytes unit);
    /** False when the record does not fit any more; the unit is then unchanged. count in 1..2^32-1.
     */
    bool add_bitmap(BlockRange range);
    /** Entries of consecutive chunks; false when they do not all fit. */
    bool add_table(ChunkIndex first, std::span<const uint32_t> entries);
    bool empty() const { return used_ == 0; }
    /** Write header and checksum; header.record_bytes is filled in here. */
    void finish(UnitHeader header, const ImageId& image_id);

  private:
    MutableBytes unit_;
    size_t used_ = 0;
};

/** One record of a valid unit. */
struct JournalRecord {
    enum class Kind { bitmap, table } kind = Kind::bitmap;
    BlockRange blocks;      /* kind bitmap */
    ChunkIndex first_chunk; /* kind table */
    ConstBytes entries;     /* kind table: little-endian u32 each */
    uint64_t entry_count() const { return entries.size() / 4; }
    uint32_t entry(uint64_t i) const { return load_le<uint32_t>(entries, i * 4); }
};

/** A checked unit: header and records. It refers to the bytes it was decoded from. */
class UnitView {
  public:
    /**
     * nullopt unless magic, checksum, sizes and every record header are right. Epoch and position
     * are the caller's to compare (JournalScan does).
     */
    static std::optional<UnitView> decode(ConstBytes unit, const ImageId& image_id);

    const UnitHeader& header() const { return header_; }
    /** Iterate: start with *position = 0; false at the end. */
    bool next(size_t* position, JournalRecord* record) const;

  private:
    UnitHeader header_;
    ConstBytes records_;
};

}  // namespace fvd
