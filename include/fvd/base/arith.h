/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once
/* Arithmetic on numbers that came from a file: overflow is an answer, not an accident. */

#include <cstdint>
#include <optional>

namespace fvd {

constexpr std::optional<uint64_t> checked_add(uint64_t a, uint64_t b) {
    uint64_t sum = 0;
    if (__builtin_add_overflow(a, b, &sum)) {
        return std::nullopt;
    }
    return sum;
}

constexpr std::optional<uint64_t> checked_mul(uint64_t a, uint64_t b) {
    uint64_t product = 0;
    if (__builtin_mul_overflow(a, b, &product)) {
        return std::nullopt;
    }
    return product;
}

constexpr bool is_power_of_two(uint64_t v) {
    return v != 0 && (v & (v - 1)) == 0;
}

/** Quotient rounded up; divisor > 0. Cannot overflow. */
constexpr uint64_t div_ceil(uint64_t a, uint64_t b) {
    return a / b + (a % b != 0);
}

/** Round down to a multiple of unit > 0 (any unit, not only powers of two). */
constexpr uint64_t round_down(uint64_t a, uint64_t unit) {
    return a - a % unit;
}

/** Round up to a multiple of unit > 0; nullopt where the result does not fit. */
constexpr std::optional<uint64_t> checked_round_up(uint64_t a, uint64_t unit) {
    const uint64_t rest = a % unit;
    return rest == 0 ? std::optional<uint64_t>(a) : checked_add(a, unit - rest);
}

/** Round up where the caller knows that the result fits. */
constexpr uint64_t round_up(uint64_t a, uint64_t unit) {
    return div_ceil(a, unit) * unit;
}

}  // namespace fvd
