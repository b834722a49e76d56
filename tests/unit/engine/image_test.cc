/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "fvd/engine/image.h"

#include <gtest/gtest.h>

#include <memory>

#include "engine/memory_host.h"
#include "fvd/verbs.h"

namespace fvd::testing {
namespace {

constexpr uint64_t kDisk = 256 * 1024;
constexpr uint64_t kBlock = 4096;

/** An image over a base of distinctive bytes; opened and closed as the test says. */
class ImageTest : public ::testing::Test {
  protected:
    void SetUp() override {
        host.files[FVD_FILE_BASE].resize(kDisk);
        for (uint64_t i = 0; i < kDisk; i++) {
            host.files[FVD_FILE_BASE][i] = base_byte(i);
        }
    }

    static std::byte base_byte(uint64_t at) {
        return static_cast<std::byte>(1 + (at / 512 + at) % 250);
    }

    void create(uint64_t block = kBlock, uint64_t journal_unit = 4096) {
        fvd_create_options options{};
        options.virtual_size = kDisk;
        options.base_img = "base.raw";
        options.base_img_fmt = "raw";
        options.base_size = host.files[FVD_FILE_BASE].size();
        options.presets = true;
        options.block_size = block;
        options.journal_unit = static_cast<uint32_t>(journal_unit);
        options.journal_size = 64 * journal_unit;
        if (host.separate_data) {
            options.data_file = "data.raw";
        }
        const Error error = create_image(host, options);
        ASSERT_TRUE(error.ok()) << error.text;
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

    /** What a SIGKILL leaves: nothing in memory is saved. */
    void kill() { image.reset(); }

    Status write(uint64_t offset, uint64_t length, uint8_t fill, uint32_t flags = 0) {
        std::vector<std::byte> buffer(length, std::byte{fill});
        return image->write(offset, length, {buffer.data(), 0}, flags);
    }

    std::vector<std::byte> read(uint64_t offset, uint64_t length) {
        std::vector<std::byte> buffer(length);
        EXPECT_TRUE(image->read(offset, length, {buffer.data(), 0}, 0).ok());
        return buffer;
    }

    void expect_base(uint64_t offset, uint64_t length) {
        const auto got = read(offset, length);
        for (uint64_t i = 0; i < length; i++) {
            ASSERT_EQ(got[i], base_byte(offset + i)) << "at byte " << offset + i;
        }
    }

    void expect_fill(uint64_t offset, uint64_t length, uint8_t fill) {
        const auto got = read(offset, length);
        for (uint64_t i = 0; i < length; i++) {
            ASSERT_EQ(got[i], std::byte{fill}) << "at byte " << offset + i;
        }
    }

    bool clean_on_disk() {
        const auto chosen = choose_header(host.files[FVD_FILE_IMAGE]);
        EXPECT_TRUE(chosen.ok());
        return chosen.value().header.clean_shutdown;
    }

    MemoryHost host;
    std::unique_ptr<Image> image;
};

TEST_F(ImageTest, ANewImageShowsItsBase) {
    create();
    open();
    expect_base(0, kDisk);
    EXPECT_TRUE(image->needs_base());
}

TEST_F(ImageTest, AnIdleOpenAndCloseWritesNothing) {
    create();
    open();
    close();
    EXPECT_EQ(host.count("write"), 0u);
    EXPECT_EQ(host.count("flush"), 0u);
}

TEST_F(ImageTest, AWholeBlockIsWrittenWithoutReadingTheBase) {
    create();
    open();
    EXPECT_TRUE(write(kBlock, kBlock, 0xEE).ok());
    EXPECT_EQ(host.log.size(), 1u);
    EXPECT_EQ(host.count("write data"), 1u);
    expect_fill(kBlock, kBlock, 0xEE);
    expect_base(0, kBlock);
    expect_base(2 * kBlock, kDisk - 2 * kBlock);
}

TEST_F(ImageTest, PartOfABlockCopiesOnlyWhatTheGuestDidNotWrite) {
    create();
    open();
    EXPECT_TRUE(write(100, kBlock - 100, 0xEE).ok());
    EXPECT_EQ(host.log.front(), "read base 0+100");
    EXPECT_EQ(host.log.size(), 2u);
    expect_base(0, 100);
    expect_fill(100, kBlock - 100, 0xEE);
    expect_base(kBlock, kBlock);
}

TEST_F(ImageTest, BothEdgesOfOneBlockAreReadAtOnce) {
    create();
    open();
    EXPECT_TRUE(write(kBlock + 512, 512, 0xEE).ok());
    EXPECT_EQ(host.count("read base"), 1u);
    EXPECT_EQ(host.count("write data"), 1u);
    expect_base(kBlock, 512);
    expect_fill(kBlock + 512, 512, 0xEE);
    expect_base(kBlock + 1024, kBlock - 1024);
}

TEST_F(ImageTest, EdgesOfTwoBlocksGoOutWithOneWrite) {
    create();
    open();
    EXPECT_TRUE(write(kBlock - 1, 2 * kBlock + 2, 0xEE).ok());
    EXPECT_EQ(host.count("read base"), 2u);
    EXPECT_EQ(host.count("write data"), 1u);
    expect_base(0, kBlock - 1);
    expect_fill(kBlock - 1, 2 * kBlock + 2, 0xEE);
    expect_base(3 * kBlock + 1, kBlock - 1);
}

TEST_F(ImageTest, DataThatIsHereTakesNoLockAndNoMemory) {
    create();
    open();
    EXPECT_TRUE(write(0, kBlock, 1).ok());
    host.locks = 0;
    const int64_t allocations = host.allocations;
    EXPECT_TRUE(write(17, 1000, 2).ok());
    read(17, 1000);
    EXPECT_EQ(host.locks, 0);
    EXPECT_EQ(host.allocations, allocations);
}

TEST_F(ImageTest, IsHereIsTrueOfWhatOneRequestToTheDataFileCanServe) {
    create();
    open();
    uint64_t at = 0;
    EXPECT_FALSE(image->is_here(0, 1, &at));
    ASSERT_TRUE(write(kBlock, 2 * kBlock, 1).ok());
    host.log.clear();
    host.locks = 0;
    EXPECT_TRUE(image->is_here(kBlock, 2 * kBlock, &at));
    EXPECT_EQ(at, image->header().data_offset + kBlock);
    EXPECT_TRUE(image->is_here(2 * kBlock + 7, 1, &at));
    EXPECT_EQ(at, image->header().data_offset + 2 * kBlock + 7);
    EXPECT_FALSE(image->is_here(kBlock - 1, 2, &at));
    EXPECT_FALSE(image->is_here(3 * kBlock - 1, 2, &at));
    EXPECT_TRUE(host.log.empty());
    EXPECT_EQ(host.locks, 0u);
}

TEST_F(ImageTest, AFlushOfAFirstWriteIsDataFlushUnitAndFlush) {
    create();
    open();
    EXPECT_TRUE(write(0, kBlock, 1).ok());
    EXPECT_TRUE(image->flush().ok()); /* opens the session */
    EXPECT_TRUE(write(kBlock, kBlock, 1).ok());
    host.log.clear();
    EXPECT_TRUE(image->flush().ok());
    ASSERT_EQ(host.log.size(), 3u);
    EXPECT_EQ(host.log[0], "flush data");
    EXPECT_EQ(host.log[1].substr(0, 12), "write image ");
    EXPECT_EQ(host.log[1].substr(host.log[1].find('+')), "+4096");
    EXPECT_EQ(host.log[2], "flush image");
}

TEST_F(ImageTest, AFlushWithNothingToRecordIsOneFlush) {
    create();
    open();
    EXPECT_TRUE(write(0, kBlock, 1).ok());
    EXPECT_TRUE(image->flush().ok());
    EXPECT_TRUE(write(0, kBlock, 2).ok());
    host.log.clear();
    EXPECT_TRUE(image->flush().ok());
    EXPECT_EQ(host.log, Log{"flush data"});
}

TEST_F(ImageTest, TheCleanMarkGoesBeforeTheFirstRecordAndReturnsAtClose) {
    create();
    open();
    EXPECT_TRUE(write(0, kBlock, 1).ok());
    EXPECT_TRUE(clean_on_disk());
    EXPECT_TRUE(image->flush().ok());
    EXPECT_FALSE(clean_on_disk());
    close();
    EXPECT_TRUE(clean_on_disk());
    open();
    expect_fill(0, kBlock, 1);
    expect_base(kBlock, kBlock);
}

TEST_F(ImageTest, AKilledImageIsReplayed) {
    create();
    open();
    EXPECT_TRUE(write(3 * kBlock, 10, 9).ok());
    EXPECT_TRUE(image->flush().ok());
    kill();
    open(StartMode::read_only);
    expect_fill(3 * kBlock, 10, 9);
    expect_base(3 * kBlock + 10, kBlock);
    EXPECT_EQ(host.count("write"), 0u);
    kill();
    open();
    EXPECT_TRUE(clean_on_disk());
    expect_fill(3 * kBlock, 10, 9);
}

TEST_F(ImageTest, AUnitOfALaterEpochNeverComesToLife) {
    create();
    open();
    EXPECT_TRUE(write(0, kBlock, 1).ok());
    EXPECT_TRUE(image->flush().ok());
    const Header header = image->header();
    kill();
    MutableBytes ring = MutableBytes(host.files[FVD_FILE_IMAGE]).subspan(header.journal_offset);
    UnitWriter writer(ring.subspan(4096, 4096));
    ASSERT_TRUE(writer.add_bitmap({BlockIndex(5), BlockIndex(6)}));
    writer.finish({.epoch = header.journal_epoch + 1, .sequence = 1}, header.image_id);
    for (int life = 0; life < 4; life++) {
        open();
        expect_base(5 * kBlock, kBlock);
        EXPECT_TRUE(write((10 + static_cast<uint64_t>(life)) * kBlock, kBlock, 2).ok());
        EXPECT_TRUE(image->flush().ok());
        EXPECT_GT(image->header().journal_epoch, header.journal_epoch + 1);
        kill();
    }
    open(StartMode::read_only);
    expect_base(5 * kBlock, kBlock);
    expect_fill(0, kBlock, 1);
}

TEST_F(ImageTest, AKilledUnflushedWriteShowsTheBase) {
    create();
    open();
    EXPECT_TRUE(write(0, kBlock, 1).ok());
    kill();
    open();
    expect_base(0, kBlock);
}

TEST_F(ImageTest, TheTimerCommits) {
    create();
    open();
    EXPECT_TRUE(write(0, kBlock, 1).ok());
    EXPECT_TRUE(host.timer_armed);
    image->timer_expired(FVD_TIMER_COMMIT);
    kill();
    open();
    expect_fill(0, kBlock, 1);
}

TEST_F(ImageTest, ManySessionsWrapTheRingAndLoseNothing) {
    create(512, 512); /* 64 units of 512 bytes, 512 blocks */
    for (uint64_t round = 0; round < 5; round++) {
        open();
        for (uint64_t block = round; block < 512; block += 5) {
            EXPECT_TRUE(write(block * 512, 512, static_cast<uint8_t>(block)).ok());
            EXPECT_TRUE(image->flush().ok());
        }
        kill();
    }
    open();
    for (uint64_t block = 0; block < 512; block++) {
        expect_fill(block * 512, 512, static_cast<uint8_t>(block));
    }
    EXPECT_FALSE(image->needs_base());
}

TEST_F(ImageTest, ManyScatteredBlocksInOneFlushFillSeveralGroups) {
    host.files[FVD_FILE_BASE].resize(4 * kDisk);
    create(512, 512);
    open();
    for (uint64_t block = 0; block < 512; block += 2) {
        EXPECT_TRUE(write(block * 512, 512, 7).ok());
    }
    EXPECT_TRUE(image->flush().ok());
    kill();
    open(StartMode::read_only);
    for (uint64_t block = 0; block < 512; block += 2) {
        expect_fill(block * 512, 512, 7);
        expect_base((block + 1) * 512, 512);
    }
}

TEST_F(ImageTest, ABaseShorterThanTheDiskEndsInZeros) {
    host.files[FVD_FILE_BASE].resize(10 * 512 + kBlock);
    create();
    open();
    expect_fill(10 * 512 + kBlock, kDisk - 10 * 512 - kBlock, 0);
    EXPECT_TRUE(write(kBlock + 1000, 100, 3).ok());
    expect_base(kBlock, 1000);
    expect_base(kBlock + 1100, 9 * 512 + kBlock - kBlock - 1100 + 512);
    expect_fill(10 * 512 + kBlock, 512, 0);
}

TEST_F(ImageTest, ZeroAreasOfTheBaseAreNeverRead) {
    std::memset(host.files[FVD_FILE_BASE].data() + 2 * kBlock, 0, 4 * kBlock);
    create();
    open();
    expect_fill(2 * kBlock, 4 * kBlock, 0);
    EXPECT_EQ(host.count("read base"), 0u);
}

TEST_F(ImageTest, ZeroWritesOfWholeBlocksReadNothing) {
    create();
    open();
    EXPECT_TRUE(image->write_zeroes(kBlock, 2 * kBlock, FVD_REQ_MAY_UNMAP).ok());
    EXPECT_EQ(host.count("read"), 0u);
    EXPECT_EQ(image->write_zeroes(3 * kBlock + 1, 10, 0).value(), -ENOTSUP);
    expect_fill(kBlock, 2 * kBlock, 0);
    expect_base(3 * kBlock, kBlock);
}

TEST_F(ImageTest, FuaOnAFirstWriteCommits) {
    create();
    open();
    EXPECT_TRUE(write(0, kBlock, 5, FVD_REQ_FUA).ok());
    kill();
    open();
    expect_fill(0, kBlock, 5);
    host.log.clear();
    EXPECT_TRUE(write(0, 512, 6, FVD_REQ_FUA).ok());
    EXPECT_EQ(host.count("write-fua data"), 1u);
    EXPECT_EQ(host.count("flush"), 0u);
}

TEST_F(ImageTest, AFailedDataFlushEndsAllPromises) {
    create();
    open();
    EXPECT_TRUE(write(0, kBlock, 1).ok());
    host.fail_call = "flush data";
    host.fail_times = 1;
    EXPECT_EQ(image->flush().value(), -EIO);
    host.log.clear();
    EXPECT_EQ(image->flush().value(), -EIO);
    EXPECT_EQ(write(5 * kBlock, kBlock, 1).value(), -EIO);
    EXPECT_TRUE(write(0, 512, 2).ok()); /* overwrites go on */
    EXPECT_EQ(image->stop().value(), -EIO);
    EXPECT_EQ(host.count("write image"), 0u);
    EXPECT_EQ(host.warnings.size(), 1u);
}

TEST_F(ImageTest, AFailedUnitWriteIsTriedAgainUnderANewEpoch) {
    create();
    open();
    EXPECT_TRUE(write(0, kBlock, 1).ok());
    EXPECT_TRUE(image->flush().ok());
    const uint64_t epoch = image->header().journal_epoch;
    EXPECT_TRUE(write(kBlock, kBlock, 2).ok());
    host.fail_call = "write image";
    host.fail_times = 1;
    host.fail_with = -ENOSPC;
    EXPECT_EQ(image->flush().value(), -ENOSPC);
    EXPECT_TRUE(image->flush().ok());
    EXPECT_GT(image->header().journal_epoch, epoch);
    kill();
    open();
    expect_fill(0, kBlock, 1);
    expect_fill(kBlock, kBlock, 2);
}

TEST_F(ImageTest, AFailedCowReadFailsTheWriteAndChangesNothing) {
    create();
    open();
    host.fail_call = "read base";
    host.fail_times = 1;
    EXPECT_EQ(write(10, 10, 1).value(), -EIO);
    EXPECT_EQ(host.count("write"), 0u);
    expect_base(0, kBlock);
}

TEST_F(ImageTest, EmptiedImagesShowTheBaseAgain) {
    create();
    open();
    EXPECT_TRUE(write(0, 3 * kBlock, 1).ok());
    EXPECT_TRUE(image->flush().ok());
    EXPECT_TRUE(image->make_empty().ok());
    expect_base(0, kDisk);
    EXPECT_TRUE(write(kBlock, kBlock, 2).ok());
    EXPECT_TRUE(image->flush().ok());
    kill();
    open();
    expect_base(0, kBlock);
    expect_fill(kBlock, kBlock, 2);
    expect_base(2 * kBlock, kBlock);
}

TEST_F(ImageTest, AnotherBaseIsNamedDurablyOrNotAtAll) {
    create();
    open();
    EXPECT_TRUE(write(0, kBlock, 1).ok());
    EXPECT_TRUE(image->flush().ok());
    EXPECT_TRUE(image->set_base("other.qcow2", "qcow2").ok());
    host.fail_call = "write image";
    host.fail_times = 1;
    EXPECT_FALSE(image->set_base("third.raw", "raw").ok());
    EXPECT_STREQ(image->header().base_img, "other.qcow2");
    EXPECT_EQ(image->set_base(std::string(1024, 'x').c_str(), "raw").code, -EINVAL);
    /* Found while fuzzing: such a name was written, and the image could not be opened any more. */
    EXPECT_EQ(image->set_base("bell\a.raw", "raw").code, -EINVAL);
    EXPECT_EQ(image->set_base("other.raw", "\xFF").code, -EINVAL);
    kill();
    open();
    EXPECT_STREQ(image->header().base_img, "other.qcow2");
    EXPECT_STREQ(image->header().base_img_fmt, "qcow2");
    expect_fill(0, kBlock, 1);
}

TEST_F(ImageTest, SeparateDataIsFlushedBeforeItsRecord) {
    host.separate_data = true;
    create();
    open();
    EXPECT_EQ(image->where(0, 100).place, Place::base);
    EXPECT_TRUE(write(0, kBlock, 1).ok());
    EXPECT_EQ(host.log, Log{"write data 0+4096"});
    EXPECT_TRUE(image->flush().ok());
    const auto flush = std::find(host.log.begin(), host.log.end(), "flush data");
    const std::string unit = "write image " + std::to_string(image->header().journal_offset);
    const auto record = std::find_if(host.log.begin(), host.log.end(), [&](const auto& line) {
        return line.compare(0, unit.size(), unit) == 0;
    });
    ASSERT_NE(record, host.log.end());
    EXPECT_LT(flush, record);
    EXPECT_EQ(host.log.back(), "flush image");
}

TEST_F(ImageTest, AShortenedDataFileIsRefused) {
    create();
    host.files[FVD_FILE_IMAGE].resize(host.files[FVD_FILE_IMAGE].size() - 512);
    Image cut(host);
    const Error error = cut.start(StartMode::read_only);
    EXPECT_EQ(error.code, -EINVAL);
    EXPECT_NE(std::string(error.text).find("its guest data ends at"), std::string::npos);
}

TEST_F(ImageTest, AnImageWithoutBaseIsAThinLayer) {
    fvd_create_options options{};
    options.virtual_size = kDisk;
    ASSERT_TRUE(create_image(host, options).ok());
    open();
    EXPECT_TRUE(write(1, 1, 1).ok());
    EXPECT_TRUE(image->flush().ok());
    EXPECT_EQ(host.log.size(), 2u);
    EXPECT_EQ(host.locks, 0); /* there is never a commit */
    close();
    EXPECT_EQ(host.count("write image"), 0u);
}

TEST_F(ImageTest, EveryFailedAllocationIsAnErrorAndLeaksNothing) {
    create();
    for (int64_t n = 0;; n++) {
        host.allocations = 0;
        host.fail_allocation = n;
        {
            Image world(host);
            Status status;
            if (Error error = world.start(StartMode::writable); !error.ok()) {
                EXPECT_EQ(error.code, -ENOMEM) << error.text;
            } else {
                std::byte one{1};
                status =
                    world.write(7, 1, {&one, 0}, 0).or_else(world.flush()).or_else(world.stop());
                EXPECT_TRUE(status.ok() || status.value() == -ENOMEM);
            }
        }
        EXPECT_EQ(host.live, 0);
        if (host.allocations <= n) {
            break;
        }
    }
    host.fail_allocation = -1;
    open();
    expect_base(8, kDisk - 8);
}

/* ------------------------------------------------------------------------------- resize */

TEST_F(ImageTest, GrownSpaceReadsAsZerosEvenOverALongerBase) {
    host.files[FVD_FILE_BASE].resize(2 * kDisk, std::byte{0x77});
    create();
    open();
    ASSERT_TRUE(image->resize(2 * kDisk, FVD_PREALLOC_OFF).ok());
    expect_base(0, kDisk);
    expect_fill(kDisk, kDisk, 0);
    ASSERT_TRUE(write(kDisk + 512, 512, 0xAB).ok());
    ASSERT_TRUE(image->flush().ok());
    kill();
    open();
    EXPECT_EQ(image->header().virtual_size, 2 * kDisk);
    expect_fill(kDisk, 512, 0);
    expect_fill(kDisk + 512, 512, 0xAB);
}

TEST_F(ImageTest, SpaceGrownAgainAfterAShrinkReadsAsZeros) {
    create();
    open();
    ASSERT_TRUE(write(kDisk / 2, kDisk / 2, 0xCD).ok());
    ASSERT_TRUE(image->resize(kDisk / 2 + 512, FVD_PREALLOC_OFF).ok());
    expect_base(0, kDisk / 2);
    expect_fill(kDisk / 2, 512, 0xCD);
    host.bytes(FVD_FILE_DATA).resize(image->header().data_offset + kDisk, std::byte{0x99});
    ASSERT_TRUE(image->resize(kDisk, FVD_PREALLOC_OFF).ok());
    expect_fill(kDisk / 2, 512, 0xCD);
    expect_fill(kDisk / 2 + 512, kDisk / 2 - 512, 0);
    close();
    open();
    expect_base(0, kDisk / 2);
    expect_fill(kDisk / 2 + 512, kDisk / 2 - 512, 0);
}

TEST_F(ImageTest, AShrunkDiskForgetsItsEndForEver) {
    create();
    open();
    ASSERT_TRUE(write(0, kDisk, 0xCD).ok());
    ASSERT_TRUE(image->flush().ok());
    ASSERT_TRUE(image->resize(kBlock, FVD_PREALLOC_OFF).ok());
    EXPECT_FALSE(image->needs_base());
    kill();
    open();
    expect_fill(0, kBlock, 0xCD);
    EXPECT_EQ(image->header().base_size, kBlock);
    close();
    fvd_check_result result{};
    ASSERT_TRUE(check_image(host, FVD_FIX_NONE, &result).ok());
    EXPECT_EQ(result.corruptions + result.leaks, 0u);
}

TEST_F(ImageTest, SizesThatNoDiskHasAreRefused) {
    create();
    open();
    EXPECT_EQ(image->resize(kDisk + 1, FVD_PREALLOC_OFF).code, -EINVAL);
    EXPECT_EQ(image->resize(uint64_t{1} << 61, FVD_PREALLOC_OFF).code, -EINVAL);
    EXPECT_TRUE(image->resize(0, FVD_PREALLOC_OFF).ok());
    EXPECT_TRUE(image->resize(kDisk, FVD_PREALLOC_OFF).ok());
    expect_fill(0, kDisk, 0);
    close();
    open();
    expect_fill(0, kDisk, 0);
}

TEST_F(ImageTest, AResizeThatFailsChangesNothing) {
    for (const uint64_t size : {kDisk / 2, 2 * kDisk}) {
        for (int failing = 0; failing < 8; failing++) {
            create();
            open();
            ASSERT_TRUE(write(0, kDisk, 0xCD).ok());
            ASSERT_TRUE(image->flush().ok());
            const char* const calls[] = {"write image", "flush", "resize", "zero"};
            host.fail_call = calls[failing % 4];
            host.fail_times = failing < 4 ? 1 : -1;
            const bool resized = image->resize(size, FVD_PREALLOC_OFF).ok();
            host.fail_times = 0;
            EXPECT_EQ(image->header().virtual_size, resized ? size : kDisk);
            expect_fill(0, std::min(size, kDisk), 0xCD);
            (void)image->stop().ok();
            image.reset();
            open();
            expect_fill(0, std::min(image->header().virtual_size, kDisk), 0xCD);
            kill();
        }
    }
}

}  // namespace
}  // namespace fvd::testing
