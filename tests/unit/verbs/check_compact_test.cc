/* SPDX-License-Identifier: GPL-2.0-or-later */
/* qemu-img check: what it says of tables, and that a repair never makes anything worse. */
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "engine/fuse_host.h"
#include "fvd/format/chunk_table.h"
#include "fvd/format/journal_unit.h"
#include "fvd/verbs.h"

namespace fvd::testing {
namespace {

constexpr uint64_t kChunk = 4096;
constexpr uint64_t kChunks = 16;
constexpr uint32_t kRoom = 1024; /* entries of the table, and so slots */
constexpr uint64_t kUnit = 4096;
constexpr uint32_t kFixAll = FVD_FIX_LEAKS | FVD_FIX_ERRORS;

/**
 * A disk of 16 chunks. Slot s is filled with the byte s + 1, so that a chunk that is not stored
 * reads as 0 and two chunks read alike only where they share a slot.
 */
class CheckCompact : public ::testing::Test {
  protected:
    void SetUp() override { create(false); }

    void create(bool data_file) {
        host.separate_data = data_file;
        fvd_create_options options{};
        options.virtual_size = kChunks * kChunk;
        options.compact_image = true;
        options.chunk_size = kChunk;
        options.storage_grow_unit = 2 * kChunk;
        options.journal_size = 64 * kUnit;
        options.data_file = data_file ? "data.raw" : nullptr;
        const Error error = create_image(host, options);
        ASSERT_TRUE(error.ok()) << error.text;
    }

    std::vector<std::byte>& file() { return host.files[FVD_FILE_IMAGE]; }
    std::vector<std::byte>& storage() { return host.bytes(FVD_FILE_DATA); }

    Header header() {
        return choose_header(ConstBytes(file()).first(kHeaderRegionSize)).value().header;
    }
    void put_header(const Header& changed) {
        for (const uint64_t at : {kHeaderPrimaryOffset, kHeaderCopyOffset}) {
            encode_header(changed, MutableBytes(file()).subspan(at, kHeaderSize));
        }
    }
    /** Storage of this many slots and @p more bytes, each slot filled with its own byte. */
    void provide(uint64_t slots, uint64_t more = 0) {
        const uint64_t offset = header().data_offset;
        storage().resize(offset + slots * kChunk + more);
        for (uint64_t at = offset; at < storage().size(); ++at) {
            storage()[at] = static_cast<std::byte>((at - offset) / kChunk + 1);
        }
    }
    MutableBytes home() {
        return MutableBytes(file()).subspan(header().table_offset, header().table_size);
    }
    void put_table(const std::vector<uint32_t>& entries) {
        for (size_t chunk = 0; chunk < entries.size(); ++chunk) {
            store_le<uint32_t>(home(), chunk * 4, entries[chunk]);
        }
    }
    std::vector<uint32_t> table() {
        std::vector<uint32_t> entries(kChunks);
        ChunkTable(entries).load(0, home().first(kChunks * 4));
        return entries;
    }
    /** The first byte of each chunk, -1 where the entry leads outside. */
    std::vector<int> content() {
        std::vector<int> bytes;
        for (const uint32_t entry : table()) {
            const uint64_t at = header().data_offset + entry * kChunk;
            bytes.push_back(entry == kNotStored              ? 0
                            : entry >= kChunks               ? -1
                            : at + kChunk > storage().size() ? -1
                                                             : static_cast<int>(storage()[at]));
        }
        return bytes;
    }
    /** Unit @p sequence of the journal, a group of its own. */
    void plant_unit(uint64_t sequence, ChunkIndex first, const std::vector<uint32_t>& entries) {
        const uint64_t at = header().journal_offset + sequence % 64 * kUnit;
        UnitWriter writer(MutableBytes(file()).subspan(at, kUnit));
        EXPECT_TRUE(writer.add_table(first, entries));
        writer.finish({.epoch = header().journal_epoch, .sequence = sequence}, header().image_id);
        Header changed = header();
        changed.clean_shutdown = false;
        put_header(changed);
    }

    fvd_check_result check(uint32_t fix = FVD_FIX_NONE) {
        host.log.clear();
        host.warnings.clear();
        fvd_check_result result{};
        const Error error = check_image(host, fix, &result);
        EXPECT_TRUE(error.ok()) << error.text;
        EXPECT_EQ(host.live, 0);
        return result;
    }
    void expect_silent() {
        const fvd_check_result result = check();
        EXPECT_EQ(result.corruptions + result.leaks + result.check_errors, 0u);
        EXPECT_TRUE(host.warnings.empty()) << host.warnings[0];
        EXPECT_EQ(host.count("write") + host.count("resize") + host.count("flush"), 0u);
    }
    void expect_told(const std::string& sentence) {
        const auto before = file();
        const fvd_check_result result = check();
        EXPECT_EQ(result.corruptions, 1u);
        EXPECT_EQ(result.corruptions_fixed, 0u);
        ASSERT_EQ(host.warnings.size(), 1u);
        EXPECT_EQ(host.warnings[0], sentence);
        EXPECT_EQ(file(), before) << "a check without repair writes nothing";
    }
    void expect_repaired(const std::string& sentence) {
        expect_told(sentence);
        const fvd_check_result result = check(kFixAll);
        EXPECT_EQ(result.corruptions_fixed, 1u);
        expect_silent();
        EXPECT_TRUE(header().clean_shutdown);
    }

    MemoryHost host;
};

constexpr uint32_t kNo = kNotStored;

/* ------------------------------------------------------------------ nothing to say */

TEST_F(CheckCompact, AFreshImage) {
    expect_silent();
    const fvd_check_result result = check();
    EXPECT_EQ(result.chunks, kChunks);
    EXPECT_EQ(result.chunks_stored, 0u);
    EXPECT_EQ(result.chunks_fragmented, 0u);
    EXPECT_EQ(result.image_end_offset, header().data_offset);
}

TEST_F(CheckCompact, APreallocatedImage) {
    file().clear();
    fvd_create_options options{};
    options.virtual_size = 5 * kChunk + 512;
    options.compact_image = true;
    options.chunk_size = kChunk;
    options.preallocation = FVD_PREALLOC_METADATA;
    ASSERT_TRUE(create_image(host, options).ok());
    expect_silent();
    const fvd_check_result result = check();
    EXPECT_EQ(result.chunks_stored, 6u);
    EXPECT_EQ(result.chunks_fragmented, 0u);
    EXPECT_EQ(result.image_end_offset, file().size());
}

TEST_F(CheckCompact, SlotsThatNoChunkHasAreFree) {
    provide(8, 100);
    put_table({kNo, 5, kNo, 0, 1});
    expect_silent();
    const fvd_check_result result = check();
    EXPECT_EQ(result.chunks_stored, 3u);
    EXPECT_EQ(result.chunks_fragmented, 1u) << "0 does not follow 5; 1 follows 0";
    EXPECT_EQ(result.image_end_offset, header().data_offset + 6 * kChunk);
    const auto before = file();
    check(kFixAll);
    EXPECT_EQ(file(), before);
}

TEST_F(CheckCompact, ADataFile) {
    host.files[FVD_FILE_IMAGE].clear();
    create(true);
    provide(4);
    put_table({3, 2, 1, 0});
    expect_silent();
    const fvd_check_result result = check();
    EXPECT_EQ(result.chunks_fragmented, 3u);
    EXPECT_EQ(result.image_end_offset, header().journal_offset + header().journal_size);
    put_table({3, 3});
    expect_repaired("chunks with a slot that another chunk has, too: 1, the first is chunk 1");
    EXPECT_EQ(content()[1], 4);
}

TEST_F(CheckCompact, RecordsThatWaitForReplayCount) {
    provide(4);
    put_table({0});
    plant_unit(0, ChunkIndex(1), {1, 2});
    plant_unit(1, ChunkIndex(0), {kNo});
    expect_silent();
    EXPECT_EQ(check().chunks_stored, 2u);
    EXPECT_EQ(check().journal_units_pending, 2u);
    check(kFixAll);
    EXPECT_EQ(check().journal_units_pending, 0u);
    EXPECT_EQ(content(), (std::vector<int>{0, 2, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}));
}

/* ------------------------------------------------------------------ damage */

TEST_F(CheckCompact, SlotsThatCannotExist) {
    provide(4);
    put_table({0, kRoom, kNo - 1, 3});
    expect_repaired("chunks with a slot that cannot exist: 2, the first is chunk 1");
    EXPECT_EQ(table()[0], 0u);
    EXPECT_EQ(table()[1], kNo);
    EXPECT_EQ(table()[2], kNo);
    EXPECT_EQ(table()[3], 3u);
}

TEST_F(CheckCompact, SlotsBehindTheEndOfStorage) {
    provide(4);
    put_table({3, 4, 15});
    expect_repaired("chunks with a slot behind the end of storage: 2, the first is chunk 1");
    EXPECT_EQ(content()[0], 4);
    EXPECT_EQ(table()[1], kNo);
    EXPECT_EQ(table()[2], kNo);
    EXPECT_EQ(host.count("resize"), 0u);
}

TEST_F(CheckCompact, WhatIsLeftOfASlotIsKept) {
    provide(4, 512);
    put_table({3, 15, 4});
    expect_repaired("chunks with a slot behind the end of storage: 2, the first is chunk 1");
    EXPECT_EQ(table()[1], kNo);
    EXPECT_EQ(content()[2], 5);
    const uint64_t end = header().data_offset + 5 * kChunk;
    ASSERT_EQ(storage().size(), end);
    EXPECT_EQ(storage()[end - 1], std::byte{0});
}

TEST_F(CheckCompact, WhereStorageCannotGrowWhatIsLeftOfASlotIsLost) {
    provide(4, 512);
    put_table({3, 15, 4});
    host.fail_call = "resize";
    host.fail_with = -ENOTSUP;
    host.fail_times = -1;
    expect_repaired("chunks with a slot behind the end of storage: 2, the first is chunk 1");
    EXPECT_EQ(table()[2], kNo);
}

TEST_F(CheckCompact, ChunksThatShareASlotReadTheSameAfterwards) {
    provide(6);
    put_table({5, 2, 2, 0, 2});
    const std::vector<int> before = content();
    expect_repaired("chunks with a slot that another chunk has, too: 2, the first is chunk 2");
    EXPECT_EQ(content(), before);
    EXPECT_EQ(table()[1], 2u);
    EXPECT_EQ(table()[2], 1u) << "the first free one";
    EXPECT_EQ(table()[4], 3u);
    const ConstBytes copy = ConstBytes(storage()).subspan(header().data_offset + kChunk, kChunk);
    EXPECT_TRUE(std::all_of(copy.begin(), copy.end(), [](auto b) { return b == std::byte{3}; }));
}

TEST_F(CheckCompact, ACopyIsDurableBeforeTheTableNamesIt) {
    provide(6);
    put_table({2, 2});
    check(kFixAll);
    const auto at = [&](const std::string& words) {
        return std::find_if(host.log.begin(), host.log.end(),
                            [&](const std::string& line) { return line.starts_with(words); });
    };
    const Header h = header();
    const auto copied = at("write data " + std::to_string(h.data_offset));
    const auto flushed = at("flush data");
    const auto entered = at("write image " + std::to_string(h.table_offset));
    ASSERT_NE(entered, host.log.end());
    EXPECT_LT(copied, flushed);
    EXPECT_LT(flushed, entered);
}

TEST_F(CheckCompact, StorageGrowsForACopy) {
    provide(2);
    put_table({0, 1, 1, 0});
    const std::vector<int> before = content();
    expect_repaired("chunks with a slot that another chunk has, too: 2, the first is chunk 2");
    EXPECT_EQ(content(), before);
    EXPECT_EQ(storage().size(), header().data_offset + 4 * kChunk) << "in one step of two chunks";
    EXPECT_EQ(host.count("resize"), 0u) << "only the repair grows, not the check after it";
}

TEST_F(CheckCompact, AFullTableHasASlotForEachCopy) {
    provide(kChunks);
    put_table(std::vector<uint32_t>(kChunks, 7));
    const std::vector<int> before = content();
    expect_repaired("chunks with a slot that another chunk has, too: 15, the first is chunk 1");
    EXPECT_EQ(content(), before);
}

TEST_F(CheckCompact, WithoutRoomForACopyNothingChanges) {
    provide(2);
    put_table({0, 1, 1});
    host.fail_call = "resize";
    host.fail_with = -ENOSPC;
    host.fail_times = -1;
    const auto before = file();
    const fvd_check_result result = check(kFixAll);
    EXPECT_EQ(result.corruptions, 1u);
    EXPECT_EQ(result.corruptions_fixed, 0u);
    EXPECT_EQ(result.check_errors, 1u);
    EXPECT_EQ(file(), before);
    EXPECT_EQ(host.warnings.back(), "the repair failed: No space left on device");
}

TEST_F(CheckCompact, EntriesThatStandForNoChunkAreALeak) {
    store_le<uint32_t>(home(), kChunks * 4, 1);
    store_le<uint32_t>(home(), home().size() - 4, 0);
    fvd_check_result result = check();
    EXPECT_EQ(result.leaks, 1u);
    ASSERT_EQ(host.warnings.size(), 1u);
    EXPECT_EQ(host.warnings[0], "2 entries of the table are set that stand for no chunk");
    result = check(FVD_FIX_LEAKS);
    EXPECT_EQ(result.leaks_fixed, 1u);
    expect_silent();
}

TEST_F(CheckCompact, RepairOfLeaksLeavesSlotsAlone) {
    provide(2);
    put_table({0, 0, 9});
    store_le<uint32_t>(home(), kChunks * 4, 1);
    const fvd_check_result result = check(FVD_FIX_LEAKS);
    EXPECT_EQ(result.corruptions, 2u);
    EXPECT_EQ(result.corruptions_fixed, 0u);
    EXPECT_EQ(result.leaks_fixed, 1u);
    EXPECT_EQ(table()[1], 0u);
    EXPECT_EQ(table()[2], 9u);
}

TEST_F(CheckCompact, UnitsThatNameWhatDoesNotExist) {
    provide(2);
    plant_unit(0, ChunkIndex(kRoom - 1), {0, 1});
    expect_repaired("journal units that name blocks, chunks or slots which do not exist: 1");
    plant_unit(0, ChunkIndex(0), {kRoom});
    expect_repaired("journal units that name blocks, chunks or slots which do not exist: 1");
    EXPECT_EQ(check().chunks_stored, 0u);
}

/** What freed a slot is missing, what gave it to the next chunk is there. */
TEST_F(CheckCompact, ARecordBehindAGapTakesTheSlotAway) {
    provide(4);
    put_table({0, 1, 2});
    plant_unit(0, ChunkIndex(5), {3});
    plant_unit(2, ChunkIndex(6), {1});
    fvd_check_result result = check();
    EXPECT_EQ(result.corruptions, 1u);
    ASSERT_EQ(host.warnings.size(), 2u);
    EXPECT_EQ(host.warnings[0],
              "journal units missing before the last group: 1, first number 1; what only they say "
              "is lost");
    EXPECT_EQ(host.warnings[1],
              "1 chunks are not stored any more: a record behind the missing units gave their "
              "slots to other chunks");
    result = check(kFixAll);
    EXPECT_EQ(result.corruptions_fixed, 1u);
    expect_silent();
    EXPECT_EQ(content(), (std::vector<int>{1, 0, 3, 0, 0, 4, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0}));
}

/* ------------------------------------------------------------------ never worse */

/** What a chunk read before the repair it reads afterwards, unless its entry led nowhere. */
void expect_not_worse(const std::vector<int>& before, const std::vector<int>& after) {
    for (size_t chunk = 0; chunk < before.size(); ++chunk) {
        EXPECT_EQ(after[chunk], std::max(before[chunk], 0)) << chunk;
    }
}

TEST_F(CheckCompact, AnyTableCanBeRepaired) {
    std::mt19937 random(4);
    const auto fresh = file();
    uint64_t faults = 0;
    for (int round = 0; round < 3000; ++round) {
        file() = fresh;
        provide(random() % (kChunks + 1));
        std::vector<uint32_t> entries(kChunks);
        for (uint32_t& entry : entries) {
            const uint32_t kind = random() % 8;
            entry = kind == 0  ? static_cast<uint32_t>(random())
                    : kind < 4 ? kNo
                               : static_cast<uint32_t>(random() % (kChunks + 2));
        }
        put_table(entries);
        const std::vector<int> before = content();
        const fvd_check_result result = check(kFixAll);
        ASSERT_EQ(result.corruptions_fixed, result.corruptions);
        faults += result.corruptions;
        expect_silent();
        expect_not_worse(before, content());
        ASSERT_FALSE(HasFailure()) << round;
    }
    EXPECT_GT(faults, 3000u);
}

/** Any call fails for ever, as if the power went: a later check ends what this one began. */
TEST_F(CheckCompact, ARepairMayBeCutAnywhere) {
    provide(5, 512);
    put_table({4, 2, 2, 77, 5, 2, 9});
    const std::vector<int> before = content();
    const auto spoiled = file();
    bool done = false;
    int64_t steps = 0;
    while (!done) {
        file() = spoiled;
        FuseHost fuse(host, steps);
        fvd_check_result result{};
        const Error error = check_image(fuse, kFixAll, &result);
        EXPECT_EQ(host.live, 0);
        done = error.ok() && result.check_errors == 0;
        if (!done) {
            for (size_t chunk = 0; chunk < kChunks; ++chunk) {
                const int now = content()[chunk];
                ASSERT_TRUE(now == before[chunk] || (before[chunk] == -1 && now >= 0))
                    << "cut at call " << steps << ", chunk " << chunk;
            }
            check(kFixAll);
        }
        expect_silent();
        std::vector<int> expected = before;
        expected[4] = 6; /* what is left of slot 5 */
        expect_not_worse(expected, content());
        ASSERT_FALSE(HasFailure()) << steps;
        ++steps;
    }
    EXPECT_GT(steps, 15);
}

TEST_F(CheckCompact, MemoryMayRunOutAnywhere) {
    provide(2);
    put_table({0, 0});
    plant_unit(1, ChunkIndex(5), {1});
    plant_unit(3, ChunkIndex(6), {1});
    const auto spoiled = file();
    bool done = false;
    for (int64_t index = 0; !done; ++index) {
        file() = spoiled;
        host.allocations = 0;
        host.fail_allocation = index;
        fvd_check_result result{};
        const Error error = check_image(host, kFixAll, &result);
        EXPECT_EQ(host.live, 0);
        done = host.allocations <= index;
        EXPECT_EQ(done, error.ok() && result.check_errors == 0) << index;
    }
}

}  // namespace
}  // namespace fvd::testing
