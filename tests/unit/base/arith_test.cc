/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "fvd/base/arith.h"

#include <gtest/gtest.h>

namespace fvd {
namespace {

constexpr uint64_t kMax = UINT64_MAX;

TEST(CheckedAdd, KeepsWhatFits) {
    EXPECT_EQ(checked_add(0, 0), 0u);
    EXPECT_EQ(checked_add(kMax - 1, 1), kMax);
    EXPECT_EQ(checked_add(kMax, 0), kMax);
    EXPECT_EQ(checked_add(uint64_t{1} << 63, (uint64_t{1} << 63) - 1), kMax);
}

TEST(CheckedAdd, RefusesWhatDoesNot) {
    EXPECT_EQ(checked_add(kMax, 1), std::nullopt);
    EXPECT_EQ(checked_add(1, kMax), std::nullopt);
    EXPECT_EQ(checked_add(uint64_t{1} << 63, uint64_t{1} << 63), std::nullopt);
    EXPECT_EQ(checked_add(kMax, kMax), std::nullopt);
}

TEST(CheckedMul, KeepsWhatFits) {
    EXPECT_EQ(checked_mul(0, kMax), 0u);
    EXPECT_EQ(checked_mul(kMax, 1), kMax);
    EXPECT_EQ(checked_mul(uint64_t{1} << 32, uint64_t{1} << 31), uint64_t{1} << 63);
    EXPECT_EQ(checked_mul(kMax / 3, 3), kMax);
}

TEST(CheckedMul, RefusesWhatDoesNot) {
    EXPECT_EQ(checked_mul(uint64_t{1} << 32, uint64_t{1} << 32), std::nullopt);
    EXPECT_EQ(checked_mul(kMax, 2), std::nullopt);
    EXPECT_EQ(checked_mul(kMax / 3 + 1, 3), std::nullopt);
}

TEST(PowerOfTwo, ExactlyTheSixtyFour) {
    EXPECT_FALSE(is_power_of_two(0));
    for (unsigned shift = 0; shift < 64; ++shift) {
        const uint64_t power = uint64_t{1} << shift;
        EXPECT_TRUE(is_power_of_two(power));
        EXPECT_EQ(is_power_of_two(power + 1), power == 1) << power;
        EXPECT_EQ(is_power_of_two(power - 1), power == 2) << power;
    }
}

TEST(DivCeil, RoundsUpWithoutOverflow) {
    EXPECT_EQ(div_ceil(0, 1), 0u);
    EXPECT_EQ(div_ceil(0, kMax), 0u);
    EXPECT_EQ(div_ceil(1, kMax), 1u);
    EXPECT_EQ(div_ceil(kMax, kMax), 1u);
    EXPECT_EQ(div_ceil(kMax, 1), kMax);
    EXPECT_EQ(div_ceil(kMax, 2), uint64_t{1} << 63);
}

TEST(Rounding, SmallNumbersExhaustively) {
    for (uint64_t unit = 1; unit <= 40; ++unit) {
        for (uint64_t value = 0; value <= 200; ++value) {
            const uint64_t down = round_down(value, unit);
            const uint64_t up = round_up(value, unit);
            EXPECT_EQ(down % unit, 0u);
            EXPECT_EQ(up % unit, 0u);
            EXPECT_TRUE(down <= value && value - down < unit);
            EXPECT_TRUE(up >= value && up - value < unit);
            EXPECT_EQ(checked_round_up(value, unit), up);
            EXPECT_EQ(div_ceil(value, unit), up / unit);
        }
    }
}

TEST(CheckedRoundUp, RefusesToWrap) {
    EXPECT_EQ(checked_round_up(kMax, 1), kMax);
    EXPECT_EQ(checked_round_up(kMax - 511, 512), kMax - 511);
    EXPECT_EQ(checked_round_up(kMax - 510, 512), std::nullopt);
    EXPECT_EQ(checked_round_up(kMax, 512), std::nullopt);
}

}  // namespace
}  // namespace fvd
