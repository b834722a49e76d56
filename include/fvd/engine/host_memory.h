/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once
/* Bitmaps and arrays in memory of the host. */

#include <algorithm>
#include <cstring>
#include <span>

#include "fvd/engine/host.h"
#include "fvd/format/block_bitmap.h"

namespace fvd {

/** Memory for @p count items, and for one where that is 0: to get nothing is no failure. */
template <typename Item>
HostBuffer memory_for(Host& host, uint64_t count) {
    return HostBuffer(host, std::max<uint64_t>(count, 1) * sizeof(Item));
}

template <typename Item>
std::span<Item> items_of(const HostBuffer& memory, uint64_t count) {
    return {reinterpret_cast<Item*>(memory.data()), count};
}

/** A bitmap of clear bits. False: no memory. */
inline bool make_bitmap(Host& host, uint64_t bits, HostBuffer* memory, BlockBitmap* bitmap) {
    const uint64_t words = BlockBitmap::bits_to_words(bits);
    *memory = memory_for<uint64_t>(host, words);
    if (!*memory) {
        return false;
    }
    std::memset(memory->data(), 0, memory->size());
    *bitmap = BlockBitmap(items_of<uint64_t>(*memory, words), bits);
    return true;
}

}  // namespace fvd
