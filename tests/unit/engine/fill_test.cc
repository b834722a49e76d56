/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Copy-on-read and prefetch, in a world for one task. */
#include <gtest/gtest.h>

#include <cstring>
#include <memory>

#include "engine/memory_host.h"
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

}  // namespace
}  // namespace fvd::testing
