/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once
/*
 * Hashes of contents, so that equal crash states are recognised and looked at once. The hash of a
 * disk is the sum over its write units, so changing one unit changes it in constant time. A unit of
 * zeros counts nothing: a sparse disk costs what is written to it.
 */

#include <cstdint>
#include <cstring>
#include <vector>

#include "fvd/base/bytes.h"
#include "rng.h"

namespace fvd::sim {

inline uint64_t content_hash(const std::byte* bytes, size_t length) {
    uint64_t lane[4] = {1, 2, 3, 4};
    uint64_t any = 0;
    for (size_t i = 0; i + 32 <= length; i += 32) {
        uint64_t word[4];
        std::memcpy(word, bytes + i, 32);
        for (int k = 0; k < 4; k++) {
            any |= word[k];
            lane[k] = (lane[k] ^ word[k]) * 0x9e3779b97f4a7c15;
            lane[k] ^= lane[k] >> 29;
        }
    }
    return any == 0 ? 0 : mix(mix(lane[0], lane[1]), mix(lane[2], lane[3])) | 1;
}

/** What one unit adds to the hash of its world. */
inline uint64_t unit_share(unsigned disk, uint64_t unit, uint64_t hash) {
    return hash == 0 ? 0 : mix(hash, unit * 4 + disk);
}

/** A set of 64-bit numbers that only grows: open addressing, nothing else. */
class HashSet {
  public:
    HashSet() { clear(); }
    void clear() {
        slots_.assign(1024, 0);
        count_ = 0;
    }
    uint64_t size() const { return count_; }
    /** True when @p value was not there. */
    bool insert(uint64_t value) {
        value = value == 0 ? 1 : value;
        if (count_ * 2 >= slots_.size()) {
            grow();
        }
        uint64_t& slot = find(value);
        if (slot == value) {
            return false;
        }
        slot = value;
        count_++;
        return true;
    }

  private:
    uint64_t& find(uint64_t value) {
        const size_t mask = slots_.size() - 1;
        size_t i = mix(value) & mask;
        while (slots_[i] != 0 && slots_[i] != value) {
            i = (i + 1) & mask;
        }
        return slots_[i];
    }
    void grow() {
        std::vector<uint64_t> old(slots_.size() * 2, 0);
        old.swap(slots_);
        for (const uint64_t value : old) {
            if (value != 0) {
                find(value) = value;
            }
        }
    }
    std::vector<uint64_t> slots_;
    uint64_t count_ = 0;
};

}  // namespace fvd::sim
