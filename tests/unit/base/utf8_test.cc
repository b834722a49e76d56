/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "fvd/base/utf8.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <string>

namespace fvd {
namespace {

using std::string_view_literals::operator""sv;

/** The encoding of any number below 2^21 in @p length bytes, legal or not. */
std::string encode(uint32_t code, size_t length) {
    if (length == 1) {
        return {static_cast<char>(code)};
    }
    std::string bytes(length, '\0');
    for (size_t i = length - 1; i > 0; --i) {
        bytes[i] = static_cast<char>(0x80 | (code & 0x3F));
        code >>= 6;
    }
    const uint32_t marker = 0xF00u >> length & 0xFF;
    bytes[0] = static_cast<char>(marker | code);
    return bytes;
}

size_t shortest(uint32_t code) {
    return code < 0x80 ? 1 : code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
}

bool should_be_plain(uint32_t code) {
    return code >= 0x20 && !(code >= 0x7F && code <= 0x9F) && !(code >= 0xD800 && code <= 0xDFFF) &&
           code <= 0x10FFFF;
}

TEST(Utf8, TakesPlainText) {
    EXPECT_EQ(first_bad_utf8(""), std::nullopt);
    EXPECT_EQ(first_bad_utf8("/srv/images/base.raw"), std::nullopt);
    EXPECT_EQ(first_bad_utf8("Größe 一 \U0001F4BE"), std::nullopt);
}

TEST(Utf8, EveryCodePointInItsShortestForm) {
    for (uint32_t code = 0; code < 0x200000; ++code) {
        const auto bad = first_bad_utf8(encode(code, shortest(code)));
        ASSERT_EQ(!bad.has_value(), should_be_plain(code)) << std::hex << code;
    }
}

TEST(Utf8, NoCodePointInALongerForm) {
    for (uint32_t code = 0; code < 0x10000; ++code) {
        for (size_t length = shortest(code) + 1; length <= 4; ++length) {
            ASSERT_EQ(first_bad_utf8(encode(code, length)), 0u) << std::hex << code;
        }
    }
}

TEST(Utf8, NamesTheFirstBadByte) {
    EXPECT_EQ(first_bad_utf8("ab\ncd"), 2u);
    EXPECT_EQ(first_bad_utf8("ab\x1B[2J"), 2u);
    EXPECT_EQ(first_bad_utf8("a\x7F"), 1u);
    EXPECT_EQ(first_bad_utf8("a\0b"sv), 1u);
    EXPECT_EQ(first_bad_utf8("\xC3\xA4\xFF"), 2u);
    EXPECT_EQ(first_bad_utf8("\xC3\xA4\x80"), 2u);
}

TEST(Utf8, ASequenceMustBeWhole) {
    for (size_t length = 2; length <= 4; ++length) {
        const uint32_t code = length == 2 ? 0xE4 : length == 3 ? 0x4E00 : 0x1F4BE;
        const std::string whole = encode(code, length);
        EXPECT_EQ(first_bad_utf8(whole), std::nullopt);
        for (size_t cut = 1; cut < length; ++cut) {
            EXPECT_EQ(first_bad_utf8(whole.substr(0, cut)), 0u);
            EXPECT_EQ(first_bad_utf8("x" + whole.substr(0, cut) + "xxxx"), 1u);
        }
    }
}

TEST(Utf8, NoByteFromF8UpStartsASequence) {
    for (int byte = 0xF8; byte <= 0xFF; ++byte) {
        EXPECT_EQ(first_bad_utf8(std::string(1, static_cast<char>(byte)) + "\x80\x80\x80\x80"), 0u);
    }
}

}  // namespace
}  // namespace fvd
