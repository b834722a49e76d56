/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Copy-on-read and prefetch, in a world for one task. */
#include <gtest/gtest.h>

#include <cstring>
#include <memory>

#include "engine/memory_host.h"
#include "fvd/base/arith.h"
#include "fvd/engine/image.h"
#include "fvd/format/header.h"
#include "fvd/verbs.h"

namespace fvd::testing {
namespace {

constexpr uint64_t kDisk = 256 * 1024;
constexpr uint64_t kBlock = 4096;

class FillTest : public ::testing::Test {
  protected:
    void SetUp() override {
        host.files[FVD_FILE_BASE].resize(kDisk);
        for (uint64_t i = 0; i < kDisk; i++) {
            host.files[FVD_FILE_BASE][i] = static_cast<std::byte>(1 + (i / 512 + i) % 250);
        }
    }

    Error create(const fvd_fill* fill) {
        fvd_create_options options{};
        options.virtual_size = kDisk;
        options.base_img = "base.raw";
        options.base_img_fmt = "raw";
        options.base_size = kDisk;
        options.block_size = kBlock;
        options.fill = fill;
        return create_image(host, options);
    }

    void open(StartMode mode = StartMode::writable) {
        image = std::make_unique<Image>(host);
        const Error error = image->start(mode);
        ASSERT_TRUE(error.ok()) << error.text;
        host.log.clear();
        host.locks = 0;
    }

    void close() {
        EXPECT_EQ(image->stop().value(), 0);
        image.reset();
    }

    void create_image_of(uint64_t chunk) {
        fvd_create_options options{};
        options.virtual_size = kDisk;
        options.base_img = "base.raw";
        options.base_img_fmt = "raw";
        options.base_size = host.files[FVD_FILE_BASE].size();
        options.block_size = kBlock;
        options.compact_image = chunk != 0;
        options.chunk_size = chunk;
        const Error error = create_image(host, options);
        ASSERT_TRUE(error.ok()) << error.text;
    }

    Status write(uint64_t offset, uint64_t length, uint8_t fill) {
        std::vector<std::byte> buffer(length, std::byte{fill});
        return image->write(offset, length, {buffer.data(), 0}, 0);
    }

    std::vector<std::byte> read(uint64_t offset, uint64_t length) {
        std::vector<std::byte> buffer(length);
        EXPECT_TRUE(image->read(offset, length, {buffer.data(), 0}, 0).ok());
        return buffer;
    }

    void expect_base(uint64_t offset, uint64_t length) {
        const auto got = read(offset, length);
        EXPECT_EQ(std::memcmp(got.data(), &host.files[FVD_FILE_BASE][offset], length), 0)
            << "at " << offset << "+" << length;
    }

    void expect_fill(uint64_t offset, uint64_t length, uint8_t fill) {
        const auto got = read(offset, length);
        for (uint64_t i = 0; i < length; i++) {
            ASSERT_EQ(got[i], std::byte{fill}) << "at byte " << offset + i;
        }
    }

    fvd_progress progress() {
        fvd_progress now;
        image->progress(&now);
        return now;
    }

    /** Tasks and the timer of prefetch run until it has nothing more to do, or the time is over. */
    void let_it_run(uint64_t seconds = 1000) {
        const uint64_t end = host.clock + seconds * 1'000'000'000;
        host.run_tasks();
        while (host.prefetch_at != 0 && host.prefetch_at <= end) {
            host.clock = std::max(host.clock, std::exchange(host.prefetch_at, 0));
            image->timer_expired(FVD_TIMER_PREFETCH);
            host.run_tasks();
        }
    }
    void expect_complete() {
        EXPECT_TRUE(progress().filled);
        EXPECT_EQ(progress().blocks, progress().blocks_here);
        EXPECT_EQ(host.announced[FVD_EVENT_FILLED], 1);
        EXPECT_TRUE(header_on_disk().base_fully_prefetched);
        EXPECT_FALSE(image->needs_base());
    }

    bool clean_on_disk() { return header_on_disk().clean_shutdown; }

    Header header_on_disk() {
        const auto chosen = choose_header(host.files[FVD_FILE_IMAGE]);
        EXPECT_TRUE(chosen.ok());
        return chosen.value().header;
    }

    MemoryHost host;
    std::unique_ptr<Image> image;
};

/* ------------------------------------------------------------------------------- options */

TEST_F(FillTest, TheTableNamesEveryNumberOnce) {
    fvd_fill fill = empty_fill();
    const auto* const numbers = &fill.max_outstanding_copy_on_read_data;
    size_t at = 0;
    for (const fvd_fill_parameter& parameter : fill_parameters()) {
        EXPECT_EQ(&number_of(fill, parameter), &numbers[at++]);
        EXPECT_LE(parameter.min, parameter.standard) << parameter.name;
        EXPECT_GE(parameter.max, parameter.standard) << parameter.name;
        EXPECT_EQ(number_of(fill, parameter), FVD_UNSET);
    }
    EXPECT_EQ(reinterpret_cast<std::byte*>(&fill + 1),
              reinterpret_cast<const std::byte*>(numbers + at));
}

TEST_F(FillTest, NothingIsAskedForByDefault) {
    ASSERT_TRUE(create(nullptr).ok());
    open();
    const fvd_fill fill = image->fill(false);
    EXPECT_EQ(fill.copy_on_read, FVD_OFF);
    EXPECT_EQ(fill.prefetch, FVD_OFF);
    EXPECT_EQ(fill.num_prefetch_slots, 15);
}

TEST_F(FillTest, CreateWritesWhatIsGiven) {
    fvd_fill fill = empty_fill();
    fill.copy_on_read = FVD_ON;
    fill.prefetch = FVD_ON;
    fill.bytes_per_prefetch = 65536;
    ASSERT_TRUE(create(&fill).ok());
    const Header header = header_on_disk();
    EXPECT_TRUE(header.copy_on_read);
    EXPECT_EQ(header.prefetch_start_delay, 0);
    EXPECT_EQ(header.bytes_per_prefetch, 65536u);
    EXPECT_EQ(header.prefetch_throttle_time, 0u);
}

TEST_F(FillTest, CreateRefusesWhatIsOutOfRange) {
    fvd_fill fill = empty_fill();
    fill.num_prefetch_slots = 65;
    const Error error = create(&fill);
    EXPECT_EQ(error.code, -EINVAL);
    EXPECT_NE(std::strstr(error.text, "num_prefetch_slots is 65; must be in 1..64"), nullptr)
        << error.text;
    fill = empty_fill();
    fill.prefetch_guest_slowdown = 5;
    EXPECT_EQ(create(&fill).code, -ENOTSUP);
}

TEST_F(FillTest, AmendChangesTheHeaderAndNothingElse) {
    ASSERT_TRUE(create(nullptr).ok());
    open();
    fvd_fill fill = empty_fill();
    fill.prefetch_start_delay = 7;
    fill.prefetch_throttle_time = 1234;
    ASSERT_TRUE(image->amend(fill).ok());
    EXPECT_EQ(image->fill(true).prefetch_start_delay, 7);
    EXPECT_EQ(image->fill(true).prefetch, FVD_ON);
    EXPECT_EQ(host.count("write image"), 2u); /* both copies */
    const Header header = header_on_disk();
    EXPECT_EQ(header.prefetch_start_delay, 7);
    EXPECT_EQ(header.prefetch_throttle_time, 1234u);
    EXPECT_FALSE(header.copy_on_read);
}

TEST_F(FillTest, AmendThatFailsChangesNothing) {
    fvd_fill fill = empty_fill();
    fill.bytes_per_prefetch = 65536;
    ASSERT_TRUE(create(&fill).ok());
    open();
    host.fail_call = "write image";
    host.fail_times = 1;
    fill.bytes_per_prefetch = 4096;
    fill.copy_on_read = FVD_ON;
    EXPECT_EQ(image->amend(fill).code, -EIO);
    EXPECT_EQ(image->fill(true).bytes_per_prefetch, 65536);
    EXPECT_EQ(image->fill(true).copy_on_read, FVD_OFF);
}

TEST_F(FillTest, OptionsOfTheProcessGoBeforeTheHeader) {
    fvd_fill fill = empty_fill();
    fill.copy_on_read = FVD_ON;
    fill.prefetch_start_delay = 30;
    fill.num_prefetch_slots = 4;
    ASSERT_TRUE(create(&fill).ok());
    open();
    EXPECT_EQ(image->fill(false).prefetch_start_delay, 30);
    fvd_fill options = empty_fill();
    options.copy_on_read = FVD_OFF;
    options.prefetch = FVD_OFF;
    options.num_prefetch_slots = 0;
    ASSERT_TRUE(image->set_fill(options).ok());
    EXPECT_EQ(image->fill(false).copy_on_read, FVD_OFF);
    EXPECT_EQ(image->fill(false).prefetch, FVD_OFF);
    EXPECT_EQ(image->fill(false).num_prefetch_slots, 15);
    EXPECT_EQ(image->fill(true).num_prefetch_slots, 4);
    options.num_prefetch_slots = -3;
    EXPECT_EQ(image->set_fill(options).code, -EINVAL);
}

/* ------------------------------------------------------------------------------- copy-on-read */

class CopyOnReadTest : public FillTest {
  protected:
    void begin(uint64_t chunk = 0) {
        create_image_of(chunk);
        open();
        fvd_fill options = empty_fill();
        options.copy_on_read = FVD_ON;
        ASSERT_TRUE(image->set_fill(options).ok());
    }
};

/* It may be the wrong base, or one that is still being copied. */
TEST_F(CopyOnReadTest, WhatABaseIsShorterByIsReadAsZerosAndNotKept) {
    for (const uint64_t left : {uint64_t{0}, 5 * kBlock, kDisk / 2 + 512}) {
        SCOPED_TRACE(left);
        SetUp();
        const std::vector<std::byte> whole = host.files[FVD_FILE_BASE];
        begin();
        fvd_fill options = empty_fill();
        options.copy_on_read = options.prefetch = FVD_ON;
        ASSERT_TRUE(image->set_fill(options).ok());
        host.warnings.clear();
        host.files[FVD_FILE_BASE].resize(left);
        expect_fill(round_up(left, kBlock), kDisk - round_up(left, kBlock), 0);
        let_it_run(200);
        EXPECT_EQ(host.warnings.size(), 1U);
        EXPECT_NE(progress().base_errors, 0U);
        EXPECT_FALSE(progress().filled);
        host.files[FVD_FILE_BASE] = whole;
        expect_base(0, kDisk);
        let_it_run(200);
        EXPECT_TRUE(progress().filled);
        host.files[FVD_FILE_BASE].assign(kDisk, std::byte{0xee});
        const auto got = read(0, kDisk);
        EXPECT_EQ(got, whole);
        close();
        host.files[FVD_FILE_IMAGE].clear();
    }
}

TEST_F(CopyOnReadTest, WhatWasReadIsStoredAfterTheAnswer) {
    begin();
    expect_base(0, 8192);
    EXPECT_EQ(host.count("read base"), 1u);
    EXPECT_EQ(host.count("write"), 0u);
    host.run_tasks();
    EXPECT_EQ(host.count("write data"), 1u);
    EXPECT_EQ(host.count("flush"), 0u);
    EXPECT_TRUE(host.timer_armed);
    host.log.clear();
    expect_base(0, 8192);
    EXPECT_EQ(host.count("read base"), 0u);
    const fvd_progress now = progress();
    EXPECT_EQ(now.bytes_copy_on_read, 8192u);
    EXPECT_EQ(now.bytes_stored, 8192u);
    EXPECT_EQ(now.blocks - now.blocks_here, kDisk / kBlock - 2);
    EXPECT_EQ(now.memory, 0u);
}

TEST_F(CopyOnReadTest, DataThatIsHereCostsNothing) {
    begin();
    expect_base(0, kBlock);
    host.run_tasks();
    host.locks = 0;
    const int64_t allocations = host.allocations;
    expect_base(0, kBlock);
    EXPECT_EQ(host.locks, 0);
    EXPECT_EQ(host.allocations, allocations);
}

TEST_F(CopyOnReadTest, ASmallReadIsWidenedToItsBlock) {
    begin();
    expect_base(kBlock + 512, 512);
    EXPECT_EQ(host.count("read base 4096+4096"), 1u);
    host.run_tasks();
    host.log.clear();
    expect_base(kBlock, kBlock);
    EXPECT_EQ(host.count("read base"), 0u);
}

TEST_F(CopyOnReadTest, TheGuestsWriteStays) {
    begin();
    expect_base(0, 2 * kBlock);
    EXPECT_TRUE(write(0, kBlock, 0xEE).ok());
    host.log.clear();
    host.run_tasks();
    EXPECT_EQ(host.count("write data"), 1u); /* of the other block */
    expect_fill(0, kBlock, 0xEE);
    expect_base(kBlock, kBlock);
    EXPECT_EQ(progress().bytes_dropped, kBlock);
}

TEST_F(CopyOnReadTest, StoredBlocksAreCommittedLikeWrittenOnes) {
    begin();
    expect_base(0, kBlock);
    host.run_tasks();
    ASSERT_TRUE(image->flush().ok());
    image.reset();
    open();
    host.log.clear();
    expect_base(0, kBlock);
    EXPECT_EQ(host.count("read base"), 0u);
}

TEST_F(CopyOnReadTest, WhatDoesNotFitIntoMemoryIsNotKept) {
    create_image_of(0);
    open();
    fvd_fill options = empty_fill();
    options.copy_on_read = FVD_ON;
    options.max_outstanding_copy_on_read_data = kBlock;
    ASSERT_TRUE(image->set_fill(options).ok());
    expect_base(0, 2 * kBlock);
    EXPECT_EQ(host.tasks.size(), 0u);
    expect_base(0, kBlock);
    EXPECT_EQ(host.tasks.size(), 1u);
    expect_base(kBlock, kBlock); /* the first is still on its way */
    EXPECT_EQ(host.tasks.size(), 1u);
    host.run_tasks();
    expect_base(kBlock, kBlock);
    EXPECT_EQ(host.tasks.size(), 1u);
    host.run_tasks();
    EXPECT_EQ(progress().bytes_guest, 3 * kBlock);
    EXPECT_EQ(progress().bytes_stored, 2 * kBlock);
}

TEST_F(CopyOnReadTest, WithoutMemoryTheGuestReadsAllTheSame) {
    begin();
    host.fail_allocation = host.allocations;
    expect_base(0, kBlock);
    EXPECT_EQ(host.tasks.size(), 0u);
    expect_base(0, kBlock);
    EXPECT_EQ(host.tasks.size(), 1u);
}

TEST_F(CopyOnReadTest, AStoreThatFailsIsTheImagesAffair) {
    begin();
    host.fail_call = "write data";
    host.fail_with = -ENOSPC;
    host.fail_times = 1;
    expect_base(0, kBlock);
    host.run_tasks();
    EXPECT_EQ(progress().store_errors, 1u);
    EXPECT_EQ(progress().memory, 0u);
    expect_base(0, kBlock);
    EXPECT_EQ(host.tasks.size(), 0u); /* not again at once, */
    host.clock += 2'000'000'000;
    expect_base(0, kBlock);
    EXPECT_EQ(host.tasks.size(), 1u); /* but later */
    host.run_tasks();
    EXPECT_EQ(progress().bytes_stored, kBlock);
    ASSERT_TRUE(image->flush().ok());
}

TEST_F(CopyOnReadTest, AnErrorOfTheBaseReachesTheGuestAndNobodyElse) {
    begin();
    host.fail_call = "read base";
    host.fail_times = 1;
    std::vector<std::byte> buffer(kBlock);
    EXPECT_EQ(image->read(0, kBlock, {buffer.data(), 0}, 0).value(), -EIO);
    EXPECT_EQ(progress().memory, 0u);
    expect_base(0, kBlock);
    EXPECT_EQ(host.tasks.size(), 1u);
}

TEST_F(CopyOnReadTest, BadSectorsNextToWhatIsReadDoNoHarm) {
    begin();
    host.fail_call = "read base 0+4096";
    host.fail_times = -1;
    expect_base(512, 512);
    EXPECT_EQ(host.count("read base 512+512"), 1u);
}

TEST_F(CopyOnReadTest, ZerosAreStoredAsZeros) {
    std::fill_n(host.files[FVD_FILE_BASE].begin(), 2 * kBlock, std::byte{0});
    begin();
    expect_fill(0, 2 * kBlock, 0);
    host.run_tasks();
    EXPECT_EQ(host.count("zero data"), 1u);
    EXPECT_EQ(host.count("write data"), 0u);
    expect_fill(0, 2 * kBlock, 0);
    host.fail_call = "zero data";
    host.fail_with = -ENOTSUP;
}

TEST_F(CopyOnReadTest, TheEndOfAShorterBaseIsKept) {
    host.files[FVD_FILE_BASE].resize(3 * kBlock + 512);
    begin();
    EXPECT_TRUE(write(3 * kBlock + 512, 512, 0xAB).ok());
    expect_base(3 * kBlock, 512);
    host.run_tasks();
    expect_base(3 * kBlock, 512);
    expect_fill(3 * kBlock + 512, 512, 0xAB);
    EXPECT_EQ(host.count("read base 12288+512"), 1u);
}

TEST_F(CopyOnReadTest, NotInAReadOnlyOrQuietImage) {
    fvd_fill fill = empty_fill();
    fill.copy_on_read = FVD_ON;
    ASSERT_TRUE(create(&fill).ok());
    open(StartMode::read_only);
    expect_base(0, kBlock);
    EXPECT_EQ(host.tasks.size(), 0u);
    close();
    open();
    image->quiesce(true);
    expect_base(0, kBlock);
    EXPECT_EQ(host.tasks.size(), 0u);
    image->quiesce(false);
    expect_base(0, kBlock);
    EXPECT_EQ(host.tasks.size(), 1u);
    close(); /* and closing waits for it */
    EXPECT_EQ(host.tasks.size(), 0u);
    open();
    host.log.clear();
    expect_base(0, kBlock);
    EXPECT_EQ(host.count("read base"), 0u);
}

TEST_F(CopyOnReadTest, NotInAFailedImage) {
    begin();
    EXPECT_TRUE(write(0, kBlock, 1).ok());
    host.fail_call = "flush";
    host.fail_times = 1;
    EXPECT_FALSE(image->flush().ok());
    expect_base(kBlock, kBlock);
    EXPECT_EQ(host.tasks.size(), 0u);
    EXPECT_FALSE(image->stop().ok());
}

TEST_F(CopyOnReadTest, ACompactImageStoresNoZeros) {
    std::fill_n(host.files[FVD_FILE_BASE].begin(), 65536, std::byte{0});
    begin(65536);
    expect_fill(0, 65536, 0);
    expect_base(65536, 65536);
    host.run_tasks();
    EXPECT_EQ(host.count("write data"), 1u);
    EXPECT_EQ(host.count("zero data"), 0u);
    fvd_info info;
    image->describe(&info);
    EXPECT_EQ(info.chunks_stored, 1u);
    EXPECT_EQ(info.blocks_here, 32u);
    expect_fill(0, 65536, 0);
    expect_base(65536, 65536);
    ASSERT_TRUE(image->flush().ok());
    image.reset();
    open();
    host.log.clear();
    expect_fill(0, 65536, 0);
    expect_base(65536, 65536);
    EXPECT_EQ(host.count("read base"), 0u);
    close();
}

TEST_F(CopyOnReadTest, TheLastBlockEndsTheBasesUse) {
    begin();
    expect_base(0, kDisk - kBlock);
    let_it_run();
    EXPECT_FALSE(progress().filled);
    expect_base(kDisk - kBlock, 512);
    let_it_run();
    expect_complete();
    close();
    open();
    expect_base(0, kDisk);
    EXPECT_EQ(host.count("read base"), 0u);
    close();
}

TEST_F(CopyOnReadTest, TheGuestMayWriteTheLastBlock) {
    begin();
    expect_base(kBlock, kDisk - kBlock);
    let_it_run();
    EXPECT_FALSE(progress().filled);
    EXPECT_TRUE(write(0, kBlock, 3).ok());
    let_it_run();
    expect_complete();
    EXPECT_EQ(host.prefetch_at, 0u);
    expect_fill(0, kBlock, 3);
}

TEST_F(CopyOnReadTest, WithoutItACompleteImageKeepsItsBase) {
    create_image_of(0);
    open();
    EXPECT_TRUE(write(0, kDisk, 3).ok());
    let_it_run();
    EXPECT_TRUE(image->flush().ok());
    EXPECT_FALSE(header_on_disk().base_fully_prefetched);
    /* until somebody asks for it */
    fvd_fill options = empty_fill();
    options.copy_on_read = FVD_ON;
    ASSERT_TRUE(image->set_fill(options).ok());
    let_it_run();
    expect_complete();
}

TEST_F(CopyOnReadTest, TheHeaderIsTriedAgain) {
    begin();
    expect_base(0, kDisk);
    host.fail_call = "write image 0+4096";
    host.fail_times = -1;
    let_it_run(30);
    EXPECT_FALSE(progress().filled);
    EXPECT_LE(host.count("write image 0+4096"), 62u); /* and not in a circle */
    host.fail_times = 0;
    let_it_run();
    expect_complete();
}

/* ------------------------------------------------------------------------------- prefetch */

class PrefetchTest : public FillTest {
  protected:
    void begin(uint64_t chunk = 0) {
        host.base_takes = 1'000'000;
        create_image_of(chunk);
        open();
        prefetch(FVD_ON);
    }
    void prefetch(fvd_switch wanted) {
        fvd_fill options = empty_fill();
        options.prefetch = wanted;
        ASSERT_TRUE(image->set_fill(options).ok());
    }
    void expect_filled() {
        expect_complete();
        EXPECT_EQ(progress().hold, FVD_HOLD_FINISHED);
    }
};

TEST_F(PrefetchTest, FetchesEveryByteOnceAndSaysSo) {
    begin();
    let_it_run();
    expect_filled();
    EXPECT_EQ(progress().bytes_prefetch, kDisk);
    EXPECT_EQ(progress().bytes_stored, kDisk);
    host.log.clear();
    expect_base(0, kDisk);
    close();
    open();
    expect_base(0, kDisk);
    EXPECT_EQ(host.count("read base"), 0u);
    EXPECT_TRUE(write(0, 512, 7).ok());
    close();
    EXPECT_EQ(host.live, 0);
}

TEST_F(PrefetchTest, IsOffUnlessAskedFor) {
    create_image_of(0);
    open();
    expect_base(0, kBlock);
    let_it_run();
    EXPECT_EQ(host.prefetch_at, 0u);
    EXPECT_EQ(progress().hold, FVD_HOLD_OFF);
    EXPECT_EQ(host.count("write"), 0u);
}

TEST_F(PrefetchTest, DoesNotReadTheHolesOfTheBase) {
    std::fill_n(host.files[FVD_FILE_BASE].begin() + 4096 + 512, 100 * 1024, std::byte{0});
    begin();
    let_it_run();
    expect_filled();
    EXPECT_EQ(progress().bytes_zero, 96u * 1024);
    EXPECT_EQ(progress().bytes_prefetch, kDisk - 96 * 1024);
    expect_base(0, 4608);
    expect_fill(4608, 100 * 1024, 0);
    expect_base(4608 + 100 * 1024, kBlock);
}

TEST_F(PrefetchTest, ACompactImageIsFilledToo) {
    std::fill_n(host.files[FVD_FILE_BASE].begin() + 65536, 65536, std::byte{0});
    begin(65536);
    let_it_run();
    expect_filled();
    fvd_info info;
    image->describe(&info);
    EXPECT_EQ(info.chunks_stored, 3u);
    image.reset(); /* killed: the table comes from the journal, and no bits do */
    open();
    expect_base(0, 65536);
    expect_fill(65536, 65536, 0);
    EXPECT_EQ(host.count("read base"), 0u);
    EXPECT_TRUE(write(65536, kBlock, 9).ok());
    close();
    EXPECT_TRUE(clean_on_disk());
}

TEST_F(PrefetchTest, AKillAfterTheEndLeavesACompleteImage) {
    begin();
    let_it_run();
    image.reset();
    EXPECT_FALSE(clean_on_disk());
    open();
    EXPECT_TRUE(clean_on_disk());
    expect_base(0, kDisk);
    EXPECT_EQ(host.count("read base"), 0u);
    close();
    fvd_check_result result;
    EXPECT_TRUE(check_image(host, FVD_FIX_NONE, &result).ok());
    EXPECT_EQ(result.corruptions + result.leaks, 0u);
}

TEST_F(PrefetchTest, TheGuestMayWriteTheLastBlock) {
    begin();
    image->pause_prefetch(true);
    for (uint64_t at = 0; at < kDisk; at += kBlock) {
        EXPECT_TRUE(write(at, kBlock, 3).ok());
    }
    let_it_run();
    EXPECT_FALSE(progress().filled);
    EXPECT_EQ(progress().hold, FVD_HOLD_PAUSED);
    image->pause_prefetch(false);
    let_it_run();
    expect_filled();
    EXPECT_EQ(host.count("read base"), 0u);
}

TEST_F(PrefetchTest, WaitsWhileItIsQuiet) {
    begin();
    image->quiesce(true);
    image->quiesce(true);
    let_it_run();
    image->quiesce(false);
    let_it_run();
    EXPECT_EQ(host.count("read base"), 0u);
    image->quiesce(false);
    let_it_run();
    expect_filled();
}

TEST_F(PrefetchTest, WaitsForItsStartDelay) {
    create_image_of(0);
    open();
    fvd_fill options = empty_fill();
    options.prefetch_start_delay = 30;
    ASSERT_TRUE(image->set_fill(options).ok());
    let_it_run(29);
    EXPECT_EQ(host.count("read base"), 0u);
    EXPECT_EQ(progress().hold, FVD_HOLD_START_DELAY);
    let_it_run();
    expect_filled();
}

TEST_F(PrefetchTest, GoesOnAfterErrorsOfTheBase) {
    begin();
    host.fail_call = "read base";
    host.fail_times = 20;
    let_it_run();
    expect_filled();
    expect_base(0, kDisk);
    EXPECT_EQ(progress().base_errors, 20u);
}

TEST_F(PrefetchTest, OneBadPlaceDoesNotKeepTheRestAway) {
    begin();
    host.fail_call = "read base 16384+";
    host.fail_times = -1;
    let_it_run();
    EXPECT_FALSE(progress().filled);
    EXPECT_GE(progress().blocks_here, (kDisk - 16384 - 65536) / kBlock);
    host.fail_times = 0;
    let_it_run();
    expect_filled();
}

TEST_F(PrefetchTest, GoesOnAfterErrorsOfTheImage) {
    begin();
    host.fail_call = "write data";
    host.fail_with = -ENOSPC;
    host.fail_times = 5;
    let_it_run();
    expect_filled();
    expect_base(0, kDisk);
    EXPECT_EQ(progress().store_errors, 5u);
}

TEST_F(PrefetchTest, AFailedImageIsLeftAlone) {
    begin();
    EXPECT_TRUE(write(0, kBlock, 1).ok());
    host.fail_call = "flush";
    host.fail_times = -1;
    EXPECT_FALSE(image->flush().ok());
    let_it_run();
    EXPECT_EQ(progress().hold, FVD_HOLD_OFF);
    EXPECT_EQ(host.prefetch_at, 0u);
    EXPECT_EQ(progress().memory, 0u);
    EXPECT_FALSE(progress().filled);
    EXPECT_FALSE(image->stop().ok());
}

TEST_F(PrefetchTest, TheHeaderIsTriedAgain) {
    begin();
    host.fail_call = "write image 0+4096";
    host.fail_times = -1;
    let_it_run(30);
    EXPECT_FALSE(progress().filled);
    EXPECT_EQ(progress().blocks, progress().blocks_here);
    EXPECT_EQ(host.announced[FVD_EVENT_FILLED], 0);
    host.fail_times = 0;
    let_it_run();
    expect_filled();
}

TEST_F(PrefetchTest, AnEmptiedImageNeedsItsBaseAgain) {
    begin();
    let_it_run();
    prefetch(FVD_OFF);
    ASSERT_TRUE(image->make_empty().ok());
    EXPECT_FALSE(header_on_disk().base_fully_prefetched);
    host.log.clear();
    expect_base(0, kDisk);
    EXPECT_EQ(host.count("read base"), 1u);
    close();
    open();
    expect_base(0, kDisk);
    prefetch(FVD_ON);
    host.announced[FVD_EVENT_FILLED] = 0;
    let_it_run();
    expect_filled();
}

TEST_F(PrefetchTest, AReaderWaitsForWhatIsOnItsWay) {
    begin();
    image->timer_expired(FVD_TIMER_PREFETCH); /* looks for zeros, */
    host.run_task();                          /* and so fetches the first piece */
    ASSERT_EQ(host.tasks.size(), 1u);
    expect_base(512, 512);
    EXPECT_EQ(host.count("read base"), 1u);
    EXPECT_EQ(progress().bytes_shared, 512u);
    let_it_run();
    expect_filled();
}

TEST_F(PrefetchTest, WhatWaitsForASpeedLimitIsNoTask) {
    host.base_takes = 1'000'000;
    create_image_of(0);
    open();
    fvd_fill options = empty_fill();
    options.prefetch = FVD_ON;
    options.prefetch_max_write_throughput = 4; /* KiB/s */
    ASSERT_TRUE(image->set_fill(options).ok());
    let_it_run(10);
    EXPECT_GT(progress().memory, 0u);
    EXPECT_LE(progress().bytes_stored, 16384u + 10 * 4096);
    EXPECT_EQ(host.tasks.size(), 0u);
    host.log.clear();
    close(); /* at once, and forgets it */
    EXPECT_EQ(host.live, 0);
    open();
    prefetch(FVD_ON);
    let_it_run();
    expect_filled();
    expect_base(0, kDisk);
}

TEST_F(PrefetchTest, ASmallerDiskIsDoneSooner) {
    begin();
    host.fail_call = "read base 131072";
    let_it_run(0);
    ASSERT_TRUE(image->resize(kDisk / 2 + 512, FVD_PREALLOC_OFF).ok());
    let_it_run();
    expect_filled();
    ASSERT_TRUE(image->resize(kDisk, FVD_PREALLOC_OFF).ok());
    expect_base(0, kDisk / 2 + 512);
    expect_fill(kDisk / 2 + 512, kDisk / 2 - 512, 0);
    close();
}

TEST_F(PrefetchTest, ASmallerDiskIsFilledAfterItWasEmptied) {
    create_image_of(0);
    open();
    ASSERT_TRUE(image->resize(kDisk / 2, FVD_PREALLOC_OFF).ok());
    ASSERT_TRUE(image->make_empty().ok());
    prefetch(FVD_ON);
    let_it_run();
    expect_filled();
}

TEST_F(PrefetchTest, WithoutMemoryItWaits) {
    begin();
    let_it_run(0);
    host.fail_allocation = host.allocations;
    let_it_run();
    expect_filled();
}

}  // namespace
}  // namespace fvd::testing
