/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "fvd/format/block_bitmap.h"

#include <gtest/gtest.h>

#include <random>
#include <thread>
#include <vector>

namespace fvd {
namespace {

/** A bitmap beside the same bits in the plainest form there is. */
class Twin {
  public:
    explicit Twin(uint64_t bits)
        : words_(BlockBitmap::bits_to_words(bits)), view_(words_, bits), plain_(bits) {}

    BlockBitmap& view() { return view_; }
    void set(uint64_t begin, uint64_t end) { change(begin, end, true); }
    void clear(uint64_t begin, uint64_t end) { change(begin, end, false); }
    void fill(uint64_t pattern) {
        for (uint64_t i = 0; i < plain_.size(); ++i) {
            change(i, i + 1, (pattern >> i % 64 & 1) != 0);
        }
    }
    bool all(uint64_t begin, uint64_t end) const {
        for (uint64_t i = begin; i < end; ++i) {
            if (!plain_[i]) {
                return false;
            }
        }
        return true;
    }
    bool any(uint64_t begin, uint64_t end) const {
        for (uint64_t i = begin; i < end; ++i) {
            if (plain_[i]) {
                return true;
            }
        }
        return false;
    }
    uint64_t run_end(uint64_t begin, uint64_t end) const {
        uint64_t i = begin;
        while (i < end && plain_[i] == plain_[begin]) {
            ++i;
        }
        return i;
    }
    bool same() const {
        uint64_t count = 0;
        for (uint64_t i = 0; i < plain_.size(); ++i) {
            count += plain_[i];
            if (view_.test(i) != plain_[i]) {
                return false;
            }
        }
        return count == view_.count();
    }

  private:
    void change(uint64_t begin, uint64_t end, bool value) {
        std::fill(plain_.begin() + static_cast<std::ptrdiff_t>(begin),
                  plain_.begin() + static_cast<std::ptrdiff_t>(end), value);
        value ? view_.set(begin, end) : view_.clear(begin, end);
    }

    std::vector<uint64_t> words_;
    BlockBitmap view_;
    std::vector<bool> plain_;
};

std::vector<uint64_t> patterns() {
    std::vector<uint64_t> list = {0, UINT64_MAX, 0xAAAAAAAAAAAAAAAA, 0x5555555555555555};
    for (unsigned bit = 0; bit < 64; ++bit) {
        list.push_back(uint64_t{1} << bit);
        list.push_back(~(uint64_t{1} << bit));
    }
    std::mt19937_64 random(2011);
    while (list.size() < 200) {
        list.push_back(random() & random());
        list.push_back(random() | random());
    }
    return list;
}

/** Calls visit for all 2,080 ranges [begin, end) of 64 bits that are not empty. */
template <typename Visit>
void for_each_range(uint64_t bits, Visit visit) {
    for (uint64_t begin = 0; begin < bits; ++begin) {
        for (uint64_t end = begin + 1; end <= bits; ++end) {
            visit(begin, end);
        }
    }
}

TEST(BlockBitmap, QuestionsAboutEveryRangeOfManyPatterns) {
    for (const uint64_t pattern : patterns()) {
        Twin twin(64);
        twin.fill(pattern);
        ASSERT_TRUE(twin.same());
        for_each_range(64, [&](uint64_t begin, uint64_t end) {
            ASSERT_EQ(twin.view().all_set(begin, end), twin.all(begin, end));
            ASSERT_EQ(twin.view().any_set(begin, end), twin.any(begin, end));
            ASSERT_EQ(twin.view().run_end(begin, end), twin.run_end(begin, end));
        });
    }
}

TEST(BlockBitmap, ChangesOfEveryRangeOfManyPatterns) {
    for (const uint64_t pattern : patterns()) {
        Twin twin(64);
        for_each_range(64, [&](uint64_t begin, uint64_t end) {
            twin.fill(pattern);
            twin.set(begin, end);
            ASSERT_TRUE(twin.same()) << begin << " " << end;
            twin.fill(pattern);
            twin.clear(begin, end);
            ASSERT_TRUE(twin.same()) << begin << " " << end;
        });
    }
}

class BlockBitmapSize : public testing::TestWithParam<uint64_t> {};

TEST_P(BlockBitmapSize, RangesAcrossWords) {
    const uint64_t bits = GetParam();
    std::mt19937_64 random(bits);
    Twin twin(bits);
    for (int step = 0; step < 300; ++step) {
        const uint64_t a = random() % (bits + 1);
        const uint64_t b = random() % (bits + 1);
        const uint64_t begin = std::min(a, b);
        const uint64_t end = std::max(a, b);
        step % 3 == 0 ? twin.clear(begin, end) : twin.set(begin, end);
        ASSERT_TRUE(twin.same());
        ASSERT_EQ(twin.view().all_set(begin, end), twin.all(begin, end));
        ASSERT_EQ(twin.view().any_set(begin, bits), twin.any(begin, bits));
        if (begin < bits) {
            ASSERT_EQ(twin.view().run_end(begin, bits), twin.run_end(begin, bits));
        }
    }
}

INSTANTIATE_TEST_SUITE_P(, BlockBitmapSize,
                         testing::Values(1, 2, 63, 64, 65, 127, 128, 129, 191, 500, 4096, 32769));

TEST(BlockBitmap, EmptyRangesChangeNothing) {
    Twin twin(130);
    twin.fill(0xF0F0F0F0F0F0F0F0);
    for (uint64_t at = 0; at <= 130; ++at) {
        EXPECT_TRUE(twin.view().all_set(at, at));
        EXPECT_FALSE(twin.view().any_set(at, at));
        twin.view().set(at, at);
        twin.view().clear(at, at);
    }
    EXPECT_TRUE(twin.same());
}

TEST(BlockBitmap, OfNoBits) {
    const BlockBitmap none;
    EXPECT_EQ(none.bits(), 0u);
    EXPECT_EQ(none.words(), 0u);
    EXPECT_EQ(none.count(), 0u);
    EXPECT_TRUE(none.all_set(0, 0));
    std::array<std::byte, 16> bytes;
    bytes.fill(std::byte{0xA5});
    none.store(0, bytes);
    EXPECT_EQ(load_le<uint64_t>(bytes, 0) | load_le<uint64_t>(bytes, 8), 0u);
}

TEST(BlockBitmap, BitsOnDiskCountFromTheLowEndOfEachByte) {
    std::vector<uint64_t> words(2);
    BlockBitmap bitmap(words, 100);
    bitmap.set(0, 1);
    bitmap.set(9, 11);
    bitmap.set(63, 65);
    bitmap.set(99, 100);
    std::array<std::byte, 16> bytes;
    bitmap.store(0, bytes);
    const std::array<int, 16> expected = {0x01, 0x06, 0, 0, 0,    0, 0, 0x80,
                                          0x01, 0,    0, 0, 0x08, 0, 0, 0};
    for (size_t i = 0; i < bytes.size(); ++i) {
        EXPECT_EQ(static_cast<int>(bytes[i]), expected[i]) << i;
    }
}

TEST(BlockBitmap, BitsPastTheEndAreNeitherReadNorWritten) {
    for (uint64_t bits = 1; bits <= 130; ++bits) {
        std::vector<uint64_t> words(BlockBitmap::bits_to_words(bits) + 1, 0);
        BlockBitmap bitmap(words, bits);
        std::array<std::byte, 32> bytes;
        bytes.fill(std::byte{0xFF});
        bitmap.load(0, bytes);
        EXPECT_EQ(bitmap.count(), bits);
        EXPECT_EQ(words.back(), 0u) << "a word that is not the bitmap's was touched";
        bytes.fill(std::byte{0xA5});
        bitmap.store(0, bytes);
        for (uint64_t i = 0; i < 256; ++i) {
            const bool set = (static_cast<unsigned>(bytes[i / 8]) >> i % 8 & 1) != 0;
            ASSERT_EQ(set, i < bits) << bits << " " << i;
        }
    }
}

TEST(BlockBitmap, MovesInPieces) {
    constexpr uint64_t kBits = 1000;
    Twin twin(kBits);
    std::mt19937_64 random(7);
    for (int i = 0; i < 400; ++i) {
        const uint64_t bit = random() % kBits;
        twin.set(bit, bit + 1);
    }
    std::vector<std::byte> whole(128);
    twin.view().store(0, whole);
    std::vector<uint64_t> words(BlockBitmap::bits_to_words(kBits));
    BlockBitmap other(words, kBits);
    for (size_t at = 0; at < whole.size(); at += 24) {
        const size_t size = std::min<size_t>(24, whole.size() - at);
        std::vector<std::byte> piece(size);
        twin.view().store(at, piece);
        EXPECT_TRUE(std::equal(piece.begin(), piece.end(), whole.begin() + static_cast<int>(at)));
        other.load(at, piece);
    }
    for (uint64_t w = 0; w < other.words(); ++w) {
        EXPECT_EQ(other.word(w), twin.view().word(w));
    }
}

TEST(BlockBitmap, LoadReplacesWhatWasThere) {
    Twin twin(128);
    twin.fill(UINT64_MAX);
    std::array<std::byte, 8> zeros{};
    twin.view().load(8, zeros);
    EXPECT_EQ(twin.view().word(0), UINT64_MAX);
    EXPECT_EQ(twin.view().word(1), 0u);
}

TEST(BlockBitmap, PiecesFarBehindTheEndAreIgnored) {
    std::vector<uint64_t> words(1);
    BlockBitmap bitmap(words, 64);
    std::array<std::byte, 8> ones;
    ones.fill(std::byte{0xFF});
    bitmap.load(uint64_t{1} << 60, ones);
    EXPECT_EQ(bitmap.count(), 0u);
    bitmap.store(uint64_t{1} << 60, ones);
    EXPECT_EQ(load_le<uint64_t>(ones, 0), 0u);
}

TEST(BlockBitmap, BitsSetByManyThreadsAllArrive) {
    constexpr uint64_t kBits = 4096;
    std::vector<uint64_t> words(BlockBitmap::bits_to_words(kBits));
    BlockBitmap bitmap(words, kBits);
    std::vector<std::thread> threads;
    for (uint64_t t = 0; t < 4; ++t) {
        threads.emplace_back([&bitmap, t] {
            BlockBitmap mine = bitmap; /* a view: the words are shared */
            for (uint64_t bit = t; bit < kBits; bit += 4) {
                mine.set(bit, bit + 1);
            }
        });
    }
    for (std::thread& thread : threads) {
        thread.join();
    }
    EXPECT_EQ(bitmap.count(), kBits);
}

TEST(BlockBitmapDeathTest, WhatIsOutsideIsAsserted) {
    std::vector<uint64_t> words(2);
    BlockBitmap bitmap(words, 100);
    std::array<std::byte, 8> bytes{};
    EXPECT_DEATH((void)bitmap.test(100), "assertion failed");
    EXPECT_DEATH((void)bitmap.word(2), "assertion failed");
    EXPECT_DEATH(bitmap.set(99, 101), "assertion failed");
    EXPECT_DEATH(bitmap.clear(2, 1), "assertion failed");
    EXPECT_DEATH((void)bitmap.all_set(0, 101), "assertion failed");
    EXPECT_DEATH((void)bitmap.any_set(0, 101), "assertion failed");
    EXPECT_DEATH((void)bitmap.count(0, 101), "assertion failed");
    EXPECT_DEATH((void)bitmap.count(2, 1), "assertion failed");
    EXPECT_DEATH((void)bitmap.run_end(5, 5), "assertion failed");
    EXPECT_DEATH(bitmap.load(4, bytes), "assertion failed");
    EXPECT_DEATH(bitmap.store(0, MutableBytes(bytes).first(7)), "assertion failed");
    EXPECT_DEATH(BlockBitmap(words, 129), "assertion failed");
}

}  // namespace
}  // namespace fvd
