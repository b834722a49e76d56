/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Two copies of the header, and probing. */
#include <gtest/gtest.h>

#include <cerrno>
#include <string>

#include "fvd/format/header.h"
#include "samples.h"

namespace fvd {
namespace {

using test::Block;
using test::file_of;
using test::sample_header;
using test::text_of;

constexpr size_t kSector = 512;

Header generation(uint64_t n) {
    Header header = sample_header();
    header.generation = n;
    return header;
}

/** The header as a session marks it. */
Header marked(uint64_t n) {
    Header header = generation(n);
    header.clean_shutdown = false;
    header.journal_epoch += 1;
    return header;
}

void expect_states(ConstBytes file, CopyState primary, CopyState copy, uint64_t chosen) {
    const Result<ChosenHeader> result = choose_header(file);
    ASSERT_TRUE(result.ok()) << result.error().text;
    EXPECT_EQ(result.value().primary, primary);
    EXPECT_EQ(result.value().copy, copy);
    EXPECT_EQ(result.value().header.generation, chosen);
}

TEST(ChooseHeader, EveryLengthBelowTheRegionIsTooShort) {
    std::vector<std::byte> file = file_of(Block(sample_header()), Block(sample_header()));
    file.resize(16384);
    for (size_t length = 0; length <= file.size(); ++length) {
        const Result<ChosenHeader> result = choose_header(ConstBytes(file).first(length));
        ASSERT_EQ(result.ok(), length >= 8192) << length;
        if (!result.ok()) {
            ASSERT_EQ(result.error().code, -EINVAL);
            ASSERT_EQ(text_of(result.error()), "file too short: " + std::to_string(length) +
                                                   " bytes, an FVD header needs 8192");
        }
    }
}

TEST(ChooseHeader, TwoOfAKind) {
    const Block block(generation(7));
    expect_states(file_of(block, block), CopyState::valid, CopyState::valid, 7);
}

TEST(ChooseHeader, TheHigherGenerationWins) {
    const Block older(generation(7));
    const Block newer(marked(8));
    expect_states(file_of(older, newer), CopyState::stale, CopyState::valid, 8);
    expect_states(file_of(newer, older), CopyState::valid, CopyState::stale, 8);
}

TEST(ChooseHeader, OneGenerationIsNeverWrittenTwice) {
    Header other = generation(7);
    other.clean_shutdown = false;
    expect_states(file_of(Block(generation(7)), Block(other)), CopyState::valid, CopyState::damaged,
                  7);
}

Header rebased(uint64_t n) {
    Header header = generation(n);
    std::memset(header.base_img, 0, sizeof(header.base_img));
    test::set_text(header.base_img, std::string(1000, 'n'));
    test::set_text(header.base_img_fmt, "qcow2");
    return header;
}

class HeaderTear : public testing::TestWithParam<Header (*)(uint64_t)> {};

Header amended(uint64_t n) {
    Header header = generation(n);
    header.copy_on_read = !header.copy_on_read;
    header.max_outstanding_copy_on_read_data ^= 0xFFFFF;
    header.prefetch_start_delay += 77;
    header.base_fully_prefetched = !header.base_fully_prefetched;
    header.num_prefetch_slots ^= 15;
    header.prefetch_write_throughput_measure_time ^= 255;
    return header;
}

Header resized(uint64_t n) {
    Header header = generation(n);
    header.virtual_size += 512;
    header.base_size -= 512;
    return header;
}

INSTANTIATE_TEST_SUITE_P(, HeaderTear, testing::Values(marked, rebased, amended, resized));

/** A cut during an update: any sectors of the new block over the old one. */
TEST_P(HeaderTear, IsKnownForWhatItIs) {
    const Block before(generation(7));
    const Block after(GetParam()(8));
    for (unsigned kept = 0; kept < 256; ++kept) {
        Block torn = before;
        for (size_t at = 0; at < kHeaderSize; ++at) {
            if ((kept >> at / kSector & 1) != 0) {
                torn[at] = after.bytes()[at];
            }
        }
        const bool is_before = torn == before;
        const bool is_after = torn == after;
        /* The copy is written first, then the primary. */
        expect_states(file_of(before, torn), is_after ? CopyState::stale : CopyState::valid,
                      is_after || is_before ? CopyState::valid : CopyState::torn, is_after ? 8 : 7);
        expect_states(file_of(torn, after),
                      is_after    ? CopyState::valid
                      : is_before ? CopyState::stale
                                  : CopyState::torn,
                      CopyState::valid, 8);
    }
}

TEST(ChooseHeader, AnyOtherByteIsDamage) {
    const Block good(generation(7));
    const char* const marking[] = {"virtual_disk_size",  "base_img",          "base_img_fmt",
                                   "base_img_size",      "table_offset",      "table_size",
                                   "autoclear_features", "header_generation", "header_crc32c"};
    const size_t first = Block::field("stable_journal_epoch").offset;
    const HeaderField last = Block::field("prefetch_write_throughput_measure_time");
    for (size_t at = 0; at < kHeaderSize; ++at) {
        Block bad = good;
        bad[at] ^= std::byte{0x10};
        const bool in_between = at >= first && at < last.offset + last.size;
        CopyState expected = in_between ? CopyState::torn : CopyState::damaged;
        for (const char* name : marking) {
            const HeaderField field = Block::field(name);
            if (at >= field.offset && at < field.offset + field.size) {
                expected = CopyState::torn;
            }
        }
        expect_states(file_of(good, bad), CopyState::valid, expected, 7);
        expect_states(file_of(bad, good), expected, CopyState::valid, 7);
    }
}

TEST(ChooseHeader, ZerosAndGarbageAreDamage) {
    const Block good(generation(7));
    Block zeros;
    Block garbage;
    for (size_t at = 0; at < kHeaderSize; ++at) {
        garbage[at] = static_cast<std::byte>(at * 131 + 7);
    }
    for (const Block& bad : {zeros, garbage}) {
        expect_states(file_of(good, bad), CopyState::valid, CopyState::damaged, 7);
        expect_states(file_of(bad, good), CopyState::damaged, CopyState::valid, 7);
    }
}

TEST(ChooseHeader, WhereNoneIsValidThePrimarySaysWhy) {
    Block one(generation(7));
    Block two(generation(7));
    one.set("block_size", 513);
    two.set("block_size", 514);
    EXPECT_EQ(text_of(choose_header(file_of(one, two)).error()),
              "block_size is 513 bytes; must be a multiple of 512 between 512 and 2097152");
}

TEST(ChooseHeader, WhereOnlyTheCopyHasTheMagicItSaysWhy) {
    Block copy(generation(7));
    copy.set("block_size", 514);
    EXPECT_EQ(text_of(choose_header(file_of(Block(), copy)).error()),
              "block_size is 514 bytes; must be a multiple of 512 between 512 and 2097152");
}

TEST(ChooseHeader, ZerosAreNoImage) {
    const Result<ChosenHeader> result = choose_header(file_of(Block(), Block()));
    EXPECT_EQ(result.error().code, -EINVAL);
    EXPECT_EQ(text_of(result.error()),
              "not an FVD image: magic is 0x00000000; must be 0x00445646 (\"FVD\\0\")");
}

TEST(ChooseHeader, AnUnknownFeatureInBothIsNotSupported) {
    Block block(generation(7));
    block.set("incompatible_features", 2);
    EXPECT_EQ(choose_header(file_of(block, block)).error().code, -ENOTSUP);
}

/* ------------------------------------------------------------------ probe */

TEST(Probe, KnowsAnImageByItsFirst512Bytes) {
    const auto file = file_of(Block(sample_header()), Block(sample_header()));
    for (const size_t length : {size_t{25}, size_t{512}, size_t{2048}, size_t{4096}, file.size()}) {
        EXPECT_EQ(probe(ConstBytes(file).first(length)), 100) << length;
    }
}

TEST(Probe, EveryLength) {
    std::vector<std::byte> file = file_of(Block(sample_header()), Block(sample_header()));
    file.resize(16384);
    for (size_t length = 0; length <= file.size(); ++length) {
        ASSERT_EQ(probe(ConstBytes(file).first(length)), length >= 25 ? 100 : 0) << length;
    }
}

TEST(Probe, LooksAtTheBlockSizeAsSoonAsAllOfItIsThere) {
    Block block(sample_header());
    block.set("block_size", 1);
    const HeaderField place = Block::field("block_size");
    const auto file = file_of(block, block);
    EXPECT_EQ(probe(ConstBytes(file).first(place.offset + place.size - 1)), 100);
    EXPECT_EQ(probe(ConstBytes(file).first(place.offset + place.size)), 0);
}

TEST(Probe, LooksAtTheCopyWhereThePrimaryIsDamaged) {
    const auto file = file_of(Block(), Block(sample_header()));
    EXPECT_EQ(probe(file), 100);
    EXPECT_EQ(probe(ConstBytes(file).first(8191)), 0);
}

struct ProbeCase {
    const char* field;
    uint64_t value;
    int score;
};

class ProbeField : public testing::TestWithParam<ProbeCase> {};

TEST_P(ProbeField, MustAgree) {
    Block block(sample_header());
    block.set(GetParam().field, GetParam().value);
    EXPECT_EQ(probe(file_of(block, block)), GetParam().score);
}

INSTANTIATE_TEST_SUITE_P(
    , ProbeField,
    testing::Values(ProbeCase{"magic", 0x5143F5A9, 0}, ProbeCase{"magic", 0, 0},
                    ProbeCase{"version", 0, 0}, ProbeCase{"version", 1, 0},
                    ProbeCase{"version", 2, 0}, ProbeCase{"version", 4, 0},
                    ProbeCase{"version", 0xFFFFFFFF, 0}, ProbeCase{"virtual_disk_size", 0, 100},
                    ProbeCase{"virtual_disk_size", 511, 0},
                    ProbeCase{"virtual_disk_size", UINT64_MAX, 0}, ProbeCase{"data_offset", 0, 0},
                    ProbeCase{"data_offset", 4096, 0}, ProbeCase{"data_offset", 8193, 0},
                    ProbeCase{"data_file", 'x', 0}, ProbeCase{"block_size", 0, 100},
                    ProbeCase{"block_size", 513, 0}, ProbeCase{"block_size", 7680, 100},
                    ProbeCase{"journal_unit", 77, 100}));

TEST(Probe, ASeparateDataFileIsConsistent) {
    Block block(sample_header());
    block.set_bytes("data_file", "data.raw");
    block.set("data_offset", 0);
    EXPECT_EQ(probe(file_of(block, block)), 100);
}

}  // namespace
}  // namespace fvd
