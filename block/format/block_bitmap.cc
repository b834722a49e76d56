/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "fvd/format/block_bitmap.h"

#include <algorithm>
#include <bit>

namespace fvd {

namespace {

constexpr uint64_t kWordBits = 64;
constexpr size_t kWordBytes = sizeof(uint64_t);

/** Bits [begin, end) of one word; begin < end <= 64. */
constexpr uint64_t word_mask(uint64_t begin, uint64_t end) {
    return (~uint64_t{0} << begin) & (~uint64_t{0} >> (kWordBits - end));
}

/** Calls step(word index, mask of the range's bits in it) for each word; stops where it is false.
 */
template <typename Step>
bool for_each_word(uint64_t begin, uint64_t end, Step step) {
    while (begin < end) {
        const uint64_t index = begin / kWordBits;
        const uint64_t first = begin % kWordBits;
        const uint64_t last = std::min(kWordBits, first + (end - begin));
        if (!step(index, word_mask(first, last))) {
            return false;
        }
        begin += last - first;
    }
    return true;
}

}  // namespace

BlockBitmap::BlockBitmap(std::span<uint64_t> words, uint64_t bits) : words_(words), bits_(bits) {
    FVD_ASSERT(words.size() >= bits_to_words(bits));
}

uint64_t BlockBitmap::word(uint64_t index) const {
    FVD_ASSERT(index < words());
    return std::atomic_ref<uint64_t>(words_[index]).load(std::memory_order_acquire);
}

bool BlockBitmap::test(uint64_t bit) const {
    FVD_ASSERT(bit < bits_);
    return (word(bit / kWordBits) >> (bit % kWordBits) & 1) != 0;
}

bool BlockBitmap::all_set(uint64_t begin, uint64_t end) const {
    FVD_ASSERT(begin <= end && end <= bits_);
    return for_each_word(
        begin, end, [this](uint64_t index, uint64_t mask) { return (word(index) & mask) == mask; });
}

bool BlockBitmap::any_set(uint64_t begin, uint64_t end) const {
    FVD_ASSERT(begin <= end && end <= bits_);
    return !for_each_word(
        begin, end, [this](uint64_t index, uint64_t mask) { return (word(index) & mask) == 0; });
}

uint64_t BlockBitmap::run_end(uint64_t begin, uint64_t end) const {
    return run_end(begin, end, test(begin));
}

uint64_t BlockBitmap::run_end(uint64_t begin, uint64_t end, bool value) const {
    FVD_ASSERT(begin < end && end <= bits_);
    const uint64_t flip = value ? ~uint64_t{0} : 0;
    uint64_t found = end;
    for_each_word(begin, end, [&](uint64_t index, uint64_t mask) {
        const uint64_t differs = (word(index) ^ flip) & mask;
        if (differs == 0) {
            return true;
        }
        found = index * kWordBits + static_cast<uint64_t>(std::countr_zero(differs));
        return false;
    });
    /* Another thread may have changed the first bit since it was looked at. */
    return std::max(found, begin + 1);
}

void BlockBitmap::set(uint64_t begin, uint64_t end) {
    FVD_ASSERT(begin <= end && end <= bits_);
    for_each_word(begin, end, [this](uint64_t index, uint64_t mask) {
        std::atomic_ref<uint64_t>(words_[index]).fetch_or(mask, std::memory_order_release);
        return true;
    });
}

void BlockBitmap::clear(uint64_t begin, uint64_t end) {
    FVD_ASSERT(begin <= end && end <= bits_);
    for_each_word(begin, end, [this](uint64_t index, uint64_t mask) {
        std::atomic_ref<uint64_t>(words_[index]).fetch_and(~mask, std::memory_order_release);
        return true;
    });
}

uint64_t BlockBitmap::count(uint64_t begin, uint64_t end) const {
    FVD_ASSERT(begin <= end && end <= bits_);
    uint64_t total = 0;
    for_each_word(begin, end, [&](uint64_t index, uint64_t mask) {
        total += static_cast<uint64_t>(std::popcount(word(index) & mask));
        return true;
    });
    return total;
}

void BlockBitmap::load(uint64_t byte_offset, ConstBytes from) {
    FVD_ASSERT(byte_offset % kWordBytes == 0 && from.size() % kWordBytes == 0);
    const uint64_t first = byte_offset / kWordBytes;
    for (uint64_t i = 0; i < from.size() / kWordBytes && first + i < words(); ++i) {
        const uint64_t begin = (first + i) * kWordBits;
        const uint64_t mask = word_mask(0, std::min(kWordBits, bits_ - begin));
        const uint64_t value = load_le<uint64_t>(from, i * kWordBytes) & mask;
        std::atomic_ref<uint64_t>(words_[first + i]).store(value, std::memory_order_release);
    }
}

void BlockBitmap::store(uint64_t byte_offset, MutableBytes to) const {
    FVD_ASSERT(byte_offset % kWordBytes == 0 && to.size() % kWordBytes == 0);
    const uint64_t first = byte_offset / kWordBytes;
    for (uint64_t i = 0; i < to.size() / kWordBytes; ++i) {
        const bool exists = first + i < words();
        store_le<uint64_t>(to, i * kWordBytes, exists ? word(first + i) : 0);
    }
}

}  // namespace fvd
