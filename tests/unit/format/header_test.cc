/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "fvd/format/header.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <string>

#include "fvd/format/limits.h"
#include "samples.h"

namespace fvd {
namespace {

using test::Block;
using test::sample_header;
using test::text_of;
using std::string_literals::operator""s;

constexpr uint64_t kKiB = limits::kKiB;
constexpr uint64_t kMiB = limits::kMiB;
constexpr uint64_t kGiB = limits::kGiB;

/** Another value in every member, each within its limits. */
Header full_header() {
    Header h = sample_header();
    h.virtual_size = 3 * kGiB + 512;
    h.data_offset = 64 * kMiB;
    test::set_text(h.base_img, "b/ä.qcow2");
    test::set_text(h.base_img_fmt, "qcow2");
    h.base_size = 2 * kGiB + 1024;
    h.block_size = 7680;
    h.storage_grow_unit = 512 * 77;
    test::set_text(h.add_storage_cmd, "builtin:lvextend");
    h.journal_epoch = 0x0102030405060708;
    h.clean_shutdown = false;
    h.copy_on_read = true;
    h.max_outstanding_copy_on_read_data = 2000000;
    h.prefetch_start_delay = 61;
    h.base_fully_prefetched = true;
    h.num_prefetch_slots = 3;
    h.bytes_per_prefetch = 1048577;
    h.prefetch_min_read_throughput = 5120;
    h.prefetch_max_read_throughput = 5121;
    h.prefetch_min_write_throughput = 5122;
    h.prefetch_max_write_throughput = 5123;
    h.prefetch_throttle_time = 30000;
    h.prefetch_read_throughput_measure_time = 100;
    h.prefetch_write_throughput_measure_time = 101;
    h.need_zero_init = true;
    h.compatible_features = 0x8000000000000001;
    h.autoclear_features = 0x4000000000000002;
    h.generation = 99;
    h.journal_unit = 512;
    return h;
}

Error decode_error(const Block& block) {
    const Result<Header> result = decode_header(block.bytes());
    return result.ok() ? Error::none() : result.error();
}

/* ------------------------------------------------------------------ there and back */

TEST(Header, FieldsCoverTheBlockInOrder) {
    size_t end = 0;
    for (const HeaderField& field : header_fields()) {
        EXPECT_EQ(field.offset, end) << field.name;
        end += field.size;
    }
    EXPECT_EQ(end, kHeaderSize);
}

TEST(Header, OffsetsOfTheSpecificationOf2011) {
    const std::pair<const char*, size_t> published[] = {
        {"magic", 0},
        {"version", 4},
        {"virtual_disk_size", 8},
        {"data_offset", 16},
        {"data_file", 24},
        {"data_file_fmt", 1048},
        {"base_img", 1064},
        {"base_img_fmt", 2088},
        {"base_img_size", 2104},
        {"bitmap_offset", 2112},
        {"bitmap_size", 2120},
        {"block_size", 2128},
        {"table_offset", 2136},
        {"table_size", 2144},
        {"chunk_size", 2152},
        {"storage_grow_unit", 2160},
        {"add_storage_cmd", 2168},
        {"journal_offset", 3192},
        {"journal_size", 3200},
        {"stable_journal_epoch", 3208},
        {"clean_shutdown", 3216},
        {"copy_on_read", 3220},
        {"max_outstanding_copy_on_read_data", 3224},
        {"prefetch_start_delay", 3232},
        {"base_img_fully_prefetched", 3240},
        {"num_prefetch_slots", 3244},
        {"bytes_per_prefetch", 3248},
        {"prefetch_min_read_throughput", 3256},
        {"prefetch_max_read_throughput", 3264},
        {"prefetch_min_write_throughput", 3272},
        {"prefetch_max_write_throughput", 3280},
        {"prefetch_throttle_time", 3288},
        {"prefetch_read_throughput_measure_time", 3296},
        {"prefetch_write_throughput_measure_time", 3304},
        {"need_zero_init", 3312},
    };
    for (const auto& [name, offset] : published) {
        EXPECT_EQ(Block::field(name).offset, offset) << name;
    }
}

TEST(Header, EncodesWhatItDecodes) {
    for (const Header& header : {sample_header(), full_header()}) {
        const Block block(header);
        const Result<Header> decoded = decode_header(block.bytes());
        ASSERT_TRUE(decoded.ok()) << decoded.error().text;
        EXPECT_EQ(Block(decoded.value()), block);
    }
}

TEST(Header, DecodesEveryMember) {
    const Header expected = full_header();
    const Result<Header> decoded = decode_header(Block(expected).bytes());
    ASSERT_TRUE(decoded.ok()) << decoded.error().text;
    const Header& h = decoded.value();
    EXPECT_EQ(h.virtual_size, expected.virtual_size);
    EXPECT_EQ(h.data_offset, expected.data_offset);
    EXPECT_STREQ(h.base_img, "b/ä.qcow2");
    EXPECT_STREQ(h.base_img_fmt, "qcow2");
    EXPECT_EQ(h.base_size, expected.base_size);
    EXPECT_EQ(h.bitmap_offset, expected.bitmap_offset);
    EXPECT_EQ(h.bitmap_size, expected.bitmap_size);
    EXPECT_EQ(h.block_size, 7680u);
    EXPECT_EQ(h.storage_grow_unit, expected.storage_grow_unit);
    EXPECT_STREQ(h.add_storage_cmd, "builtin:lvextend");
    EXPECT_EQ(h.journal_offset, expected.journal_offset);
    EXPECT_EQ(h.journal_size, expected.journal_size);
    EXPECT_EQ(h.journal_epoch, 0x0102030405060708u);
    EXPECT_FALSE(h.clean_shutdown);
    EXPECT_TRUE(h.copy_on_read);
    EXPECT_TRUE(h.base_fully_prefetched);
    EXPECT_TRUE(h.need_zero_init);
    EXPECT_EQ(h.max_outstanding_copy_on_read_data, 2000000u);
    EXPECT_EQ(h.prefetch_start_delay, 61);
    EXPECT_EQ(h.num_prefetch_slots, 3u);
    EXPECT_EQ(h.bytes_per_prefetch, 1048577u);
    EXPECT_EQ(h.prefetch_min_read_throughput, 5120u);
    EXPECT_EQ(h.prefetch_max_read_throughput, 5121u);
    EXPECT_EQ(h.prefetch_min_write_throughput, 5122u);
    EXPECT_EQ(h.prefetch_max_write_throughput, 5123u);
    EXPECT_EQ(h.prefetch_throttle_time, 30000u);
    EXPECT_EQ(h.prefetch_read_throughput_measure_time, 100u);
    EXPECT_EQ(h.prefetch_write_throughput_measure_time, 101u);
    EXPECT_EQ(h.compatible_features, 0x8000000000000001u);
    EXPECT_EQ(h.autoclear_features, 0x4000000000000002u);
    EXPECT_EQ(h.image_id, test::sample_id());
    EXPECT_EQ(h.generation, 99u);
    EXPECT_EQ(h.journal_unit, 512u);
}

TEST(Header, EncodingWritesEveryByte) {
    for (const auto poison : {std::byte{0xA5}, std::byte{0x5A}}) {
        std::vector<std::byte> bytes(kHeaderSize, poison);
        encode_header(full_header(), bytes);
        EXPECT_TRUE(std::ranges::equal(bytes, Block(full_header()).bytes()));
    }
}

TEST(Header, EncodingLeavesNothingOfALongerName) {
    Header header = sample_header();
    test::set_text(header.base_img, "short\0and what stood there before"s);
    const Result<Header> decoded = decode_header(Block(header).bytes());
    ASSERT_TRUE(decoded.ok());
    EXPECT_STREQ(decoded.value().base_img, "short");
}

TEST(Header, CountsBlocksAndUnits) {
    Header h = sample_header();
    EXPECT_EQ(h.block_count(), kGiB / 4096);
    h.base_size = 4096 * 5 + 512;
    EXPECT_EQ(h.block_count(), 6u);
    h.base_size = 0;
    EXPECT_EQ(h.block_count(), 0u);
    h.bitmap_size = 0;
    h.base_size = 4096;
    EXPECT_EQ(h.block_count(), 0u);
    h.bitmap_size = 4096;
    h.block_size = 0;
    EXPECT_EQ(h.block_count(), 0u);
    h.journal_size = 4096 * 64;
    EXPECT_EQ(h.journal_units(), 64u);
    h.journal_unit = 0;
    EXPECT_EQ(h.journal_units(), 0u);
}

/* ------------------------------------------------------------------ magic, version, checksum */

struct MagicCase {
    const char* field;
    uint64_t value;
    int code;
    const char* sentence;
};

class HeaderMagic : public testing::TestWithParam<MagicCase> {};

TEST_P(HeaderMagic, IsRefused) {
    Block block(sample_header());
    block.set(GetParam().field, GetParam().value);
    const Error error = decode_error(block);
    EXPECT_EQ(error.code, GetParam().code);
    EXPECT_EQ(text_of(error), GetParam().sentence);
}

INSTANTIATE_TEST_SUITE_P(
    , HeaderMagic,
    testing::Values(
        MagicCase{"magic", 0, -EINVAL,
                  "not an FVD image: magic is 0x00000000; must be 0x00445646 (\"FVD\\0\")"},
        MagicCase{"magic", 0x01445646, -EINVAL,
                  "not an FVD image: magic is 0x01445646; must be 0x00445646 (\"FVD\\0\")"},
        MagicCase{"magic", 0x46564400, -EINVAL,
                  "not an FVD image: magic is 0x46564400; must be 0x00445646 (\"FVD\\0\")"},
        MagicCase{"magic", 0x5143F5A9, -ENOTSUP,
                  "this is an FVD image of version 1 (January 2011); only version 3 can be opened"},
        MagicCase{
            "version", 0, -ENOTSUP,
            "version is 0; only version 3 can be opened (1 and 2 belong to the code of 2011)"},
        MagicCase{
            "version", 1, -ENOTSUP,
            "version is 1; only version 3 can be opened (1 and 2 belong to the code of 2011)"},
        MagicCase{
            "version", 2, -ENOTSUP,
            "version is 2; only version 3 can be opened (1 and 2 belong to the code of 2011)"},
        MagicCase{
            "version", 4, -ENOTSUP,
            "version is 4; only version 3 can be opened (1 and 2 belong to the code of 2011)"},
        MagicCase{"version", UINT32_MAX, -ENOTSUP,
                  "version is 4294967295; only version 3 can be opened (1 and 2 belong to the code "
                  "of 2011)"}));

TEST(Header, AWrongChecksumIsNamed) {
    Block block(sample_header());
    const auto right = static_cast<uint32_t>(block.get("header_crc32c"));
    block[100] ^= std::byte{1};
    block[100] ^= std::byte{1};
    block[4095] ^= std::byte{0x80};
    const Error error = decode_error(block);
    EXPECT_EQ(error.code, -EINVAL);
    char expected[200];
    std::snprintf(expected, sizeof(expected),
                  "header_crc32c is 0x%08x; the header's bytes give 0x%08x", right ^ 0x80000000u,
                  right);
    EXPECT_EQ(text_of(error), expected);
}

TEST(Header, EverySingleFlippedBitIsRefused) {
    Block block(sample_header());
    for (size_t bit = 0; bit < kHeaderSize * 8; ++bit) {
        const auto mask = static_cast<std::byte>(1 << bit % 8);
        block[bit / 8] ^= mask;
        ASSERT_FALSE(decode_header(block.bytes()).ok()) << "bit " << bit;
        block[bit / 8] ^= mask;
    }
    EXPECT_TRUE(decode_header(block.bytes()).ok());
}

/** With a right checksum over wrong bytes: an error, or a header that encodes to the same bytes. */
TEST(Header, WhatIsAcceptedIsKept) {
    const Block good(full_header());
    size_t accepted = 0;
    for (size_t bit = 0; bit < 4092 * 8; ++bit) {
        Block block = good;
        block[bit / 8] ^= static_cast<std::byte>(1 << bit % 8);
        block.seal();
        const Result<Header> decoded = decode_header(block.bytes());
        if (!decoded.ok()) {
            EXPECT_NE(text_of(decoded.error()), "");
            continue;
        }
        ++accepted;
        if (clamped_advice(block.bytes()) == nullptr) {
            ASSERT_EQ(Block(decoded.value()), block) << "bit " << bit;
        }
    }
    EXPECT_GT(accepted, 500u);
}

/* ------------------------------------------------------------------ feature words */

TEST(Header, UnknownIncompatibleBitsAreNamed) {
    for (unsigned bit = 0; bit < 64; ++bit) {
        Block block(sample_header());
        block.set("incompatible_features", uint64_t{1} << bit);
        const Error error = decode_error(block);
        EXPECT_EQ(error.code, -ENOTSUP);
        EXPECT_EQ(text_of(error),
                  "incompatible_features has bits set that this program does not know: " +
                      std::to_string(bit));
    }
}

TEST(Header, AllUnknownIncompatibleBitsFitTheSentence) {
    Block block(sample_header());
    block.set("incompatible_features", 0x8000000000000009);
    EXPECT_EQ(text_of(decode_error(block)),
              "incompatible_features has bits set that this program does not know: 0, 3, 63");
    block.set("incompatible_features", UINT64_MAX);
    EXPECT_TRUE(text_of(decode_error(block)).ends_with(" 61, 62, 63"));
}

TEST(Header, OtherFeatureBitsAreKept) {
    Block block(sample_header());
    block.set("compatible_features", UINT64_MAX);
    block.set("autoclear_features", UINT64_MAX - 1);
    const Result<Header> decoded = decode_header(block.bytes());
    ASSERT_TRUE(decoded.ok());
    EXPECT_EQ(decoded.value().compatible_features, UINT64_MAX);
    EXPECT_EQ(decoded.value().autoclear_features, UINT64_MAX - 1);
}

/* ------------------------------------------------------------------ numbers */

struct NumberCase {
    const char* field;
    uint64_t value;
    int code; /* 0: accepted */
    const char* sentence;
};

std::string name_of_case(const testing::TestParamInfo<NumberCase>& info) {
    return std::string(info.param.field) + "_" + std::to_string(info.param.value);
}

class HeaderNumber : public testing::TestWithParam<NumberCase> {};

TEST_P(HeaderNumber, IsProven) {
    Block block(sample_header());
    block.set(GetParam().field, GetParam().value);
    const Error error = decode_error(block);
    EXPECT_EQ(error.code, GetParam().code);
    EXPECT_EQ(text_of(error), GetParam().sentence);
}

#define DISK_RANGE " bytes; must be a multiple of 512 between 0 and 1152921504606846976"
#define REGION_RANGE " bytes; must be a multiple of 4096 between 8192 and 4611686018427387904"
#define BLOCK_RANGE " bytes; must be a multiple of 512 between 512 and 2097152"
#define CHUNK_RANGE " bytes; must be a multiple of 512 between 4096 and 67108864"
#define BITMAP_RANGE " bytes; must be a multiple of 4096 between 0 and 268435456"
#define TABLE_RANGE " bytes; must be a multiple of 4096 between 0 and 1073741824"
#define JOURNAL_RANGE " bytes; must be a multiple of 512 between 0 and 1073741824"
#define GROW_RANGE " bytes; must be a multiple of 512 between 0 and 1099511627776"
#define COUNTER_RANGE "; must be between 0 and 4611686018427387904"

INSTANTIATE_TEST_SUITE_P(
    DiskSize, HeaderNumber,
    testing::Values(
        NumberCase{"virtual_disk_size", kGiB + 512, 0, ""},
        NumberCase{"virtual_disk_size", limits::kMaxVirtualSize, 0, ""},
        NumberCase{"virtual_disk_size", limits::kMaxVirtualSize + 512, -EFBIG,
                   "virtual_disk_size is 1152921504606847488" DISK_RANGE},
        NumberCase{"virtual_disk_size", kGiB + 1, -EINVAL,
                   "virtual_disk_size is 1073741825" DISK_RANGE},
        NumberCase{"virtual_disk_size", kGiB + 511, -EINVAL,
                   "virtual_disk_size is 1073742335" DISK_RANGE},
        NumberCase{"virtual_disk_size", UINT64_MAX, -EFBIG,
                   "virtual_disk_size is 18446744073709551615" DISK_RANGE},
        NumberCase{"virtual_disk_size", uint64_t{1} << 63, -EFBIG,
                   "virtual_disk_size is 9223372036854775808" DISK_RANGE},
        NumberCase{"virtual_disk_size", kGiB - 512, -EINVAL,
                   "base_img_size is 1073741824 bytes; must be at most virtual_disk_size, "
                   "1073741312"},
        NumberCase{"base_img_size", 0, 0, ""}, NumberCase{"base_img_size", 512, 0, ""},
        NumberCase{"base_img_size", 511, -EINVAL, "base_img_size is 511" DISK_RANGE},
        NumberCase{"base_img_size", kGiB + 512, -EINVAL,
                   "base_img_size is 1073742336 bytes; must be at most virtual_disk_size, "
                   "1073741824"},
        NumberCase{"base_img_size", UINT64_MAX, -EFBIG,
                   "base_img_size is 18446744073709551615" DISK_RANGE}),
    name_of_case);

INSTANTIATE_TEST_SUITE_P(
    Offsets, HeaderNumber,
    testing::Values(
        NumberCase{"data_offset", 8192, 0, ""}, NumberCase{"data_offset", kMiB, 0, ""},
        NumberCase{"data_offset", limits::kMaxOffset, 0, ""},
        NumberCase{"data_offset", 0, -EINVAL, "data_offset is 0" REGION_RANGE},
        NumberCase{"data_offset", 4096, -EINVAL, "data_offset is 4096" REGION_RANGE},
        NumberCase{"data_offset", kMiB + 512, -EINVAL, "data_offset is 1049088" REGION_RANGE},
        NumberCase{"data_offset", limits::kMaxOffset + 4096, -EFBIG,
                   "data_offset is 4611686018427392000" REGION_RANGE},
        NumberCase{"data_offset", UINT64_MAX, -EFBIG,
                   "data_offset is 18446744073709551615" REGION_RANGE},
        NumberCase{"bitmap_offset", 8192, 0, ""},
        NumberCase{"bitmap_offset", 0, -EINVAL,
                   "bitmap_offset is 0; must be at least 8192 where bitmap_size is 32768"},
        NumberCase{"bitmap_offset", 1, -EINVAL, "bitmap_offset is 1" REGION_RANGE},
        NumberCase{"bitmap_offset", 4096, -EINVAL, "bitmap_offset is 4096" REGION_RANGE},
        NumberCase{"bitmap_offset", 8193, -EINVAL, "bitmap_offset is 8193" REGION_RANGE},
        NumberCase{"bitmap_offset", limits::kMaxOffset, 0, ""},
        NumberCase{"bitmap_offset", limits::kMaxOffset + 1, -EFBIG,
                   "bitmap_offset is 4611686018427387905" REGION_RANGE},
        NumberCase{"table_offset", 8192, -EINVAL,
                   "table_offset is 8192; must be 0 where table_size is 0"},
        NumberCase{"table_offset", 512, -EINVAL, "table_offset is 512" REGION_RANGE},
        NumberCase{"table_offset", uint64_t{1} << 63, -EFBIG,
                   "table_offset is 9223372036854775808" REGION_RANGE},
        NumberCase{"journal_offset", 0, -EINVAL,
                   "journal_offset is 0; must be at least 8192 where journal_size is 1048576"},
        NumberCase{"journal_offset", 8192, 0, ""},
        NumberCase{"journal_offset", 8704, -EINVAL, "journal_offset is 8704" REGION_RANGE},
        NumberCase{"journal_offset", limits::kMaxOffset + 4096, -EFBIG,
                   "journal_offset is 4611686018427392000" REGION_RANGE}),
    name_of_case);

INSTANTIATE_TEST_SUITE_P(
    BlocksAndChunks, HeaderNumber,
    testing::Values(
        NumberCase{"block_size", 0, -EINVAL,
                   "block_size is 0 bytes; must be a multiple of 512 between 512 and 2097152 in an "
                   "image with a bitmap"},
        NumberCase{"block_size", 1, -EINVAL, "block_size is 1" BLOCK_RANGE},
        NumberCase{"block_size", 511, -EINVAL, "block_size is 511" BLOCK_RANGE},
        NumberCase{"block_size", 512, 0, ""},
        NumberCase{"block_size", 513, -EINVAL, "block_size is 513" BLOCK_RANGE},
        NumberCase{"block_size", 7680, 0, ""}, NumberCase{"block_size", 15872, 0, ""},
        NumberCase{"block_size", 65024, 0, ""}, NumberCase{"block_size", 1048064, 0, ""},
        NumberCase{"block_size", 2 * kMiB, 0, ""},
        NumberCase{"block_size", 2 * kMiB + 512, -EINVAL, "block_size is 2097664" BLOCK_RANGE},
        NumberCase{"block_size", uint64_t{1} << 31, -EINVAL,
                   "block_size is 2147483648" BLOCK_RANGE},
        NumberCase{"block_size", UINT64_MAX, -EINVAL,
                   "block_size is 18446744073709551615" BLOCK_RANGE},
        NumberCase{"chunk_size", 0, 0, ""},
        NumberCase{"chunk_size", 1, -EINVAL, "chunk_size is 1" CHUNK_RANGE},
        NumberCase{"chunk_size", 511, -EINVAL, "chunk_size is 511" CHUNK_RANGE},
        NumberCase{"chunk_size", 3584, -EINVAL, "chunk_size is 3584" CHUNK_RANGE},
        NumberCase{"chunk_size", 4096, 0, ""},
        NumberCase{"chunk_size", 4097, -EINVAL, "chunk_size is 4097" CHUNK_RANGE},
        NumberCase{"chunk_size", 15872, 0, ""}, NumberCase{"chunk_size", 64 * kMiB, 0, ""},
        NumberCase{"chunk_size", uint64_t{1} << 31, -EINVAL,
                   "chunk_size is 2147483648" CHUNK_RANGE}),
    name_of_case);

INSTANTIATE_TEST_SUITE_P(
    Regions, HeaderNumber,
    testing::Values(
        NumberCase{"bitmap_size", 0, -EINVAL,
                   "bitmap_offset is 8192; must be 0 where bitmap_size is 0"},
        NumberCase{"bitmap_size", 1, -EINVAL, "bitmap_size is 1" BITMAP_RANGE},
        NumberCase{"bitmap_size", 4095, -EINVAL, "bitmap_size is 4095" BITMAP_RANGE},
        NumberCase{"bitmap_size", 4096, 0, ""}, NumberCase{"bitmap_size", 256 * kMiB, 0, ""},
        NumberCase{"bitmap_size", 256 * kMiB + 4096, -EFBIG,
                   "bitmap_size is 268439552" BITMAP_RANGE},
        NumberCase{"bitmap_size", uint64_t{1} << 60, -EFBIG,
                   "bitmap_size is 1152921504606846976" BITMAP_RANGE},
        NumberCase{"bitmap_size", UINT64_MAX, -EFBIG,
                   "bitmap_size is 18446744073709551615" BITMAP_RANGE},
        NumberCase{"table_size", 1, -EINVAL, "table_size is 1" TABLE_RANGE},
        NumberCase{"table_size", kGiB + 4096, -EFBIG, "table_size is 1073745920" TABLE_RANGE},
        NumberCase{
            "table_size", 4096, -EINVAL,
            "chunk_size is 0 bytes; must be a multiple of 512 between 4096 and 67108864 in an "
            "image with a table"},
        NumberCase{"journal_size", 0, -EINVAL,
                   "journal_offset is 40960; must be 0 where journal_size is 0"},
        NumberCase{"journal_size", 511, -EINVAL, "journal_size is 511" JOURNAL_RANGE},
        NumberCase{"journal_size", 4096, -EINVAL,
                   "journal_size is 4096 bytes; must be a multiple of 4096 between 262144 and "
                   "1073741824"},
        NumberCase{"journal_size", 262143, -EINVAL, "journal_size is 262143" JOURNAL_RANGE},
        NumberCase{"journal_size", 262144, 0, ""}, NumberCase{"journal_size", kGiB, 0, ""},
        NumberCase{"journal_size", kGiB + 512, -EFBIG, "journal_size is 1073742336" JOURNAL_RANGE},
        NumberCase{"storage_grow_unit", 0, 0, ""},
        NumberCase{"storage_grow_unit", 104857600, 0, ""},
        NumberCase{"storage_grow_unit", limits::kTiB, 0, ""},
        NumberCase{"storage_grow_unit", 1000, -EINVAL, "storage_grow_unit is 1000" GROW_RANGE},
        NumberCase{"storage_grow_unit", limits::kTiB + 512, -EINVAL,
                   "storage_grow_unit is 1099511628288" GROW_RANGE}),
    name_of_case);

INSTANTIATE_TEST_SUITE_P(
    Others, HeaderNumber,
    testing::Values(
        NumberCase{"journal_unit", 0, -EINVAL,
                   "journal_unit is 0 bytes; must be a multiple of 512 between 512 and 4096"},
        NumberCase{"journal_unit", 512, 0, ""},
        NumberCase{"journal_unit", 1024, -EINVAL,
                   "journal_unit is 1024 bytes; must be 512 or 4096"},
        NumberCase{"journal_unit", 4096, 0, ""},
        NumberCase{"journal_unit", 8192, -EINVAL,
                   "journal_unit is 8192 bytes; must be a multiple of 512 between 512 and 4096"},
        NumberCase{"stable_journal_epoch", 0, 0, ""},
        NumberCase{"stable_journal_epoch", limits::kMaxCounter, 0, ""},
        NumberCase{"stable_journal_epoch", limits::kMaxCounter + 1, -EINVAL,
                   "stable_journal_epoch is 4611686018427387905" COUNTER_RANGE},
        NumberCase{"stable_journal_epoch", UINT64_MAX, -EINVAL,
                   "stable_journal_epoch is 18446744073709551615" COUNTER_RANGE},
        NumberCase{"header_generation", limits::kMaxCounter, 0, ""},
        NumberCase{"header_generation", limits::kMaxCounter + 1, -EINVAL,
                   "header_generation is 4611686018427387905" COUNTER_RANGE},
        NumberCase{"boot_profile_offset", 8192, -EINVAL,
                   "boot_profile_offset is 8192; must be 0 in version 3"},
        NumberCase{"boot_profile_size", 1, -EINVAL,
                   "boot_profile_size is 1; must be 0 in version 3"}),
    name_of_case);

/** A compact image, which today's engine refuses but the format defines. */
Block compact_block(uint64_t block_size, uint64_t chunk_size) {
    Block block(sample_header());
    block.set("block_size", block_size);
    block.set("chunk_size", chunk_size);
    block.set("table_offset", 16 * kMiB);
    block.set("table_size", 64 * kKiB);
    return block;
}

TEST(Header, ChunksAreWholeBlocks) {
    EXPECT_TRUE(decode_error(compact_block(4096, 4096)).ok());
    EXPECT_TRUE(decode_error(compact_block(4096, kMiB)).ok());
    EXPECT_TRUE(decode_error(compact_block(7680, 7680)).ok());
    EXPECT_TRUE(decode_error(compact_block(7680, 7680 * 9)).ok());
    EXPECT_EQ(text_of(decode_error(compact_block(8192, 4096))),
              "chunk_size is 4096 bytes; must be a multiple of block_size, 8192");
    EXPECT_EQ(text_of(decode_error(compact_block(7680, 7680 + 512))),
              "chunk_size is 8192 bytes; must be a multiple of block_size, 7680");
}

TEST(Header, ChunksWithoutBlocksNeedNoMultiple) {
    Block block = compact_block(4096, 4096 + 512);
    EXPECT_FALSE(decode_error(block).ok());
    block.set("bitmap_offset", 0);
    block.set("bitmap_size", 0);
    EXPECT_TRUE(decode_error(block).ok());
}

TEST(Header, ATableNeedsAnOffset) {
    Block block = compact_block(4096, kMiB);
    block.set("table_offset", 0);
    EXPECT_EQ(text_of(decode_error(block)),
              "table_offset is 0; must be at least 8192 where table_size is 65536");
}

TEST(Header, DataOfAFileOfItsOwnStartsAtZero) {
    Block block(sample_header());
    block.set_bytes("data_file", "data.raw");
    EXPECT_EQ(decode_error(block).code, -EINVAL);
    EXPECT_EQ(text_of(decode_error(block)),
              "data_offset is 2097152; must be 0 where the data is in a file of its own");
    block.set("data_offset", 0);
    EXPECT_TRUE(decode_error(block).ok());
}

TEST(Header, AnImageWithoutBaseNeedsNoBlocks) {
    LayoutRequest request;
    request.virtual_size = kMiB;
    const Result<Header> decoded = decode_header(Block(plan_layout(request).value()).bytes());
    ASSERT_TRUE(decoded.ok()) << decoded.error().text;
    EXPECT_FALSE(decoded.value().has_bitmap());
    EXPECT_FALSE(decoded.value().has_base());
    EXPECT_FALSE(decoded.value().has_table());
    EXPECT_FALSE(decoded.value().has_data_file());
}

/* ------------------------------------------------------------------ flags */

class HeaderFlag : public testing::TestWithParam<const char*> {};

TEST_P(HeaderFlag, IsZeroOrOne) {
    Block block(sample_header());
    for (const uint64_t value : {0u, 1u}) {
        block.set(GetParam(), value);
        EXPECT_TRUE(decode_error(block).ok());
    }
    for (const uint64_t value : {uint64_t{2}, uint64_t{0x80000000}, uint64_t{0xFFFFFFFF}}) {
        block.set(GetParam(), value);
        EXPECT_EQ(decode_error(block).code, -EINVAL);
        EXPECT_EQ(text_of(decode_error(block)),
                  std::string(GetParam()) + " is " + std::to_string(value) + "; must be 0 or 1");
    }
}

INSTANTIATE_TEST_SUITE_P(, HeaderFlag,
                         testing::Values("clean_shutdown", "copy_on_read",
                                         "base_img_fully_prefetched", "need_zero_init"));

/* ------------------------------------------------------------------ text */

class HeaderText : public testing::TestWithParam<const char*> {
  protected:
    Error decode_with(const std::string& bytes) {
        Block block(sample_header());
        block.set("data_offset", kMiB * 64);
        block.set_bytes(GetParam(), bytes);
        if (std::string(GetParam()) == "data_file" && !bytes.empty() && bytes[0] != '\0') {
            block.set("data_offset", 0);
        }
        return decode_error(block);
    }
    size_t size() { return Block::field(GetParam()).size; }
    std::string name() { return GetParam(); }
};

TEST_P(HeaderText, MayFillItsFieldButForTheNul) {
    EXPECT_TRUE(decode_with("").ok());
    EXPECT_TRUE(decode_with("a").ok());
    EXPECT_TRUE(decode_with(std::string(size() - 1, 'x')).ok());
}

TEST_P(HeaderText, NeedsANul) {
    const Error error = decode_with(std::string(size(), 'x'));
    EXPECT_EQ(error.code, -EINVAL);
    EXPECT_EQ(text_of(error),
              name() + " has no terminating NUL in its " + std::to_string(size()) + " bytes");
}

TEST_P(HeaderText, HasNoControlCharacters) {
    for (int control = 1; control < 0x20; ++control) {
        EXPECT_EQ(decode_with("ab" + std::string(1, static_cast<char>(control))).code, -EINVAL);
    }
    EXPECT_EQ(text_of(decode_with("ab\x1B[2J")),
              name() + " has byte 0x1b at 2; must be valid UTF-8 without control characters");
    EXPECT_EQ(text_of(decode_with("a\x7F")),
              name() + " has byte 0x7f at 1; must be valid UTF-8 without control characters");
    EXPECT_EQ(text_of(decode_with("\xC2\x9B")),
              name() + " has byte 0xc2 at 0; must be valid UTF-8 without control characters");
}

TEST_P(HeaderText, IsUtf8) {
    EXPECT_TRUE(decode_with("ä一\U0001F4BE").ok());
    EXPECT_EQ(text_of(decode_with("b\xFFse")),
              name() + " has byte 0xff at 1; must be valid UTF-8 without control characters");
    EXPECT_EQ(text_of(decode_with("\xC0\xAF")),
              name() + " has byte 0xc0 at 0; must be valid UTF-8 without control characters");
}

TEST_P(HeaderText, HidesNothingBehindTheNul) {
    const Error error = decode_with("a\0b"s);
    EXPECT_EQ(error.code, -EINVAL);
    EXPECT_EQ(text_of(error), name() + " has bytes other than zero after its terminating NUL");
    EXPECT_EQ(decode_with("\0x"s).code, -EINVAL);
    EXPECT_EQ(decode_with(std::string(size() - 1, '\0') + "x").code, -EINVAL);
}

INSTANTIATE_TEST_SUITE_P(, HeaderText,
                         testing::Values("data_file", "data_file_fmt", "base_img", "base_img_fmt",
                                         "add_storage_cmd"));

TEST(HeaderDeathTest, EncodingNeedsATerminatedName) {
    Header header = sample_header();
    std::memset(header.base_img, 'x', sizeof(header.base_img));
    std::vector<std::byte> bytes(kHeaderSize);
    EXPECT_DEATH(encode_header(header, bytes), "assertion failed");
}

/* ------------------------------------------------------------------ reserved bytes */

TEST(Header, ReservedBytesAreZero) {
    size_t reserved = 0;
    for (const HeaderField& field : header_fields()) {
        if (!std::string_view(field.name).starts_with("reserved")) {
            continue;
        }
        for (size_t at = field.offset; at < field.offset + field.size; ++at) {
            Block block(sample_header());
            block[at] = std::byte{0x40};
            block.seal();
            const Error error = decode_error(block);
            EXPECT_EQ(error.code, -EINVAL);
            EXPECT_EQ(text_of(error), std::string(field.name) + " has bytes other than zero");
            ++reserved;
        }
    }
    EXPECT_EQ(reserved, 4u + 4u + 700u);
}

/* ------------------------------------------------------------------ advice */

struct AdviceCase {
    const char* field;
    uint64_t max;
};

class HeaderAdvice : public testing::TestWithParam<AdviceCase> {};

TEST_P(HeaderAdvice, IsClampedNotRefused) {
    for (const uint64_t value :
         {GetParam().max + 1, uint64_t{1} << 31, uint64_t{0x80000001}, UINT64_MAX}) {
        Block block(sample_header());
        block.set(GetParam().field, value);
        const uint64_t stored = block.get(GetParam().field);
        if (stored <= GetParam().max) {
            continue;
        }
        EXPECT_STREQ(clamped_advice(block.bytes()), GetParam().field);
        const Result<Header> decoded = decode_header(block.bytes());
        ASSERT_TRUE(decoded.ok()) << decoded.error().text;
        EXPECT_EQ(Block(decoded.value()).get(GetParam().field), GetParam().max);
    }
}

TEST_P(HeaderAdvice, IsKeptWithinItsRange) {
    for (const uint64_t value : {uint64_t{0}, uint64_t{1}, GetParam().max}) {
        Block block(sample_header());
        block.set(GetParam().field, value);
        EXPECT_EQ(clamped_advice(block.bytes()), nullptr);
        const Result<Header> decoded = decode_header(block.bytes());
        ASSERT_TRUE(decoded.ok()) << decoded.error().text;
        EXPECT_EQ(Block(decoded.value()).get(GetParam().field), value);
    }
}

INSTANTIATE_TEST_SUITE_P(
    , HeaderAdvice,
    testing::Values(AdviceCase{"max_outstanding_copy_on_read_data", kGiB},
                    AdviceCase{"num_prefetch_slots", 64},
                    AdviceCase{"bytes_per_prefetch", 64 * kMiB},
                    AdviceCase{"prefetch_min_read_throughput", 1000000000},
                    AdviceCase{"prefetch_max_read_throughput", 1000000000},
                    AdviceCase{"prefetch_min_write_throughput", 1000000000},
                    AdviceCase{"prefetch_max_write_throughput", 1000000000},
                    AdviceCase{"prefetch_throttle_time", 3600000},
                    AdviceCase{"prefetch_read_throughput_measure_time", 3600000},
                    AdviceCase{"prefetch_write_throughput_measure_time", 3600000}));

TEST(Header, PrefetchDelayIsClampedOnBothSides) {
    const std::pair<int64_t, int64_t> cases[] = {
        {INT64_MIN, -1}, {-2, -1},           {-1, -1},           {0, 0},
        {1, 1},          {2592000, 2592000}, {2592001, 2592000}, {INT64_MAX, 2592000},
    };
    for (const auto& [stored, kept] : cases) {
        Block block(sample_header());
        block.set("prefetch_start_delay", static_cast<uint64_t>(stored));
        const Result<Header> decoded = decode_header(block.bytes());
        ASSERT_TRUE(decoded.ok());
        EXPECT_EQ(decoded.value().prefetch_start_delay, kept);
        EXPECT_EQ(clamped_advice(block.bytes()) != nullptr, stored != kept) << stored;
    }
}

/* ------------------------------------------------------------------ chunks and slots */

Header with_slots() {
    Header header;
    header.virtual_size = 10 * 4096;
    header.chunk_size = 4096;
    header.table_size = 4096;
    header.data_offset = 8192;
    return header;
}

void expect_slots(const Header& header, ByteRange bytes, uint64_t begin, uint64_t end) {
    const ReservedSlots::Range under = header.slots_under(bytes);
    EXPECT_EQ(under.begin, begin) << bytes.begin << " to " << bytes.end;
    EXPECT_EQ(under.end, end) << bytes.begin << " to " << bytes.end;
}

TEST(Header, ChunksWantATableAndASize) {
    Header header = with_slots();
    EXPECT_EQ(header.chunk_count(), 10u);
    header.virtual_size++;
    EXPECT_EQ(header.chunk_count(), 11u);
    header.table_size = 0;
    EXPECT_EQ(header.chunk_count(), 0u);
    header = with_slots();
    header.chunk_size = 0;
    EXPECT_EQ(header.chunk_count(), 0u);
}

TEST(Header, SlotsUnderBytes) {
    const Header header = with_slots();
    expect_slots(header, {8192, 8193}, 0, 1);
    expect_slots(header, {0, 8193}, 0, 1);
    expect_slots(header, {12287, 12289}, 0, 2);
    expect_slots(header, {12288, 16384}, 1, 2);
    expect_slots(header, {20000, 30000}, 2, 6);
}

TEST(Header, NoSlotsUnderBytes) {
    const Header header = with_slots();
    expect_slots(header, {0, 8191}, 0, 0);
    expect_slots(header, {0, 8192}, 0, 0);
    expect_slots(header, {20001, 20001}, 0, 0);
    Header other = header;
    other.table_size = 0;
    expect_slots(other, {20000, 30000}, 0, 0);
    other = header;
    other.data_file[0] = 'd';
    expect_slots(other, {20000, 30000}, 0, 0);
    other = header;
    other.chunk_size = 0;
    expect_slots(other, {20000, 30000}, 0, 0);
}

}  // namespace
}  // namespace fvd
