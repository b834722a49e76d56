/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Disks that outgrow what was planned for them. Races and cuts are the simulator's. */
#include <gtest/gtest.h>

#include <memory>

#include "engine/memory_host.h"
#include "fvd/base/arith.h"
#include "fvd/engine/image.h"
#include "fvd/format/layout.h"
#include "fvd/verbs.h"

namespace fvd::testing {
namespace {

constexpr uint64_t kChunk = 4096;
constexpr uint64_t kRoom = 1024; /* chunks of the smallest table */
constexpr uint64_t kFull = kRoom * kChunk;
constexpr uint64_t kUnit = 4096;
constexpr uint64_t kMiB = 1024 * 1024;
/* Header, table and such a journal end where the data begins. */
constexpr uint64_t kJournalWithoutGap = kMiB - kHeaderRegionSize - 4096;
/* A table of so many chunks is larger than any gap in front of the data. */
constexpr uint64_t kHuge = 400 * 1024;

class ResizeTest : public ::testing::Test {
  protected:
    void create(uint64_t disk, uint64_t journal = 64 * kUnit) {
        fvd_create_options options{};
        options.virtual_size = disk;
        options.compact_image = true;
        options.chunk_size = kChunk;
        options.storage_grow_unit = 4 * kChunk;
        options.journal_size = journal;
        options.data_file = host.separate_data ? "data.raw" : nullptr;
        const Error error = create_image(host, options);
        ASSERT_TRUE(error.ok()) << error.text;
        open();
    }
    void open(StartMode mode = StartMode::writable) {
        image = std::make_unique<Image>(host);
        const Error error = image->start(mode);
        ASSERT_TRUE(error.ok()) << error.text;
        host.log.clear();
    }
    void close() {
        EXPECT_EQ(image->stop().value(), 0);
        image.reset();
    }
    void reopen() {
        close();
        open();
    }
    Status write(uint64_t offset, uint64_t length, uint8_t fill) {
        std::vector<std::byte> buffer(length, std::byte{fill});
        return image->write(offset, length, {buffer.data(), 0}, 0);
    }
    void expect_fill(uint64_t offset, uint64_t length, uint8_t fill) {
        std::vector<std::byte> buffer(length, std::byte{0xEE});
        ASSERT_TRUE(image->read(offset, length, {buffer.data(), 0}, 0).ok());
        for (uint64_t i = 0; i < length; i++) {
            ASSERT_EQ(buffer[i], std::byte{fill}) << "at byte " << offset + i;
        }
    }
    void resize(uint64_t size, Preallocation mode = FVD_PREALLOC_OFF) {
        const Error error = image->resize(size, mode);
        ASSERT_TRUE(error.ok()) << error.text;
        ASSERT_EQ(image->header().virtual_size, size);
    }
    /** With the image closed. */
    void expect_well(uint64_t* corruptions = nullptr) {
        host.warnings.clear();
        fvd_check_result result{};
        ASSERT_TRUE(check_image(host, FVD_FIX_NONE, &result).ok());
        EXPECT_EQ(result.check_errors, 0u);
        if (corruptions != nullptr) {
            *corruptions = result.corruptions;
            return;
        }
        EXPECT_EQ(result.corruptions + result.leaks, 0u);
        EXPECT_TRUE(host.warnings.empty()) << host.warnings[0];
    }
    Header header() { return choose_header(host.files[FVD_FILE_IMAGE]).value().header; }
    MutableBytes home() {
        return MutableBytes(host.files[FVD_FILE_IMAGE])
            .subspan(header().table_offset, header().table_size);
    }

    MemoryHost host;
    std::unique_ptr<Image> image;
};

TEST_F(ResizeTest, ALargerTableStandsInFrontOfTheDataIfThereIsRoom) {
    create(kFull);
    const Header before = header();
    ASSERT_TRUE(write(0, kFull, 7).ok());
    resize(kFull + kChunk);
    const Header after = header();
    EXPECT_EQ(after.table_offset, before.journal_offset + before.journal_size);
    EXPECT_GE(after.slot_count(), kRoom + 1);
    EXPECT_LT(after.table_offset + after.table_size, after.data_offset);
    expect_fill(0, kFull, 7);
    expect_fill(kFull, kChunk, 0);
    ASSERT_TRUE(write(kFull + 100, 300, 8).ok());
    reopen();
    expect_fill(0, kFull, 7);
    expect_fill(kFull + 100, 300, 8);
    expect_fill(kFull + 400, kChunk - 400, 0);
    close();
    expect_well();
}

TEST_F(ResizeTest, TheSpaceOfTheFormerTableIsGivenBack) {
    create(kFull);
    const Header before = header();
    resize(2 * kFull);
    EXPECT_EQ(host.count("zero image " + std::to_string(before.table_offset) + "+4096"), 1u);
}

TEST_F(ResizeTest, AStepLeavesRoomForTheNext) {
    create(kFull);
    resize(kFull + kChunk);
    const uint64_t place = header().table_offset;
    resize(kFull + 64 * kChunk);
    EXPECT_EQ(header().table_offset, place);
}

TEST_F(ResizeTest, WithoutAGapItStandsOnSlotsThatNoChunkGets) {
    create(kFull, kJournalWithoutGap);
    ASSERT_EQ(find_gap(header(), 4096), std::nullopt);
    ASSERT_TRUE(write(0, 8 * kChunk, 1).ok());
    ASSERT_TRUE(image->discard(2 * kChunk, 3 * kChunk).ok()); /* a hole of three slots */
    ASSERT_TRUE(image->flush().ok());
    resize(kFull + 200 * kChunk);
    const ReservedSlots reserved = header().reserved_slots();
    EXPECT_EQ(reserved.count(), 2u);
    EXPECT_EQ(reserved.ranges[1].begin, 2u) << "the first hole that is large enough";
    /* Every chunk gets a slot all the same. */
    ASSERT_TRUE(write(0, kFull + 200 * kChunk, 9).ok());
    expect_fill(0, kFull + 200 * kChunk, 9);
    reopen();
    expect_fill(0, kFull + 200 * kChunk, 9);
    close();
    expect_well();
}

TEST_F(ResizeTest, SlotsOfATableThatMovedOnAreFreeAgain) {
    create(kFull, kJournalWithoutGap);
    ASSERT_TRUE(write(0, kChunk, 1).ok());
    resize(kFull + kChunk);
    EXPECT_EQ(header().reserved_slots().ranges[1].begin, 1u);
    resize(8 * kFull);
    EXPECT_GT(header().reserved_slots().ranges[1].begin, 2u);
    ASSERT_TRUE(write(kChunk, 2 * kChunk, 2).ok());
    EXPECT_EQ(image->where(kChunk, 1).data_offset, header().data_offset + kChunk);
    expect_fill(kChunk, 2 * kChunk, 2);
    expect_fill(3 * kChunk, kChunk, 0);
    reopen();
    expect_fill(0, kChunk, 1);
    expect_fill(kChunk, 2 * kChunk, 2);
    close();
    expect_well();
}

TEST_F(ResizeTest, ManySteps) {
    create(kFull, kJournalWithoutGap);
    uint64_t size = kFull;
    for (uint8_t step = 1; step < 30; step++) {
        ASSERT_TRUE(write(size - kChunk, kChunk, step).ok());
        resize(size + size / 4 / 512 * 512);
        expect_fill(size - kChunk, kChunk, step);
        expect_fill(size, kChunk, 0);
        size = image->header().virtual_size;
    }
    close();
    expect_well();
}

TEST_F(ResizeTest, WithADataFileItStandsBehindEverything) {
    host.separate_data = true;
    create(kFull);
    ASSERT_TRUE(write(0, kChunk, 1).ok());
    resize(kHuge * kChunk);
    const Header after = header();
    EXPECT_EQ(after.table_offset, after.journal_offset + after.journal_size);
    EXPECT_EQ(after.reserved_slots().count(), 0u);
    ASSERT_TRUE(write((kHuge - 1) * kChunk, kChunk, 2).ok());
    reopen();
    expect_fill(0, kChunk, 1);
    expect_fill((kHuge - 1) * kChunk, kChunk, 2);
    close();
    expect_well();
}

TEST_F(ResizeTest, OddChunksDoNotBeginWhereRegionsMay) {
    fvd_create_options options{};
    options.virtual_size = kRoom * 7680;
    options.compact_image = true;
    options.chunk_size = 7680;
    options.journal_size = kJournalWithoutGap;
    ASSERT_TRUE(create_image(host, options).ok());
    open();
    ASSERT_TRUE(write(0, 7680, 1).ok());
    resize(3 * kRoom * 7680);
    EXPECT_EQ(header().table_offset % 4096, 0u);
    ASSERT_TRUE(write(0, 3 * kRoom * 7680, 2).ok());
    reopen();
    expect_fill(0, 3 * kRoom * 7680, 2);
    close();
    expect_well();
}

TEST_F(ResizeTest, ChangesThatAreNotCommittedMoveAlong) {
    create(kFull);
    ASSERT_TRUE(write(0, kChunk, 1).ok());
    ASSERT_TRUE(image->flush().ok());
    ASSERT_TRUE(write(2000 * kChunk % kFull, kChunk, 2).ok());
    ASSERT_TRUE(image->discard(0, kChunk).ok());
    resize(2 * kFull);
    expect_fill(2000 * kChunk % kFull, kChunk, 2);
    ASSERT_TRUE(image->flush().ok());
    image.reset(); /* killed */
    open();
    expect_fill(0, kChunk, 0);
    expect_fill(2000 * kChunk % kFull, kChunk, 2);
    close();
    expect_well();
}

TEST_F(ResizeTest, ADiskOfNoBytesGrows) {
    create(0);
    resize(2 * kFull);
    ASSERT_TRUE(write(2 * kFull - kChunk, kChunk, 3).ok());
    reopen();
    expect_fill(2 * kFull - kChunk, kChunk, 3);
}

TEST_F(ResizeTest, SmallerAndLargerAgain) {
    create(kFull, kJournalWithoutGap);
    ASSERT_TRUE(write(0, kFull, 4).ok());
    resize(2 * kFull);
    resize(4 * kChunk);
    expect_fill(0, 4 * kChunk, 4);
    resize(2 * kFull);
    expect_fill(4 * kChunk, kFull, 0);
    ASSERT_TRUE(write(0, 2 * kFull, 5).ok());
    reopen();
    expect_fill(0, 2 * kFull, 5);
    close();
    expect_well();
}

TEST_F(ResizeTest, NoTableIsThatLarge) {
    create(kFull);
    const Error error = image->resize((uint64_t{1} << 28) * kChunk + 512, FVD_PREALLOC_OFF);
    EXPECT_EQ(error.code, -EFBIG);
    EXPECT_STREQ(error.text,
                 "a disk of 1099511628288 bytes needs 268435457 chunks of 4096; a table can map "
                 "268435456: at most 1099511627776 bytes");
    expect_fill(0, kFull, 0);
}

TEST_F(ResizeTest, AStorageThatCannotGrowSaysSo) {
    create(kFull, kJournalWithoutGap);
    host.fail_call = "resize";
    host.fail_with = -ENOTSUP;
    host.fail_times = -1;
    EXPECT_EQ(image->resize(2 * kFull, FVD_PREALLOC_OFF).code, -ENOSPC);
    host.fail_times = 0;
    resize(2 * kFull);
    close();
    expect_well();
}

/* Each kind of call and each allocation fails, once and for ever: the size is the old one or the
 * new one, what is stored stays, and the image can go on or is failed until it is opened again. */
TEST_F(ResizeTest, EveryFailingCall) {
    create(kFull, kJournalWithoutGap);
    ASSERT_TRUE(write(0, 3 * kChunk, 1).ok());
    close();
    const auto files = host.files[FVD_FILE_IMAGE];
    for (const char* call : {"write image", "flush", "resize", "zero", "memory"}) {
        for (int failing = 0; failing < 16; failing++) {
            for (const int times : {1, -1}) {
                SCOPED_TRACE(std::string(call) + " " + std::to_string(failing));
                host.files[FVD_FILE_IMAGE] = files;
                open();
                ASSERT_TRUE(write(3 * kChunk, kChunk, 2).ok());
                const bool memory = std::string(call) == "memory";
                host.fail_allocation = memory ? host.allocations + failing : -1;
                host.fail_call = call;
                host.fail_skip = failing;
                host.fail_times = memory ? 0 : times;
                const Error error = image->resize(3 * kFull, FVD_PREALLOC_OFF);
                host.fail_times = 0;
                host.fail_allocation = -1;
                const uint64_t size = image->header().virtual_size;
                ASSERT_TRUE(size == (error.ok() ? 3 * kFull : kFull)) << error.text;
                expect_fill(0, 3 * kChunk, 1);
                if (image->flush().ok()) {
                    ASSERT_TRUE(write(size - kChunk, kChunk, 6).ok());
                    ASSERT_TRUE(image->flush().ok());
                    image.reset();
                    open();
                    ASSERT_EQ(image->header().virtual_size, size);
                    expect_fill(3 * kChunk, kChunk, 2);
                    expect_fill(size - kChunk, kChunk, 6);
                } else {
                    image.reset();
                    open();
                }
                expect_fill(0, 3 * kChunk, 1);
                close();
                expect_well();
            }
        }
    }
    EXPECT_EQ(host.live, 0);
}

TEST_F(ResizeTest, ASlotUnderTheTableIsNobodysSlot) {
    create(kFull, kJournalWithoutGap);
    ASSERT_TRUE(write(0, 2 * kChunk, 1).ok());
    resize(2 * kFull);
    close();
    const Header h = header();
    const uint64_t under = h.reserved_slots().ranges[1].begin;
    store_le<uint32_t>(home(), 4 * 5, static_cast<uint32_t>(under));
    uint64_t corruptions = 0;
    expect_well(&corruptions);
    EXPECT_EQ(corruptions, 1u);
    ASSERT_EQ(host.warnings.size(), 1u);
    EXPECT_EQ(host.warnings[0], "chunks with a slot that cannot exist: 1, the first is chunk 5");
    image = std::make_unique<Image>(host);
    EXPECT_EQ(image->start(StartMode::writable).code, -EINVAL);
    open(StartMode::read_only);
    std::vector<std::byte> buffer(512);
    EXPECT_EQ(image->read(5 * kChunk, 512, {buffer.data(), 0}, 0).value(), -EIO);
    expect_fill(0, 2 * kChunk, 1);
    close();
    fvd_check_result result{};
    ASSERT_TRUE(check_image(host, FVD_FIX_LEAKS | FVD_FIX_ERRORS, &result).ok());
    EXPECT_EQ(result.corruptions_fixed, 1u);
    expect_well();
    open();
    expect_fill(0, 2 * kChunk, 1);
    expect_fill(5 * kChunk, kChunk, 0);
}

TEST_F(ResizeTest, ARepairGivesNoChunkASlotUnderTheTable) {
    create(kFull, kJournalWithoutGap);
    resize(2 * kFull);
    ASSERT_TRUE(write(0, 2 * kChunk, 1).ok());
    close();
    ASSERT_EQ(header().reserved_slots().ranges[1].begin, 0u);
    const uint32_t slot = load_le<uint32_t>(home(), 0);
    store_le<uint32_t>(home(), 4 * 9, slot); /* shared: gets a copy of its own */
    fvd_check_result result{};
    ASSERT_TRUE(check_image(host, FVD_FIX_LEAKS | FVD_FIX_ERRORS, &result).ok());
    expect_well();
    open();
    expect_fill(0, 2 * kChunk, 1);
    expect_fill(9 * kChunk, kChunk, 1);
}

/* What the bitmap covers never grows: what is new is behind the base, and here. So a bitmap that
 * fills its region to the last bit, with the journal right behind it, is in nobody's way. */
TEST_F(ResizeTest, AFullBitmapNeedsNoRoom) {
    constexpr uint64_t kDisk = uint64_t{4096} * 8 * 512;
    for (const bool compact : {false, true}) {
        host.files[FVD_FILE_IMAGE].clear();
        host.files[FVD_FILE_BASE].assign(2 * kDisk, std::byte{0xBB});
        fvd_create_options options{};
        options.virtual_size = kDisk;
        options.base_img = "base.raw";
        options.base_img_fmt = "raw";
        options.base_size = 2 * kDisk;
        options.block_size = 512;
        options.journal_size = 64 * kUnit;
        options.compact_image = compact;
        ASSERT_TRUE(create_image(host, options).ok());
        open();
        ASSERT_EQ(header().block_count(), header().bitmap_size * 8);
        resize(2 * kDisk);
        expect_fill(kDisk - 512, 512, 0xBB);
        expect_fill(kDisk, kDisk, 0);
        ASSERT_TRUE(write(kDisk - 100, 200, 5).ok());
        reopen();
        expect_fill(kDisk - 512, 412, 0xBB);
        expect_fill(kDisk - 100, 200, 5);
        expect_fill(kDisk + 100, 1000, 0);
        close();
        expect_well();
    }
}

}  // namespace
}  // namespace fvd::testing
