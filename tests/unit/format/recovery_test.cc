/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "fvd/format/recovery.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "fvd/format/limits.h"
#include "samples.h"

namespace fvd {
namespace {

using test::sample_id;
using Bytes = std::vector<std::byte>;

constexpr uint64_t kEpoch = 5;
constexpr size_t kUnit = 512;

/** A ring in memory, written group by group as the engine does. */
class Ring {
  public:
    explicit Ring(uint64_t units) : units_(units), bytes_(units * kUnit) {}

    /** Unit @p sequence of a group [start, start + size), naming one block of its own number. */
    void put(uint64_t sequence, uint64_t start, uint32_t size, uint64_t tail,
             uint64_t epoch = kEpoch) {
        UnitHeader header;
        header.epoch = epoch;
        header.sequence = sequence;
        header.tail_sequence = tail;
        header.group_index = static_cast<uint32_t>(sequence - start);
        header.group_size = size;
        put_at(sequence % units_, header);
    }
    void put_at(uint64_t place, const UnitHeader& header) {
        UnitWriter writer(MutableBytes(bytes_).subspan(place * kUnit, kUnit));
        EXPECT_TRUE(
            writer.add_bitmap({BlockIndex(header.sequence), BlockIndex(header.sequence + 1)}));
        writer.finish(header, sample_id());
    }
    void put_group(uint64_t start, uint32_t size, uint64_t tail) {
        for (uint64_t s = start; s < start + size; ++s) {
            put(s, start, size, tail);
        }
    }
    void spoil(uint64_t sequence) { bytes_[(sequence % units_) * kUnit + 100] ^= std::byte{1}; }
    ConstBytes unit(uint64_t place) const {
        return ConstBytes(bytes_).subspan(place * kUnit, kUnit);
    }
    uint64_t units() const { return units_; }

  private:
    uint64_t units_;
    Bytes bytes_;
};

/** A scan of a whole ring, in any order of places. */
class Scan {
  public:
    explicit Scan(const Ring& ring, uint64_t epoch = kEpoch, uint64_t first_place = 0)
        : sequences_(ring.units(), 0xA5A5A5A5A5A5A5A5), scan_(sequences_, epoch, sample_id()) {
        for (uint64_t i = 0; i < ring.units(); ++i) {
            const uint64_t place = (first_place + i) % ring.units();
            scan_.add(place, ring.unit(place));
        }
    }
    const JournalScan& operator*() const { return scan_; }
    const JournalScan* operator->() const { return &scan_; }
    ReplayPlan plan() const { return scan_.plan(); }

  private:
    std::vector<uint64_t> sequences_;
    JournalScan scan_;
};

void expect_plan(const ReplayPlan& plan, uint64_t first, uint64_t end, uint64_t torn = 0,
                 bool damaged = false) {
    EXPECT_EQ(plan.first_sequence, first);
    EXPECT_EQ(plan.end_sequence, end);
    EXPECT_EQ(plan.torn_units, torn);
    EXPECT_EQ(plan.damaged, damaged);
    EXPECT_EQ(plan.units(), end - first);
}

/* ------------------------------------------------------------------ what a writer leaves */

TEST(JournalScan, AnEmptyRingNeedsNothing) {
    const Ring ring(8);
    const Scan scan(ring);
    expect_plan(scan.plan(), 0, 0);
    EXPECT_EQ(scan->valid_units(), 0u);
    EXPECT_EQ(scan->newest_sequence(), 0u);
    EXPECT_FALSE(scan->has(0));
}

TEST(JournalScan, GroupsFromTheTailOn) {
    Ring ring(8);
    ring.put_group(0, 2, 0);
    ring.put_group(2, 1, 0);
    ring.put_group(3, 3, 0);
    const Scan scan(ring);
    expect_plan(scan.plan(), 0, 6);
    EXPECT_EQ(scan->valid_units(), 6u);
    EXPECT_EQ(scan->newest_sequence(), 5u);
    EXPECT_TRUE(scan->has(5));
    EXPECT_FALSE(scan->has(6));
}

TEST(JournalScan, TheNewestUnitSaysWhereTheTailIs) {
    Ring ring(8);
    ring.put_group(0, 3, 0);
    ring.put_group(3, 2, 3);
    expect_plan(Scan(ring).plan(), 3, 5);
    ring.put_group(5, 1, 4);
    expect_plan(Scan(ring).plan(), 4, 6);
}

TEST(JournalScan, GoesRoundTheRing) {
    Ring ring(8);
    for (uint64_t s = 0; s < 100; ++s) {
        ring.put_group(s, 1, s < 5 ? 0 : s - 5);
        expect_plan(Scan(ring).plan(), s < 5 ? 0 : s - 5, s + 1);
    }
}

TEST(JournalScan, MayFillTheWholeRing) {
    Ring ring(8);
    ring.put_group(16, 8, 16);
    expect_plan(Scan(ring).plan(), 16, 24);
    Ring full(8);
    full.put_group(3, 4, 3);
    full.put_group(7, 4, 3);
    expect_plan(Scan(full).plan(), 3, 11);
}

TEST(JournalScan, TheOrderOfPlacesDoesNotMatter) {
    Ring ring(8);
    ring.put_group(6, 3, 6);
    ring.put_group(9, 2, 6);
    for (uint64_t first = 0; first < 8; ++first) {
        expect_plan(Scan(ring, kEpoch, first).plan(), 6, 11);
    }
}

/** Every history of groups of 1..4 units in a ring of 8, each with every subset of its last group.
 */
TEST(JournalScan, EveryTearOfTheLastGroup) {
    uint64_t states = 0;
    for (uint64_t start = 0; start < 24; ++start) {
        for (uint32_t size = 1; size <= 4; ++size) {
            for (uint64_t before = 0; before <= std::min<uint64_t>(start, 4); ++before) {
                for (uint32_t kept = 0; kept < 1u << size; ++kept) {
                    Ring ring(8);
                    const uint64_t tail = start - before;
                    for (uint64_t s = tail < 3 ? 0 : tail - 3; s < start; ++s) {
                        ring.put_group(s, 1, std::min(s, tail)); /* older ones, durable */
                    }
                    for (uint64_t s = start; s < start + size; ++s) {
                        if ((kept >> (s - start) & 1) != 0) {
                            ring.put(s, start, size, tail);
                        }
                    }
                    const auto prefix = static_cast<uint64_t>(std::countr_one(kept));
                    const auto all = static_cast<uint64_t>(std::popcount(kept));
                    const ReplayPlan plan = Scan(ring).plan();
                    ASSERT_FALSE(plan.damaged);
                    ASSERT_EQ(plan.end_sequence, start == 0 && kept == 0 ? 0 : start + prefix);
                    ASSERT_EQ(plan.torn_units, all - prefix);
                    if (kept != 0) {
                        ASSERT_EQ(plan.first_sequence, tail);
                    }
                    ++states;
                }
            }
        }
    }
    EXPECT_GT(states, 2000u);
}

/** A writer with random groups and checkpoints; each cut keeps any part of the group in flight. */
TEST(JournalScan, RandomLivesEndWithWhatWasDurable) {
    std::mt19937_64 random(11);
    for (int life = 0; life < 2000; ++life) {
        const uint64_t units = 4 + random() % 12;
        Ring ring(units);
        uint64_t head = random() % 50;
        uint64_t tail = head;
        uint64_t durable_tail = head;
        for (int group = 0; group < 12; ++group) {
            if (random() % 3 == 0) {
                tail = head;
            }
            const uint64_t room = units - (head - durable_tail);
            if (room == 0) {
                break; /* the engine would have checkpointed before */
            }
            const auto size = static_cast<uint32_t>(1 + random() % std::min<uint64_t>(room, 4));
            const bool last = random() % 10 == 0 || group == 11;
            uint64_t whole = 0;
            bool gap = false;
            for (uint64_t i = 0; i < size; ++i) {
                const bool keep = !last || random() % 2 == 0;
                if (keep) {
                    ring.put(head + i, head, size, tail);
                }
                gap |= !keep;
                whole += keep && !gap;
            }
            if (last) {
                const ReplayPlan plan = Scan(ring).plan();
                ASSERT_FALSE(plan.damaged);
                if (plan.units() != 0) {
                    ASSERT_EQ(plan.end_sequence, head + whole);
                    ASSERT_TRUE(plan.first_sequence == tail || plan.first_sequence == durable_tail);
                }
                break;
            }
            head += size;
            durable_tail = tail;
        }
    }
}

/* ------------------------------------------------------------------ what no cut explains */

TEST(JournalScan, AMissingUnitBeforeTheLastGroupIsDamage) {
    for (uint64_t missing = 2; missing < 6; ++missing) {
        Ring ring(8);
        ring.put_group(0, 2, 0);
        ring.put_group(2, 2, 0);
        ring.put_group(4, 2, 2);
        ring.put_group(6, 2, 2);
        ring.spoil(missing);
        const Scan scan(ring);
        expect_plan(scan.plan(), 2, missing, 7 - missing, true);
    }
}

TEST(JournalScan, AMissingUnitBeforeTheTailIsNoDamage) {
    Ring ring(8);
    ring.put_group(0, 2, 0);
    ring.put_group(2, 2, 2);
    ring.spoil(0);
    ring.spoil(1);
    expect_plan(Scan(ring).plan(), 2, 4);
}

TEST(JournalScan, AnOldRoundDoesNotFillAGap) {
    Ring ring(4);
    ring.put_group(0, 4, 0);
    ring.put_group(4, 1, 4);
    ring.put(6, 6, 1, 4); /* 5 is missing; its place still holds 1 */
    expect_plan(Scan(ring).plan(), 4, 5, 1, true);
}

/* ------------------------------------------------------------------ what is not current */

TEST(JournalScan, OtherEpochsArePassedOver) {
    Ring ring(8);
    ring.put(0, 0, 1, 0, kEpoch - 1);
    ring.put(1, 1, 1, 0, kEpoch + 1);
    ring.put(2, 2, 1, 2, kEpoch);
    const Scan scan(ring);
    EXPECT_EQ(scan->valid_units(), 1u);
    expect_plan(scan.plan(), 2, 3);
}

TEST(JournalScan, UnitsInTheWrongPlaceArePassedOver) {
    for (uint64_t place = 1; place < 8; ++place) {
        Ring ring(8);
        ring.put_at(place, {.epoch = kEpoch, .sequence = 16, .tail_sequence = 16});
        EXPECT_EQ(Scan(ring)->valid_units(), 0u) << place;
    }
}

TEST(JournalScan, UnitsOfAnotherImageArePassedOver) {
    Ring ring(8);
    ring.put_group(0, 4, 0);
    std::vector<uint64_t> sequences(8);
    JournalScan scan(sequences, kEpoch, ImageId{});
    for (uint64_t place = 0; place < 8; ++place) {
        scan.add(place, ring.unit(place));
    }
    EXPECT_EQ(scan.valid_units(), 0u);
}

/* ------------------------------------------------------------------ what no writer writes */

struct ImpossibleCase {
    const char* name;
    uint64_t sequence, tail;
    uint32_t index, size;
    bool possible;
};

class ImpossibleUnit : public testing::TestWithParam<ImpossibleCase> {};

TEST_P(ImpossibleUnit, IsNotValid) {
    const ImpossibleCase& of = GetParam();
    Ring ring(8);
    ring.put_at(of.sequence % 8, {.epoch = kEpoch,
                                  .sequence = of.sequence,
                                  .tail_sequence = of.tail,
                                  .group_index = of.index,
                                  .group_size = of.size});
    EXPECT_EQ(Scan(ring)->valid_units(), of.possible ? 1u : 0u);
}

INSTANTIATE_TEST_SUITE_P(
    , ImpossibleUnit,
    testing::Values(ImpossibleCase{"TailAtTheUnit", 100, 100, 0, 1, true},
                    ImpossibleCase{"TailARoundBack", 100, 93, 0, 1, true},
                    ImpossibleCase{"TailMoreThanARoundBack", 100, 92, 0, 1, false},
                    ImpossibleCase{"TailAtZeroFarAway", limits::kMaxCounter, 0, 0, 1, false},
                    ImpossibleCase{"GroupOfTheWholeRing", 107, 100, 7, 8, true},
                    ImpossibleCase{"GroupLargerThanTheRing", 100, 100, 0, 9, false},
                    ImpossibleCase{"GroupOfAllNumbers", 100, 100, 0, UINT32_MAX, false},
                    ImpossibleCase{"GroupReachesItsOwnTail", 100, 99, 0, 8, false},
                    ImpossibleCase{"GroupEndsAtItsOwnTail", 100, 99, 0, 7, true},
                    ImpossibleCase{"LastOfALongGroup", 100, 90, 10, 11, false},
                    ImpossibleCase{"LargestSequence", limits::kMaxCounter, limits::kMaxCounter - 7,
                                   0, 1, true}),
    test::CaseName());

/** Units with right checksums and any numbers: the plan stays within the ring. */
TEST(JournalScan, HostileNumbersAreBounded) {
    std::mt19937_64 random(17);
    const uint64_t bases[] = {0, 1, 7, 1000, limits::kMaxCounter - 20};
    uint64_t found = 0;
    for (int round = 0; round < 20000; ++round) {
        const uint64_t units = 1 + random() % 9;
        Ring ring(units);
        const uint64_t base = bases[random() % 5];
        for (uint64_t place = 0; place < units; ++place) {
            UnitHeader header;
            header.epoch = kEpoch;
            header.sequence = base + random() % 20;
            const uint64_t start = header.sequence - std::min(header.sequence, random() % 4);
            header.tail_sequence = start - std::min(start, random() % 12);
            header.group_index = static_cast<uint32_t>(header.sequence - start);
            header.group_size = header.group_index + 1 + static_cast<uint32_t>(random() % 3);
            ring.put_at(random() % 4 == 0 ? place : header.sequence % units, header);
        }
        const Scan scan(ring);
        const ReplayPlan plan = scan.plan();
        ASSERT_LE(plan.first_sequence, plan.end_sequence);
        ASSERT_LE(plan.units() + plan.torn_units, units);
        for (uint64_t s = plan.first_sequence; s < plan.end_sequence; ++s) {
            ASSERT_TRUE(scan->has(s));
        }
        found += plan.units() != 0;
    }
    EXPECT_GT(found, 1000u);
}

TEST(JournalScanDeathTest, APlaceOutsideTheRingIsAsserted) {
    const Ring ring(2);
    std::vector<uint64_t> sequences(2);
    JournalScan scan(sequences, kEpoch, sample_id());
    EXPECT_DEATH(scan.add(2, ring.unit(0)), "assertion failed");
}

/* ------------------------------------------------------------------ what a unit changes */

class ApplyUnit : public testing::Test {
  protected:
    static constexpr uint64_t kBits = 3 * kBlocksPerPage + 100;

    ApplyUnit() : words_(BlockBitmap::bits_to_words(kBits)), page_words_(1) {
        target_ = {BlockBitmap(words_, kBits), BlockBitmap(page_words_, 4)};
    }
    bool apply(std::initializer_list<std::pair<uint64_t, uint64_t>> ranges, bool table = false) {
        Bytes unit(kUnit);
        UnitWriter writer(unit);
        for (const auto& [begin, end] : ranges) {
            EXPECT_TRUE(writer.add_bitmap({BlockIndex(begin), BlockIndex(end)}));
        }
        if (table) {
            EXPECT_TRUE(writer.add_table(ChunkIndex(0), std::array<uint32_t, 1>{0}));
        }
        writer.finish({}, sample_id());
        const auto view = UnitView::decode(unit, sample_id());
        EXPECT_TRUE(view.has_value());
        return apply_unit(*view, target_);
    }
    uint64_t pages() const { return target_.dirty_pages.word(0); }

    std::vector<uint64_t> words_;
    std::vector<uint64_t> page_words_;
    ReplayTarget target_;
};

TEST_F(ApplyUnit, SetsBitsAndTheirPages) {
    EXPECT_TRUE(apply({{3, 5}, {kBlocksPerPage, kBlocksPerPage + 1}}));
    EXPECT_EQ(target_.bitmap.count(), 3u);
    EXPECT_TRUE(target_.bitmap.all_set(3, 5));
    EXPECT_TRUE(target_.bitmap.test(kBlocksPerPage));
    EXPECT_EQ(pages(), 0b0011u);
}

TEST_F(ApplyUnit, ARangeMayCrossPages) {
    EXPECT_TRUE(apply({{2 * kBlocksPerPage - 1, 2 * kBlocksPerPage + 1}}));
    EXPECT_EQ(pages(), 0b0110u);
    EXPECT_TRUE(apply({{kBits - 1, kBits}}));
    EXPECT_EQ(pages(), 0b1110u);
    EXPECT_TRUE(apply({{0, kBits}}));
    EXPECT_EQ(pages(), 0b1111u);
    EXPECT_EQ(target_.bitmap.count(), kBits);
}

TEST_F(ApplyUnit, ARangeThatEndsAPageLeavesTheNext) {
    EXPECT_TRUE(apply({{0, kBlocksPerPage}}));
    EXPECT_EQ(pages(), 0b0001u);
}

TEST_F(ApplyUnit, WhatReachesOutsideChangesNothing) {
    EXPECT_FALSE(apply({{0, 1}, {kBits, kBits + 1}}));
    EXPECT_FALSE(apply({{0, kBits + 1}}));
    EXPECT_FALSE(apply({{7, 8}, {uint64_t{1} << 60, (uint64_t{1} << 60) + 1}}));
    EXPECT_FALSE(apply({{7, 8}}, true)) << "there is no table";
    EXPECT_EQ(target_.bitmap.count(), 0u);
    EXPECT_EQ(pages(), 0u);
}

/** The same for a table of 2,500 chunks, three pages, and a bitmap of 64 blocks. */
class ApplyTable : public testing::Test {
  protected:
    static constexpr uint64_t kChunks = 2 * kChunksPerPage + 452;

    ApplyTable() : entries_(kChunks, kNotStored), words_(1), page_words_(2) {
        target_ = {BlockBitmap(words_, 64), BlockBitmap({&page_words_[0], 1}, 1),
                   ChunkTable(entries_), BlockBitmap({&page_words_[1], 1}, 3), kChunks};
    }
    /** One unit: blocks, and these entries from @p first on. */
    bool apply(uint64_t first, std::vector<uint32_t> list, uint64_t blocks = 0) {
        Bytes unit(4096);
        UnitWriter writer(unit);
        if (blocks != 0) {
            EXPECT_TRUE(writer.add_bitmap({BlockIndex(0), BlockIndex(blocks)}));
        }
        EXPECT_TRUE(writer.add_table(ChunkIndex(first), list));
        writer.finish({}, sample_id());
        const auto view = UnitView::decode(unit, sample_id());
        EXPECT_TRUE(view.has_value());
        return apply_unit(*view, target_);
    }
    uint64_t pages() const { return target_.dirty_entries.word(0); }

    std::vector<uint32_t> entries_;
    std::vector<uint64_t> words_;
    std::vector<uint64_t> page_words_;
    ReplayTarget target_;
};

TEST_F(ApplyTable, GivesSlotsAndTakesThem) {
    EXPECT_TRUE(apply(3, {7, kNotStored, 0}));
    EXPECT_EQ(target_.table.entry(ChunkIndex(3)), 7u);
    EXPECT_EQ(target_.table.entry(ChunkIndex(5)), 0u);
    EXPECT_EQ(target_.table.stored(), 2u);
    EXPECT_EQ(pages(), 0b001u);
    EXPECT_EQ(target_.dirty_pages.count(), 0u);
    EXPECT_TRUE(apply(2, {kNotStored, kNotStored}));
    EXPECT_EQ(target_.table.stored(), 1u);
}

TEST_F(ApplyTable, BlocksAndEntriesOfOneUnitAreOne) {
    EXPECT_TRUE(apply(3, {7}, 5));
    EXPECT_EQ(target_.bitmap.count(), 5u);
    EXPECT_EQ(target_.dirty_pages.count(), 1u);
    EXPECT_EQ(target_.table.stored(), 1u);
}

TEST_F(ApplyTable, EntriesMayCrossPages) {
    EXPECT_TRUE(apply(kChunksPerPage - 1, {1}));
    EXPECT_EQ(pages(), 0b001u);
    EXPECT_TRUE(apply(kChunksPerPage, {2}));
    EXPECT_EQ(pages(), 0b011u);
    EXPECT_TRUE(apply(2 * kChunksPerPage - 1, {3, 4}));
    EXPECT_EQ(pages(), 0b111u);
    EXPECT_EQ(target_.table.entry(ChunkIndex(2 * kChunksPerPage)), 4u);
}

TEST_F(ApplyTable, TheLastChunkAndTheLastSlot) {
    EXPECT_TRUE(apply(kChunks - 1, {kChunks - 1}));
    EXPECT_EQ(target_.table.entry(ChunkIndex(kChunks - 1)), kChunks - 1);
}

TEST_F(ApplyTable, WhatCannotExistChangesNothing) {
    EXPECT_FALSE(apply(kChunks, {0}, 1)) << "a chunk past the end";
    EXPECT_FALSE(apply(kChunks - 1, {0, 1}, 1)) << "the second of two";
    EXPECT_FALSE(apply(UINT32_MAX, {0}, 1)) << "the largest chunk a record can name";
    EXPECT_FALSE(apply(0, {kChunks}, 1)) << "a slot past the end";
    EXPECT_FALSE(apply(0, {0, kNotStored - 1}, 1)) << "the largest slot a record can name";
    EXPECT_FALSE(apply(0, {0}, 65)) << "a block past the end, in the same unit";
    EXPECT_EQ(target_.table.stored(), 0u);
    EXPECT_EQ(target_.bitmap.count(), 0u);
    EXPECT_EQ(pages(), 0u);
}

TEST_F(ApplyTable, TwoChunksWithOneSlotAreNotRefusedHere) {
    EXPECT_TRUE(apply(0, {9, 9}));
    EXPECT_EQ(target_.table.stored(), 2u);
}

TEST_F(ApplyUnit, NoRecordsChangeNothing) {
    EXPECT_TRUE(apply({}));
    EXPECT_EQ(target_.bitmap.count(), 0u);
}

TEST_F(ApplyUnit, TwiceIsOnce) {
    EXPECT_TRUE(apply({{10, 20}}));
    EXPECT_TRUE(apply({{10, 20}}));
    EXPECT_EQ(target_.bitmap.count(), 10u);
}

}  // namespace
}  // namespace fvd
