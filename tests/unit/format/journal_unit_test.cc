/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "fvd/format/journal_unit.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "fvd/base/crc32c.h"
#include "fvd/format/limits.h"
#include "samples.h"

namespace fvd {
namespace {

using test::sample_id;
using Bytes = std::vector<std::byte>;

BlockRange blocks(uint64_t begin, uint64_t end) {
    return {BlockIndex(begin), BlockIndex(end)};
}

UnitHeader sample_unit_header() {
    return {.epoch = 7, .sequence = 42, .tail_sequence = 40, .group_index = 1, .group_size = 3};
}

/** A unit with two bitmap records and one table record. */
Bytes sample_unit(size_t size) {
    Bytes bytes(size, std::byte{0xA5});
    UnitWriter writer(bytes);
    EXPECT_TRUE(writer.add_bitmap(blocks(3, 10)));
    const uint32_t entries[] = {5, 0xFFFFFFFF, 7};
    EXPECT_TRUE(writer.add_table(ChunkIndex(1000), entries));
    EXPECT_TRUE(writer.add_bitmap(blocks(1 << 20, (1 << 20) + 1)));
    writer.finish(sample_unit_header(), sample_id());
    return bytes;
}

/** crc32c as docs/format.md defines it, for units that are spoiled on purpose. */
void seal(Bytes& unit) {
    store_le<uint32_t>(unit, 4, 0);
    store_le<uint32_t>(unit, 4, crc32c(unit, crc32c(sample_id())));
}

bool is_valid(const Bytes& unit) {
    return UnitView::decode(unit, sample_id()).has_value();
}

/** The sample unit with a number changed and the checksum made right. */
template <typename T>
bool valid_with(size_t offset, T value) {
    Bytes unit = sample_unit(512);
    store_le<T>(unit, offset, value);
    seal(unit);
    return is_valid(unit);
}

TEST(JournalUnit, GoldenBytes) {
    const Bytes unit = sample_unit(512);
    const std::pair<size_t, uint64_t> numbers[] = {
        {0, 0x4A445646},   {8, 7},         {16, 42}, {24, 40},
        {32, 1},           {36, 3},        {40, 64}, {44, 0},
        {64, 0x3F2AB8ED},  {68, 7},        {72, 3},  {80, 0xB4E6F7AC},
        {84, 3},           {88, 1000},     {92, 0},  {96, 5},
        {100, 0xFFFFFFFF}, {104, 7},       {108, 0}, {112, 0x3F2AB8ED},
        {116, 1},          {120, 1 << 20},
    };
    for (const auto& [offset, value] : numbers) {
        EXPECT_EQ(load_le<uint32_t>(unit, offset), value) << offset;
    }
    for (size_t at = 128; at < unit.size(); ++at) {
        ASSERT_EQ(unit[at], std::byte{0}) << at;
    }
    Bytes blank = unit;
    store_le<uint32_t>(blank, 4, 0);
    EXPECT_EQ(load_le<uint32_t>(unit, 4), crc32c(blank, crc32c(sample_id())));
}

TEST(JournalUnit, DecodesWhatWasWritten) {
    for (const size_t size : {size_t{512}, size_t{4096}}) {
        const Bytes unit = sample_unit(size);
        const auto view = UnitView::decode(unit, sample_id());
        ASSERT_TRUE(view.has_value());
        EXPECT_EQ(view->header().epoch, 7u);
        EXPECT_EQ(view->header().sequence, 42u);
        EXPECT_EQ(view->header().tail_sequence, 40u);
        EXPECT_EQ(view->header().group_index, 1u);
        EXPECT_EQ(view->header().group_size, 3u);
        EXPECT_EQ(view->header().record_bytes, 64u);
        size_t position = 0;
        JournalRecord record;
        ASSERT_TRUE(view->next(&position, &record));
        EXPECT_EQ(record.kind, JournalRecord::Kind::bitmap);
        EXPECT_EQ(record.blocks, blocks(3, 10));
        ASSERT_TRUE(view->next(&position, &record));
        EXPECT_EQ(record.kind, JournalRecord::Kind::table);
        EXPECT_EQ(record.first_chunk, ChunkIndex(1000));
        ASSERT_EQ(record.entry_count(), 3u);
        EXPECT_EQ(record.entry(0), 5u);
        EXPECT_EQ(record.entry(1), 0xFFFFFFFFu);
        EXPECT_EQ(record.entry(2), 7u);
        ASSERT_TRUE(view->next(&position, &record));
        EXPECT_EQ(record.blocks, blocks(1 << 20, (1 << 20) + 1));
        EXPECT_FALSE(view->next(&position, &record));
        EXPECT_FALSE(view->next(&position, &record));
    }
}

TEST(JournalUnit, MayHoldNoRecord) {
    Bytes unit(512);
    UnitWriter writer(unit);
    EXPECT_TRUE(writer.empty());
    writer.finish({}, sample_id());
    const auto view = UnitView::decode(unit, sample_id());
    ASSERT_TRUE(view.has_value());
    size_t position = 0;
    JournalRecord record;
    EXPECT_FALSE(view->next(&position, &record));
}

TEST(JournalUnit, WritesEveryByte) {
    Bytes a(4096, std::byte{0xA5});
    Bytes b(4096, std::byte{0x5A});
    for (Bytes* unit : {&a, &b}) {
        UnitWriter writer(*unit);
        EXPECT_TRUE(writer.add_bitmap(blocks(1, 2)));
        writer.finish({}, sample_id());
    }
    EXPECT_EQ(a, b);
}

/* ------------------------------------------------------------------ how much fits */

TEST(JournalUnit, HoldsAsManyBitmapRecordsAsThereIsRoom) {
    for (const auto& [size, room] : {std::pair{512, 28}, std::pair{4096, 252}}) {
        Bytes unit(static_cast<size_t>(size));
        UnitWriter writer(unit);
        for (int i = 0; i < room; ++i) {
            ASSERT_TRUE(writer.add_bitmap(
                blocks(2 * static_cast<uint64_t>(i), 2 * static_cast<uint64_t>(i) + 1)));
        }
        const Bytes before = unit;
        EXPECT_FALSE(writer.add_bitmap(blocks(9000, 9001)));
        EXPECT_FALSE(writer.add_table(ChunkIndex(0), std::array<uint32_t, 1>{1}));
        EXPECT_EQ(unit, before);
        writer.finish({}, sample_id());
        const auto view = UnitView::decode(unit, sample_id());
        ASSERT_TRUE(view.has_value());
        size_t position = 0;
        JournalRecord record;
        int count = 0;
        while (view->next(&position, &record)) {
            EXPECT_EQ(record.blocks.begin.value, 2 * static_cast<uint64_t>(count));
            ++count;
        }
        EXPECT_EQ(count, room);
    }
}

TEST(JournalUnit, TableRecordsOfEveryLength) {
    for (size_t count = 1; count <= 108; ++count) {
        Bytes unit(512);
        UnitWriter writer(unit);
        std::vector<uint32_t> entries(count);
        for (size_t i = 0; i < count; ++i) {
            entries[i] = static_cast<uint32_t>(i * 3 + 1);
        }
        ASSERT_TRUE(writer.add_table(ChunkIndex(UINT32_MAX - count + 1), entries));
        writer.finish({}, sample_id());
        const auto view = UnitView::decode(unit, sample_id());
        ASSERT_TRUE(view.has_value()) << count;
        EXPECT_EQ(view->header().record_bytes, 16 + (count * 4 + 7) / 8 * 8);
        size_t position = 0;
        JournalRecord record;
        ASSERT_TRUE(view->next(&position, &record));
        ASSERT_EQ(record.entry_count(), count);
        for (size_t i = 0; i < count; ++i) {
            ASSERT_EQ(record.entry(i), entries[i]);
        }
    }
}

TEST(JournalUnit, ATableRecordFitsWhollyOrNotAtAll) {
    for (const auto& [size, room] : {std::pair<size_t, size_t>{512, 108}, {4096, 1004}}) {
        Bytes unit(size);
        UnitWriter writer(unit);
        const std::vector<uint32_t> too_many(room + 1, 1);
        EXPECT_FALSE(writer.add_table(ChunkIndex(0), too_many));
        EXPECT_TRUE(writer.empty());
        EXPECT_TRUE(writer.add_table(ChunkIndex(0), std::span(too_many).first(room)));
        EXPECT_FALSE(writer.empty());
    }
}

TEST(JournalUnit, LargestNumbersSurvive) {
    Bytes unit(512);
    UnitWriter writer(unit);
    const uint64_t first = UINT64_MAX - UINT32_MAX;
    EXPECT_TRUE(writer.add_bitmap(blocks(first, UINT64_MAX)));
    writer.finish({.epoch = limits::kMaxCounter,
                   .sequence = limits::kMaxCounter,
                   .tail_sequence = limits::kMaxCounter - 9,
                   .group_index = 9,
                   .group_size = UINT32_MAX},
                  sample_id());
    const auto view = UnitView::decode(unit, sample_id());
    ASSERT_TRUE(view.has_value());
    size_t position = 0;
    JournalRecord record;
    ASSERT_TRUE(view->next(&position, &record));
    EXPECT_EQ(record.blocks, blocks(first, UINT64_MAX));
}

/* ------------------------------------------------------------------ what is not a unit */

class JournalUnitBits : public testing::TestWithParam<size_t> {};

TEST_P(JournalUnitBits, EverySingleFlippedBitIsRefused) {
    Bytes unit = sample_unit(GetParam());
    for (size_t bit = 0; bit < unit.size() * 8; ++bit) {
        const auto mask = static_cast<std::byte>(1 << bit % 8);
        unit[bit / 8] ^= mask;
        ASSERT_FALSE(is_valid(unit)) << "bit " << bit;
        unit[bit / 8] ^= mask;
    }
    EXPECT_TRUE(is_valid(unit));
}

TEST_P(JournalUnitBits, EveryTearIsRefused) {
    const Bytes unit = sample_unit(GetParam());
    for (size_t kept = 0; kept < unit.size(); ++kept) {
        Bytes torn(unit.size(), std::byte{0});
        std::copy_n(unit.begin(), kept, torn.begin());
        if (torn != unit) {
            ASSERT_FALSE(is_valid(torn)) << kept;
        }
    }
}

TEST_P(JournalUnitBits, EveryBitOfTheImageIdCounts) {
    const Bytes unit = sample_unit(GetParam());
    for (size_t bit = 0; bit < 128; ++bit) {
        ImageId other = sample_id();
        other[bit / 8] ^= static_cast<std::byte>(1 << bit % 8);
        EXPECT_FALSE(UnitView::decode(unit, other).has_value());
    }
}

INSTANTIATE_TEST_SUITE_P(, JournalUnitBits, testing::Values(512, 4096));

TEST(JournalUnit, OtherSizesAreRefused) {
    for (const size_t size : {size_t{0}, size_t{1}, size_t{64}, size_t{511}, size_t{513},
                              size_t{1024}, size_t{4095}, size_t{8192}}) {
        Bytes unit(size);
        if (size >= 64) {
            store_le<uint32_t>(unit, 0, kUnitMagic);
            seal(unit);
        }
        EXPECT_FALSE(is_valid(unit)) << size;
    }
}

TEST(JournalUnit, ZerosAreRefused) {
    EXPECT_FALSE(is_valid(Bytes(512)));
    EXPECT_FALSE(is_valid(Bytes(4096)));
}

TEST(JournalUnit, HeaderNumbersMustAgree) {
    EXPECT_TRUE(valid_with<uint64_t>(8, 7));
    EXPECT_FALSE(valid_with<uint32_t>(0, 0x4A445647));
    EXPECT_TRUE(valid_with<uint64_t>(8, 2 * limits::kMaxCounter));
    EXPECT_FALSE(valid_with<uint64_t>(8, 2 * limits::kMaxCounter + 1));
    EXPECT_TRUE(valid_with<uint64_t>(16, limits::kMaxCounter));
    EXPECT_FALSE(valid_with<uint64_t>(16, limits::kMaxCounter + 1));
    EXPECT_FALSE(valid_with<uint64_t>(16, UINT64_MAX));
    EXPECT_TRUE(valid_with<uint64_t>(16, 41)) << "tail at the group's first unit";
    EXPECT_FALSE(valid_with<uint64_t>(16, 40)) << "tail inside the group";
    EXPECT_FALSE(valid_with<uint64_t>(16, 0)) << "the group would start before 0";
    EXPECT_TRUE(valid_with<uint64_t>(24, 0));
    EXPECT_TRUE(valid_with<uint64_t>(24, 41));
    EXPECT_FALSE(valid_with<uint64_t>(24, 42));
    EXPECT_FALSE(valid_with<uint64_t>(24, UINT64_MAX));
    EXPECT_TRUE(valid_with<uint32_t>(32, 2));
    EXPECT_FALSE(valid_with<uint32_t>(32, 3));
    EXPECT_FALSE(valid_with<uint32_t>(32, UINT32_MAX));
    EXPECT_FALSE(valid_with<uint32_t>(36, 0));
    EXPECT_FALSE(valid_with<uint32_t>(36, 1));
    EXPECT_TRUE(valid_with<uint32_t>(36, UINT32_MAX));
}

TEST(JournalUnit, RecordBytesMustBeWhole) {
    for (uint32_t size = 0; size <= 448; ++size) {
        EXPECT_EQ(valid_with<uint32_t>(40, size), size == 64) << size;
    }
    EXPECT_FALSE(valid_with<uint32_t>(40, 449));
    EXPECT_FALSE(valid_with<uint32_t>(40, UINT32_MAX));
}

TEST(JournalUnit, ReservedBytesAreZero) {
    for (size_t at = 44; at < 64; ++at) {
        EXPECT_FALSE(valid_with<uint8_t>(at, 1)) << at;
    }
    for (size_t at = 128; at < 512; ++at) {
        EXPECT_FALSE(valid_with<uint8_t>(at, 1)) << at;
    }
}

TEST(JournalUnit, BitmapRecordsAreProven) {
    EXPECT_FALSE(valid_with<uint32_t>(64, 0x3F2AB8EE)) << "unknown type";
    EXPECT_FALSE(valid_with<uint32_t>(64, 0)) << "the 2011 end marker is no record";
    EXPECT_FALSE(valid_with<uint32_t>(68, 0)) << "no blocks";
    EXPECT_TRUE(valid_with<uint32_t>(68, UINT32_MAX));
    EXPECT_TRUE(valid_with<uint64_t>(72, UINT64_MAX - 7));
    EXPECT_FALSE(valid_with<uint64_t>(72, UINT64_MAX - 6)) << "the end wraps";
    EXPECT_FALSE(valid_with<uint64_t>(72, UINT64_MAX));
}

TEST(JournalUnit, TableRecordsAreProven) {
    EXPECT_FALSE(valid_with<uint32_t>(84, 0)) << "no entries";
    EXPECT_FALSE(valid_with<uint32_t>(84, 9)) << "beyond the records";
    EXPECT_FALSE(valid_with<uint32_t>(84, UINT32_MAX));
    EXPECT_TRUE(valid_with<uint32_t>(88, UINT32_MAX - 2));
    EXPECT_FALSE(valid_with<uint32_t>(88, UINT32_MAX - 1)) << "the end wraps";
    EXPECT_FALSE(valid_with<uint32_t>(92, 1));
    EXPECT_FALSE(valid_with<uint32_t>(108, 1)) << "padding after an odd number of entries";
}

TEST(JournalUnit, PaddingIsPartOfARecord) {
    Bytes unit(512);
    UnitWriter writer(unit);
    EXPECT_TRUE(writer.add_table(ChunkIndex(0), std::array<uint32_t, 1>{9}));
    writer.finish({}, sample_id());
    ASSERT_EQ(load_le<uint32_t>(unit, 40), 24u);
    EXPECT_TRUE(is_valid(unit));
    store_le<uint32_t>(unit, 40, 20);
    seal(unit);
    EXPECT_FALSE(is_valid(unit));
}

/** Any bytes with a right checksum: accepted only if walking the records stays inside. */
TEST(JournalUnit, GarbageWithARightChecksumIsHarmless) {
    std::mt19937_64 random(3);
    const uint32_t types[] = {kBitmapRecord, kTableRecord, 0, 0x12345678};
    size_t accepted = 0;
    for (int round = 0; round < 200000; ++round) {
        Bytes unit = sample_unit(512);
        for (int change = 0; change < 1 + round % 4; ++change) {
            const size_t at = 8 + random() % 30 * 4;
            const uint64_t pick = random() % 4;
            store_le<uint32_t>(unit, at,
                               pick == 0   ? types[random() % 4]
                               : pick == 1 ? static_cast<uint32_t>(random() % 40)
                                           : static_cast<uint32_t>(random()));
        }
        seal(unit);
        const auto view = UnitView::decode(unit, sample_id());
        if (!view) {
            continue;
        }
        ++accepted;
        size_t position = 0;
        JournalRecord record;
        size_t records = 0;
        while (view->next(&position, &record)) {
            ASSERT_LE(position, view->header().record_bytes);
            ASSERT_LE(++records, 28u);
        }
        ASSERT_EQ(position, view->header().record_bytes);
    }
    EXPECT_GT(accepted, 1000u);
}

TEST(JournalUnitDeathTest, TheWriterTakesOnlyWhatTheFormatCanSay) {
    Bytes unit(512);
    EXPECT_DEATH(UnitWriter(MutableBytes(unit).first(511)), "assertion failed");
    UnitWriter writer(unit);
    EXPECT_DEATH((void)writer.add_bitmap(blocks(5, 5)), "assertion failed");
    EXPECT_DEATH((void)writer.add_bitmap(blocks(0, uint64_t{1} << 32)), "assertion failed");
    EXPECT_DEATH((void)writer.add_table(ChunkIndex(0), {}), "assertion failed");
    EXPECT_DEATH((void)writer.add_table(ChunkIndex(uint64_t{1} << 32), std::array<uint32_t, 1>{1}),
                 "assertion failed");
    EXPECT_DEATH((void)writer.add_table(ChunkIndex(UINT32_MAX), std::array<uint32_t, 2>{1, 2}),
                 "assertion failed");
    EXPECT_DEATH(writer.finish({.sequence = 1, .tail_sequence = 2}, sample_id()),
                 "assertion failed");
    EXPECT_DEATH(writer.finish({.group_index = 1, .group_size = 1}, sample_id()),
                 "assertion failed");
}

}  // namespace
}  // namespace fvd
