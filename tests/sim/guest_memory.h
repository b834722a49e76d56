/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once
/* A guest's buffer as the simulator's hosts know it, and slices of it. */

#include <cstring>
#include <span>
#include <vector>

#include "fvd/engine/host.h"

namespace fvd::sim {

/** What fvd_slice.guest points to. */
struct GuestMemory {
    std::vector<std::byte> bytes;
};

/** As == of the vectors, which goes byte by byte. */
inline bool equal_bytes(const GuestMemory& a, const GuestMemory& b) {
    return a.bytes.size() == b.bytes.size() &&
           std::memcmp(a.bytes.data(), b.bytes.data(), a.bytes.size()) == 0;
}

inline MutableBytes slice_bytes(const Slice& slice) {
    if (slice.memory != nullptr) {
        return {static_cast<std::byte*>(slice.memory), slice.length};
    }
    auto* guest = static_cast<GuestMemory*>(slice.guest);
    FVD_ASSERT(slice.guest_offset <= guest->bytes.size() &&
               slice.length <= guest->bytes.size() - slice.guest_offset);
    return {guest->bytes.data() + slice.guest_offset, slice.length};
}

inline uint64_t total_length(std::span<const Slice> slices) {
    uint64_t total = 0;
    for (const Slice& slice : slices) {
        total += slice.length;
    }
    return total;
}

/** All bytes of a list, in one piece. */
inline void gather(std::span<const Slice> slices, std::vector<std::byte>& to) {
    to.clear();
    for (const Slice& slice : slices) {
        const MutableBytes bytes = slice_bytes(slice);
        to.insert(to.end(), bytes.begin(), bytes.end());
    }
}

}  // namespace fvd::sim
