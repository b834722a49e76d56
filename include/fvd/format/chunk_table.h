/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once
/*
 * A view of a chunk table in memory: for each chunk of the virtual disk the slot that stores it, or
 * that none does. Readers and writers on different threads need no lock: entries are accessed
 * atomically; changing one is a release, looking at it an acquire, so whoever sees a slot sees what
 * was done to it before. On disk an entry is a little-endian u32.
 */

#include <atomic>
#include <cstdint>
#include <optional>
#include <span>

#include "fvd/base/bytes.h"
#include "fvd/base/units.h"

namespace fvd {

/** The entry of a chunk without a slot. */
inline constexpr uint32_t kNotStored = 0xFFFFFFFF;

/** Chunks next to each other that can be read or written as one. */
struct ChunkRun {
    std::optional<SlotIndex> slot; /* of the first chunk, the others follow; nullopt: not stored */
    ChunkIndex end;                /* behind the last chunk */
};

class ChunkTable {
  public:
    ChunkTable() = default;
    /** The view does not own the entries, and leaves them as they are. */
    explicit ChunkTable(std::span<uint32_t> entries) : entries_(entries) {}

    uint64_t chunks() const { return entries_.size(); }
    /** As on disk: a slot's number or kNotStored. */
    uint32_t entry(ChunkIndex chunk) const;
    void set_entry(ChunkIndex chunk, uint32_t entry);
    std::optional<SlotIndex> slot(ChunkIndex chunk) const;
    /** @p slot is below kNotStored. */
    void set(ChunkIndex chunk, SlotIndex slot);
    void clear(ChunkIndex chunk) { set_entry(chunk, kNotStored); }
    void clear(ChunkIndex begin, ChunkIndex end);
    void clear_all() { clear(ChunkIndex(0), ChunkIndex(chunks())); }

    /**
     * The longest run that starts at @p begin and ends at most at @p end: all chunks not stored, or
     * all stored in slots that follow each other. begin < end. Entries that other threads change
     * meanwhile are looked at once each.
     */
    ChunkRun run(ChunkIndex begin, ChunkIndex end) const;
    /** How many chunks have a slot. */
    uint64_t stored() const;

    /** Copy bytes of the on-disk form in or out; @p byte_offset and the size are multiples of 4.
     * Entries past chunks() are ignored on the way in and kNotStored on the way out. */
    void load(uint64_t byte_offset, ConstBytes from);
    void store(uint64_t byte_offset, MutableBytes to) const;

    /** Take the entries of @p other, which has no more chunks. */
    void copy_from(const ChunkTable& other);

  private:
    /* Without a look at the bounds: tables of many millions of entries are gone through at open. */
    uint32_t look(uint64_t i) const {
        return std::atomic_ref<uint32_t>(entries_[i]).load(std::memory_order_acquire);
    }
    void put(uint64_t i, uint32_t entry) {
        std::atomic_ref<uint32_t>(entries_[i]).store(entry, std::memory_order_release);
    }

    std::span<uint32_t> entries_;
};

}  // namespace fvd
