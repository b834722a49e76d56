/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "fvd/base/crc32c.h"

#include <gtest/gtest.h>

#include <string_view>
#include <vector>

namespace fvd {
namespace {

ConstBytes bytes_of(std::string_view text) {
    return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

/** Bit by bit, straight from the polynomial: nothing in common with the library. */
uint32_t slow_crc32c(ConstBytes bytes) {
    uint32_t crc = ~uint32_t{0};
    for (const std::byte byte : bytes) {
        crc ^= static_cast<uint32_t>(byte);
        for (int bit = 0; bit < 8; ++bit) {
            crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0x82F63B78u : 0u);
        }
    }
    return ~crc;
}

TEST(Crc32c, CheckValueOfTheCatalogue) {
    EXPECT_EQ(crc32c(bytes_of("123456789")), 0xE3069283u);
    EXPECT_EQ(crc32c({}), 0u);
}

TEST(Crc32c, VectorsOfRfc3720) {
    std::vector<std::byte> bytes(32, std::byte{0});
    EXPECT_EQ(crc32c(bytes), 0x8A9136AAu);
    bytes.assign(32, std::byte{0xFF});
    EXPECT_EQ(crc32c(bytes), 0x62A8AB43u);
    for (size_t i = 0; i < 32; ++i) {
        bytes[i] = static_cast<std::byte>(i);
    }
    EXPECT_EQ(crc32c(bytes), 0x46DD794Eu);
    for (size_t i = 0; i < 32; ++i) {
        bytes[i] = static_cast<std::byte>(31 - i);
    }
    EXPECT_EQ(crc32c(bytes), 0x113FDB5Cu);
}

TEST(Crc32c, AgreesWithTheDefinitionAtEveryLengthAndAlignment) {
    std::vector<std::byte> bytes(700);
    for (size_t i = 0; i < bytes.size(); ++i) {
        bytes[i] = static_cast<std::byte>(i * 167 + i / 7);
    }
    for (size_t start = 0; start < 9; ++start) {
        for (size_t length = 0; length <= 600; length += 1 + length / 40) {
            const ConstBytes piece = ConstBytes(bytes).subspan(start, length);
            ASSERT_EQ(crc32c(piece), slow_crc32c(piece)) << start << " " << length;
        }
    }
}

TEST(Crc32c, ContinuesWhereItStopped) {
    const ConstBytes all = bytes_of("the quick brown fox jumps over the lazy dog");
    for (size_t cut = 0; cut <= all.size(); ++cut) {
        EXPECT_EQ(crc32c(all.subspan(cut), crc32c(all.first(cut))), crc32c(all));
    }
}

}  // namespace
}  // namespace fvd
