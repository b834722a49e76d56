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

}  // namespace
}  // namespace fvd::testing
