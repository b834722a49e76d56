/* SPDX-License-Identifier: GPL-2.0-or-later */
/* qemu-img check: what it says of images as they are, as cuts leave them, and as faults spoil them.
 */
#include <gtest/gtest.h>

#include <memory>

#include "engine/fuse_host.h"
#include "format/samples.h"
#include "fvd/base/crc32c.h"
#include "fvd/engine/image.h"
#include "fvd/format/journal_unit.h"
#include "fvd/verbs.h"

namespace fvd::testing {
namespace {

constexpr uint64_t kDisk = 1000 * 4096;
constexpr uint64_t kBlock = 4096;
constexpr uint64_t kUnit = 4096;
constexpr uint32_t kFixAll = FVD_FIX_LEAKS | FVD_FIX_ERRORS;

class CheckTest : public ::testing::Test {
  protected:
    void SetUp() override { create(); }

    void create() {
        host.files[FVD_FILE_BASE].assign(kDisk, std::byte{0xBB});
        fvd_create_options options{};
        options.virtual_size = kDisk;
        options.base_img = "base.raw";
        options.base_img_fmt = "raw";
        options.base_size = kDisk;
        options.journal_size = 64 * kUnit;
        const Error error = create_image(host, options);
        ASSERT_TRUE(error.ok()) << error.text;
    }

    std::vector<std::byte>& file() { return host.files[FVD_FILE_IMAGE]; }

    Header header() {
        const auto chosen = choose_header(ConstBytes(file()).first(kHeaderRegionSize));
        EXPECT_TRUE(chosen.ok()) << chosen.error().text;
        return chosen.value().header;
    }
    void put_header(const Header& changed) {
        for (const uint64_t at : {kHeaderPrimaryOffset, kHeaderCopyOffset}) {
            encode_header(changed, MutableBytes(file()).subspan(at, kHeaderSize));
        }
    }

    /** Write whole blocks, each with its own flush and so its own group; then die. */
    void write_and_die(std::initializer_list<uint64_t> blocks) {
        Image image(host);
        const Error error = image.start(StartMode::writable);
        ASSERT_TRUE(error.ok()) << error.text;
        for (const uint64_t block : blocks) {
            std::vector<std::byte> data(kBlock, static_cast<std::byte>(block));
            ASSERT_TRUE(image.write(block * kBlock, kBlock, {data.data(), 0}, 0).ok());
            ASSERT_TRUE(image.flush().ok());
        }
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
        EXPECT_EQ(result.corruptions, 0u);
        EXPECT_EQ(result.leaks, 0u);
        EXPECT_EQ(result.check_errors, 0u);
        EXPECT_TRUE(host.warnings.empty()) << host.warnings[0];
        EXPECT_EQ(host.count("write"), 0u) << "a check without repair writes nothing";
        EXPECT_EQ(host.count("flush"), 0u);
    }
    /** The fault is told, repaired, and gone. */
    void expect_repaired(uint64_t corruptions, uint64_t leaks, const std::string& sentence) {
        const auto before = file();
        fvd_check_result result = check();
        EXPECT_EQ(file(), before) << "a check without repair writes nothing";
        EXPECT_EQ(result.corruptions, corruptions);
        EXPECT_EQ(result.leaks, leaks);
        EXPECT_EQ(result.corruptions_fixed + result.leaks_fixed, 0u);
        ASSERT_EQ(host.warnings.size(), 1u);
        EXPECT_EQ(host.warnings[0], sentence);
        result = check(kFixAll);
        EXPECT_EQ(result.corruptions_fixed, corruptions);
        EXPECT_EQ(result.leaks_fixed, leaks);
        expect_silent();
        expect_at_rest();
    }
    void expect_at_rest() {
        EXPECT_TRUE(header().clean_shutdown);
        EXPECT_EQ(check().journal_units_pending, 0u);
        EXPECT_TRUE(std::equal(file().begin(), file().begin() + 4096, file().begin() + 4096));
    }

    std::byte first_byte(uint64_t block) {
        Image image(host);
        EXPECT_TRUE(image.start(StartMode::read_only).ok());
        std::byte byte{};
        EXPECT_TRUE(image.read(block * kBlock, 1, {&byte, 0}, 0).ok());
        return byte;
    }

    MutableBytes unit_at(uint64_t place) {
        return MutableBytes(file()).subspan(header().journal_offset + place * kUnit, kUnit);
    }
    /** Put a unit into the ring that was never written by a session. */
    void plant_unit(uint64_t epoch, uint64_t sequence, uint64_t block) {
        UnitWriter writer(unit_at(sequence % 64));
        EXPECT_TRUE(writer.add_bitmap({BlockIndex(block), BlockIndex(block + 1)}));
        writer.finish({.epoch = epoch, .sequence = sequence, .tail_sequence = sequence},
                      header().image_id);
    }

    MemoryHost host;
};

/* ------------------------------------------------------------------ nothing to say */

TEST_F(CheckTest, AFreshImage) {
    expect_silent();
    const fvd_check_result result = check();
    EXPECT_EQ(result.blocks, 1000u);
    EXPECT_EQ(result.blocks_here, 0u);
    EXPECT_EQ(result.journal_units_pending, 0u);
    EXPECT_EQ(result.image_end_offset, header().data_offset + kDisk);
}

TEST_F(CheckTest, AnImageAtRestIsNotTouchedByARepair) {
    const auto before = file();
    check(kFixAll);
    EXPECT_EQ(file(), before);
    EXPECT_EQ(host.count("write"), 0u);
}

TEST_F(CheckTest, ACutLeavesNothingToReport) {
    write_and_die({1, 5, 900});
    expect_silent();
    const fvd_check_result result = check();
    EXPECT_EQ(result.journal_units_pending, 3u);
    EXPECT_EQ(result.blocks_here, 3u) << "records that wait for replay count";
}

TEST_F(CheckTest, RepairBringsACutImageToRest) {
    write_and_die({1, 5, 900});
    const uint64_t epoch = header().journal_epoch;
    const fvd_check_result result = check(kFixAll);
    EXPECT_EQ(result.corruptions_fixed + result.leaks_fixed, 0u) << "nothing was wrong";
    expect_silent();
    expect_at_rest();
    EXPECT_GT(header().journal_epoch, epoch);
    for (const uint64_t block : {1u, 5u}) {
        EXPECT_EQ(first_byte(block), static_cast<std::byte>(block));
    }
    EXPECT_EQ(first_byte(2), std::byte{0xBB});
}

TEST_F(CheckTest, RepairOfLeaksLeavesTheJournalAlone) {
    write_and_die({1, 5});
    const auto before = file();
    check(FVD_FIX_LEAKS);
    EXPECT_EQ(file(), before);
}

TEST_F(CheckTest, AnOlderCopyOfTheHeaderIsSilent) {
    write_and_die({1});
    Header newer = header();
    newer.generation += 1;
    encode_header(newer, MutableBytes(file()).subspan(kHeaderCopyOffset, kHeaderSize));
    expect_silent();
    check(kFixAll);
    expect_at_rest();
}

TEST_F(CheckTest, AnImageWithoutBaseHasOnlyAHeader) {
    host.files[FVD_FILE_IMAGE].clear();
    fvd_create_options options{};
    options.virtual_size = kDisk;
    ASSERT_TRUE(create_image(host, options).ok());
    expect_silent();
    EXPECT_EQ(check().blocks, 0u);
}

TEST_F(CheckTest, DataInAFileOfItsOwn) {
    host.separate_data = true;
    fvd_create_options options{};
    options.virtual_size = kDisk;
    options.base_img = "base.raw";
    options.base_img_fmt = "raw";
    options.data_file = "data.raw";
    ASSERT_TRUE(create_image(host, options).ok());
    expect_silent();
    EXPECT_EQ(check().image_end_offset, file().size());
    host.files[FVD_FILE_DATA].resize(kDisk - 512);
    EXPECT_EQ(check().corruptions, 1u);
}

TEST_F(CheckTest, TheCommandInTheHeaderIsNotedNotCounted) {
    Header changed = header();
    test::set_text(changed.add_storage_cmd, "touch /tmp/x");
    put_header(changed);
    const fvd_check_result result = check();
    EXPECT_EQ(result.corruptions + result.leaks, 0u);
    ASSERT_EQ(host.warnings.size(), 1u);
    EXPECT_EQ(host.warnings[0], "add_storage_cmd is set; it is never executed");
}

/* ------------------------------------------------------------------ planted faults */

TEST_F(CheckTest, ADamagedSecondCopy) {
    file()[kHeaderCopyOffset + 16] ^= std::byte{1};
    expect_repaired(1, 0, "the second copy of the header is damaged; the other one is used");
}

TEST_F(CheckTest, ADamagedFirstCopy) {
    std::memset(file().data(), 0, kHeaderSize);
    expect_repaired(1, 0, "the first copy of the header is damaged; the other one is used");
}

TEST_F(CheckTest, BothCopiesDamagedIsNoImageAnyMore) {
    file()[16] ^= std::byte{1};
    file()[kHeaderCopyOffset + 16] ^= std::byte{1};
    fvd_check_result result{};
    EXPECT_EQ(check_image(host, kFixAll, &result).code, -EINVAL);
}

TEST_F(CheckTest, BitsThatStandForNoBlock) {
    const Header before = header();
    file()[before.bitmap_offset + 125] = std::byte{0xFF};
    file()[before.bitmap_offset + before.bitmap_size - 1] = std::byte{0x80};
    expect_repaired(0, 1, "9 bits of the bitmap are set that stand for no block");
}

TEST_F(CheckTest, LeaksAreRepairedOnTheirOwn) {
    file()[header().bitmap_offset + 200] = std::byte{1};
    const auto header_before = std::vector(file().begin(), file().begin() + 8192);
    EXPECT_EQ(check(FVD_FIX_LEAKS).leaks_fixed, 1u);
    expect_silent();
    EXPECT_TRUE(std::equal(header_before.begin(), header_before.end(), file().begin()));
}

TEST_F(CheckTest, CorruptionsAreNotRepairedWithLeaks) {
    file()[kHeaderCopyOffset + 16] ^= std::byte{1};
    const fvd_check_result result = check(FVD_FIX_LEAKS);
    EXPECT_EQ(result.corruptions, 1u);
    EXPECT_EQ(result.corruptions_fixed, 0u);
    EXPECT_EQ(check().corruptions, 1u);
}

TEST_F(CheckTest, AMissingUnitCostsOnlyItsOwnBlocks) {
    write_and_die({1, 5, 7, 9});
    unit_at(1)[100] ^= std::byte{1};
    expect_repaired(1, 0,
                    "journal units missing before the last group: 1, first number 1; what only "
                    "they say is lost");
    EXPECT_EQ(first_byte(1), std::byte{1});
    EXPECT_EQ(first_byte(5), std::byte{0xBB}) << "lost, and said so";
    EXPECT_EQ(first_byte(7), std::byte{7});
    EXPECT_EQ(first_byte(9), std::byte{9});
}

TEST_F(CheckTest, UnitsThatNameBlocksOutside) {
    write_and_die({1});
    plant_unit(header().journal_epoch, 1, 1000);
    expect_repaired(1, 0, "journal units that name blocks, chunks or slots which do not exist: 1");
    EXPECT_EQ(check().blocks_here, 0u) << "the planted unit said that unit 0 is at home";
}

TEST_F(CheckTest, AHeaderOlderThanItsJournal) {
    plant_unit(header().journal_epoch + 7, 0, 3);
    const uint64_t epoch = header().journal_epoch;
    expect_repaired(1, 0,
                    "the journal holds units of epoch " + std::to_string(epoch + 7) +
                        ", but the header says " + std::to_string(epoch) +
                        ": the header is older than the journal");
    EXPECT_EQ(header().journal_epoch, epoch + 8) << "those units never become current";
    EXPECT_EQ(check().blocks_here, 0u);
}

TEST_F(CheckTest, CurrentUnitsInACleanImage) {
    plant_unit(header().journal_epoch, 0, 3);
    expect_repaired(1, 0, "the image is marked clean, but the journal holds 1 current units");
    EXPECT_EQ(check().blocks_here, 1u) << "records win";
}

TEST_F(CheckTest, StorageThatIsTooShort) {
    file().resize(file().size() - 4096);
    const fvd_check_result result = check(kFixAll);
    EXPECT_EQ(result.corruptions, 1u);
    EXPECT_EQ(result.corruptions_fixed, 0u);
}

TEST_F(CheckTest, RegionsThatDoNotFit) {
    Header changed = header();
    changed.journal_offset = changed.bitmap_offset;
    put_header(changed);
    const auto before = file();
    const fvd_check_result result = check(kFixAll);
    EXPECT_EQ(result.corruptions, 1u);
    EXPECT_EQ(result.corruptions_fixed, 0u);
    EXPECT_EQ(file(), before) << "what is not understood is not written";
    ASSERT_EQ(host.warnings.size(), 1u);
    EXPECT_TRUE(host.warnings[0].ends_with("overlap")) << host.warnings[0];
}

TEST_F(CheckTest, SeveralFaultsAtOnce) {
    write_and_die({1, 5, 7});
    unit_at(0)[100] ^= std::byte{1};
    file()[16] ^= std::byte{1};
    file()[header().bitmap_offset + 200] = std::byte{1}; /* no leak while the mark is missing */
    fvd_check_result result = check(kFixAll);
    EXPECT_EQ(result.corruptions, 2u);
    EXPECT_EQ(result.corruptions_fixed, 2u);
    EXPECT_EQ(result.leaks, 0u);
    expect_silent();
    expect_at_rest();
}

/* ------------------------------------------------------------------ what cannot be checked */

TEST_F(CheckTest, AFileThatIsTooShort) {
    for (const size_t length : {0u, 1u, 4096u, 8191u}) {
        file().resize(length);
        fvd_check_result result{};
        const Error error = check_image(host, FVD_FIX_NONE, &result);
        EXPECT_EQ(error.code, -EINVAL);
        EXPECT_EQ(std::string(error.text),
                  "file too short: " + std::to_string(length) + " bytes, an FVD header needs 8192");
    }
}

/* ------------------------------------------------------------------ errors on the way */

/** Any call fails for ever, as if the power went: a later check ends what this one began. */
TEST_F(CheckTest, ARepairMayBeCutAnywhere) {
    write_and_die({1, 5, 7, 9});
    unit_at(2)[100] ^= std::byte{1};
    file()[kHeaderCopyOffset + 16] ^= std::byte{1};
    file()[header().bitmap_offset + 200] = std::byte{1};
    const auto spoiled = file();
    bool done = false;
    int64_t steps = 0;
    while (!done) {
        file() = spoiled;
        host.warnings.clear();
        FuseHost fuse(host, steps);
        fvd_check_result result{};
        const Error error = check_image(fuse, kFixAll, &result);
        EXPECT_EQ(host.live, 0);
        done = fuse.calls() <= steps;
        if (error.ok() && !done) {
            EXPECT_EQ(result.check_errors, 1u) << steps;
            EXPECT_LE(result.corruptions_fixed, result.corruptions);
        }
        check(kFixAll);
        expect_silent();
        expect_at_rest();
        EXPECT_EQ(first_byte(1), std::byte{1}) << steps;
        EXPECT_EQ(first_byte(5), std::byte{5}) << steps;
        EXPECT_EQ(first_byte(7), std::byte{0xBB}) << steps;
        EXPECT_EQ(first_byte(9), std::byte{9}) << steps;
        ++steps;
    }
    EXPECT_GT(steps, 10);
}

TEST_F(CheckTest, AnyAllocationMayFail) {
    write_and_die({1, 5});
    file()[kHeaderCopyOffset + 16] ^= std::byte{1};
    const auto spoiled = file();
    for (int64_t failing = 0;; ++failing) {
        ASSERT_LT(failing, 100);
        file() = spoiled;
        host.warnings.clear();
        host.allocations = 0;
        host.fail_allocation = failing;
        fvd_check_result result{};
        const Error error = check_image(host, kFixAll, &result);
        const bool reached = host.allocations > failing;
        host.fail_allocation = -1;
        EXPECT_EQ(host.live, 0);
        if (!reached) {
            EXPECT_TRUE(error.ok());
            EXPECT_EQ(result.check_errors, 0u);
            break;
        }
        EXPECT_TRUE(!error.ok() || result.check_errors == 1) << failing;
        check(kFixAll);
        expect_silent();
        EXPECT_EQ(first_byte(5), std::byte{5});
    }
}

TEST_F(CheckTest, AReadErrorIsToldAndNothingIsRepaired) {
    write_and_die({1});
    file()[kHeaderCopyOffset + 16] ^= std::byte{1};
    const auto before = file();
    host.fail_call = "read image " + std::to_string(header().bitmap_offset);
    host.fail_times = 1;
    const fvd_check_result result = check(kFixAll);
    EXPECT_EQ(result.check_errors, 1u);
    EXPECT_EQ(result.corruptions, 1u);
    EXPECT_EQ(result.corruptions_fixed, 0u);
    EXPECT_EQ(host.warnings.back(), "the bitmap cannot be read at offset 8192: Input/output error");
    EXPECT_EQ(file(), before);
}

}  // namespace
}  // namespace fvd::testing
