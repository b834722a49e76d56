/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once
/*
 * Contents that say who wrote them and where. A cell (512 bytes, or less where requests may be that
 * small) is filled with words that step by a constant from a first one, and the first one can be
 * undone into the number of the value and the number of the cell: any mixture, shift or invention
 * shows.
 */

#include <cstdint>
#include <cstring>
#include <optional>

#include "fvd/base/bytes.h"

namespace fvd::sim {

/** Value of a cell: 0 reads as zeros, others are numbers of guest writes or of the plants below. */
using Value = uint32_t;
inline constexpr Value kZero = 0;
inline constexpr Value kBase = 0xF0000001; /* the base image's own content */
inline constexpr Value kTrap =
    0xF0000002; /* old bytes under blocks that nobody wrote: never seen */
inline constexpr Value kAlien = 0xFFFFFFFF; /* not a content this world ever made */

namespace stamp {

inline constexpr uint64_t kOdd = 0x9E3779B97F4A7C15;
inline constexpr uint64_t kOddInverse = 0xF1DE83E19937733D;
inline constexpr uint64_t kStep = 0x0123456789ABCDEF;
static_assert(kOdd * kOddInverse == 1);

/** Fill one cell. */
inline void fill(std::byte* cell_bytes, size_t cell_size, Value value, uint64_t cell) {
    if (value == kZero) {
        std::memset(cell_bytes, 0, cell_size);
        return;
    }
    uint64_t word = ((uint64_t{value} << 32) | (cell + 1)) * kOdd;
    for (size_t i = 0; i < cell_size; i += 8) {
        std::memcpy(cell_bytes + i, &word, 8);
        word += kStep;
    }
}

/** Who wrote this cell; kAlien when it is not a whole stamp of this very cell. */
inline Value read(const std::byte* cell_bytes, size_t cell_size, uint64_t cell) {
    uint64_t first;
    std::memcpy(&first, cell_bytes, 8);
    const bool zero = first == 0;
    const uint64_t step = zero ? 0 : kStep;
    uint64_t differs = 0;
    for (size_t i = 8; i < cell_size; i += 8) {
        uint64_t word;
        std::memcpy(&word, cell_bytes + i, 8);
        differs |= word ^ (first + step * (i / 8));
    }
    if (differs != 0) {
        return kAlien;
    }
    if (zero) {
        return kZero;
    }
    const uint64_t undone = first * kOddInverse;
    return static_cast<uint32_t>(undone) == cell + 1 ? static_cast<Value>(undone >> 32) : kAlien;
}

}  // namespace stamp
}  // namespace fvd::sim
