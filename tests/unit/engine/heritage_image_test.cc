/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Images of January 2011, opened, read and checked: never one write. */
#include "fvd/engine/heritage_image.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <string>

#include "engine/memory_host.h"
#include "format/heritage_samples.h"
#include "fvd/verbs.h"

namespace fvd::testing {
namespace {

using test::kOldBase;
using test::kOldBlock;
using test::kOldChunk;
using test::kOldDisk;
using test::kOldSector;
using test::OldImage;
using test::OldSector;

/** A host whose files are an old image and a base of 0xBB. */
struct World {
    explicit World(OldImage& old) {
        host.files[FVD_FILE_IMAGE] = old.bytes();
        host.files[FVD_FILE_BASE].assign(kOldBase, std::byte{0xBB});
    }
    ~World() {
        for (const char* change : {"write", "zero", "discard", "resize", "flush"}) {
            EXPECT_EQ(host.count(change), 0u) << change;
        }
    }
    Error start() { return image.start(StartMode::read_only); }
    std::vector<std::byte> read(uint64_t offset, uint64_t length) {
        std::vector<std::byte> to(length, std::byte{0xEE});
        EXPECT_TRUE(image.read(offset, length, {to.data(), 0}, 0).ok());
        return to;
    }
    /** The value of each sector, where all its bytes are the same. */
    std::string sectors(uint64_t offset, uint64_t length) {
        const std::vector<std::byte> all = read(offset, length);
        std::string text;
        for (uint64_t i = 0; i < length; i += kOldSector) {
            const bool same = std::all_of(all.begin() + static_cast<ptrdiff_t>(i),
                                          all.begin() + static_cast<ptrdiff_t>(i + kOldSector),
                                          [&](std::byte b) { return b == all[i]; });
            char value[8];
            std::snprintf(value, sizeof(value), "%02x ", static_cast<unsigned>(all[i]));
            text += same ? value : "?? ";
        }
        return text;
    }
    MemoryHost host;
    HeritageImage image{host};
};

TEST(HeritageImage, IsToldByItsMagic) {
    OldImage old(false, false);
    World world(old);
    EXPECT_TRUE(HeritageImage::is_one(world.host));
    world.host.files[FVD_FILE_IMAGE][0] = std::byte{0};
    EXPECT_FALSE(HeritageImage::is_one(world.host));
    world.host.files[FVD_FILE_IMAGE].resize(511);
    EXPECT_FALSE(HeritageImage::is_one(world.host));
}

TEST(HeritageImage, IsNeverWritable) {
    OldImage old(false, false);
    World world(old);
    ASSERT_TRUE(world.image.load().ok());
    const Error error = world.image.start(StartMode::writable);
    EXPECT_EQ(error.code, -EROFS);
    EXPECT_STREQ(error.text,
                 "this is an FVD image of January 2011 (version 1), which can only be opened "
                 "read-only; 'qemu-img convert' makes an image of it that can be written to");
}

TEST(HeritageImage, ReadsBaseDataAndZeros) {
    OldImage old(true, true);
    old.set_bit(1);
    old.set_entry(0, 0);
    old.grow(kOldChunk, 0x10);
    World world(old);
    ASSERT_TRUE(world.start().ok());
    EXPECT_EQ(world.sectors(kOldBlock - 1024, 2048), "bb bb 18 19 ");
    EXPECT_EQ(world.sectors(2 * kOldBlock - 512, 1024), "1f bb ");
    EXPECT_EQ(world.sectors(kOldBase - 512, 1024), "bb 00 ");
    EXPECT_EQ(world.sectors(kOldDisk - 512, 512), "00 ");
    EXPECT_TRUE(world.image.needs_base());
    EXPECT_TRUE(world.host.warnings.empty());
}

TEST(HeritageImage, ReplaysTheJournalInMemory) {
    OldImage old(true, true);
    old.set("clean_shutdown", 0);
    old.set_journal(0, OldSector().table(0, {0x80000000}).bitmap(0, 128));
    old.grow(kOldChunk, 0x10);
    World world(old);
    ASSERT_TRUE(world.start().ok());
    EXPECT_EQ(world.sectors(0, 1024), "10 11 ");
    EXPECT_EQ(world.sectors(kOldChunk, 512), "bb ");
    EXPECT_FALSE(world.image.is_clean());
    EXPECT_TRUE(world.host.warnings.empty());
    world.image.stop();
    ASSERT_TRUE(world.start().ok()) << "again from the start";
    EXPECT_EQ(world.sectors(0, 512), "10 ");
}

TEST(HeritageImage, MarkedCleanTheJournalIsVoidButLookedAt) {
    OldImage old(true, false);
    old.set_journal(3, OldSector().bitmap(0, 8));
    old.set_journal(4, OldSector().put<uint32_t>(77));
    old.grow(kOldDisk, 0x10);
    World world(old);
    ASSERT_TRUE(world.start().ok());
    EXPECT_EQ(world.sectors(0, 512), "bb ");
    ASSERT_EQ(world.host.warnings.size(), 1u);
    EXPECT_NE(world.host.warnings[0].find("lost in 2011"), std::string::npos);

    old.set_bit(0);
    World saved(old);
    ASSERT_TRUE(saved.start().ok());
    EXPECT_TRUE(saved.host.warnings.empty());
}

TEST(HeritageImage, WithoutAJournalItSaysWhatMayBeMissing) {
    OldImage old(true, false);
    old.set("clean_shutdown", 0);
    old.set("journal_size", 0);
    World world(old);
    ASSERT_TRUE(world.start().ok());
    ASSERT_EQ(world.host.warnings.size(), 1u);
    EXPECT_NE(world.host.warnings[0].find("without a journal"), std::string::npos);

    OldImage plain(false, false);
    plain.set("clean_shutdown", 0);
    World nothing(plain);
    ASSERT_TRUE(nothing.start().ok());
    EXPECT_TRUE(nothing.host.warnings.empty()) << "there was nothing to lose";
}

TEST(HeritageImage, RecordsBeyondTheDiskAreMentioned) {
    OldImage old(true, false);
    old.set("clean_shutdown", 0);
    old.set_journal(0, OldSector().bitmap(kOldDisk / kOldSector, 8));
    World world(old);
    ASSERT_TRUE(world.start().ok());
    ASSERT_EQ(world.host.warnings.size(), 1u);
    EXPECT_NE(world.host.warnings[0].find("beyond the end"), std::string::npos);
}

TEST(HeritageImage, DamageIsAnErrorAtOpen) {
    OldImage bad_record(true, false);
    bad_record.set("clean_shutdown", 0);
    bad_record.set_journal(1, OldSector().put<uint32_t>(77));
    World first(bad_record);
    EXPECT_EQ(first.start().code, -EINVAL);

    OldImage bad_slot(false, true);
    bad_slot.set_entry(2, 1);
    bad_slot.grow(kOldChunk, 0);
    World second(bad_slot);
    EXPECT_EQ(second.start().code, -EINVAL);

    OldImage cut(false, false);
    cut.grow(kOldDisk - 512, 0);
    World third(cut);
    EXPECT_EQ(third.start().code, -EINVAL);

    OldImage overlapping(true, true);
    overlapping.set("bitmap_offset", overlapping.get("table_offset"));
    World fourth(overlapping);
    EXPECT_EQ(fourth.start().code, -EINVAL);
}

TEST(HeritageImage, EveryReadAndEveryAllocationCanFail) {
    OldImage old(true, true);
    old.set("clean_shutdown", 0);
    for (const char* read :
         {"read image 0", "read image 8192", "read image 12288", "read image 16384"}) {
        World world(old);
        world.host.fail_call = read;
        world.host.fail_times = -1;
        EXPECT_EQ(world.start().code, -EIO) << read;
    }
    int64_t allocation = 0;
    for (bool failed = true; failed; allocation++) {
        World world(old);
        world.host.fail_allocation = allocation;
        const Error error = world.start();
        failed = !error.ok();
        EXPECT_TRUE(error.ok() || error.code == -ENOMEM);
    }
    EXPECT_EQ(allocation, 7) << "header, bitmap, table and a buffer for each region";
}

TEST(HeritageImage, AFailedReadIsAFailedRequest) {
    OldImage old(true, false);
    World world(old);
    ASSERT_TRUE(world.start().ok());
    world.host.fail_call = "read base";
    world.host.fail_times = -1;
    std::byte to[512];
    EXPECT_EQ(world.image.read(0, 512, {to, 0}, 0).value(), -EIO);
}

TEST(HeritageImage, NeedsItsBaseWhileABitIsClear) {
    OldImage old(true, false);
    World some(old);
    ASSERT_TRUE(some.start().ok());
    EXPECT_TRUE(some.image.needs_base());
    for (uint64_t block = 0; block < kOldBase / kOldBlock; block++) {
        old.set_bit(block);
    }
    World all(old);
    ASSERT_TRUE(all.start().ok());
    EXPECT_FALSE(all.image.needs_base());
}

TEST(HeritageImage, DescribesItself) {
    OldImage old(true, true);
    old.set_bit(0);
    old.set_text("data_file", "disk.dat");
    old.set_text("add_storage_cmd", std::string(2000, 'x'));
    World world(old);
    ASSERT_TRUE(world.start().ok());
    fvd_info info;
    world.image.describe(&info);
    EXPECT_EQ(info.format_version, 1u);
    EXPECT_TRUE(info.never_writable);
    EXPECT_TRUE(info.started);
    EXPECT_EQ(info.virtual_size, kOldDisk);
    EXPECT_EQ(info.base_size, kOldBase);
    EXPECT_EQ(info.block_size, kOldBlock);
    EXPECT_EQ(info.blocks, kOldBase / kOldBlock);
    EXPECT_EQ(info.blocks_here, 1u);
    EXPECT_EQ(info.table_size, 64u);
    EXPECT_EQ(info.data_offset, 0u);
    EXPECT_FALSE(info.base_fully_prefetched);
    EXPECT_STREQ(info.base_img, "base.raw");
    EXPECT_STREQ(info.base_img_fmt, "");
    EXPECT_STREQ(info.data_file, "disk.dat");
    EXPECT_EQ(std::string(info.add_storage_cmd).size(), size_t{FVD_NAME_SIZE - 1});

    old.set("all_data_in_fvd_img", 1);
    World fetched(old);
    ASSERT_TRUE(fetched.start().ok());
    fetched.image.describe(&info);
    EXPECT_TRUE(info.base_fully_prefetched);
    EXPECT_EQ(info.blocks, 0u);
}

/* ------------------------------------------------------------------ qemu-img check */

struct Checked {
    explicit Checked(OldImage& old) : world(old) {
        EXPECT_TRUE(check_heritage(world.host, FVD_FIX_NONE, &result).ok());
        EXPECT_FALSE(world.host.warnings.empty());
        EXPECT_EQ(world.host.warnings[0],
                  "an image of January 2011 (version 1): read-only, to be converted");
        for (size_t i = 1; i < world.host.warnings.size(); i++) {
            said += world.host.warnings[i] + "\n";
        }
    }
    World world;
    fvd_check_result result{};
    std::string said;
};

TEST(HeritageCheck, ASoundImage) {
    OldImage old(true, true);
    old.set_bit(0);
    old.set_entry(0, 0);
    old.grow(3 * kOldChunk, 0);
    const Checked checked(old);
    EXPECT_EQ(checked.said, "");
    EXPECT_EQ(checked.result.corruptions + checked.result.leaks + checked.result.check_errors, 0u);
    EXPECT_EQ(checked.result.blocks, kOldBase / kOldBlock);
    EXPECT_EQ(checked.result.blocks_here, 1u);
    EXPECT_EQ(checked.result.image_end_offset, 20480 + kOldChunk);
}

TEST(HeritageCheck, RepairsNothing) {
    OldImage old(false, false);
    World world(old);
    fvd_check_result result{};
    for (const uint32_t fix : {FVD_FIX_LEAKS, FVD_FIX_ERRORS}) {
        EXPECT_EQ(check_heritage(world.host, fix, &result).code, -EROFS);
    }
}

TEST(HeritageCheck, AHeaderThatCannotBeUnderstood) {
    OldImage old(false, false);
    old.set("metadata_size", 4096);
    World world(old);
    fvd_check_result result{};
    EXPECT_EQ(check_heritage(world.host, FVD_FIX_NONE, &result).code, -EINVAL);
}

TEST(HeritageCheck, TheTable) {
    OldImage old(false, true);
    old.set_entry(0, 3);
    old.set_entry(1, 3);
    old.set_entry(2, 4);
    old.grow(4 * kOldChunk, 0);
    const Checked checked(old);
    EXPECT_EQ(checked.said,
              "1 chunks (the first is 2) are in slots beyond the 4 that the file with the guest's "
              "data holds\n"
              "1 chunks (the first is 1) are in a slot that another chunk uses, too\n"
              "3 slots hold no chunk of the disk\n");
    EXPECT_EQ(checked.result.corruptions, 2u);
    EXPECT_EQ(checked.result.leaks, 3u);
}

TEST(HeritageCheck, TheJournal) {
    OldImage old(true, false);
    old.set_journal(0, OldSector().bitmap(0, 8));
    const Checked lost(old);
    EXPECT_EQ(lost.result.corruptions, 1u);
    EXPECT_NE(lost.said.find("marked clean, but 1 journal sectors"), std::string::npos);

    old.set("clean_shutdown", 0);
    const Checked dirty(old);
    EXPECT_EQ(dirty.result.corruptions, 0u);
    EXPECT_EQ(dirty.result.journal_units_pending, 1u);
    EXPECT_EQ(dirty.said,
              "not closed in order: 1 journal sectors are replayed in memory at each open\n");

    old.set_journal(0, OldSector().put<uint32_t>(77));
    const Checked damaged(old);
    EXPECT_EQ(damaged.result.corruptions, 1u);
    EXPECT_NE(damaged.said.find("record type 0x0000004d"), std::string::npos);

    old.set("journal_size", 0);
    const Checked none(old);
    EXPECT_EQ(none.result.corruptions, 0u);
    EXPECT_NE(none.said.find("without a journal"), std::string::npos);
}

TEST(HeritageCheck, ChunksThatNobodyWroteDown) {
    OldImage old(true, true);
    old.set("block_size", 2 * kOldChunk);
    old.set_bit(0);
    old.set_entry(0, 0);
    old.grow(2 * kOldChunk, 0);
    const Checked checked(old);
    EXPECT_EQ(checked.said,
              "1 chunks are marked as copied from the base, but not in the table; they are read "
              "from the base\n");
    EXPECT_EQ(checked.result.corruptions + checked.result.leaks, 0u);
}

TEST(HeritageCheck, AFileThatWasCut) {
    OldImage old(false, false);
    old.grow(kOldDisk - 512, 0);
    const Checked checked(old);
    EXPECT_EQ(checked.result.corruptions, 1u);
    EXPECT_NE(checked.said.find("the data ends at 1056768"), std::string::npos);
}

TEST(HeritageCheck, WhatCannotBeReadIsNoCorruption) {
    OldImage old(true, false);
    World world(old);
    world.host.fail_call = "read image 12288";
    world.host.fail_times = -1;
    fvd_check_result result{};
    EXPECT_TRUE(check_heritage(world.host, FVD_FIX_NONE, &result).ok());
    EXPECT_EQ(result.check_errors, 1u);
    EXPECT_EQ(result.corruptions, 0u);
}

}  // namespace
}  // namespace fvd::testing
