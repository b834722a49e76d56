/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "fvd/base/bytes.h"

#include <gtest/gtest.h>

#include <array>

namespace fvd {
namespace {

std::array<std::byte, 16> counting_bytes() {
    std::array<std::byte, 16> bytes;
    for (size_t i = 0; i < bytes.size(); ++i) {
        bytes[i] = static_cast<std::byte>(0xF0 + i);
    }
    return bytes;
}

TEST(Bytes, LoadsLittleEndianAtAnyOffset) {
    const auto bytes = counting_bytes();
    EXPECT_EQ(load_le<uint8_t>(bytes, 3), 0xF3);
    EXPECT_EQ(load_le<uint16_t>(bytes, 1), 0xF2F1);
    EXPECT_EQ(load_le<uint32_t>(bytes, 3), 0xF6F5F4F3u);
    EXPECT_EQ(load_le<uint64_t>(bytes, 5), 0xFCFBFAF9F8F7F6F5u);
    EXPECT_EQ(load_le<int64_t>(bytes, 5), static_cast<int64_t>(0xFCFBFAF9F8F7F6F5u));
}

TEST(Bytes, StoresTouchNothingElse) {
    for (size_t offset = 0; offset + 8 <= 16; ++offset) {
        auto bytes = counting_bytes();
        store_le<uint64_t>(bytes, offset, 0x0807060504030201u);
        const auto before = counting_bytes();
        for (size_t i = 0; i < bytes.size(); ++i) {
            const bool inside = i >= offset && i < offset + 8;
            EXPECT_EQ(bytes[i], inside ? static_cast<std::byte>(i - offset + 1) : before[i]);
        }
    }
}

TEST(Bytes, LoadsWhatWasStored) {
    std::array<std::byte, 16> bytes{};
    for (const uint64_t value : {uint64_t{0}, uint64_t{1}, UINT64_MAX, uint64_t{1} << 63}) {
        store_le<uint64_t>(bytes, 7, value);
        EXPECT_EQ(load_le<uint64_t>(bytes, 7), value);
    }
    store_le<int64_t>(bytes, 1, -1);
    EXPECT_EQ(load_le<int64_t>(bytes, 1), -1);
}

TEST(BytesDeathTest, AnOffsetOutsideIsAsserted) {
    std::array<std::byte, 16> bytes{};
    EXPECT_DEATH((void)load_le<uint64_t>(bytes, 9), "assertion failed");
    EXPECT_DEATH((void)load_le<uint8_t>(bytes, 16), "assertion failed");
    EXPECT_DEATH((void)load_le<uint32_t>(bytes, SIZE_MAX), "assertion failed");
    EXPECT_DEATH(store_le<uint16_t>(bytes, 15, 1), "assertion failed");
}

}  // namespace
}  // namespace fvd
