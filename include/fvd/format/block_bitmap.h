/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once
/*
 * A view of a bitmap in memory: bit i of word i/64, least significant first, so that on disk
 * (little endian words) it is bit i%8 of byte i/8. Readers and writers on different threads need no
 * lock: words are accessed atomically; setting is a release, testing an acquire, so whoever sees a
 * bit sees the data that was stored before it.
 */

#include <atomic>
#include <cstdint>
#include <span>

#include "fvd/base/bytes.h"
#include "fvd/base/units.h"

namespace fvd {

class BlockBitmap {
  public:
    BlockBitmap() = default;
    /** @p words holds at least bits_to_words(bits) words; the view does not own them. */
    BlockBitmap(std::span<uint64_t> words, uint64_t bits);

    static constexpr uint64_t bits_to_words(uint64_t bits) { return bits / 64 + (bits % 64 != 0); }

    uint64_t bits() const { return bits_; }
    bool test(uint64_t bit) const;
    /** True when every bit of [begin, end) is set; true for an empty range. */
    bool all_set(uint64_t begin, uint64_t end) const;
    /** True when any bit of [begin, end) is set. */
    bool any_set(uint64_t begin, uint64_t end) const;
    /** End of the run of equal bits that starts at @p begin, at most @p end. begin < end. */
    uint64_t run_end(uint64_t begin, uint64_t end) const;
    /** The same for a caller who has already looked at the first bit and saw @p value: however
     * other threads change it meanwhile, the run is one of that value, at least one bit long. */
    uint64_t run_end(uint64_t begin, uint64_t end, bool value) const;
    void set(uint64_t begin, uint64_t end);
    void clear(uint64_t begin, uint64_t end);
    uint64_t count() const { return count(0, bits_); }
    /** Of [begin, end). */
    uint64_t count(uint64_t begin, uint64_t end) const;

    uint64_t word(uint64_t index) const;
    /** Whole words, e.g. to compare two bitmaps quickly. */
    uint64_t words() const { return bits_to_words(bits_); }

    /** Copy bytes of the on-disk form in or out; @p byte_offset and the size are multiples of 8.
     * Bits past bits() are ignored on the way in and zero on the way out. */
    void load(uint64_t byte_offset, ConstBytes from);
    void store(uint64_t byte_offset, MutableBytes to) const;

  private:
    std::span<uint64_t> words_;
    uint64_t bits_ = 0;
};

}  // namespace fvd
