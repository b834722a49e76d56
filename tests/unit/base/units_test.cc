/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "fvd/base/units.h"

#include <gtest/gtest.h>

#include <type_traits>

namespace fvd {
namespace {

static_assert(!std::is_convertible_v<uint64_t, BlockIndex>);
static_assert(!std::is_convertible_v<BlockIndex, ChunkIndex>);
static_assert(!std::is_constructible_v<SlotIndex, ChunkIndex>);
static_assert(sizeof(BlockIndex) == sizeof(uint64_t));

TEST(Index, CountsAndCompares) {
    BlockIndex block(5);
    EXPECT_EQ((block + 3).value, 8u);
    EXPECT_EQ(BlockIndex(9) - block, 4u);
    EXPECT_EQ((++block).value, 6u);
    EXPECT_LT(BlockIndex(1), BlockIndex(2));
    EXPECT_EQ(BlockIndex(), BlockIndex(0));
}

TEST(BlockRange, CountsItsBlocks) {
    const BlockRange range{BlockIndex(3), BlockIndex(7)};
    EXPECT_EQ(range.count(), 4u);
    EXPECT_FALSE(range.empty());
    EXPECT_TRUE((BlockRange{BlockIndex(3), BlockIndex(3)}.empty()));
    EXPECT_TRUE((BlockRange{BlockIndex(4), BlockIndex(3)}.empty()));
}

TEST(ByteRange, OverlapAndContainmentExhaustively) {
    constexpr uint64_t kEnd = 6;
    for (uint64_t a = 0; a < kEnd; ++a) {
        for (uint64_t b = a + 1; b <= kEnd; ++b) {
            for (uint64_t c = 0; c < kEnd; ++c) {
                for (uint64_t d = c + 1; d <= kEnd; ++d) {
                    bool shares = false;
                    bool holds_all = true;
                    for (uint64_t byte = c; byte < d; ++byte) {
                        const bool here = byte >= a && byte < b;
                        shares |= here;
                        holds_all &= here;
                    }
                    EXPECT_EQ((ByteRange{a, b}.overlaps({c, d})), shares);
                    EXPECT_EQ((ByteRange{a, b}.contains({c, d})), holds_all);
                }
            }
        }
    }
}

}  // namespace
}  // namespace fvd
