/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "fvd/format/audit.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "samples.h"

namespace fvd {
namespace {

using test::Block;
using test::file_of;
using test::sample_header;

Error sentence(const char* text) {
    return Error::make(-1, "%s", text);
}

std::string only_text(const Findings& findings) {
    return findings.list().size() == 1 ? findings.list()[0].text : "not exactly one finding";
}

/* ------------------------------------------------------------------ the list */

TEST(Findings, CountBySeverityAndRepair) {
    Findings findings;
    findings.add(Severity::note, false, sentence("n"));
    findings.add(Severity::leak, true, sentence("l"));
    findings.add(Severity::corruption, true, sentence("c"));
    findings.add(Severity::corruption, false, sentence("d"));
    EXPECT_EQ(findings.count(Severity::note), 1u);
    EXPECT_EQ(findings.count(Severity::leak), 1u);
    EXPECT_EQ(findings.count(Severity::corruption), 2u);
    EXPECT_EQ(findings.repairable(Severity::note), 0u);
    EXPECT_EQ(findings.repairable(Severity::leak), 1u);
    EXPECT_EQ(findings.repairable(Severity::corruption), 1u);
    ASSERT_EQ(findings.list().size(), 4u);
    EXPECT_STREQ(findings.list()[3].text, "d");
    EXPECT_FALSE(findings.list()[3].repairable);
}

TEST(Findings, CountWhatTheyCannotKeep) {
    Findings findings;
    for (size_t i = 0; i < Findings::kMost + 5; ++i) {
        findings.add(Severity::leak, true, sentence("x"));
    }
    EXPECT_EQ(findings.list().size(), Findings::kMost);
    EXPECT_EQ(findings.count(Severity::leak), Findings::kMost + 5);
}

/* ------------------------------------------------------------------ header */

Findings audit_file(const Block& primary, const Block& copy) {
    const auto file = file_of(primary, copy);
    const auto chosen = choose_header(file);
    EXPECT_TRUE(chosen.ok());
    Findings findings;
    audit_header(chosen.value(), file, findings);
    return findings;
}

Header next_generation() {
    Header header = sample_header();
    header.generation += 1;
    header.journal_epoch += 1;
    header.clean_shutdown = false;
    return header;
}

TEST(AuditHeader, IsSilentOnWhatACutLeaves) {
    const Block before(sample_header());
    const Block after(next_generation());
    Block torn = after;
    for (size_t at = 3584; at < 4096; ++at) {
        torn[at] = before.bytes()[at];
    }
    EXPECT_TRUE(audit_file(before, before).list().empty());
    EXPECT_TRUE(audit_file(before, after).list().empty());
    EXPECT_TRUE(audit_file(before, torn).list().empty());
    EXPECT_TRUE(audit_file(torn, after).list().empty());
}

TEST(AuditHeader, SpeaksOfADamagedCopy) {
    const Block good(sample_header());
    Block bad = good;
    bad[16] ^= std::byte{16}; /* data_offset, which no update changes */
    const Findings second = audit_file(good, bad);
    EXPECT_EQ(only_text(second), "the second copy of the header is damaged; the other one is used");
    EXPECT_EQ(second.repairable(Severity::corruption), 1u);
    const Findings first = audit_file(bad, good);
    EXPECT_EQ(only_text(first), "the first copy of the header is damaged; the other one is used");
}

TEST(AuditHeader, NotesAdviceAndCommands) {
    Block block(sample_header());
    block.set("num_prefetch_slots", 65);
    Findings findings = audit_file(block, block);
    EXPECT_EQ(only_text(findings),
              "num_prefetch_slots is out of range; the nearest legal value is used");
    EXPECT_EQ(findings.count(Severity::note), 1u);
    block = Block(sample_header());
    block.set_bytes("add_storage_cmd", "rm -rf /");
    findings = audit_file(block, block);
    EXPECT_EQ(only_text(findings), "add_storage_cmd is set; it is never executed");
    EXPECT_EQ(findings.count(Severity::note), 1u);
}

TEST(AuditHeader, LooksAtTheCopyThatIsUsed) {
    Block newer(next_generation());
    newer.set("num_prefetch_slots", 65);
    EXPECT_EQ(audit_file(Block(sample_header()), newer).count(Severity::note), 1u);
    EXPECT_EQ(audit_file(newer, Block(sample_header())).count(Severity::note), 1u);
}

/* ------------------------------------------------------------------ regions */

TEST(AuditRegions, StorageOfALinearImageIsWhole) {
    const Header header = sample_header();
    const uint64_t end = header.data_offset + header.virtual_size;
    Findings findings;
    EXPECT_TRUE(audit_regions(header, end, end, findings));
    EXPECT_TRUE(findings.list().empty());
    EXPECT_TRUE(audit_regions(header, end, end - 1, findings));
    EXPECT_EQ(only_text(findings),
              "storage of guest data ends at 1075838975; a disk of 1073741824 bytes needs it to "
              "reach 1075838976");
    EXPECT_EQ(findings.count(Severity::corruption), 1u);
    EXPECT_EQ(findings.repairable(Severity::corruption), 0u);
}

TEST(AuditRegions, WhatDoesNotFitCannotBeRead) {
    Findings findings;
    EXPECT_FALSE(audit_regions(sample_header(), 65536, UINT64_MAX, findings));
    EXPECT_EQ(only_text(findings),
              "journal, bytes 40960 to 1089536, reaches past the end of the file at 65536");
}

TEST(AuditRegions, ACompactImageMayBeShort) {
    Header header = sample_header();
    header.chunk_size = 1 << 20;
    header.table_size = 4096;
    header.table_offset = header.journal_offset + header.journal_size;
    Findings findings;
    EXPECT_TRUE(audit_regions(header, header.data_offset, header.data_offset, findings));
    EXPECT_TRUE(findings.list().empty());
}

/* ------------------------------------------------------------------ bitmap */

TEST(CountLeftoverBits, EveryBitOfASmallRegion) {
    Header header = sample_header();
    for (uint64_t blocks = 0; blocks <= 40; ++blocks) {
        header.base_size = blocks * header.block_size;
        for (uint64_t bit = 0; bit < 64; ++bit) {
            std::vector<std::byte> region(8);
            region[bit / 8] = static_cast<std::byte>(1 << bit % 8);
            ASSERT_EQ(count_leftover_bits(header, 0, region), bit >= blocks ? 1u : 0u)
                << blocks << " " << bit;
        }
    }
}

TEST(CountLeftoverBits, InPieces) {
    Header header = sample_header();
    header.base_size = 100 * header.block_size;
    std::vector<std::byte> region(64, std::byte{0xFF});
    for (uint64_t piece = 1; piece <= 64; ++piece) {
        uint64_t total = 0;
        for (uint64_t at = 0; at < 64; at += piece) {
            const uint64_t size = std::min(piece, 64 - at);
            total += count_leftover_bits(header, at, ConstBytes(region).subspan(at, size));
        }
        EXPECT_EQ(total, 64 * 8 - 100u);
    }
}

TEST(AuditBitmap, LeftoversAreALeak) {
    Findings findings;
    audit_bitmap(0, findings);
    EXPECT_TRUE(findings.list().empty());
    audit_bitmap(3, findings);
    EXPECT_EQ(only_text(findings), "3 bits of the bitmap are set that stand for no block");
    EXPECT_EQ(findings.repairable(Severity::leak), 1u);
}

/* ------------------------------------------------------------------ journal */

TEST(AuditJournal, IsSilentOnWhatACutLeaves) {
    Header header = sample_header();
    header.clean_shutdown = false;
    Findings findings;
    audit_journal(header, {}, findings);
    JournalFacts facts;
    facts.plan = {.first_sequence = 3, .end_sequence = 9, .torn_units = 2};
    facts.valid_units = 12;
    facts.newest_epoch = header.journal_epoch;
    audit_journal(header, facts, findings);
    EXPECT_TRUE(findings.list().empty());
}

struct JournalCase {
    const char* name;
    JournalFacts facts;
    bool clean;
    const char* sentence;
};

/* ------------------------------------------------------------------ tables */

Header compact_header() {
    LayoutRequest request;
    request.virtual_size = 16 * 4096;
    request.compact = true;
    request.chunk_size = 4096;
    return plan_layout(request).value();
}

TableFacts facts_of(std::vector<uint32_t> entries, uint64_t inside) {
    uint64_t word = 0;
    return judge_table(ChunkTable(entries),
                       SlotJudge(BlockBitmap({&word, 1}, entries.size()), inside));
}

TEST(JudgeTable, GoodOnes) {
    const TableFacts facts = facts_of({kNotStored, 2, 3, kNotStored, 0, 1}, 4);
    EXPECT_EQ(facts.stored, 4u);
    EXPECT_EQ(facts.fragments, 1u);
    EXPECT_EQ(facts.slots_end, 4u);
    EXPECT_EQ(facts.impossible.count + facts.past_end.count + facts.shared.count, 0u);
    EXPECT_EQ(facts_of({}, 0).stored, 0u);
    EXPECT_EQ(facts_of({5, 4, 3, 2, 1, 0}, 6).fragments, 5u);
}

TEST(JudgeTable, EachFaultIsCountedWhereItIs) {
    const TableFacts facts = facts_of({0, 6, 4, 5, 0, 0, kNotStored - 1}, 5);
    EXPECT_EQ(facts.stored, 2u);
    EXPECT_EQ(facts.impossible.count, 1u) << "seven slots are numbered up to 6";
    EXPECT_EQ(facts.impossible.first, ChunkIndex(6));
    EXPECT_EQ(facts.past_end.count, 2u);
    EXPECT_EQ(facts.past_end.first, ChunkIndex(1));
    EXPECT_EQ(facts.shared.count, 2u);
    EXPECT_EQ(facts.shared.first, ChunkIndex(4));
}

TEST(JudgeTable, TheSlotBehindTheLastCannotBe) {
    const TableFacts facts = facts_of({2, kNotStored}, 2);
    EXPECT_EQ(facts.impossible.count, 1u);
    EXPECT_EQ(facts.past_end.count, 0u);
}

TEST(JudgeTable, SlotsInsideAreWhole) {
    const Header header = compact_header();
    const uint64_t at = header.data_offset;
    EXPECT_EQ(slots_inside(header, 0), 0u);
    EXPECT_EQ(slots_inside(header, at), 0u);
    EXPECT_EQ(slots_inside(header, at + 4095), 0u);
    EXPECT_EQ(slots_inside(header, at + 4096), 1u);
    EXPECT_EQ(slots_inside(header, at + 16 * 4096), 16u);
    EXPECT_EQ(slots_inside(header, UINT64_MAX), header.slot_count())
        << "the table has room for no more";
}

TEST(JudgeTable, LeftoversAreBehindTheLastChunk) {
    const Header header = compact_header();
    std::vector<uint32_t> entries(32, 0);
    std::vector<std::byte> piece(128);
    ChunkTable(entries).store(0, piece);
    EXPECT_EQ(count_leftover_entries(header, 0, piece), 16u);
    EXPECT_EQ(count_leftover_entries(header, 64, ConstBytes(piece).first(64)), 16u);
    EXPECT_EQ(count_leftover_entries(header, 0, ConstBytes(piece).first(64)), 0u);
    store_le<uint32_t>(piece, 64, kNotStored);
    EXPECT_EQ(count_leftover_entries(header, 0, piece), 15u);
}

TEST(AuditTable, OneFindingAKind) {
    Findings findings;
    audit_table({}, findings);
    EXPECT_TRUE(findings.list().empty());
    TableFacts facts;
    facts.impossible = {2, ChunkIndex(7)};
    facts.past_end = {1, ChunkIndex(0)};
    facts.shared = {3, ChunkIndex(9)};
    facts.leftover = 5;
    audit_table(facts, findings);
    EXPECT_EQ(findings.repairable(Severity::corruption), 3u);
    EXPECT_EQ(findings.repairable(Severity::leak), 1u);
    const char* const sentences[] = {
        "chunks with a slot that cannot exist: 2, the first is chunk 7",
        "chunks with a slot behind the end of storage: 1, the first is chunk 0",
        "chunks with a slot that another chunk has, too: 3, the first is chunk 9",
        "5 entries of the table are set that stand for no chunk"};
    ASSERT_EQ(findings.list().size(), 4u);
    for (size_t i = 0; i < 4; ++i) {
        EXPECT_STREQ(findings.list()[i].text, sentences[i]);
    }
}

TEST(AuditJournal, DisplacedChunksAreNoted) {
    Findings findings;
    audit_journal(sample_header(), {.displaced = 2}, findings);
    EXPECT_EQ(findings.count(Severity::note), 1u);
    EXPECT_EQ(findings.count(Severity::corruption), 0u);
    EXPECT_EQ(
        only_text(findings),
        "2 chunks are not stored any more: a record behind the missing units gave their slots "
        "to other chunks");
}

class AuditJournalFault : public testing::TestWithParam<JournalCase> {};

TEST_P(AuditJournalFault, IsARepairableCorruption) {
    Header header = sample_header();
    header.clean_shutdown = GetParam().clean;
    Findings findings;
    audit_journal(header, GetParam().facts, findings);
    EXPECT_EQ(only_text(findings), GetParam().sentence);
    EXPECT_EQ(findings.repairable(Severity::corruption), 1u);
}

INSTANTIATE_TEST_SUITE_P(
    , AuditJournalFault,
    testing::Values(
        JournalCase{
            "Damaged",
            {.plan = {.first_sequence = 3, .end_sequence = 5, .damaged = true},
             .valid_units = 4,
             .missing_units = 2},
            false,
            "journal units missing before the last group: 2, first number 5; what only they say "
            "is lost"},
        JournalCase{"Foreign",
                    {.valid_units = 1, .foreign_units = 1},
                    false,
                    "journal units that name blocks, chunks or slots which do not exist: 1"},
        JournalCase{
            "NewerThanTheHeader",
            {.newest_epoch = 2},
            true,
            "the journal holds units of epoch 2, but the header says 1: the header is older "
            "than the journal"},
        JournalCase{"CleanButCurrent",
                    {.valid_units = 3, .newest_epoch = 1},
                    true,
                    "the image is marked clean, but the journal holds 3 current units"}),
    test::CaseName());

}  // namespace
}  // namespace fvd
