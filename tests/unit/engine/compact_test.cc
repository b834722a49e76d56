/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Compact images in a world of one task. Races and cuts are the simulator's. */
#include <gtest/gtest.h>

#include <memory>
#include <random>

#include "engine/memory_host.h"
#include "fvd/base/arith.h"
#include "fvd/engine/image.h"
#include "fvd/format/layout.h"
#include "fvd/verbs.h"

namespace fvd::testing {
namespace {

constexpr uint64_t kDisk = 256 * 1024;
constexpr uint64_t kChunk = 16 * 1024;
constexpr uint64_t kChunks = kDisk / kChunk;

class CompactTest : public ::testing::Test {
  protected:
    static std::byte base_byte(uint64_t at) {
        return static_cast<std::byte>(1 + (at / 512 + at) % 250);
    }

    void give_base(uint64_t size = kDisk) {
        host.files[FVD_FILE_BASE].resize(size);
        for (uint64_t i = 0; i < size; i++) {
            host.files[FVD_FILE_BASE][i] = base_byte(i);
        }
    }

    void create(uint64_t grow_unit = kChunk, uint64_t disk = kDisk) {
        options = {};
        options.virtual_size = disk;
        options.compact_image = true;
        options.chunk_size = kChunk;
        options.storage_grow_unit = grow_unit;
        options.journal_size = 64 * 4096;
        if (!host.files[FVD_FILE_BASE].empty()) {
            options.base_img = "base.raw";
            options.base_img_fmt = "raw";
            options.base_size = host.files[FVD_FILE_BASE].size();
            options.block_size = 4096;
        }
        if (host.separate_data) {
            options.data_file = "data.raw";
        }
        const Error error = create_image(host, options);
        ASSERT_TRUE(error.ok()) << error.text;
    }

    Error try_open(StartMode mode) {
        image = std::make_unique<Image>(host);
        const Error error = image->start(mode);
        host.log.clear();
        return error;
    }
    void open(StartMode mode = StartMode::writable) {
        const Error error = try_open(mode);
        ASSERT_TRUE(error.ok()) << error.text;
    }
    void close() {
        EXPECT_EQ(image->stop().value(), 0);
        image.reset();
    }
    void reopen() {
        close();
        open();
    }
    void kill() { image.reset(); }

    Status write(uint64_t offset, uint64_t length, uint8_t fill, uint32_t flags = 0) {
        std::vector<std::byte> buffer(length, std::byte{fill});
        return image->write(offset, length, {buffer.data(), 0}, flags);
    }
    std::vector<std::byte> read(uint64_t offset, uint64_t length) {
        std::vector<std::byte> buffer(length, std::byte{0xEE});
        EXPECT_TRUE(image->read(offset, length, {buffer.data(), 0}, 0).ok());
        return buffer;
    }
    void expect_fill(uint64_t offset, uint64_t length, uint8_t fill) {
        const auto got = read(offset, length);
        for (uint64_t i = 0; i < length; i++) {
            ASSERT_EQ(got[i], std::byte{fill}) << "at byte " << offset + i;
        }
    }
    void expect_base(uint64_t offset, uint64_t length) {
        const auto got = read(offset, length);
        for (uint64_t i = 0; i < length; i++) {
            ASSERT_EQ(got[i], base_byte(offset + i)) << "at byte " << offset + i;
        }
    }
    uint64_t chunks_stored() {
        fvd_info info;
        image->describe(&info);
        return info.chunks_stored;
    }
    /** All chunks freed and written again stand within so many bytes of storage. */
    void expect_within(uint64_t storage) {
        const uint64_t disk = image->header().virtual_size;
        ASSERT_TRUE(image->discard(0, disk).ok());
        ASSERT_TRUE(write(0, disk, 1).ok());
        for (uint64_t at = 0; at < disk; at += kChunk) {
            EXPECT_LT(image->where(at, 1).data_offset, header().data_offset + storage) << at;
        }
    }
    Header header() { return choose_header(host.files[FVD_FILE_IMAGE]).value().header; }
    void set_entry_at_home(uint64_t chunk, uint32_t entry) {
        const Header h = header();
        store_le<uint32_t>(host.files[FVD_FILE_IMAGE], h.table_offset + 4 * chunk, entry);
    }

    MemoryHost host;
    fvd_create_options options{};
    std::unique_ptr<Image> image;
};

TEST_F(CompactTest, WhatIsNotStoredReadsAsZerosWithoutIo) {
    create();
    open();
    expect_fill(0, kDisk, 0);
    EXPECT_TRUE(host.log.empty());
    EXPECT_EQ(image->where(0, kDisk).place, Place::zero);
    EXPECT_EQ(image->where(0, kDisk).run, kDisk);
    close();
    EXPECT_EQ(host.count("write"), 0u);
}

TEST_F(CompactTest, AnAllocatingWriteAndItsFlushCostTwoWritesAndTwoFlushes) {
    create(4 * kChunk);
    open();
    ASSERT_TRUE(write(0, 4096, 1).ok());
    ASSERT_TRUE(image->flush().ok()); /* this one begins the session as well */
    host.log.clear();
    ASSERT_TRUE(write(kChunk, 4096, 2).ok());
    ASSERT_TRUE(image->flush().ok());
    EXPECT_EQ(host.log.size(), 4u);
    EXPECT_EQ(host.count("write data"), 1u);
    EXPECT_EQ(host.count("write image"), 1u);
    EXPECT_EQ(host.count("flush"), 2u);
}

TEST_F(CompactTest, ChunksWrittenInOrderAreReadInOnePiece) {
    create();
    open();
    for (uint64_t at = 0; at < kDisk; at += kChunk) {
        ASSERT_TRUE(write(at, kChunk, 7).ok());
    }
    host.log.clear();
    expect_fill(0, kDisk, 7);
    EXPECT_EQ(host.log.size(), 1u);
}

TEST_F(CompactTest, OrderOfWritingIsOrderOfSlots) {
    create();
    open();
    ASSERT_TRUE(write(5 * kChunk, 512, 1).ok());
    ASSERT_TRUE(write(2 * kChunk, 512, 2).ok());
    EXPECT_LT(image->where(5 * kChunk, 1).data_offset, image->where(2 * kChunk, 1).data_offset);
    expect_fill(5 * kChunk, 512, 1);
    expect_fill(5 * kChunk + 512, kChunk - 512, 0);
    reopen();
    expect_fill(2 * kChunk, 512, 2);
    EXPECT_EQ(chunks_stored(), 2u);
}

TEST_F(CompactTest, BlocksOfTheBaseShowThroughAStoredChunk) {
    give_base();
    create();
    open();
    ASSERT_TRUE(write(kChunk + 5000, 100, 9).ok());
    expect_base(kChunk, 5000);
    expect_fill(kChunk + 5000, 100, 9);
    expect_base(kChunk + 5100, kChunk - 5100);
    ASSERT_TRUE(image->flush().ok());
    kill();
    open();
    expect_fill(kChunk + 5000, 100, 9);
    expect_base(kChunk + 5100, kChunk - 5100);
    expect_base(0, kChunk);
}

TEST_F(CompactTest, PastTheEndOfTheBaseThereAreZeros) {
    give_base(5 * 4096);
    create();
    open();
    expect_base(0, 5 * 4096);
    expect_fill(5 * 4096, kDisk - 5 * 4096, 0);
    ASSERT_TRUE(write(4 * 4096, 512, 3).ok());
    expect_base(4 * 4096 + 512, 4096 - 512);
    expect_fill(5 * 4096, kChunk, 0);
}

TEST_F(CompactTest, ADiscardedChunkReadsAsZerosAndGivesItsSlotBackAfterACommit) {
    create();
    open();
    ASSERT_TRUE(write(0, kChunk, 1).ok());
    const uint64_t slot = image->where(0, 1).data_offset;
    ASSERT_TRUE(image->discard(0, kChunk).ok());
    expect_fill(0, kChunk, 0);
    EXPECT_EQ(chunks_stored(), 0u);
    ASSERT_TRUE(write(kChunk, 512, 2).ok());
    EXPECT_NE(image->where(kChunk, 1).data_offset, slot) << "not durable yet";
    ASSERT_TRUE(image->flush().ok());
    ASSERT_TRUE(write(2 * kChunk, 512, 3).ok());
    EXPECT_EQ(image->where(2 * kChunk, 1).data_offset, slot);
    expect_fill(2 * kChunk + 512, kChunk - 512, 0);
}

TEST_F(CompactTest, ADiscardOfMissingBlocksIsRemembered) {
    give_base();
    create();
    open();
    ASSERT_TRUE(image->discard(0, 2 * kChunk).ok());
    expect_fill(0, 2 * kChunk, 0);
    EXPECT_EQ(host.count("write"), 0u);
    expect_base(2 * kChunk, kChunk);
    reopen();
    expect_fill(0, 2 * kChunk, 0);
}

TEST_F(CompactTest, ZeroWritesThatMayUnmapFreeWholeChunks) {
    create();
    open();
    ASSERT_TRUE(write(0, 3 * kChunk, 1).ok());
    ASSERT_TRUE(image->write_zeroes(512, 3 * kChunk - 1024, FVD_REQ_MAY_UNMAP).ok());
    expect_fill(0, 512, 1);
    expect_fill(512, 3 * kChunk - 1024, 0);
    expect_fill(3 * kChunk - 512, 512, 1);
    EXPECT_EQ(chunks_stored(), 2u);
    ASSERT_TRUE(image->write_zeroes(0, kChunk, 0).ok());
    EXPECT_EQ(chunks_stored(), 2u) << "without leave to unmap the chunk keeps its slot";
}

TEST_F(CompactTest, FreedSpaceIsGivenBackAtClose) {
    create();
    open();
    ASSERT_TRUE(write(0, 4 * kChunk, 1).ok());
    ASSERT_TRUE(image->discard(kChunk, 2 * kChunk).ok());
    close();
    EXPECT_EQ(host.count("zero data"), 1u) << "two slots, one piece";
    open();
    expect_fill(kChunk, 2 * kChunk, 0);
    expect_fill(3 * kChunk, kChunk, 1);
}

TEST_F(CompactTest, SpaceThatCouldNotBeMadeZerosIsGivenBackAllTheSame) {
    create();
    open();
    ASSERT_TRUE(write(0, kChunk, 1).ok());
    ASSERT_TRUE(image->discard(0, kChunk).ok());
    ASSERT_TRUE(image->flush().ok());
    host.fail_call = "zero data";
    host.fail_times = 1;
    EXPECT_EQ(write(5 * kChunk, 512, 3).value(), -EIO);
    host.log.clear();
    close();
    EXPECT_EQ(host.count("zero data"), 1u);
}

TEST_F(CompactTest, ASlotWhoseContentIsUnknownIsZeroedBeforeUse) {
    create();
    open();
    ASSERT_TRUE(write(0, kChunk, 1).ok());
    ASSERT_TRUE(write(kChunk, kChunk, 2).ok());
    ASSERT_TRUE(image->discard(0, kChunk).ok());
    ASSERT_TRUE(image->flush().ok());
    kill(); /* before anybody trimmed */
    open();
    ASSERT_TRUE(write(5 * kChunk, 512, 3).ok());
    EXPECT_EQ(host.count("zero data"), 1u);
    expect_fill(5 * kChunk + 512, kChunk - 512, 0);
}

TEST_F(CompactTest, StorageGrowsAheadOfNeed) {
    create(4 * kChunk);
    open();
    for (uint64_t i = 0; i < 8; i++) {
        ASSERT_TRUE(write(i * kChunk, 512, 1).ok());
    }
    EXPECT_LE(host.count("resize data"), 2u);
}

TEST_F(CompactTest, AFullDeviceIsEnospcForTheOneRequest) {
    create();
    open();
    ASSERT_TRUE(write(0, 512, 1).ok());
    host.fail_call = "resize data";
    host.fail_with = -EINVAL; /* what a device says that cannot grow */
    host.fail_times = -1;
    EXPECT_EQ(write(4 * kChunk, 512, 2).value(), -ENOSPC);
    expect_fill(4 * kChunk, 512, 0);
    EXPECT_TRUE(write(0, 512, 3).ok()) << "what is stored needs no space";
    /* Somebody extends the device, by what others used before. */
    host.bytes(FVD_FILE_DATA)
        .resize(host.bytes(FVD_FILE_DATA).size() + 2 * kChunk, std::byte{0xAA});
    EXPECT_TRUE(write(4 * kChunk, 512, 2).ok());
    expect_fill(4 * kChunk, 512, 2);
    expect_fill(4 * kChunk + 512, kChunk - 512, 0);
}

TEST_F(CompactTest, ARequestTakesTheSlotsItNeedsAtOnce) {
    create();
    host.bytes(FVD_FILE_DATA).resize(header().data_offset + kDisk, std::byte{0xAA});
    open();
    ASSERT_TRUE(write(512, 8 * kChunk, 1).ok());
    EXPECT_EQ(host.count("zero data"), 1u) << "nine slots";
    EXPECT_EQ(image->where(0, kDisk).run, 9 * kChunk);
    expect_fill(0, 512, 0);
    expect_fill(512, 8 * kChunk, 1);
    expect_fill(512 + 8 * kChunk, kChunk - 512, 0);
}

TEST_F(CompactTest, ARequestTakesWhatThereIsOfAFullDevice) {
    create();
    host.bytes(FVD_FILE_DATA).resize(header().data_offset + 3 * kChunk);
    open();
    host.fail_call = "resize data";
    host.fail_with = -ENOSPC;
    host.fail_times = -1;
    EXPECT_EQ(write(0, 5 * kChunk, 1).value(), -ENOSPC);
    EXPECT_EQ(chunks_stored(), 3u);
    host.fail_times = 0;
    EXPECT_TRUE(write(0, 5 * kChunk, 1).ok());
    expect_fill(0, 5 * kChunk, 1);
}

TEST_F(CompactTest, WhereManySlotsCannotBeHadASingleOneMay) {
    create();
    open();
    host.fail_call = "resize data";
    host.fail_with = -EFBIG;
    host.fail_times = 2; /* storage is asked twice */
    EXPECT_TRUE(write(0, 4 * kChunk, 1).ok());
    expect_fill(0, 4 * kChunk, 1);
    EXPECT_EQ(image->where(0, kDisk).run, 4 * kChunk);
}

TEST_F(CompactTest, IsHereSaysNothingOfSlotsThatMayBeTakenAway) {
    create();
    open();
    ASSERT_TRUE(write(0, kChunk, 1).ok());
    uint64_t at = 0;
    EXPECT_FALSE(image->is_here(0, 512, &at));
}

TEST_F(CompactTest, AFullDeviceUsesWhatADiscardSetFree) {
    create();
    open();
    ASSERT_TRUE(write(0, kChunk, 1).ok());
    host.fail_call = "resize data";
    host.fail_with = -ENOSPC;
    host.fail_times = -1;
    ASSERT_TRUE(image->discard(0, kChunk).ok());
    EXPECT_TRUE(write(7 * kChunk, 512, 2).ok()) << "a commit makes the slot free";
    expect_fill(7 * kChunk, 512, 2);
    expect_fill(7 * kChunk + 512, kChunk - 512, 0);
    expect_fill(0, kChunk, 0);
}

TEST_F(CompactTest, AFullyStoredDiskRewritesDiscardedChunks) {
    create();
    open();
    ASSERT_TRUE(write(0, kDisk, 1).ok());
    for (uint64_t round = 0; round < 3; round++) {
        ASSERT_TRUE(image->discard(0, kDisk).ok());
        ASSERT_TRUE(write(0, kDisk, static_cast<uint8_t>(2 + round)).ok());
        expect_fill(0, kDisk, static_cast<uint8_t>(2 + round));
    }
    const Header h = header();
    EXPECT_LE(host.bytes(FVD_FILE_DATA).size(), h.data_offset + kChunks * kChunk);
}

TEST_F(CompactTest, EmptyingGivesEverythingBackButWhatLiesPastTheBase) {
    give_base(2 * kChunk + 4096);
    create();
    open();
    ASSERT_TRUE(write(0, 4 * kChunk, 5).ok());
    ASSERT_TRUE(image->make_empty().ok());
    expect_base(0, 2 * kChunk + 4096);
    expect_fill(2 * kChunk + 4096, 2 * kChunk - 4096, 5);
    EXPECT_EQ(chunks_stored(), 2u);
    reopen();
    expect_base(0, 2 * kChunk + 4096);
    expect_fill(2 * kChunk + 4096, 2 * kChunk - 4096, 5);
}

/* Wherever a commit falls, a cut after it never shows what the slot holds of a forgotten block. */
TEST_F(CompactTest, ACommitInsideADiscardShowsNothingOfTheSlot) {
    const uint64_t cut = 2 * kChunk;
    give_base(cut + 4096);
    create();
    open();
    ASSERT_TRUE(write(cut, kChunk, 5).ok());
    ASSERT_TRUE(image->make_empty().ok());
    MemoryHost after_cut;
    std::vector<std::vector<std::byte>> states;
    host.before_lock = [&] {
        ASSERT_TRUE(image->commit().ok());
        states.push_back(host.files[FVD_FILE_IMAGE]);
    };
    ASSERT_TRUE(image->discard(cut, kChunk).ok());
    host.before_lock = nullptr;
    EXPECT_GE(states.size(), 3u);
    for (const auto& state : states) {
        after_cut.files[FVD_FILE_IMAGE] = state;
        after_cut.files[FVD_FILE_BASE] = host.files[FVD_FILE_BASE];
        Image later(after_cut);
        ASSERT_TRUE(later.start(StartMode::read_only).ok());
        std::vector<std::byte> seen(4096);
        ASSERT_TRUE(later.read(cut, 4096, {seen.data(), 0}, 0).ok());
        const bool zero = seen[0] == std::byte{0};
        for (uint64_t i = 0; i < seen.size(); i++) {
            ASSERT_EQ(seen[i], zero ? std::byte{0} : base_byte(cut + i)) << i;
        }
    }
}

TEST_F(CompactTest, ASlotOfTwoChunksIsRefusedForWriting) {
    create();
    open();
    ASSERT_TRUE(write(0, 2 * kChunk, 1).ok());
    close();
    set_entry_at_home(1, 0);
    const Error error = try_open(StartMode::writable);
    EXPECT_EQ(error.code, -EINVAL);
    EXPECT_NE(std::string(error.text).find("chunk 1 is in slot 0"), std::string::npos);
    open(StartMode::read_only);
    expect_fill(0, kChunk, 1);
}

TEST_F(CompactTest, ASlotPastTheStorageIsAnErrorOfItsChunkOnly) {
    create();
    open();
    ASSERT_TRUE(write(0, 2 * kChunk, 1).ok());
    close();
    set_entry_at_home(1, static_cast<uint32_t>(kChunks - 1));
    EXPECT_EQ(try_open(StartMode::writable).code, -EINVAL);
    open(StartMode::read_only);
    expect_fill(0, kChunk, 1);
    std::vector<std::byte> buffer(512);
    EXPECT_EQ(image->read(kChunk, 512, {buffer.data(), 0}, 0).value(), -EIO);
}

TEST_F(CompactTest, EveryFailingCallLeavesTheImageReadable) {
    give_base();
    create();
    open();
    ASSERT_TRUE(write(0, 2 * kChunk, 1).ok());
    close();
    const auto files_before = host.files[FVD_FILE_IMAGE];
    for (int64_t failing = 0; failing < 60; failing++) {
        host.files[FVD_FILE_IMAGE] = files_before;
        open();
        host.allocations = 0;
        host.fail_allocation = failing % 12;
        (void)write(3 * kChunk + 700, 3 * kChunk, 2).ok();
        (void)image->discard(0, kChunk).ok();
        (void)image->flush().ok();
        host.fail_allocation = -1;
        expect_fill(kChunk, kChunk, 1);
        expect_base(8 * kChunk, kChunk);
        close();
        open();
        expect_fill(kChunk, kChunk, 1);
        expect_base(8 * kChunk, kChunk);
        kill();
    }
    EXPECT_EQ(host.live, 0);
}

TEST_F(CompactTest, AResizedDiskKeepsWhatItHasAndReadsZerosBehind) {
    create();
    open();
    ASSERT_TRUE(write(0, kDisk, 5).ok());
    const uint64_t cut = 3 * kChunk + 512;
    ASSERT_TRUE(image->resize(cut, FVD_PREALLOC_OFF).ok());
    EXPECT_EQ(chunks_stored(), 4u);
    expect_fill(0, cut, 5);
    ASSERT_TRUE(image->resize(2 * kDisk, FVD_PREALLOC_OFF).ok());
    expect_fill(0, cut, 5);
    expect_fill(cut, 2 * kDisk - cut, 0);
    ASSERT_TRUE(write(2 * kDisk - 512, 512, 6).ok());
    ASSERT_TRUE(image->flush().ok());
    kill();
    open();
    expect_fill(0, cut, 5);
    expect_fill(cut, 2 * kDisk - cut - 512, 0);
    expect_fill(2 * kDisk - 512, 512, 6);
}

TEST_F(CompactTest, AGrownDiskCanHaveItsSlotsInAdvance) {
    create();
    open();
    ASSERT_TRUE(image->resize(2 * kDisk, FVD_PREALLOC_FALLOC).ok());
    EXPECT_EQ(chunks_stored(), kChunks);
    expect_fill(0, 2 * kDisk, 0);
}

TEST_F(CompactTest, ASmallerDiskUsesTheSlotsOfASmallerDisk) {
    create();
    open();
    ASSERT_TRUE(image->resize(2 * kDisk, FVD_PREALLOC_OFF).ok());
    ASSERT_TRUE(write(0, 2 * kDisk, 1).ok());
    ASSERT_TRUE(image->resize(kDisk, FVD_PREALLOC_OFF).ok());
    expect_within(kDisk);
    expect_fill(0, kDisk, 1);
}

TEST_F(CompactTest, ADiskThatCannotHaveItsStorageInAdvanceKeepsItsSize) {
    for (const char* call : {"zero data", "resize data"}) {
        host = MemoryHost();
        create();
        open();
        ASSERT_TRUE(write(0, kDisk, 1).ok());
        host.fail_call = call;
        host.fail_with = -ENOSPC;
        host.fail_times = -1;
        const Error error = image->resize(2 * kDisk, FVD_PREALLOC_FULL);
        EXPECT_EQ(error.code, -ENOSPC);
        EXPECT_STREQ(error.text,
                     "storage for a disk of 524288 bytes cannot be allocated in "
                     "advance: No space left on device");
        EXPECT_EQ(image->header().virtual_size, kDisk);
        host.fail_times = 0;
        ASSERT_TRUE(image->flush().ok());
        EXPECT_EQ(chunks_stored(), kChunks);
        expect_within(kDisk);
        reopen();
        EXPECT_EQ(image->header().virtual_size, kDisk);
        expect_fill(0, kDisk, 1);
        ASSERT_TRUE(image->resize(2 * kDisk, FVD_PREALLOC_FULL).ok());
        expect_fill(kDisk, kDisk, 0);
        close();
    }
}

/* A table that moves turns the phase of requests, too; what becomes durable then cannot drain
 * before those of the former one have ended. */
TEST(ChunkAllocatorTest, WhoWantsASlotWaitsForDurableOnesToo) {
    MemoryHost host;
    LayoutRequest request;
    request.virtual_size = kDisk;
    request.compact = true;
    request.chunk_size = kChunk;
    const Header header = plan_layout(request).value();
    std::vector<uint32_t> entries(header.table_size / sizeof(uint32_t), kNotStored);
    struct {
        MemoryHost* host;
        ChunkAllocator slots;
        std::unique_ptr<ChunkAllocator::Use> reader;
    } world{&host, ChunkAllocator(host), nullptr};
    using World = decltype(world);
    const uint64_t length = header.data_offset + kChunk;
    ASSERT_TRUE(world.slots.begin(header, ChunkTable(entries), length).ok());
    world.reader = std::make_unique<ChunkAllocator::Use>(&world.slots);
    const auto want_a_slot = [](void* opaque) {
        World& in = *static_cast<World*>(opaque);
        HostLock lock(*in.host);
        in.slots.give_up(in.slots.take(SlotIndex(0), 1).begin);
        in.slots.group_collected();
        in.slots.group_durable();
        EXPECT_TRUE(in.slots.has_waiting() && !in.slots.needs_commit());
        in.host->start_task([](void* same) { static_cast<World*>(same)->reader.reset(); }, opaque);
        in.slots.wait_until_drained();
        EXPECT_EQ(in.reader, nullptr) << "it was not waited for";
        EXPECT_EQ(in.slots.take(SlotIndex(0), 1).begin, SlotIndex(0));
    };
    host.start_task(want_a_slot, &world);
    HostLock lock(host);
    world.slots.wait_for_requests();
}

/* Against a buffer that does the same, with kills after flushes and reopens in between. */
class CompactRandom : public CompactTest, public ::testing::WithParamInterface<int> {
  protected:
    uint64_t below(uint64_t n) { return random() % n; }

    /** Whole chunks are zeros afterwards; of the rest only the image knows. */
    void discard(uint64_t offset, uint64_t length) {
        ASSERT_TRUE(image->discard(offset, length).ok());
        const auto now = read(offset, length);
        for (uint64_t i = 0; i < length; i++) {
            ASSERT_TRUE(now[i] == std::byte{0} || now[i] == model[offset + i]);
            model[offset + i] = now[i];
        }
    }

    void write_zeroes(uint64_t offset, uint64_t length) {
        const uint32_t flags = below(2) != 0 ? uint32_t{FVD_REQ_MAY_UNMAP} : 0;
        Status status = image->write_zeroes(offset, length, flags);
        if (status.value() == -ENOTSUP) {
            status = write(offset, length, 0);
        }
        ASSERT_TRUE(status.ok());
        std::fill_n(&model[offset], length, std::byte{0});
    }

    void flush_and_perhaps_die() {
        ASSERT_TRUE(image->flush().ok());
        if (below(3) == 0) {
            kill();
            open();
        }
    }

    void maintain() {
        if (below(4) == 0) {
            return reopen();
        }
        if (below(3) != 0) {
            return image->timer_expired(FVD_TIMER_COMMIT);
        }
        const uint64_t size = 512 * (1 + below(2 * kDisk / 512));
        ASSERT_TRUE(image->resize(size, FVD_PREALLOC_OFF).ok());
        model.resize(size);
        most = std::max(most, size);
    }

    void step() {
        const uint64_t unit = below(2) != 0 ? 512 : kChunk;
        const uint64_t offset = below(div_ceil(model.size(), unit)) * unit;
        const uint64_t length = std::min(model.size() - offset, (1 + below(4)) * unit);
        const auto fill = static_cast<uint8_t>(1 + below(255));
        switch (below(8)) {
            case 0:
                return discard(offset, length);
            case 1:
                return write_zeroes(offset, length);
            case 2:
                return flush_and_perhaps_die();
            case 3:
                return maintain();
            default:
                break;
        }
        const uint32_t flags = below(8) == 0 ? uint32_t{FVD_REQ_FUA} : 0;
        ASSERT_TRUE(write(offset, length, fill, flags).ok());
        std::fill_n(&model[offset], length, std::byte{fill});
    }

    std::mt19937 random{static_cast<unsigned>(GetParam())};
    std::vector<std::byte> model;
    uint64_t most = 0; /* bytes that the disk had at any time */
};

TEST_P(CompactRandom, IsADisk) {
    model.resize(kDisk - 512 * below(20));
    host.separate_data = below(2) != 0;
    if (below(3) != 0) {
        give_base(512 * (1 + below(kDisk / 512)));
    }
    const auto& base = host.files[FVD_FILE_BASE];
    std::copy_n(base.begin(), std::min(model.size(), base.size()), model.begin());
    most = model.size();
    create(kChunk * (1 + below(3)), model.size());
    open();
    for (int i = 0; i < 400; i++) {
        step();
        if (i % 16 == 0) {
            ASSERT_EQ(read(0, model.size()), model) << "after step " << i;
        }
    }
    ASSERT_EQ(read(0, model.size()), model);
    const uint64_t end = header().data_offset + div_ceil(most, kChunk) * kChunk;
    EXPECT_LE(host.bytes(FVD_FILE_DATA).size(), end);
    close();
    open(StartMode::read_only);
    ASSERT_EQ(read(0, model.size()), model);
    image.reset();
    EXPECT_EQ(host.live, 0);
}

INSTANTIATE_TEST_SUITE_P(Seeds, CompactRandom, ::testing::Range(0, 40));

}  // namespace
}  // namespace fvd::testing
