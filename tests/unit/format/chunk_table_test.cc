/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "fvd/format/chunk_table.h"

#include <gtest/gtest.h>

#include <random>
#include <thread>
#include <vector>

namespace fvd {
namespace {

/** A table of these entries. */
struct Table {
    explicit Table(std::vector<uint32_t> list) : entries(std::move(list)), view(entries) {}
    std::vector<uint32_t> entries;
    ChunkTable view;
};

TEST(ChunkTable, RemembersSlots) {
    Table table(std::vector<uint32_t>(4, kNotStored));
    EXPECT_EQ(table.view.chunks(), 4u);
    EXPECT_EQ(table.view.stored(), 0u);
    table.view.set(ChunkIndex(2), SlotIndex(0));
    table.view.set(ChunkIndex(0), SlotIndex(kNotStored - 1));
    EXPECT_EQ(table.view.slot(ChunkIndex(0)), SlotIndex(kNotStored - 1));
    EXPECT_EQ(table.view.slot(ChunkIndex(1)), std::nullopt);
    EXPECT_EQ(table.view.slot(ChunkIndex(2)), SlotIndex(0));
    EXPECT_EQ(table.view.entry(ChunkIndex(1)), kNotStored);
    EXPECT_EQ(table.view.stored(), 2u);
    table.view.clear(ChunkIndex(2));
    EXPECT_EQ(table.view.slot(ChunkIndex(2)), std::nullopt);
    EXPECT_EQ(table.view.stored(), 1u);
}

TEST(ChunkTable, ClearAll) {
    Table table({0, 1, 2});
    table.view.clear_all();
    EXPECT_EQ(table.view.stored(), 0u);
    EXPECT_EQ(table.entries, std::vector<uint32_t>(3, kNotStored));
}

TEST(ChunkTable, OfNoChunks) {
    ChunkTable none;
    EXPECT_EQ(none.chunks(), 0u);
    EXPECT_EQ(none.stored(), 0u);
    none.clear_all();
    std::array<std::byte, 8> bytes{};
    none.load(0, bytes);
    none.store(0, bytes);
    EXPECT_EQ(load_le<uint64_t>(bytes, 0), UINT64_MAX);
}

struct RunCase {
    std::vector<uint32_t> entries;
    uint64_t begin, end;
    std::optional<SlotIndex> slot;
    uint64_t run_end;
};

constexpr uint32_t kNo = kNotStored;

class ChunkTableRun : public testing::TestWithParam<RunCase> {};

TEST_P(ChunkTableRun, Is) {
    const RunCase& of = GetParam();
    const Table table(of.entries);
    const ChunkRun run = table.view.run(ChunkIndex(of.begin), ChunkIndex(of.end));
    EXPECT_EQ(run.slot, of.slot);
    EXPECT_EQ(run.end, ChunkIndex(of.run_end));
}

INSTANTIATE_TEST_SUITE_P(
    , ChunkTableRun,
    testing::Values(RunCase{{7}, 0, 1, SlotIndex(7), 1},           /* one chunk */
                    RunCase{{kNo}, 0, 1, std::nullopt, 1},         /* one that is not there */
                    RunCase{{3, 4, 5}, 0, 3, SlotIndex(3), 3},     /* up to the end */
                    RunCase{{3, 4, 5}, 0, 2, SlotIndex(3), 2},     /* no further than asked */
                    RunCase{{3, 4, 5}, 1, 3, SlotIndex(4), 3},     /* from the middle */
                    RunCase{{3, 4, 6}, 0, 3, SlotIndex(3), 2},     /* a gap */
                    RunCase{{3, 3}, 0, 2, SlotIndex(3), 1},        /* the same slot */
                    RunCase{{3, 2}, 0, 2, SlotIndex(3), 1},        /* downwards */
                    RunCase{{3, kNo}, 0, 2, SlotIndex(3), 1},      /* then none */
                    RunCase{{kNo, kNo, 0}, 0, 3, std::nullopt, 2}, /* none, then some */
                    RunCase{{kNo, kNo}, 0, 2, std::nullopt, 2},    /* none to the end */
                    RunCase{{kNo - 1, kNo}, 0, 2, SlotIndex(kNo - 1), 1}, /* kNotStored follows */
                    RunCase{{kNo, 0}, 0, 2, std::nullopt, 1})); /* 0 follows it, if it wraps */

/** All runs of all tables of 5 chunks over 4 slots, against the definition. */
TEST(ChunkTable, RunsOfEverySmallTable) {
    uint64_t runs = 0;
    for (uint32_t number = 0; number < 5 * 5 * 5 * 5 * 5; ++number) {
        std::vector<uint32_t> entries(5);
        uint32_t rest = number;
        for (uint32_t& entry : entries) {
            entry = rest % 5 == 4 ? kNotStored : rest % 5;
            rest /= 5;
        }
        const Table table(entries);
        for (uint64_t begin = 0; begin < 5; ++begin) {
            for (uint64_t end = begin + 1; end <= 5; ++end) {
                uint64_t expected = begin + 1;
                while (expected < end &&
                       (entries[begin] == kNotStored
                            ? entries[expected] == kNotStored
                            : entries[expected] == entries[begin] + (expected - begin))) {
                    ++expected;
                }
                ASSERT_EQ(table.view.run(ChunkIndex(begin), ChunkIndex(end)).end.value, expected);
                ++runs;
            }
        }
    }
    EXPECT_EQ(runs, 3125u * 15);
}

TEST(ChunkTable, EntriesOnDiskAreLittleEndian) {
    Table table({0x04030201, kNotStored, 0});
    std::array<std::byte, 16> bytes;
    bytes.fill(std::byte{0xA5});
    table.view.store(0, bytes);
    const std::array<int, 16> expected = {1, 2, 3, 4, 255, 255, 255, 255,
                                          0, 0, 0, 0, 255, 255, 255, 255};
    for (size_t i = 0; i < bytes.size(); ++i) {
        EXPECT_EQ(static_cast<int>(bytes[i]), expected[i]) << i;
    }
}

TEST(ChunkTable, EntriesPastTheEndAreNeitherReadNorWritten) {
    for (size_t chunks = 1; chunks <= 9; ++chunks) {
        std::vector<uint32_t> entries(chunks + 1, 77);
        ChunkTable table{std::span(entries).first(chunks)};
        std::array<std::byte, 64> bytes{};
        table.load(0, bytes);
        EXPECT_EQ(table.stored(), chunks);
        EXPECT_EQ(table.entry(ChunkIndex(chunks - 1)), 0u);
        EXPECT_EQ(entries.back(), 77u) << "an entry that is not the table's was touched";
        table.store(0, bytes);
        for (uint64_t i = 0; i < 16; ++i) {
            ASSERT_EQ(load_le<uint32_t>(bytes, i * 4), i < chunks ? 0 : kNotStored);
        }
    }
}

TEST(ChunkTable, MovesInPieces) {
    std::mt19937 random(7);
    Table table(std::vector<uint32_t>(1000));
    for (uint32_t& entry : table.entries) {
        entry = static_cast<uint32_t>(random());
    }
    std::vector<std::byte> whole(4000);
    table.view.store(0, whole);
    Table other(std::vector<uint32_t>(1000));
    for (size_t at = 0; at < whole.size(); at += 92) {
        std::vector<std::byte> piece(std::min<size_t>(92, whole.size() - at));
        table.view.store(at, piece);
        EXPECT_TRUE(std::equal(piece.begin(), piece.end(), whole.begin() + static_cast<int>(at)));
        other.view.load(at, piece);
    }
    EXPECT_EQ(other.entries, table.entries);
}

TEST(ChunkTable, PiecesFarBehindTheEndAreIgnored) {
    Table table({5});
    std::array<std::byte, 8> bytes{};
    table.view.load(uint64_t{1} << 60, bytes);
    EXPECT_EQ(table.view.entry(ChunkIndex(0)), 5u);
    table.view.store(uint64_t{1} << 60, bytes);
    EXPECT_EQ(load_le<uint64_t>(bytes, 0), UINT64_MAX);
}

TEST(ChunkTable, WhoSeesASlotSeesWhatWasDoneToIt) {
    constexpr uint64_t kChunks = 2000;
    std::vector<uint64_t> content(kChunks);
    Table table(std::vector<uint32_t>(kChunks, kNotStored));
    std::thread writer([&] {
        for (uint64_t i = 0; i < kChunks; ++i) {
            content[i] = i + 1;
            table.view.set(ChunkIndex(i), SlotIndex(i));
        }
    });
    for (ChunkIndex chunk(0); chunk.value < kChunks;) {
        if (const auto slot = table.view.slot(chunk)) {
            ASSERT_EQ(content[slot->value], slot->value + 1);
            ++chunk;
        }
    }
    writer.join();
}

TEST(ChunkTable, NothingIsClearedOfNothing) {
    Table table({0, 1});
    table.view.clear(ChunkIndex(5), ChunkIndex(5));
    table.view.clear(ChunkIndex(1), ChunkIndex(0));
    EXPECT_EQ(table.view.stored(), 2u);
}

TEST(ChunkTable, TakesTheEntriesOfOneThatIsNoLarger) {
    std::vector<uint32_t> list = {5, 6, 99};
    const ChunkTable smaller(std::span<uint32_t>(list).first(2));
    Table larger({0, 1, 2});
    larger.view.copy_from(smaller);
    EXPECT_EQ(larger.entries, (std::vector<uint32_t>{5, 6, 2}));
    Table equal({0, 1});
    equal.view.copy_from(smaller);
    EXPECT_EQ(equal.entries, (std::vector<uint32_t>{5, 6}));
}

TEST(ChunkTableDeathTest, WhatIsOutsideIsAsserted) {
    Table table({1, 2});
    std::array<std::byte, 8> bytes{};
    EXPECT_DEATH((void)table.view.entry(ChunkIndex(2)), "assertion failed");
    EXPECT_DEATH(table.view.set_entry(ChunkIndex(2), 0), "assertion failed");
    EXPECT_DEATH(table.view.set(ChunkIndex(0), SlotIndex(kNotStored)), "assertion failed");
    EXPECT_DEATH(table.view.clear(ChunkIndex(0), ChunkIndex(3)), "assertion failed");
    EXPECT_DEATH((void)table.view.run(ChunkIndex(1), ChunkIndex(1)), "assertion failed");
    EXPECT_DEATH((void)table.view.run(ChunkIndex(0), ChunkIndex(3)), "assertion failed");
    EXPECT_DEATH(table.view.load(2, bytes), "assertion failed");
    EXPECT_DEATH(table.view.store(0, MutableBytes(bytes).first(6)), "assertion failed");
}

}  // namespace
}  // namespace fvd
