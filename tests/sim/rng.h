/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once
/* Random numbers that are the same on every machine: a seed is a world. */

#include <cstddef>
#include <cstdint>
#include <span>

namespace fvd::sim {

/** One well-mixed number from another (splitmix64's finaliser). */
constexpr uint64_t mix(uint64_t v) {
    v ^= v >> 30;
    v *= 0xbf58476d1ce4e5b9;
    v ^= v >> 27;
    v *= 0x94d049bb133111eb;
    return v ^ (v >> 31);
}
constexpr uint64_t mix(uint64_t a, uint64_t b) {
    return mix(a * 0x9e3779b97f4a7c15 + mix(b));
}

class Rng {
  public:
    explicit Rng(uint64_t seed) : state_(mix(seed + 0x9e3779b97f4a7c15)) {}
    uint64_t next() { return mix(state_ += 0x9e3779b97f4a7c15); }
    /** 0 <= result < bound; bound > 0. */
    uint64_t below(uint64_t bound) { return next() % bound; }
    /** begin <= result <= end. */
    uint64_t between(uint64_t begin, uint64_t end) { return begin + below(end - begin + 1); }
    bool chance(uint64_t percent) { return below(100) < percent; }
    template <typename T, size_t N>
    const T& pick(const T (&from)[N]) {
        return from[below(N)];
    }
    /** A stream of its own, so that drawing more here changes nothing there. */
    Rng fork(uint64_t name) { return Rng(mix(next(), name)); }

  private:
    uint64_t state_;
};

}  // namespace fvd::sim
