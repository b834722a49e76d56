/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "fvd/format/chunk_table.h"

#include <algorithm>

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
    FVD_ASSERT(begin >= end || end.value <= chunks());
    for (uint64_t i = begin.value; i < end.value; ++i) {
        put(i, kNotStored);
    }
}

ChunkRun ChunkTable::run(ChunkIndex begin, ChunkIndex end) const {
    FVD_ASSERT(begin < end && end.value <= chunks());
    const uint32_t first = look(begin.value);
    const uint32_t step = first == kNotStored ? 0 : 1;
    uint64_t at = begin.value + 1;
    uint32_t next = first + step; /* after the last slot that there can be: not stored, no slot */
    while (at < end.value && look(at) == next && (step == 0 || next != kNotStored)) {
        ++at;
        next += step;
    }
    return {first == kNotStored ? std::nullopt : std::optional<SlotIndex>(first), ChunkIndex(at)};
}

uint64_t ChunkTable::stored() const {
    uint64_t total = 0;
    for (uint64_t i = 0; i < chunks(); ++i) {
        total += look(i) != kNotStored;
    }
    return total;
}

void ChunkTable::copy_from(const ChunkTable& other) {
    FVD_ASSERT(other.chunks() <= chunks());
    for (uint64_t i = 0; i < other.chunks(); ++i) {
        put(i, other.look(i));
    }
}

void ChunkTable::load(uint64_t byte_offset, ConstBytes from) {
    FVD_ASSERT(byte_offset % kEntryBytes == 0 && from.size() % kEntryBytes == 0);
    const uint64_t first = byte_offset / kEntryBytes;
    const uint64_t count =
        std::min<uint64_t>(from.size() / kEntryBytes, chunks() - std::min(chunks(), first));
    for (uint64_t i = 0; i < count; ++i) {
        put(first + i, load_le<uint32_t>(from, i * kEntryBytes));
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
