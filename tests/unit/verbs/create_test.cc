/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <gtest/gtest.h>

#include <cerrno>

#include "engine/memory_host.h"
#include "fvd/format/chunk_table.h"
#include "fvd/verbs.h"

namespace fvd::testing {
namespace {

constexpr uint64_t kMiB = 1024 * 1024;

fvd_create_options disk(uint64_t size) {
    fvd_create_options options{};
    options.virtual_size = size;
    return options;
}

/* Found by the fuzzer: these were written, and could not be opened. */
TEST(Create, NamesThatOpenWouldRefuseAreRefused) {
    MemoryHost host;
    const auto code_of = [&](const char* base, const char* format, const char* data) {
        fvd_create_options options = disk(kMiB);
        options.base_img = base;
        options.base_img_fmt = format;
        options.data_file = data;
        return create_image(host, options).code;
    };
    EXPECT_EQ(code_of(nullptr, nullptr, ""), -EINVAL);
    EXPECT_EQ(code_of("", "raw", nullptr), -EINVAL);
    EXPECT_EQ(code_of("\xC0\x80", "raw", nullptr), -EINVAL);
    EXPECT_EQ(code_of("base.raw", "raw\n", nullptr), -EINVAL);
    EXPECT_EQ(code_of(nullptr, nullptr, "data\x7F"), -EINVAL);
    EXPECT_TRUE(host.log.empty());
}

/* ------------------------------------------------------------------ compact images */

fvd_create_options compact(uint64_t size) {
    fvd_create_options options = disk(size);
    options.compact_image = true;
    options.chunk_size = 64 * 1024;
    options.storage_grow_unit = 128 * 1024;
    options.journal_size = kMiB;
    return options;
}

Header header_of(MemoryHost& host) {
    const Result<ChosenHeader> chosen =
        choose_header(ConstBytes(host.files[FVD_FILE_IMAGE]).first(kHeaderRegionSize));
    EXPECT_TRUE(chosen.ok()) << chosen.error().text;
    return chosen.ok() ? chosen.value().header : Header{};
}

/** All bytes of the table's region as entries. */
std::vector<uint32_t> table_of(MemoryHost& host) {
    const Header header = header_of(host);
    std::vector<uint32_t> entries(header.table_size / sizeof(uint32_t));
    ChunkTable(entries).load(
        0, ConstBytes(host.files[FVD_FILE_IMAGE]).subspan(header.table_offset, header.table_size));
    return entries;
}

TEST(CreateCompact, NothingIsStored) {
    MemoryHost host;
    ASSERT_TRUE(create_image(host, compact(10 * kMiB)).ok());
    const Header header = header_of(host);
    EXPECT_EQ(header.chunk_size, 64u * 1024);
    EXPECT_EQ(header.storage_grow_unit, 128u * 1024);
    EXPECT_FALSE(header.need_zero_init) << "storage that nobody wrote to is never read";
    EXPECT_TRUE(check_layout(header, host.files[FVD_FILE_IMAGE].size()).ok());
    EXPECT_EQ(table_of(host), std::vector<uint32_t>(1024, kNotStored));
    EXPECT_EQ(host.files[FVD_FILE_IMAGE].size(), header.data_offset);
    EXPECT_TRUE(host.warnings.empty());
}

TEST(CreateCompact, PreallocationStoresChunkNInSlotN) {
    for (const auto mode : {FVD_PREALLOC_METADATA, FVD_PREALLOC_FALLOC, FVD_PREALLOC_FULL}) {
        MemoryHost host;
        fvd_create_options options = compact(2 * kMiB + 512); /* 33 chunks */
        options.preallocation = mode;
        ASSERT_TRUE(create_image(host, options).ok());
        const Header header = header_of(host);
        std::vector<uint32_t> expected(1024, kNotStored);
        for (uint32_t chunk = 0; chunk < 33; ++chunk) {
            expected[chunk] = chunk;
        }
        EXPECT_EQ(table_of(host), expected);
        EXPECT_TRUE(header.need_zero_init);
        EXPECT_EQ(host.files[FVD_FILE_IMAGE].size(), header.data_offset + 33 * header.chunk_size);
    }
}

TEST(CreateCompact, TheTableIsWrittenOnceAndTheHeaderLast) {
    MemoryHost host;
    ASSERT_TRUE(create_image(host, compact(10 * kMiB)).ok());
    const Header header = header_of(host);
    EXPECT_EQ(host.count("write image " + std::to_string(header.table_offset) + "+"), 1u);
    ASSERT_GE(host.log.size(), 2u);
    EXPECT_EQ(host.log[host.log.size() - 2], "write image 0+8192");
    EXPECT_EQ(host.log.back(), "flush image");
}

/* A device: its length is given, and it is full of something. */
class DeviceHost {
  public:
    explicit DeviceHost(uint64_t length) {
        host.files[FVD_FILE_IMAGE].assign(length, std::byte{0xEE});
        host.zero_init = false;
        host.fail_call = "resize";
        host.fail_with = -ENOTSUP;
        host.fail_times = -1;
    }
    MemoryHost host;
};

TEST(CreateCompact, OnADeviceDataIsLeftAlone) {
    DeviceHost device(4 * kMiB);
    ASSERT_TRUE(create_image(device.host, compact(10 * kMiB)).ok());
    const Header header = header_of(device.host);
    EXPECT_EQ(table_of(device.host), std::vector<uint32_t>(1024, kNotStored));
    EXPECT_EQ(device.host.files[FVD_FILE_IMAGE].size(), 4 * kMiB);
    EXPECT_EQ(device.host.files[FVD_FILE_IMAGE][header.journal_offset], std::byte{0});
    EXPECT_EQ(device.host.files[FVD_FILE_IMAGE][header.data_offset], std::byte{0xEE});
}

TEST(CreateCompact, PreallocatedOnADeviceReadsAsZeros) {
    DeviceHost device(4 * kMiB + 512);
    fvd_create_options options = compact(2 * kMiB - 512);
    options.preallocation = FVD_PREALLOC_METADATA;
    ASSERT_TRUE(create_image(device.host, options).ok());
    const Header header = header_of(device.host);
    const auto& bytes = device.host.files[FVD_FILE_IMAGE];
    for (uint64_t i = header.data_offset; i < header.data_offset + 2 * kMiB; ++i) {
        ASSERT_EQ(bytes[i], std::byte{0}) << i;
    }
    EXPECT_EQ(bytes[4 * kMiB], std::byte{0xEE});
}

TEST(CreateCompact, ADeviceTooSmallToPreallocateIsRefused) {
    DeviceHost device(3 * kMiB);
    fvd_create_options options = compact(2 * kMiB);
    options.preallocation = FVD_PREALLOC_METADATA;
    const Error error = create_image(device.host, options);
    EXPECT_EQ(error.code, -ENOTSUP);
    EXPECT_STREQ(error.text,
                 "the image has 3145728 bytes and cannot be made 4194304 bytes long: Operation not "
                 "supported");
    EXPECT_EQ(device.host.count("write image 0"), 0u) << "there must be no image";
}

TEST(CreateCompact, ADataFileGetsItsChunksLater) {
    MemoryHost host;
    host.separate_data = true;
    fvd_create_options options = compact(2 * kMiB);
    options.data_file = "data";
    ASSERT_TRUE(create_image(host, options).ok());
    EXPECT_EQ(host.files[FVD_FILE_DATA].size(), 0u);
    EXPECT_EQ(header_of(host).data_offset, 0u);
    options.preallocation = FVD_PREALLOC_FULL;
    ASSERT_TRUE(create_image(host, options).ok());
    EXPECT_EQ(host.files[FVD_FILE_DATA].size(), 2 * kMiB);
    EXPECT_EQ(table_of(host)[31], 31u);
}

TEST(CreateCompact, ZeroAreasOfTheBaseNeedNoStorage) {
    MemoryHost host;
    host.files[FVD_FILE_BASE].assign(kMiB, std::byte{0});
    host.files[FVD_FILE_BASE][kMiB / 2] = std::byte{1};
    fvd_create_options options = compact(2 * kMiB);
    options.base_img = "base";
    options.base_img_fmt = "raw";
    options.base_size = kMiB;
    options.presets = true;
    options.block_size = 4096;
    ASSERT_TRUE(create_image(host, options).ok());
    const Header header = header_of(host);
    EXPECT_EQ(host.files[FVD_FILE_IMAGE][header.bitmap_offset], std::byte{0xFF});
    EXPECT_EQ(table_of(host), std::vector<uint32_t>(1024, kNotStored));
    EXPECT_FALSE(header.need_zero_init);
}

TEST(CreateCompact, OptionsOfCompactImagesWantOne) {
    for (const bool chunk : {false, true}) {
        MemoryHost host;
        fvd_create_options options = disk(kMiB);
        (chunk ? options.chunk_size : options.storage_grow_unit) = kMiB;
        EXPECT_EQ(create_image(host, options).code, -EINVAL);
        EXPECT_TRUE(host.log.empty());
    }
}

}  // namespace
}  // namespace fvd::testing
