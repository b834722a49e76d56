/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "fvd/format/layout.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <functional>
#include <string>
#include <vector>

#include "fvd/base/arith.h"
#include "fvd/format/limits.h"
#include "samples.h"

namespace fvd {
namespace {

using test::Block;
using test::sample_header;
using test::text_of;

constexpr uint64_t kKiB = limits::kKiB;
constexpr uint64_t kMiB = limits::kMiB;
constexpr uint64_t kGiB = limits::kGiB;
constexpr uint64_t kTiB = limits::kTiB;
constexpr uint64_t kPiB = 1024 * kTiB;

uint64_t metadata_end(const Header& header) {
    return regions_of(header).metadata_end();
}

/* ------------------------------------------------------------------ defaults */

TEST(DefaultBlockSize, KeepsTheBitmapWithinFourMiB) {
    const std::pair<uint64_t, uint64_t> cases[] = {
        {0, 4 * kKiB},
        {512, 4 * kKiB},
        {kGiB, 4 * kKiB},
        {128 * kGiB, 4 * kKiB},
        {128 * kGiB + 512, 8 * kKiB},
        {256 * kGiB, 8 * kKiB},
        {256 * kGiB + 512, 16 * kKiB},
        {kTiB, 32 * kKiB},
        {16 * kTiB, 512 * kKiB},
        {64 * kTiB, 2 * kMiB},
        {65 * kTiB, 2 * kMiB},
        {limits::kMaxVirtualSize, 2 * kMiB},
        {UINT64_MAX, 2 * kMiB},
    };
    for (const auto& [base, expected] : cases) {
        EXPECT_EQ(default_block_size(base), expected) << base;
    }
}

TEST(DefaultJournalSize, FourTimesTheBitmapWithinBounds) {
    const std::pair<uint64_t, uint64_t> cases[] = {
        {0, 4 * kMiB},           {4096, 4 * kMiB},
        {kMiB, 4 * kMiB},        {kMiB + 4096, 4 * kMiB + 16 * kKiB},
        {4 * kMiB, 16 * kMiB},   {4 * kMiB + 4096, 16 * kMiB},
        {256 * kMiB, 16 * kMiB}, {UINT64_MAX, 16 * kMiB},
    };
    for (const auto& [bitmap, expected] : cases) {
        EXPECT_EQ(default_journal_size(bitmap, 4096), expected) << bitmap;
        EXPECT_EQ(default_journal_size(bitmap, 512), expected) << bitmap;
    }
}

/* ------------------------------------------------------------------ plans */

TEST(PlanLayout, OverABase) {
    LayoutRequest request;
    request.virtual_size = kGiB;
    request.has_base = true;
    const Header h = plan_layout(request).value();
    EXPECT_EQ(h.virtual_size, kGiB);
    EXPECT_EQ(h.base_size, kGiB);
    EXPECT_EQ(h.block_size, 4096u);
    EXPECT_EQ(h.bitmap_offset, 8192u);
    EXPECT_EQ(h.bitmap_size, 32 * kKiB);
    EXPECT_EQ(h.table_offset, 0u);
    EXPECT_EQ(h.table_size, 0u);
    EXPECT_EQ(h.journal_offset, 40 * kKiB);
    EXPECT_EQ(h.journal_size, 4 * kMiB);
    EXPECT_EQ(h.journal_unit, 4096u);
    EXPECT_EQ(h.data_offset, 5 * kMiB);
    EXPECT_TRUE(h.clean_shutdown);
}

TEST(PlanLayout, WithoutBaseThereIsOnlyAHeader) {
    LayoutRequest request;
    request.virtual_size = kGiB;
    request.journal_size = 16 * kMiB;
    const Header h = plan_layout(request).value();
    EXPECT_EQ(h.base_size, 0u);
    EXPECT_EQ(h.block_size, 0u);
    EXPECT_EQ(h.bitmap_size, 0u);
    EXPECT_EQ(h.journal_size, 0u);
    EXPECT_EQ(h.data_offset, kMiB);
}

TEST(PlanLayout, ABlockSizeWithoutBaseMakesRoomForABaseToCome) {
    LayoutRequest request;
    request.virtual_size = kGiB;
    request.block_size = 65536;
    const Header h = plan_layout(request).value();
    EXPECT_EQ(h.base_size, kGiB);
    EXPECT_EQ(h.block_size, 65536u);
    EXPECT_EQ(h.block_count(), 16384u);
    EXPECT_EQ(h.journal_size, 4 * kMiB);
}

TEST(PlanLayout, ADataFileStartsWithTheGuestsFirstByte) {
    LayoutRequest request;
    request.virtual_size = kGiB;
    request.has_base = true;
    request.separate_data_file = true;
    EXPECT_EQ(plan_layout(request).value().data_offset, 0u);
}

TEST(PlanLayout, TheBitmapCoversTheBaseOnly) {
    LayoutRequest request;
    request.virtual_size = kGiB;
    request.has_base = true;
    const std::pair<uint64_t, uint64_t> cases[] = {
        {0, kGiB},        {1, 512},           {512, 512},         {513, 1024},
        {kGiB - 1, kGiB}, {kGiB + 512, kGiB}, {UINT64_MAX, kGiB}, {UINT64_MAX - 511, kGiB},
    };
    for (const auto& [base, covered] : cases) {
        request.base_size = base;
        EXPECT_EQ(plan_layout(request).value().base_size, covered) << base;
    }
}

TEST(DefaultChunkSize, IsOneMiBWhereItFits) {
    const struct {
        uint64_t disk, block, expected;
    } cases[] = {
        {0, 0, kMiB},
        {kGiB, 4096, kMiB},
        {kGiB, 2 * kMiB, 2 * kMiB},
        {kGiB, 7680, 137 * 7680}, /* the first multiple above */
        {256 * kTiB, 0, kMiB},    /* a table of 1 GiB */
        {256 * kTiB + 512, 0, 2 * kMiB},
        {16 * kPiB, 0, 64 * kMiB},
        {16 * kPiB + 512, 0, 64 * kMiB}, /* refused, but by plan_layout() */
        {limits::kMaxVirtualSize, 0, 64 * kMiB},
        {limits::kMaxVirtualSize, 2 * kMiB, 64 * kMiB},
    };
    for (const auto& of : cases) {
        EXPECT_EQ(default_chunk_size(of.disk, of.block), of.expected) << of.disk << " " << of.block;
    }
}

TEST(PlanLayout, Compact) {
    LayoutRequest request;
    request.virtual_size = 10 * kGiB;
    request.compact = true;
    const Header h = plan_layout(request).value();
    EXPECT_EQ(h.chunk_size, kMiB);
    EXPECT_EQ(h.storage_grow_unit, 16 * kMiB);
    EXPECT_EQ(h.bitmap_offset, 0u);
    EXPECT_EQ(h.bitmap_size, 0u);
    EXPECT_EQ(h.table_offset, 8192u);
    EXPECT_EQ(h.table_size, 40 * kKiB);
    EXPECT_EQ(h.chunk_count(), 10240u);
    EXPECT_EQ(h.slot_count(), 10240u);
    EXPECT_EQ(h.journal_offset, 48 * kKiB);
    EXPECT_EQ(h.journal_size, 4 * kMiB);
    EXPECT_EQ(h.data_offset, 5 * kMiB);
}

TEST(PlanLayout, CompactOverABase) {
    LayoutRequest request;
    request.virtual_size = 20 * kGiB;
    request.has_base = true;
    request.base_size = kGiB;
    request.compact = true;
    request.chunk_size = 64 * kKiB;
    request.storage_grow_unit = kMiB;
    const Header h = plan_layout(request).value();
    EXPECT_EQ(h.block_size, 4096u);
    EXPECT_EQ(h.bitmap_offset, 8192u);
    EXPECT_EQ(h.bitmap_size, 32 * kKiB);
    EXPECT_EQ(h.table_offset, 40 * kKiB);
    EXPECT_EQ(h.table_size, 1280 * kKiB);
    EXPECT_EQ(h.journal_offset, 1320 * kKiB);
    EXPECT_EQ(h.journal_size, 4 * 1312 * kKiB) << "four times bitmap and table";
    EXPECT_EQ(h.data_offset, 7 * kMiB);
    EXPECT_EQ(h.storage_grow_unit, kMiB);
}

TEST(PlanLayout, ACompactDiskOfNoBytesIsCompact) {
    LayoutRequest request;
    request.compact = true;
    const Header h = plan_layout(request).value();
    EXPECT_TRUE(h.has_table());
    EXPECT_EQ(h.table_size, 4096u);
    EXPECT_EQ(h.chunk_count(), 0u);
    EXPECT_TRUE(decode_header(Block(h).bytes()).ok());
    EXPECT_TRUE(check_layout(h, 5 * kMiB).ok());
}

TEST(PlanLayout, DefaultBlocksGiveWayToAChunkSize) {
    LayoutRequest request;
    request.virtual_size = kTiB; /* 32 KiB blocks by default */
    request.has_base = true;
    request.compact = true;
    const std::pair<uint64_t, uint64_t> cases[] = {{64 * kKiB, 32 * kKiB}, {32 * kKiB, 32 * kKiB},
                                                   {16 * kKiB, 16 * kKiB}, {4096, 4096},
                                                   {24 * kKiB, 8 * kKiB},  {7680, 512}};
    for (const auto& [chunk, block] : cases) {
        request.chunk_size = chunk;
        EXPECT_EQ(plan_layout(request).value().block_size, block) << chunk;
    }
}

TEST(StorageSize, GrowsInWholeStepsUpToAllSlots) {
    LayoutRequest request;
    request.virtual_size = 10 * kMiB + 512;
    request.compact = true;
    request.storage_grow_unit = 4 * kMiB;
    Header h = plan_layout(request).value();
    EXPECT_EQ(storage_size(h, 0), 0u);
    EXPECT_EQ(storage_size(h, 1), 4 * kMiB);
    EXPECT_EQ(storage_size(h, 4), 4 * kMiB);
    EXPECT_EQ(storage_size(h, 5), 8 * kMiB);
    EXPECT_EQ(storage_size(h, 9), 11 * kMiB) << "eleven slots are all there are";
    EXPECT_EQ(storage_size(h, 11), 11 * kMiB);
    h.storage_grow_unit = 0; /* the format allows it: step by step */
    EXPECT_EQ(storage_size(h, 3), 3 * kMiB);
    h.storage_grow_unit = 512;
    EXPECT_EQ(storage_size(h, 3), 3 * kMiB);
}

TEST(PlanLayout, ADiskOfNoBytesIsLegal) {
    for (const bool has_base : {false, true}) {
        LayoutRequest request;
        request.has_base = has_base;
        const Header h = plan_layout(request).value();
        EXPECT_EQ(h.bitmap_size, 0u);
        EXPECT_TRUE(decode_header(Block(h).bytes()).ok());
        EXPECT_TRUE(check_layout(h, 8192).ok());
    }
}

struct RequestCase {
    const char* name;
    LayoutRequest request;
    int code;
    const char* sentence;
};

class PlanLayoutError : public testing::TestWithParam<RequestCase> {};

TEST_P(PlanLayoutError, NamesOptionValueAndRange) {
    const Result<Header> planned = plan_layout(GetParam().request);
    EXPECT_EQ(planned.ok(), GetParam().code == 0);
    EXPECT_EQ(planned.error().code, GetParam().code);
    EXPECT_EQ(text_of(planned.error()), GetParam().sentence);
}

LayoutRequest over_base(uint64_t size, uint64_t block_size, uint64_t journal = 0,
                        uint32_t unit = 0) {
    return {.virtual_size = size,
            .has_base = true,
            .block_size = block_size,
            .journal_size = journal,
            .journal_unit = unit};
}

LayoutRequest compact(uint64_t size, uint64_t chunk_size, uint64_t grow_unit = 0) {
    return {.virtual_size = size,
            .compact = true,
            .chunk_size = chunk_size,
            .storage_grow_unit = grow_unit};
}

LayoutRequest compact_over_base(uint64_t size, uint64_t block_size, uint64_t chunk_size) {
    return {.virtual_size = size,
            .has_base = true,
            .compact = true,
            .block_size = block_size,
            .chunk_size = chunk_size};
}

#define CHUNK_RANGE " bytes; must be a multiple of 512 between 4096 and 67108864"
#define GROW_RANGE " bytes; must be a multiple of 1048576 between 1048576 and 1099511627776"
#define SIZE_RANGE " bytes; must be a multiple of 512 between 0 and 1152921504606846976"
#define BLOCK_RANGE " bytes; must be a multiple of 512 between 512 and 2097152"
#define JOURNAL_RANGE " bytes; must be a multiple of 4096 between 262144 and 1073741824"
#define JOURNAL_RANGE_512 " bytes; must be a multiple of 512 between 32768 and 1073741824"

INSTANTIATE_TEST_SUITE_P(
    , PlanLayoutError,
    testing::Values(
        RequestCase{"SizeOne", {.virtual_size = 1}, -EINVAL, "size is 1" SIZE_RANGE},
        RequestCase{
            "SizeOdd", {.virtual_size = kGiB - 1}, -EINVAL, "size is 1073741823" SIZE_RANGE},
        RequestCase{"SizeLargest", {.virtual_size = limits::kMaxVirtualSize}, 0, ""},
        RequestCase{"SizeTooLarge",
                    {.virtual_size = limits::kMaxVirtualSize + 512},
                    -EFBIG,
                    "size is 1152921504606847488" SIZE_RANGE},
        RequestCase{"SizeWraps",
                    {.virtual_size = UINT64_MAX},
                    -EFBIG,
                    "size is 18446744073709551615" SIZE_RANGE},
        RequestCase{"BlockOne", over_base(kGiB, 1), -EINVAL, "block_size is 1" BLOCK_RANGE},
        RequestCase{"Block511", over_base(kGiB, 511), -EINVAL, "block_size is 511" BLOCK_RANGE},
        RequestCase{"Block512", over_base(kGiB, 512), 0, ""},
        RequestCase{"Block513", over_base(kGiB, 513), -EINVAL, "block_size is 513" BLOCK_RANGE},
        RequestCase{"BlockOddButLegal", over_base(kGiB, 15872), 0, ""},
        RequestCase{"BlockLargest", over_base(kGiB, 2 * kMiB), 0, ""},
        RequestCase{"BlockTooLarge", over_base(kGiB, 2 * kMiB + 512), -EINVAL,
                    "block_size is 2097664" BLOCK_RANGE},
        RequestCase{"BlockHuge", over_base(kGiB, UINT64_MAX), -EINVAL,
                    "block_size is 18446744073709551615" BLOCK_RANGE},
        RequestCase{"BlockIsJudgedWithoutBase",
                    {.virtual_size = kGiB, .block_size = 513},
                    -EINVAL,
                    "block_size is 513" BLOCK_RANGE},
        RequestCase{"BitmapLargest", over_base(kTiB, 512), 0, ""},
        RequestCase{"BitmapTooLarge", over_base(kTiB + 512, 512), -EINVAL,
                    "block_size is 512 bytes; must be between 1024 and 2097152 for a base of "
                    "1099511628288 bytes"},
        RequestCase{"BitmapTooLargeForOddBlocks", over_base(30 * kTiB, 7680), -EINVAL,
                    "block_size is 7680 bytes; must be between 15360 and 2097152 for a base of "
                    "32985348833280 bytes"},
        RequestCase{"BaseLargest", over_base(4 * kPiB, 0), 0, ""},
        RequestCase{"BaseLargestInSmallBlocks", over_base(4 * kPiB, 512), -EINVAL,
                    "block_size is 512 bytes; must be between 2097152 and 2097152 for a base of "
                    "4503599627370496 bytes"},
        RequestCase{"BaseTooLarge", over_base(4 * kPiB + 512, 0), -EFBIG,
                    "a base of 4503599627371008 bytes is too large; a bitmap can cover "
                    "4503599627370496"},
        RequestCase{"JournalSmallest", over_base(kGiB, 0, 262144), 0, ""},
        RequestCase{"JournalTooSmall", over_base(kGiB, 0, 262144 - 4096), -EINVAL,
                    "journal_size is 258048" JOURNAL_RANGE},
        RequestCase{"JournalOdd", over_base(kGiB, 0, 300000), -EINVAL,
                    "journal_size is 300000" JOURNAL_RANGE},
        RequestCase{"JournalLargest", over_base(kGiB, 0, kGiB), 0, ""},
        RequestCase{"JournalTooLarge", over_base(kGiB, 0, kGiB + 4096), -EINVAL,
                    "journal_size is 1073745920" JOURNAL_RANGE},
        RequestCase{"JournalSmallestOfSmallUnits", over_base(kGiB, 0, 32768, 512), 0, ""},
        RequestCase{"JournalTooSmallOfSmallUnits", over_base(kGiB, 0, 32256, 512), -EINVAL,
                    "journal_size is 32256" JOURNAL_RANGE_512},
        RequestCase{"Chunk1", compact(kGiB, 1), -EINVAL, "chunk_size is 1" CHUNK_RANGE},
        RequestCase{"Chunk512", compact(kGiB, 512), -EINVAL, "chunk_size is 512" CHUNK_RANGE},
        RequestCase{"ChunkSmallest", compact(kGiB, 4096), 0, ""},
        RequestCase{"Chunk4097", compact(kGiB, 4097), -EINVAL, "chunk_size is 4097" CHUNK_RANGE},
        RequestCase{"ChunkOddButLegal", compact(kGiB, 7680), 0, ""},
        RequestCase{"ChunkLargest", compact(kGiB, 64 * kMiB), 0, ""},
        RequestCase{"ChunkTooLarge", compact(kGiB, 64 * kMiB + 512), -EINVAL,
                    "chunk_size is 67109376" CHUNK_RANGE},
        RequestCase{"ChunkHuge", compact(kGiB, UINT64_MAX), -EINVAL,
                    "chunk_size is 18446744073709551615" CHUNK_RANGE},
        RequestCase{"ChunkIsNoWholeBlocks", compact_over_base(kGiB, 8192, 12288), -EINVAL,
                    "chunk_size is 12288 bytes; must be a multiple of block_size, 8192"},
        RequestCase{"ChunkIsABlock", compact_over_base(kGiB, 8192, 8192), 0, ""},
        RequestCase{"BlockLargerThanTheDefaultChunk", compact_over_base(kGiB, 2 * kMiB, 0), 0, ""},
        RequestCase{"TableLargest", compact(kTiB, 4096), 0, ""},
        RequestCase{"TableTooLarge", compact(kTiB + 512, 4096), -EINVAL,
                    "chunk_size is 4096 bytes; must be between 4608 and 67108864 for a disk of "
                    "1099511628288 bytes"},
        RequestCase{"CompactLargest", compact(16 * kPiB, 0), 0, ""},
        RequestCase{"CompactTooLarge", compact(16 * kPiB + 512, 0), -EFBIG,
                    "a compact disk of 18014398509482496 bytes is too large; a table can map "
                    "18014398509481984"},
        RequestCase{"GrowUnitSmallest", compact(kGiB, kMiB, kMiB), 0, ""},
        RequestCase{"GrowUnitBelowAChunk", compact(kGiB, kMiB, 512), -EINVAL,
                    "storage_grow_unit is 512" GROW_RANGE},
        RequestCase{"GrowUnitOdd", compact(kGiB, kMiB, kMiB + 512), -EINVAL,
                    "storage_grow_unit is 1049088" GROW_RANGE},
        RequestCase{"GrowUnitLargest", compact(kGiB, kMiB, kTiB), 0, ""},
        RequestCase{"GrowUnitTooLarge", compact(kGiB, kMiB, kTiB + kMiB), -EINVAL,
                    "storage_grow_unit is 1099512676352" GROW_RANGE},
        RequestCase{"ChunkSizeOfALinearImage",
                    {.virtual_size = kGiB, .chunk_size = kMiB},
                    -EINVAL,
                    "chunk_size is 1048576 bytes, but compact_image is off"},
        RequestCase{"GrowUnitOfALinearImage",
                    {.virtual_size = kGiB, .storage_grow_unit = kMiB},
                    -EINVAL,
                    "storage_grow_unit is 1048576 bytes, but compact_image is off"},
        RequestCase{"Unit512", over_base(kGiB, 0, 0, 512), 0, ""},
        RequestCase{"Unit4096", over_base(kGiB, 0, 0, 4096), 0, ""},
        RequestCase{"Unit1", over_base(kGiB, 0, 0, 1), -EINVAL,
                    "journal_unit is 1 bytes; must be 512 or 4096"},
        RequestCase{"Unit1024", over_base(kGiB, 0, 0, 1024), -EINVAL,
                    "journal_unit is 1024 bytes; must be 512 or 4096"},
        RequestCase{"Unit8192", over_base(kGiB, 0, 0, 8192), -EINVAL,
                    "journal_unit is 8192 bytes; must be 512 or 4096"}),
    test::CaseName());

/* ------------------------------------------------------------------ all of them */

std::vector<uint64_t> many_disk_sizes() {
    std::vector<uint64_t> sizes;
    for (const uint64_t size : {uint64_t{0}, 4 * kKiB, 64 * kKiB, kMiB, 32 * kMiB, 128 * kMiB, kGiB,
                                16 * kGiB, 100 * kGiB, 128 * kGiB, kTiB}) {
        for (const uint64_t extra : {uint64_t{0}, uint64_t{512}, uint64_t{7680}}) {
            sizes.push_back(size + extra);
        }
    }
    for (const uint64_t size : {kPiB, 4 * kPiB, limits::kMaxVirtualSize}) {
        sizes.push_back(size - 512);
        sizes.push_back(size);
    }
    sizes.push_back(kGiB - 512);
    return sizes;
}

class EveryLayout : public testing::TestWithParam<uint64_t> {
  protected:
    void check(const LayoutRequest& request) {
        Result<Header> planned = plan_layout(request);
        if (!planned.ok()) {
            EXPECT_TRUE(request.has_base || request.block_size != 0 || request.compact)
                << planned.error().text;
            return;
        }
        Header& header = planned.value();
        if (request.separate_data_file) {
            test::set_text(header.data_file, "data"); /* as create does */
        }
        ++plans_;
        const Block block(header);
        const Result<Header> decoded = decode_header(block.bytes());
        ASSERT_TRUE(decoded.ok()) << decoded.error().text;
        ASSERT_EQ(Block(decoded.value()), block);
        const uint64_t end = metadata_end(header);
        ASSERT_TRUE(check_layout(decoded.value(), end).ok());
        ASSERT_FALSE(check_layout(decoded.value(), end - 1).ok());
        ASSERT_GE(header.bitmap_size * 8, header.block_count());
        ASSERT_EQ(header.has_bitmap(), header.base_size != 0);
        ASSERT_EQ(header.has_table(), request.compact);
        ASSERT_GE(header.table_size, header.chunk_count() * 4);
        ASSERT_EQ(header.journal_size != 0, header.has_bitmap() || header.has_table());
        ASSERT_EQ(header.data_offset == 0, request.separate_data_file);
        ASSERT_EQ(header.data_offset % kMiB, 0u);
        ASSERT_TRUE(request.separate_data_file || header.data_offset >= end);
    }
    /** Linear, and compact in chunks of the default size and of @p blocks blocks. */
    void check_kinds(LayoutRequest request, uint64_t blocks) {
        check(request);
        request.compact = true;
        check(request);
        request.chunk_size = blocks * (request.block_size != 0 ? request.block_size : 4096);
        check(request);
    }
    uint64_t plans_ = 0;
};

TEST_P(EveryLayout, DecodesAndFits) {
    for (const uint64_t size : many_disk_sizes()) {
        for (const bool separate : {false, true}) {
            for (const uint32_t unit : {512u, 4096u}) {
                for (const uint64_t journal : {uint64_t{0}, 64 * 4096ul, 3 * kMiB, kGiB}) {
                    for (const int base : {0, 1, 2, 3}) {
                        LayoutRequest request;
                        request.virtual_size = size;
                        request.separate_data_file = separate;
                        request.block_size = GetParam();
                        request.journal_size = journal;
                        request.journal_unit = unit;
                        request.has_base = base != 0;
                        request.base_size = base == 2 ? size / 3 : base == 3 ? size + 77777 : 0;
                        ASSERT_NO_FATAL_FAILURE(check_kinds(request, 1u << base))
                            << size << " " << base;
                    }
                }
            }
        }
    }
    EXPECT_GT(plans_, 1000u);
}

INSTANTIATE_TEST_SUITE_P(, EveryLayout,
                         testing::Values(0, 512, 1024, 4096, 7680, 15872, 65024, 65536, 1048064,
                                         2 * kMiB));

/* ------------------------------------------------------------------ proofs */

using Spoil = std::function<void(Header&)>;

struct LayoutCase {
    const char* name;
    Spoil spoil;
    const char* sentence; /* empty: fits */
};

class CheckLayout : public testing::TestWithParam<LayoutCase> {};

TEST_P(CheckLayout, NamesWhatDoesNotFit) {
    Header header = sample_header();
    GetParam().spoil(header);
    const Error error = check_layout(header, 2 * kMiB);
    EXPECT_EQ(error.code, *GetParam().sentence != '\0' ? -EINVAL : 0);
    EXPECT_EQ(text_of(error), GetParam().sentence);
}

/** Compact: 1024 chunks of 1 MiB, whose table stands right behind the journal. */
void make_compact(Header& h) {
    h.chunk_size = kMiB;
    h.table_size = 4096;
    h.table_offset = h.journal_offset + h.journal_size;
}

INSTANTIATE_TEST_SUITE_P(
    , CheckLayout,
    testing::Values(
        LayoutCase{"AsPlanned", [](Header&) {}, ""},
        LayoutCase{"BitmapOverHeader", [](Header& h) { h.bitmap_offset = 4096; },
                   "header, bytes 0 to 8192, and bitmap, bytes 4096 to 36864, overlap"},
        LayoutCase{"BitmapOverJournal", [](Header& h) { h.bitmap_offset = 12288; },
                   "bitmap, bytes 12288 to 45056, and journal, bytes 40960 to 1089536, overlap"},
        LayoutCase{"JournalOverBitmap", [](Header& h) { h.journal_offset = 36864; },
                   "bitmap, bytes 8192 to 40960, and journal, bytes 36864 to 1085440, overlap"},
        LayoutCase{"JournalOverHeader", [](Header& h) { h.journal_offset = 4096; },
                   "header, bytes 0 to 8192, and journal, bytes 4096 to 1052672, overlap"},
        LayoutCase{"BitmapOverData", [](Header& h) { h.data_offset = 32768; },
                   "bitmap, bytes 8192 to 40960, and data, bytes 32768 to 1073774592, overlap"},
        LayoutCase{
            "JournalOverData", [](Header& h) { h.data_offset = kMiB; },
            "journal, bytes 40960 to 1089536, and data, bytes 1048576 to 1074790400, overlap"},
        LayoutCase{"DataOfAnotherFileOverlapsNothing",
                   [](Header& h) {
                       h.data_offset = 0;
                       test::set_text(h.data_file, "data");
                   },
                   ""},
        LayoutCase{"MetadataMayStandBehindTheData",
                   [](Header& h) {
                       h.virtual_size = h.base_size = 4096;
                       h.data_offset = 8192;
                       h.bitmap_offset = 12288;
                       h.bitmap_size = 4096;
                       h.journal_offset = 16384;
                   },
                   ""},
        LayoutCase{"RegionsMayTouch", [](Header& h) { h.data_offset = 1089536; }, ""},
        LayoutCase{"ADiskOfNoBytesOverlapsNothing",
                   [](Header& h) {
                       h.virtual_size = h.base_size = 0;
                       h.data_offset = 12288;
                   },
                   ""},
        LayoutCase{"BitmapPastTheEnd", [](Header& h) { h.bitmap_offset = 2 * kMiB - 28672; },
                   "bitmap, bytes 2068480 to 2101248, reaches past the end of the file at 2097152"},
        LayoutCase{"BitmapFarPastTheEnd", [](Header& h) { h.bitmap_offset = limits::kMaxOffset; },
                   "bitmap, bytes 4611686018427387904 to 4611686018427420672, reaches past the end "
                   "of the file at 2097152"},
        LayoutCase{
            "JournalPastTheEnd", [](Header& h) { h.journal_offset = 2 * kMiB - 4096; },
            "journal, bytes 2093056 to 3141632, reaches past the end of the file at 2097152"},
        LayoutCase{
            "BitmapTooSmall", [](Header& h) { h.bitmap_size = 28672; },
            "bitmap_size is 28672 bytes; must be at least 32768 for base_img_size 1073741824 "
            "in blocks of 4096"},
        LayoutCase{
            "BitmapTooSmallByABit", [](Header& h) { h.base_size += 512; },
            "bitmap_size is 32768 bytes; must be at least 32769 for base_img_size 1073742336 "
            "in blocks of 4096"},
        LayoutCase{"BitmapWithSpare", [](Header& h) { h.base_size = 4096; }, ""},
        LayoutCase{
            "NoJournal", [](Header& h) { h.journal_size = h.journal_offset = 0; },
            "journal_size is 0 bytes; must be between 262144 and 1073741824 in an image with "
            "a bitmap or table"},
        LayoutCase{"NeitherBitmapNorJournal",
                   [](Header& h) {
                       h.journal_size = h.journal_offset = h.bitmap_size = h.bitmap_offset = 0;
                   },
                   ""},
        LayoutCase{"JournalOfPartsOfUnits", [](Header& h) { h.journal_size -= 512; },
                   "journal_size is 1048064 bytes; must be a multiple of journal_unit, 4096"},
        LayoutCase{"JournalOfSmallUnits",
                   [](Header& h) {
                       h.journal_size -= 512;
                       h.journal_unit = 512;
                   },
                   ""},
        LayoutCase{"Compact", make_compact, ""},
        LayoutCase{"TableTooSmall",
                   [](Header& h) {
                       make_compact(h);
                       h.virtual_size += 512;
                   },
                   "table_size is 4096 bytes; must be at least 4100 for virtual_disk_size "
                   "1073742336 in chunks of 1048576"},
        LayoutCase{
            "TableWithoutJournal",
            [](Header& h) {
                make_compact(h);
                h.bitmap_size = h.bitmap_offset = h.journal_size = h.journal_offset = 0;
            },
            "journal_size is 0 bytes; must be between 262144 and 1073741824 in an image with "
            "a bitmap or table"},
        LayoutCase{"TableOverJournal",
                   [](Header& h) {
                       make_compact(h);
                       h.table_offset -= 4096;
                   },
                   "table, bytes 1085440 to 1089536, and journal, bytes 40960 to 1089536, overlap"},
        LayoutCase{"TablePastTheEnd",
                   [](Header& h) {
                       make_compact(h);
                       h.table_offset = 4 * kMiB;
                   },
                   "table, bytes 4194304 to 4198400, reaches past the end of the file at 2097152"},
        LayoutCase{"TableOverData",
                   [](Header& h) {
                       make_compact(h);
                       h.table_size *= 2;
                       h.data_offset = h.table_offset + 4096;
                   },
                   "table, bytes 1089536 to 1097728, and data, bytes 1093632 to 1074835456, "
                   "overlap"},
        LayoutCase{"TableAmongTheSlots",
                   [](Header& h) {
                       make_compact(h);
                       h.data_offset = h.table_offset;
                   },
                   ""},
        LayoutCase{"BitmapAmongTheBytesOfALinearImage",
                   [](Header& h) { h.data_offset = h.bitmap_offset; },
                   "bitmap, bytes 8192 to 40960, and data, bytes 8192 to 1073750016, overlap"}),
    test::CaseName());

TEST(LayoutProof, EveryFileLength) {
    const Header header = sample_header();
    const uint64_t end = metadata_end(header);
    for (uint64_t length = 0; length <= end + 4096; length += 512) {
        EXPECT_EQ(check_layout(header, length).ok(), length >= end) << length;
    }
}

TEST(RegionsOf, SaysWhereEverythingIs) {
    Header header = sample_header();
    Regions regions = regions_of(header);
    EXPECT_EQ(regions.header, (ByteRange{0, 8192}));
    EXPECT_EQ(regions.bitmap, (ByteRange{8192, 40960}));
    EXPECT_TRUE(regions.table.empty());
    EXPECT_EQ(regions.journal, (ByteRange{40960, 40960 + kMiB}));
    EXPECT_EQ(regions.data, (ByteRange{2 * kMiB, 2 * kMiB + kGiB}));
    make_compact(header);
    header.virtual_size += 512;
    regions = regions_of(header);
    EXPECT_EQ(regions.data.count(), 1025 * kMiB) << "whole chunks";
}

TEST(RegionsOf, TheLargestNumbersDoNotWrap) {
    Header header = sample_header();
    header.virtual_size = limits::kMaxVirtualSize;
    header.data_offset = limits::kMaxOffset;
    header.bitmap_offset = header.journal_offset = limits::kMaxOffset;
    header.table_offset = limits::kMaxOffset;
    header.table_size = limits::kMaxTableSize;
    header.chunk_size = limits::kMaxChunkSize;
    const Regions regions = regions_of(header);
    for (const ByteRange& range : {regions.bitmap, regions.table, regions.journal, regions.data}) {
        EXPECT_LT(range.begin, range.end);
        EXPECT_LT(range.end, uint64_t{1} << 63);
    }
}

/* ------------------------------------------------------------------ a table that moves */

Header compact_of(uint64_t virtual_size, uint64_t chunk_size = 0) {
    LayoutRequest request;
    request.virtual_size = virtual_size;
    request.compact = true;
    request.chunk_size = chunk_size;
    request.journal_size = 64 * 4096;
    return plan_layout(request).value();
}

TEST(FindGap, TakesTheLowestThatFits) {
    Header h = compact_of(64 * kMiB);
    ASSERT_EQ(h.table_offset, 8192u);
    ASSERT_EQ(h.journal_offset, 12288u);
    const uint64_t behind = h.journal_offset + h.journal_size;
    EXPECT_EQ(find_gap(h, 4096), behind);
    EXPECT_EQ(find_gap(h, h.data_offset - behind), behind);
    EXPECT_EQ(find_gap(h, h.data_offset - behind + 4096), std::nullopt);
    h.table_offset = behind;
    EXPECT_EQ(find_gap(h, 4096), 8192u) << "where the table stood first";
    EXPECT_EQ(find_gap(h, 8192), behind + 4096);
}

TEST(FindGap, BehindADataFileNothingIsInTheWay) {
    Header h = compact_of(64 * kMiB);
    h.data_file[0] = 'd';
    h.data_offset = 0;
    EXPECT_EQ(find_gap(h, 1024 * kMiB), h.journal_offset + h.journal_size);
}

/* A region that is not there, and would stand in the middle, is in nobody's way. */
TEST(FindGap, RegionsThatDoNotExistTakeNoRoom) {
    Header h = compact_of(64 * kMiB);
    h.bitmap_offset = h.journal_offset + h.journal_size + 4096;
    h.bitmap_size = 0;
    EXPECT_EQ(find_gap(h, 8192), h.journal_offset + h.journal_size);
}

TEST(LargerTable, HasRoomForAnEighthMoreAndForEverySlotThereIs) {
    const Header h = compact_of(64 * kMiB);
    EXPECT_EQ(larger_table_size(h, 2048 * kMiB).value(), 12288u) << "2048 and 256 entries";
    EXPECT_EQ(larger_table_size(h, 64 * kMiB).value(), 4096u) << "as many as it has";
}

TEST(LargerTable, MapsSoManyChunksAndNotOneMore) {
    const Header h = compact_of(64 * kMiB);
    const uint64_t most = limits::kMaxTableSize / 4 * h.chunk_size;
    EXPECT_EQ(larger_table_size(h, most).value(), limits::kMaxTableSize);
    EXPECT_EQ(larger_table_size(h, most + 512).error().code, -EFBIG);
}

TEST(SlotsForRegion, ReachFromAnAlignedPlaceInTheFirstToItsEnd) {
    EXPECT_EQ(slots_for_region(compact_of(kMiB, 4096), 8192), 2u);
    EXPECT_EQ(slots_for_region(compact_of(kMiB, 4096), 8193), 3u);
    EXPECT_EQ(slots_for_region(compact_of(kMiB, 8192), 4096), 1u);
    EXPECT_EQ(slots_for_region(compact_of(kMiB, 7680), 8192), 2u) << "4096 may be lost before it";
    EXPECT_EQ(slots_for_region(compact_of(kMiB, 7680), 11776), 3u);
}

}  // namespace
}  // namespace fvd
