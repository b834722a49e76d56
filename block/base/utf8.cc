/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "fvd/base/utf8.h"

#include <cstdint>

namespace fvd {

namespace {

struct Lead {
    size_t length = 0;  /* bytes of the sequence; 0: not a lead byte */
    uint32_t bits = 0;  /* payload of the lead byte */
    uint32_t least = 0; /* smallest code point that needs this many bytes */
};

Lead read_lead(uint8_t byte) {
    if (byte < 0x80) {
        return {1, byte, 0};
    }
    if (byte >= 0xC0 && byte < 0xE0) {
        return {2, byte & 0x1Fu, 0x80};
    }
    if (byte >= 0xE0 && byte < 0xF0) {
        return {3, byte & 0x0Fu, 0x800};
    }
    if (byte >= 0xF0 && byte < 0xF8) {
        return {4, byte & 0x07u, 0x10000};
    }
    return {};
}

bool is_plain(uint32_t code) {
    const bool control = code < 0x20 || (code >= 0x7F && code < 0xA0);
    const bool surrogate = code >= 0xD800 && code < 0xE000;
    return !control && !surrogate && code <= 0x10FFFF;
}

}  // namespace

std::optional<size_t> first_bad_utf8(std::string_view text) {
    size_t at = 0;
    while (at < text.size()) {
        const Lead lead = read_lead(static_cast<uint8_t>(text[at]));
        if (lead.length == 0 || text.size() - at < lead.length) {
            return at;
        }
        uint32_t code = lead.bits;
        for (size_t i = 1; i < lead.length; ++i) {
            const auto byte = static_cast<uint8_t>(text[at + i]);
            if ((byte & 0xC0) != 0x80) {
                return at;
            }
            code = code << 6 | (byte & 0x3Fu);
        }
        if (code < lead.least || !is_plain(code)) {
            return at;
        }
        at += lead.length;
    }
    return std::nullopt;
}

}  // namespace fvd
