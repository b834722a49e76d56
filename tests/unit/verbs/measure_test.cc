/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <gtest/gtest.h>

#include <cerrno>

#include "engine/memory_host.h"
#include "fvd/verbs.h"

namespace fvd::testing {
namespace {

constexpr uint64_t kMiB = 1024 * 1024;

fvd_create_options disk(uint64_t size) {
    fvd_create_options options{};
    options.virtual_size = size;
    return options;
}

uint64_t measured(const fvd_create_options& options) {
    fvd_measure_result result{};
    const Error error = measure_image(options, 0, &result);
    EXPECT_TRUE(error.ok()) << error.text;
    EXPECT_EQ(result.required, result.fully_allocated);
    return result.required;
}

TEST(Measure, IsTheLengthThatCreateMakes) {
    for (const uint64_t size : {uint64_t{0}, uint64_t{512}, kMiB, 9 * kMiB + 512}) {
        for (const bool over_base : {false, true}) {
            for (const bool data_file : {false, true}) {
                fvd_create_options options = disk(size);
                options.base_img = over_base ? "base" : nullptr;
                options.base_img_fmt = over_base ? "raw" : nullptr;
                options.data_file = data_file ? "data" : nullptr;
                MemoryHost host;
                host.separate_data = data_file;
                const Error error = create_image(host, options);
                ASSERT_TRUE(error.ok()) << error.text;
                EXPECT_EQ(measured(options), host.files[FVD_FILE_IMAGE].size())
                    << size << over_base << data_file;
            }
        }
    }
}

TEST(Measure, WithoutBaseIsDiskAndHeader) {
    EXPECT_EQ(measured(disk(1024 * kMiB)), 1025 * kMiB);
}

TEST(Measure, AWrongOptionIsNamed) {
    fvd_create_options options = disk(kMiB);
    options.block_size = 513;
    fvd_measure_result result{};
    const Error error = measure_image(options, 0, &result);
    EXPECT_EQ(error.code, -EINVAL);
    EXPECT_STREQ(error.text,
                 "block_size is 513 bytes; must be a multiple of 512 between 512 and 2097152");
}

/* ------------------------------------------------------------------ compact images */

fvd_create_options compact(uint64_t size) {
    fvd_create_options options = disk(size);
    options.compact_image = true;
    options.storage_grow_unit = 4 * kMiB;
    options.journal_size = kMiB;
    return options;
}

TEST(MeasureCompact, CountsChunksInWholeSteps) {
    const fvd_create_options options = compact(10 * kMiB + 512); /* eleven chunks */
    const uint64_t head = 2 * kMiB;
    const std::pair<uint64_t, uint64_t> cases[] = {
        {0, head},
        {1, head + 4 * kMiB},
        {4 * kMiB, head + 4 * kMiB},
        {4 * kMiB + 1, head + 8 * kMiB},
        {9 * kMiB, head + 11 * kMiB},
        {10 * kMiB + 512, head + 11 * kMiB},
        {UINT64_MAX, head + 11 * kMiB},
    };
    for (const auto& [data, expected] : cases) {
        fvd_measure_result result{};
        ASSERT_TRUE(measure_image(options, data, &result).ok());
        EXPECT_EQ(result.required, expected) << data;
        EXPECT_EQ(result.fully_allocated, head + 11 * kMiB);
        EXPECT_EQ(result.granularity, kMiB);
    }
}

TEST(MeasureCompact, PreallocatedIsFull) {
    for (const auto mode : {FVD_PREALLOC_METADATA, FVD_PREALLOC_FALLOC, FVD_PREALLOC_FULL}) {
        fvd_create_options options = compact(10 * kMiB + 512);
        options.preallocation = mode;
        EXPECT_EQ(measured(options), 13 * kMiB);
    }
}

TEST(MeasureCompact, ADataFileHoldsTheChunks) {
    fvd_create_options options = compact(10 * kMiB);
    options.data_file = "data";
    EXPECT_EQ(measured(options), 12 * 1024 + kMiB);
}

TEST(MeasureCompact, IsTheLengthThatCreateMakes) {
    for (const uint64_t size : {uint64_t{0}, uint64_t{512}, kMiB, 9 * kMiB + 512}) {
        for (const auto mode : {FVD_PREALLOC_OFF, FVD_PREALLOC_METADATA, FVD_PREALLOC_FULL}) {
            for (const bool data_file : {false, true}) {
                fvd_create_options options = compact(size);
                options.preallocation = mode;
                options.data_file = data_file ? "data" : nullptr;
                MemoryHost host;
                host.separate_data = data_file;
                ASSERT_TRUE(create_image(host, options).ok());
                fvd_measure_result result{};
                ASSERT_TRUE(measure_image(options, 0, &result).ok());
                EXPECT_EQ(result.required, host.files[FVD_FILE_IMAGE].size()) << size << mode;
            }
        }
    }
}

}  // namespace
}  // namespace fvd::testing
