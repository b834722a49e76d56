/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "fvd/format/chunk_table.h"

namespace fvd {

namespace {

constexpr size_t kEntryBytes = sizeof(uint32_t);

}  // namespace

uint32_t ChunkTable::entry(ChunkIndex chunk) const {
    FVD_ASSERT(chunk.value < chunks());
    return std::atomic_ref<uint32_t>(entries_[chunk.value]).load(std::memory_order_acquire);
}

void ChunkTable::set_entry(ChunkIndex chunk, uint32_t entry) {
    FVD_ASSERT(chunk.value < chunks());
    std::atomic_ref<uint32_t>(entries_[chunk.value]).store(entry, std::memory_order_release);
}

std::optional<SlotIndex> ChunkTable::slot(ChunkIndex chunk) const {
    const uint32_t found = entry(chunk);
    return found == kNotStored ? std::nullopt : std::optional<SlotIndex>(found);
}

void ChunkTable::set(ChunkIndex chunk, SlotIndex slot) {
    FVD_ASSERT(slot.value < kNotStored);
    set_entry(chunk, static_cast<uint32_t>(slot.value));
}

void ChunkTable::clear(ChunkIndex begin, ChunkIndex end) {
    for (; begin < end; ++begin) {
        clear(begin);
    }
}

ChunkRun ChunkTable::run(ChunkIndex begin, ChunkIndex end) const {
    FVD_ASSERT(begin < end && end.value <= chunks());
    const std::optional<SlotIndex> first = slot(begin);
    ChunkIndex at = begin + 1;
    while (at < end) {
        const std::optional<SlotIndex> next = slot(at);
        const bool joins = first ? next == *first + (at - begin) : !next;
        if (!joins) {
            break;
        }
        ++at;
    }
    return {first, at};
}

uint64_t ChunkTable::stored() const {
    uint64_t total = 0;
    for (ChunkIndex chunk(0); chunk.value < chunks(); ++chunk) {
        total += entry(chunk) != kNotStored;
    }
    return total;
}

void ChunkTable::load(uint64_t byte_offset, ConstBytes from) {
    FVD_ASSERT(byte_offset % kEntryBytes == 0 && from.size() % kEntryBytes == 0);
    const uint64_t first = byte_offset / kEntryBytes;
    for (uint64_t i = 0; i < from.size() / kEntryBytes && first + i < chunks(); ++i) {
        set_entry(ChunkIndex(first + i), load_le<uint32_t>(from, i * kEntryBytes));
    }
}

void ChunkTable::store(uint64_t byte_offset, MutableBytes to) const {
    FVD_ASSERT(byte_offset % kEntryBytes == 0 && to.size() % kEntryBytes == 0);
    const uint64_t first = byte_offset / kEntryBytes;
    for (uint64_t i = 0; i < to.size() / kEntryBytes; ++i) {
        const bool exists = first + i < chunks();
        store_le<uint32_t>(to, i * kEntryBytes, exists ? entry(ChunkIndex(first + i)) : kNotStored);
    }
}

}  // namespace fvd
