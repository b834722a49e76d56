/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once
/*
 * Little-endian access at a byte offset. Fields of the 2011 header are misaligned, so every access
 * goes through memcpy and byte order is handled in this one place. Offsets are asserted: they are
 * constants of the format or were proven by a decoder.
 */

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include "fvd/base/assert.h"

namespace fvd {

using ConstBytes = std::span<const std::byte>;
using MutableBytes = std::span<std::byte>;

template <typename T>
constexpr T little_endian(T v) {
    if constexpr (std::endian::native == std::endian::little || sizeof(T) == 1) {
        return v;
    } else if constexpr (sizeof(T) == 2) {
        return static_cast<T>(__builtin_bswap16(v));
    } else if constexpr (sizeof(T) == 4) {
        return static_cast<T>(__builtin_bswap32(v));
    } else {
        return static_cast<T>(__builtin_bswap64(v));
    }
}

template <typename T>
T load_le(ConstBytes bytes, size_t offset) {
    FVD_ASSERT(offset <= bytes.size() && bytes.size() - offset >= sizeof(T));
    T v;
    std::memcpy(&v, bytes.data() + offset, sizeof(T));
    return little_endian(v);
}

template <typename T>
void store_le(MutableBytes bytes, size_t offset, T v) {
    FVD_ASSERT(offset <= bytes.size() && bytes.size() - offset >= sizeof(T));
    v = little_endian(v);
    std::memcpy(bytes.data() + offset, &v, sizeof(T));
}

/** Nothing but zeros; true of no bytes at all. */
inline bool all_zero(ConstBytes bytes) {
    return bytes.empty() || (bytes[0] == std::byte{0} &&
                             std::memcmp(bytes.data(), bytes.data() + 1, bytes.size() - 1) == 0);
}

}  // namespace fvd
