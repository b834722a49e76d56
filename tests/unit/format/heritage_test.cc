/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "fvd/format/heritage.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <string>
#include <vector>

#include "fvd/format/limits.h"
#include "heritage_samples.h"
#include "samples.h"

namespace fvd::heritage {
namespace {

using test::CaseName;
using test::kOldBase;
using test::kOldBlock;
using test::kOldChunk;
using test::kOldDisk;
using test::kOldSector;
using test::OldImage;
using test::OldSector;
using test::text_of;

std::string refused(const OldImage& image, int code) {
    const Result<Header> decoded = decode_header(image.header());
    EXPECT_FALSE(decoded.ok());
    EXPECT_EQ(decoded.error().code, code);
    return decoded.error().text;
}

Header decoded(const OldImage& image) {
    const Result<Header> header = decode_header(image.header());
    EXPECT_TRUE(header.ok()) << header.error().text;
    return header.value();
}

/* ------------------------------------------------------------------ probe and decode */

TEST(HeritageProbe, WantsMagicVersionAndADiskOfWholeSectors) {
    OldImage image(false, false);
    EXPECT_EQ(probe(image.header()), 100);
    EXPECT_EQ(probe(image.header().first(20)), 100);
    EXPECT_EQ(probe(image.header().first(19)), 0);
    EXPECT_EQ(probe({}), 0);
    EXPECT_FALSE(has_magic(image.header().first(3)));
    EXPECT_TRUE(has_magic(image.header().first(4)));
    image.set("virtual_disk_size", kOldDisk + 1);
    EXPECT_EQ(probe(image.header()), 0);
    image.set("virtual_disk_size", kOldDisk);
    image.set("version", 2);
    EXPECT_EQ(probe(image.header()), 0);
    image.set("version", 1);
    image.set("magic", 0x00445646);
    EXPECT_EQ(probe(image.header()), 0);
}

TEST(HeritageHeader, TheMagicAsBytes) {
    const OldImage image(false, false);
    const uint8_t expected[] = {0xA9, 0xF5, 0x43, 0x51};
    EXPECT_EQ(std::memcmp(image.header().data(), expected, sizeof(expected)), 0);
}

TEST(HeritageHeader, EveryField) {
    OldImage image(true, true);
    image.set_text("base_img_fmt", "qcow2");
    image.set_text("data_file", "disk.dat");
    image.set_text("data_file_fmt", "raw");
    image.set_text("add_storage_cmd", "builtin:lvextend");
    image.set("need_zero_init", 1);
    const Header header = decoded(image);
    EXPECT_FALSE(header.base_not_needed);
    EXPECT_EQ(header.virtual_size, kOldDisk);
    EXPECT_EQ(header.metadata_size, 20480u);
    EXPECT_STREQ(header.base_img, "base.raw");
    EXPECT_STREQ(header.base_img_fmt, "qcow2");
    EXPECT_EQ(header.base_size, kOldBase);
    EXPECT_EQ(header.bitmap_offset, 8192u);
    EXPECT_EQ(header.bitmap_size, 4096u);
    EXPECT_EQ(header.block_size, kOldBlock);
    EXPECT_STREQ(header.data_file, "disk.dat");
    EXPECT_STREQ(header.data_file_fmt, "raw");
    EXPECT_TRUE(header.compact);
    EXPECT_EQ(header.table_offset, 12288u);
    EXPECT_EQ(header.chunk_size, kOldChunk);
    EXPECT_STREQ(header.add_storage_cmd, "builtin:lvextend");
    EXPECT_EQ(header.journal_offset, 16384u);
    EXPECT_EQ(header.journal_size, 4096u);
    EXPECT_TRUE(header.clean_shutdown);
    EXPECT_TRUE(header.need_zero_init);
    EXPECT_EQ(header.data_offset(), 0u) << "a data file begins with the data";
    EXPECT_EQ(header.block_count(), kOldBase / kOldBlock);
    EXPECT_EQ(header.chunk_count(), kOldDisk / kOldChunk);
    EXPECT_TRUE(header.has_metadata());
    EXPECT_TRUE(check_layout(header, 20480).ok());
}

TEST(HeritageHeader, WithoutBaseAndTableNothingIsTracked) {
    const Header header = decoded(OldImage(false, false));
    EXPECT_TRUE(header.base_not_needed);
    EXPECT_EQ(header.tracked_size(), 0u);
    EXPECT_EQ(header.block_count(), 0u);
    EXPECT_EQ(header.chunk_count(), 0u);
    EXPECT_EQ(header.data_offset(), 8192u);
    EXPECT_FALSE(header.has_metadata());
}

TEST(HeritageHeader, ChunksWantATableAndASize) {
    Header header = decoded(OldImage(false, true));
    EXPECT_EQ(header.chunk_count(), kOldDisk / kOldChunk);
    header.compact = false;
    EXPECT_EQ(header.chunk_count(), 0u);
    header.compact = true;
    header.chunk_size = 0;
    EXPECT_EQ(header.chunk_count(), 0u);
}

TEST(HeritageHeader, ADiskShorterThanItsBaseTracksItself) {
    OldImage image(true, false);
    image.set("virtual_disk_size", kOldBlock + kOldSector);
    EXPECT_EQ(decoded(image).tracked_size(), kOldBlock + kOldSector);
    EXPECT_EQ(decoded(image).block_count(), 2u);
    image.set("all_data_in_fvd_img", 1);
    EXPECT_EQ(decoded(image).tracked_size(), 0u);
}

TEST(HeritageHeader, BlockSizesNeedNotBePowersOfTwo) {
    OldImage image(true, false);
    for (const uint64_t size : {512u, 1536u, 7680u, 1048064u, 0x7FFFFE00u}) {
        image.set("block_size", size);
        EXPECT_EQ(decoded(image).block_size, size);
    }
}

TEST(HeritageHeader, TextsEndAtTheirNulWhateverFollows) {
    OldImage image(true, false);
    image.set_text("base_img", std::string_view("b\0\x01\xFF", 4));
    EXPECT_STREQ(decoded(image).base_img, "b");
    image.set_text("base_img", std::string(1023, 'x'));
    EXPECT_EQ(std::string(decoded(image).base_img).size(), 1023u);
    /* Nothing depends on the command. */
    image.set_text("add_storage_cmd", "\x1b[2J");
    EXPECT_STREQ(decoded(image).add_storage_cmd, "(not printable)");
    image.set_text("add_storage_cmd", std::string(2048, 'x'));
    EXPECT_EQ(std::string(decoded(image).add_storage_cmd).size(), 2047u);
}

TEST(HeritageHeader, AShortFileAndAnotherVersion) {
    OldImage image(false, false);
    const Result<Header> cut = decode_header(image.header().first(kHeaderSize - 1));
    ASSERT_FALSE(cut.ok());
    EXPECT_EQ(text_of(cut.error()),
              "the file is 4335 bytes long; the header of an FVD image of "
              "January 2011 alone takes 4336");
    EXPECT_TRUE(decode_header(image.header().first(kHeaderSize)).ok());
    image.set("version", 3);
    EXPECT_EQ(refused(image, -ENOTSUP),
              "version is 3; an FVD image with the magic of January 2011 has version 1");
    image.set("magic", 1);
    EXPECT_EQ(refused(image, -EINVAL), "not an FVD image of January 2011");
}

/* A field, a value that is just out of range, and the sentence about it. */
struct BadField {
    const char* name;
    uint64_t value;
    int code;
    const char* sentence;
};

class HeritageBadField : public ::testing::TestWithParam<BadField> {};

TEST_P(HeritageBadField, IsNamed) {
    OldImage image(true, true);
    image.set(GetParam().name, GetParam().value);
    EXPECT_EQ(refused(image, GetParam().code), GetParam().sentence);
}

INSTANTIATE_TEST_SUITE_P(
    All, HeritageBadField,
    ::testing::Values(
        BadField{"all_data_in_fvd_img", 2, -EINVAL, "all_data_in_fvd_img is 2; must be 0 or 1"},
        BadField{"virtual_disk_size", 511, -EINVAL,
                 "virtual_disk_size is 511 bytes; must be a multiple of 512 between 0 and "
                 "1152921504606846976"},
        BadField{"virtual_disk_size", UINT64_MAX - 511, -EFBIG,
                 "virtual_disk_size is 18446744073709551104 bytes; must be a multiple of 512 "
                 "between 0 and 1152921504606846976"},
        BadField{"metadata_size", 0, -EINVAL,
                 "metadata_size is 0 bytes; must be a multiple of 4096 between 8192 and "
                 "4611686018427387904"},
        BadField{"base_img_size", 100, -EINVAL,
                 "base_img_size is 100 bytes; must be a multiple of 512 between 0 and "
                 "1152921504606846976"},
        BadField{"bitmap_offset", 4096, -EINVAL,
                 "bitmap_offset is 4096 bytes; must be 0 or a multiple of 4096 between 8192 and "
                 "4611686018427387904"},
        BadField{"bitmap_size", uint64_t{1} << 40, -EFBIG,
                 "bitmap_size is 1099511627776 bytes; must be a multiple of 4096 between 0 and "
                 "268435456"},
        BadField{"bitmap_size", 0, -EINVAL,
                 "bitmap_size is 0 bytes; at least 16 are needed for 128 blocks"},
        BadField{"block_size", 513, -EINVAL,
                 "block_size is 513 bytes; must be 0 or a multiple of 512 between 512 and "
                 "2147483647"},
        BadField{"block_size", 0x80000000, -EFBIG,
                 "block_size is 2147483648 bytes; must be 0 or a multiple of 512 between 512 and "
                 "2147483647"},
        BadField{"block_size", 0, -EINVAL, "block_size is 0, but base_img_size is 524288"},
        BadField{"compact_image", 0x100, -EINVAL, "compact_image is 256; must be 0 or 1"},
        BadField{"table_offset", 12289, -EINVAL,
                 "table_offset is 12289 bytes; must be 0 or a multiple of 4096 between 8192 and "
                 "4611686018427387904"},
        BadField{"chunk_size", 512, -EINVAL,
                 "chunk_size is 512 bytes; must be 0 or a multiple of 4096 between 4096 and "
                 "1152921504606846976"},
        BadField{"chunk_size", 0, -EINVAL, "chunk_size is 0, but compact_image is 1"},
        BadField{"virtual_disk_size", uint64_t{1} << 60, -EFBIG,
                 "a disk of 1152921504606846976 bytes in chunks of 65536 needs a table of more "
                 "than 1073741824 bytes"},
        BadField{"journal_offset", 16385, -EINVAL,
                 "journal_offset is 16385 bytes; must be 0 or a multiple of 4096 between 8192 and "
                 "4611686018427387904"},
        BadField{"journal_size", 100, -EINVAL,
                 "journal_size is 100 bytes; must be a multiple of 512 between 0 and 1073741824"},
        BadField{"clean_shutdown", 3, -EINVAL, "clean_shutdown is 3; must be 0 or 1"},
        BadField{"need_zero_init", 9, -EINVAL, "need_zero_init is 9; must be 0 or 1"}));

TEST(HeritageHeader, BadTexts) {
    OldImage image(true, false);
    image.set_text("base_img", "");
    EXPECT_EQ(refused(image, -EINVAL), "base_img is empty, but base_img_size is 524288");
    image.set_text("base_img", std::string(1024, 'x'));
    EXPECT_EQ(refused(image, -EINVAL), "base_img has no terminating NUL in its 1024 bytes");
    image.set_text("base_img", "a\nb");
    EXPECT_EQ(refused(image, -EINVAL),
              "base_img has byte 0x0a at 1; must be valid UTF-8 without control characters");
    image.set_text("base_img", "base.raw");
    image.set_text("data_file_fmt", std::string(16, 'x'));
    EXPECT_EQ(refused(image, -EINVAL), "data_file_fmt has no terminating NUL in its 16 bytes");
}

TEST(HeritageHeader, TheLargestTable) {
    OldImage image(false, true);
    const uint64_t entries = limits::kMaxTableSize / 4;
    image.set("virtual_disk_size", entries * kOldChunk);
    EXPECT_EQ(decoded(image).chunk_count(), entries);
    image.set("virtual_disk_size", entries * kOldChunk + kOldSector);
    EXPECT_FALSE(decode_header(image.header()).ok());
}

/* ------------------------------------------------------------------ layout */

std::string misplaced(const OldImage& image, uint64_t file_length) {
    const Error error = check_layout(decoded(image), file_length);
    EXPECT_EQ(error.code, -EINVAL);
    return error.text;
}

TEST(HeritageLayout, RegionsAreInTheMetadataAndApart) {
    OldImage image(true, true);
    EXPECT_TRUE(check_layout(decoded(image), 20480).ok());
    EXPECT_EQ(misplaced(image, 20479),
              "metadata_size is 20480; must not be above the file's length of 20479");
    image.set("bitmap_offset", 0);
    EXPECT_EQ(misplaced(image, 20480),
              "bitmap at 0..4096 is not between the header's end at 8192 and metadata_size 20480");
    image.set("bitmap_offset", 12288);
    EXPECT_EQ(misplaced(image, 20480), "table at 12288..12352 overlaps bitmap at 12288..16384");
    image.set("bitmap_offset", 8192);
    image.set("journal_size", 8192);
    EXPECT_EQ(misplaced(image, 20480),
              "journal at 16384..24576 is not between the header's end at "
              "8192 and metadata_size 20480");
    image.set("journal_size", 0);
    image.set("journal_offset", 0);
    EXPECT_TRUE(check_layout(decoded(image), 20480).ok());
}

/* Growing the disk was allowed, and never moved the journal out of the table's way. */
TEST(HeritageLayout, ATableThatGrewIntoTheJournal) {
    OldImage image(false, true);
    image.set("virtual_disk_size", 1024 * kOldChunk);
    EXPECT_TRUE(check_layout(decoded(image), 16384).ok());
    image.set("virtual_disk_size", 1024 * kOldChunk + kOldSector);
    EXPECT_EQ(misplaced(image, 16384), "journal at 12288..16384 overlaps table at 8192..12292");
}

/* ------------------------------------------------------------------ the view */

/** A view of an image, with memory of its own. */
struct Seen {
    explicit Seen(OldImage& image)
        : header(decoded(image)),
          words(BlockBitmap::bits_to_words(header.block_count())),
          entries(header.chunk_count()),
          view(header, words, entries) {
        const ConstBytes bytes(image.bytes());
        if (header.tracked_size() != 0) {
            view.load_bitmap(0, bytes.subspan(header.bitmap_offset, words.size() * 8));
        }
        view.load_table(0, bytes.subspan(header.table_offset, entries.size() * 4));
        EXPECT_TRUE(view.set_storage(uint64_t{1} << 40).ok());
    }
    Header header;
    std::vector<uint64_t> words;
    std::vector<uint32_t> entries;
    View view;
    JournalFacts facts;

    std::string where(uint64_t offset, uint64_t length) const {
        const Placement place = view.where(offset, length);
        switch (place.place) {
            case Place::base:
                return "base " + std::to_string(place.run);
            case Place::zero:
                return "zero " + std::to_string(place.run);
            case Place::data:
                return "data " + std::to_string(place.run) + " at " +
                       std::to_string(place.data_offset);
        }
        return "?";
    }
    std::string replay(const OldSector& sector) {
        return text_of(view.replay(7, sector.bytes(), &facts));
    }
};

TEST(HeritageView, ALinearImageIsItsDataAfterTheHeader) {
    OldImage image(false, false);
    const Seen seen(image);
    EXPECT_EQ(seen.where(0, kOldDisk), "data 1048576 at 8192");
    EXPECT_EQ(seen.where(kOldDisk - 512, 512), "data 512 at 1056256");
}

TEST(HeritageView, BlocksOfTheBaseUntilTheirBitIsSet) {
    OldImage image(true, false);
    image.set("base_img_size", kOldBase + kOldSector); /* a last block of one sector */
    image.set_bit(1);
    image.set_bit(kOldBase / kOldBlock);
    const Seen seen(image);
    EXPECT_EQ(seen.where(0, kOldDisk), "base 4096");
    EXPECT_EQ(seen.where(512, 1024), "base 1024");
    EXPECT_EQ(seen.where(4096, kOldDisk - 4096), "data 4096 at 20480");
    EXPECT_EQ(seen.where(8192, kOldDisk - 8192), "base " + std::to_string(kOldBase - 8192));
    EXPECT_EQ(seen.where(kOldBase, 4096), "data 512 at " + std::to_string(16384 + kOldBase));
    EXPECT_EQ(seen.where(kOldBase + 512, 512),
              "data 512 at " + std::to_string(16384 + kOldBase + 512));
}

TEST(HeritageView, TheBaseEndsInsideItsLastBlock) {
    OldImage image(true, false);
    image.set("base_img_size", kOldBase + kOldSector);
    const Seen seen(image);
    EXPECT_EQ(seen.where(kOldBase, 4096), "base 512");
}

TEST(HeritageView, ChunksLieWhereTheTableSays) {
    OldImage image(false, true);
    image.set_entry(0, 5);
    image.set_entry(1, 6);
    image.set_entry(2, 2);
    image.set_entry(15, 0x80000000u | 3); /* the mark is no part of the number */
    const Seen seen(image);
    const uint64_t data = 16384;
    EXPECT_EQ(seen.where(0, kOldDisk), "data 131072 at " + std::to_string(data + 5 * kOldChunk));
    EXPECT_EQ(seen.where(100, kOldChunk),
              "data 65536 at " + std::to_string(data + 5 * kOldChunk + 100));
    EXPECT_EQ(seen.where(2 * kOldChunk, kOldChunk),
              "data 65536 at " + std::to_string(data + 2 * kOldChunk));
    EXPECT_EQ(seen.where(3 * kOldChunk + 1, 13 * kOldChunk - 1),
              "zero " + std::to_string(12 * kOldChunk - 1));
    EXPECT_EQ(seen.where(15 * kOldChunk, kOldChunk),
              "data 65536 at " + std::to_string(data + 3 * kOldChunk));
    EXPECT_EQ(seen.view.slot_count(), 7u);
}

TEST(HeritageView, ACopiedChunkThatNobodyWroteDownIsReadFromTheBase) {
    OldImage image(true, true);
    image.set("block_size", 4 * kOldChunk);
    image.set_bit(0);
    image.set_entry(1, 0);
    const Seen seen(image);
    EXPECT_EQ(seen.where(0, kOldDisk), "base 65536");
    EXPECT_EQ(seen.where(kOldChunk, kOldChunk), "data 65536 at 20480");
    EXPECT_EQ(seen.where(2 * kOldChunk, 6 * kOldChunk), "base 131072");
    EXPECT_EQ(seen.where(4 * kOldChunk, 6 * kOldChunk), "base 262144");
    EXPECT_EQ(seen.where(8 * kOldChunk, kOldChunk), "zero 65536") << "past the base";
    EXPECT_EQ(seen.view.chunks_without_slot(), 3u);
}

TEST(HeritageView, AChunkBehindTheBaseIsNoCopyOfIt) {
    OldImage image(true, true);
    image.set("base_img_size", 5 * kOldChunk);
    image.set("block_size", 4 * kOldChunk);
    image.set_bit(1);
    EXPECT_EQ(Seen(image).view.chunks_without_slot(), 1u);
}

TEST(HeritageViewDeathTest, WhatIsOutsideIsAsserted) {
    OldImage image(false, false);
    const Seen seen(image);
    EXPECT_DEATH((void)seen.view.where(0, 0), "assertion failed");
    EXPECT_DEATH((void)seen.view.where(0, kOldDisk + 1), "assertion failed");
}

TEST(HeritageView, DataThatTheFirstWriteWouldHaveMadeIsZero) {
    OldImage image(false, false);
    Seen seen(image);
    EXPECT_TRUE(seen.view.set_storage(8192).ok());
    EXPECT_EQ(seen.where(512, 1024), "zero 1024");
    EXPECT_TRUE(seen.view.set_storage(8192 + kOldDisk).ok());
    EXPECT_EQ(seen.where(512, 1024), "data 1024 at 8704");
}

TEST(HeritageView, StorageThatIsTooShort) {
    OldImage linear(false, false);
    EXPECT_EQ(text_of(Seen(linear).view.set_storage(8193)),
              "the file with the guest's data is 8193 bytes long; the data ends at 1056768");
    EXPECT_EQ(Seen(linear).view.set_storage(8192 + kOldDisk - 1).code, -EINVAL);

    OldImage compact(false, true);
    compact.set_entry(3, 2);
    Seen seen(compact);
    EXPECT_TRUE(seen.view.set_storage(16384 + 3 * kOldChunk).ok());
    EXPECT_EQ(text_of(seen.view.set_storage(16384 + 3 * kOldChunk - 1)),
              "chunk 3 is in slot 2; the file with the guest's data is 212991 bytes long, so slots "
              "must be below 2");
    EXPECT_EQ(seen.view.set_storage(0).code, -EINVAL);
    seen.entries[3] = 0x7FFFFFFF;
    EXPECT_EQ(seen.view.set_storage(uint64_t{1} << 40).code, -EINVAL);
}

/* ------------------------------------------------------------------ the journal */

TEST(HeritageJournal, RecordsOfBothKindsInOneSector) {
    OldImage image(true, true);
    Seen seen(image);
    EXPECT_EQ(seen.replay(OldSector().table(1, {0x80000004u, 0x80000005u}).bitmap(128, 9)), "");
    EXPECT_EQ(seen.entries[1], 4u);
    EXPECT_EQ(seen.entries[2], 5u);
    EXPECT_EQ(seen.entries[3], kNotStored);
    /* Sectors 128..136: blocks 16 and, touched in part, 17. */
    EXPECT_EQ(seen.words[0], uint64_t{3} << 16);
    EXPECT_EQ(seen.facts.sectors, 1u);
    EXPECT_EQ(seen.facts.unsaved, 1u);
    EXPECT_EQ(seen.facts.outside, 0u);
    /* A second time there is nothing new in it. */
    EXPECT_EQ(seen.replay(OldSector().table(1, {0x80000004u, 0x80000005u}).bitmap(128, 9)), "");
    EXPECT_EQ(seen.facts.sectors, 2u);
    EXPECT_EQ(seen.facts.unsaved, 1u);
}

TEST(HeritageJournal, RecordsOfEachKindAloneAreNews) {
    OldImage image(true, true);
    Seen seen(image);
    EXPECT_EQ(seen.replay(OldSector().bitmap(128, 9)), "");
    EXPECT_EQ(seen.facts.unsaved, 1u);
    EXPECT_EQ(seen.replay(OldSector().table(1, {0x80000004u})), "");
    EXPECT_EQ(seen.facts.unsaved, 2u);
    /* News, and nothing new after it. */
    EXPECT_EQ(seen.replay(OldSector().bitmap(0, 1).bitmap(128, 9)), "");
    EXPECT_EQ(seen.facts.unsaved, 3u);
    EXPECT_EQ(seen.replay(OldSector().table(2, {5}).table(1, {4})), "");
    EXPECT_EQ(seen.facts.unsaved, 4u);
}

TEST(HeritageJournal, ARecordThatBeginsAtTheEndOfTheBaseIsNoneOfItsLastBlock) {
    OldImage image(true, false);
    image.set("base_img_size", kOldBase + kOldSector);
    Seen seen(image);
    EXPECT_EQ(seen.replay(OldSector().bitmap(kOldBase / kOldSector + 1, 1)), "");
    EXPECT_EQ(seen.view.blocks_here(), 0u);
    EXPECT_EQ(seen.replay(OldSector().bitmap(kOldBase / kOldSector, 1)), "");
    EXPECT_EQ(seen.view.blocks_here(), 1u);
}

TEST(HeritageJournal, ABitmapRecordIsFollowedByAnother) {
    OldImage image(true, false);
    Seen seen(image);
    EXPECT_EQ(seen.replay(OldSector().bitmap(0, 1).bitmap(8 * 5, 8)), "");
    EXPECT_EQ(seen.words[0], uint64_t{1} | uint64_t{1} << 5);
}

TEST(HeritageJournal, ARecordGoesPastTheEndOfTheBase) {
    OldImage image(true, false);
    Seen seen(image);
    const uint64_t last = kOldBase / kOldSector - 1;
    EXPECT_EQ(seen.replay(OldSector().bitmap(last, 100)), "");
    EXPECT_EQ(seen.view.blocks_here(), 1u);
    EXPECT_EQ(seen.replay(OldSector().bitmap(last + 1, 100)), "");
    EXPECT_EQ(seen.view.blocks_here(), 1u);
    EXPECT_EQ(seen.facts.outside, 0u);
}

TEST(HeritageJournal, WhatIsBeyondTheDiskIsPassedOver) {
    OldImage image(true, true);
    Seen seen(image);
    const uint64_t disk = kOldDisk / kOldSector;
    EXPECT_EQ(seen.replay(OldSector().bitmap(disk, 0)), "");
    EXPECT_EQ(seen.facts.outside, 0u);
    EXPECT_EQ(seen.replay(OldSector().bitmap(disk, 1)), "");
    EXPECT_EQ(seen.replay(OldSector().bitmap(UINT64_MAX, UINT32_MAX)), "");
    EXPECT_EQ(seen.replay(OldSector().bitmap(disk - 1, 2)), "");
    EXPECT_EQ(seen.facts.outside, 3u);
    EXPECT_EQ(seen.view.blocks_here(), 0u);
    EXPECT_EQ(seen.replay(OldSector().table(15, {1, 2, 3})), "");
    EXPECT_EQ(seen.facts.outside, 5u);
    EXPECT_EQ(seen.entries[15], 1u);
    EXPECT_EQ(seen.replay(OldSector().table(UINT32_MAX, {9})), "");
    EXPECT_EQ(seen.facts.outside, 6u);
}

TEST(HeritageJournal, SectorsFilledToTheLastByte) {
    OldImage image(true, true);
    Seen seen(image);
    EXPECT_EQ(seen.replay(OldSector().table(0, std::vector<uint32_t>(125, 1))), "");
    EXPECT_EQ(seen.replay(OldSector().table(0, std::vector<uint32_t>(121, 1)).bitmap(0, 1)), "");
    EXPECT_EQ(seen.view.blocks_here(), 1u);
    OldSector bitmaps;
    for (uint32_t i = 0; i < 32; i++) {
        bitmaps.bitmap(8 * i, 1);
    }
    EXPECT_EQ(seen.replay(bitmaps), "");
    EXPECT_EQ(seen.view.blocks_here(), 32u);
}

TEST(HeritageJournal, ASectorWithoutRecordsIsNone) {
    OldImage image(true, false);
    Seen seen(image);
    EXPECT_EQ(seen.replay(OldSector()), "");
    EXPECT_EQ(seen.facts.sectors, 0u);
}

TEST(HeritageJournal, RecordsThatMakeNoSense) {
    OldImage image(true, true);
    Seen seen(image);
    EXPECT_EQ(seen.replay(OldSector().put<uint32_t>(0x12345678)),
              "journal sector 7: record type 0x12345678 at byte 0; must be 0x3f2ab8ed, 0xb4e6f7ac "
              "or 0");
    EXPECT_EQ(seen.replay(OldSector().bitmap(0, 8).put<uint32_t>(1)),
              "journal sector 7: record type 0x00000001 at byte 16; must be 0x3f2ab8ed, "
              "0xb4e6f7ac or 0");
    EXPECT_EQ(seen.view.blocks_here(), 0u) << "all or nothing";
    EXPECT_EQ(
        seen.replay(OldSector().put<uint32_t>(0xB4E6F7AC).put<uint32_t>(0).put<uint32_t>(126)),
        "journal sector 7: the record at byte 0 (126 entries) goes past the end of the sector");
    EXPECT_EQ(
        seen.replay(OldSector().table(0, std::vector<uint32_t>(124, 1)).put(0x3F2AB8EDu)),
        "journal sector 7: the record at byte 508 (0 entries) goes past the end of the sector");
    EXPECT_EQ(
        seen.replay(OldSector().table(0, std::vector<uint32_t>(123, 1)).put(0xB4E6F7ACu)),
        "journal sector 7: the record at byte 504 (0 entries) goes past the end of the sector");
    EXPECT_EQ(seen.replay(OldSector().table(4, {kNotStored})),
              "journal sector 7: entry of chunk 4 is 0xffffffff; must name a slot");
    EXPECT_EQ(seen.view.slot_count(), 0u);
    EXPECT_EQ(seen.facts.sectors, 0u);
}

TEST(HeritageJournal, LookingChangesNothing) {
    OldImage image(true, true);
    Seen seen(image);
    const std::vector<std::byte> sector = OldSector().table(1, {4}).bitmap(0, 8).bytes();
    EXPECT_TRUE(seen.view.look_at(0, sector, &seen.facts).ok());
    EXPECT_EQ(seen.facts.unsaved, 1u);
    EXPECT_EQ(seen.view.slot_count(), 0u);
    EXPECT_EQ(seen.view.blocks_here(), 0u);
}

/* ------------------------------------------------------------------ judging the table */

TEST(HeritageTable, DoublesGapsAndSlotsThatAreNotThere) {
    OldImage image(false, true);
    image.set_entry(0, 3);
    image.set_entry(1, 1);
    image.set_entry(2, 3);
    image.set_entry(4, 9);
    image.set_entry(5, 3);
    Seen seen(image);
    uint64_t word = 0;
    const TableFacts facts = seen.view.judge_table(BlockBitmap({&word, 1}, 9));
    EXPECT_EQ(facts.doubles, 2u);
    EXPECT_EQ(facts.first_double, 2u);
    EXPECT_EQ(facts.outside, 1u);
    EXPECT_EQ(facts.first_outside, 4u);
    EXPECT_EQ(facts.unused_slots, 2u);
    word = 0;
    const TableFacts all = seen.view.judge_table(BlockBitmap({&word, 1}, seen.view.slot_count()));
    EXPECT_EQ(all.outside, 0u);
    EXPECT_EQ(all.unused_slots, 7u);
}

}  // namespace
}  // namespace fvd::heritage
