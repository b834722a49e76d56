/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once
/*
 * Numbers that count different things do not mix. The 2011 driver confused sectors with bytes and
 * milliseconds with nanoseconds; here BlockIndex, ChunkIndex, SlotIndex and PageIndex are types of
 * their own, and every quantity of storage is a plain uint64_t of bytes.
 */

#include <compare>
#include <cstdint>

namespace fvd {

template <typename Tag>
struct Index {
    uint64_t value = 0;
    constexpr Index() = default;
    explicit constexpr Index(uint64_t v) : value(v) {}
    friend constexpr auto operator<=>(const Index&, const Index&) = default;
    constexpr Index operator+(uint64_t n) const { return Index(value + n); }
    constexpr uint64_t operator-(Index other) const { return value - other.value; }
    constexpr Index& operator++() {
        ++value;
        return *this;
    }
};

using BlockIndex = Index<struct BlockTag>; /* a block of the base image: one bit of the bitmap */
using ChunkIndex = Index<struct ChunkTag>; /* a chunk of the virtual disk: one table entry */
using SlotIndex = Index<struct SlotTag>;   /* where a chunk is stored */
using PageIndex = Index<struct PageTag>;   /* a 4 KiB page of the bitmap or table at home */

/** Half-open range [begin, end). */
template <typename Index>
struct IndexRange {
    Index begin;
    Index end;
    constexpr uint64_t count() const { return end - begin; }
    constexpr bool empty() const { return end <= begin; }
    friend constexpr bool operator==(const IndexRange&, const IndexRange&) = default;
};

using BlockRange = IndexRange<BlockIndex>;
using SlotRange = IndexRange<SlotIndex>;

/** Half-open range of bytes [begin, end). */
struct ByteRange {
    uint64_t begin = 0;
    uint64_t end = 0;
    constexpr uint64_t count() const { return end - begin; }
    constexpr bool empty() const { return end <= begin; }
    constexpr bool overlaps(const ByteRange& o) const { return begin < o.end && o.begin < end; }
    constexpr bool contains(const ByteRange& o) const { return begin <= o.begin && o.end <= end; }
    friend constexpr bool operator==(const ByteRange&, const ByteRange&) = default;
};

}  // namespace fvd
