/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "fvd/format/audit.h"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cinttypes>
#include <cstring>

#include "fvd/base/arith.h"
#include "fvd/format/layout.h"

namespace fvd {

namespace {

constexpr int kAny = -EINVAL; /* an Error carries the sentence here; its code is not looked at */

void audit_copy(const char* which, CopyState state, Findings& findings) {
    if (state == CopyState::damaged) {
        findings.add(
            Severity::corruption, true,
            Error::make(kAny, "the %s of the header is damaged; the other one is used", which));
    }
}

uint64_t end_of_data(const Header& header) {
    return header.data_offset + header.virtual_size;
}

void note_wrong(TableFacts::Wrong& wrong, uint64_t chunk) {
    if (wrong.count == 0) {
        wrong.first = ChunkIndex(chunk);
    }
    wrong.count += 1;
}

void audit_wrong(const TableFacts::Wrong& wrong, const char* what, Findings& findings) {
    if (wrong.count != 0) {
        findings.add(Severity::corruption, true,
                     Error::make(kAny, "%s: %" PRIu64 ", the first is chunk %" PRIu64, what,
                                 wrong.count, wrong.first.value));
    }
}

}  // namespace

void Findings::add(Severity severity, bool repairable, const Error& sentence) {
    const auto index = static_cast<size_t>(severity);
    counts_[index] += 1;
    repairable_[index] += repairable;
    if (kept_ == kMost) {
        return;
    }
    Finding& finding = list_[kept_++];
    finding.severity = severity;
    finding.repairable = repairable;
    static_assert(sizeof(finding.text) == sizeof(sentence.text));
    std::memcpy(finding.text, sentence.text, sizeof(finding.text));
}

uint64_t Findings::count(Severity severity) const {
    return counts_[static_cast<size_t>(severity)];
}

uint64_t Findings::repairable(Severity severity) const {
    return repairable_[static_cast<size_t>(severity)];
}

void audit_header(const ChosenHeader& chosen, ConstBytes file_start, Findings& findings) {
    audit_copy("first copy", chosen.primary, findings);
    audit_copy("second copy", chosen.copy, findings);
    const bool from_primary = chosen.primary == CopyState::valid;
    const ConstBytes block =
        file_start.subspan(from_primary ? kHeaderPrimaryOffset : kHeaderCopyOffset, kHeaderSize);
    if (const char* name = clamped_advice(block)) {
        findings.add(
            Severity::note, false,
            Error::make(kAny, "%s is out of range; the nearest legal value is used", name));
    }
    if (chosen.header.add_storage_cmd[0] != '\0') {
        findings.add(Severity::note, false,
                     Error::make(kAny, "add_storage_cmd is set; it is never executed"));
    }
}

bool audit_regions(const Header& header, uint64_t file_length, uint64_t data_length,
                   Findings& findings) {
    const Error layout = check_layout(header, file_length);
    if (!layout.ok()) {
        findings.add(Severity::corruption, false, layout);
        return false;
    }
    /* Only linear images use all of their storage from the first day. */
    if (!header.has_table() && data_length < end_of_data(header)) {
        findings.add(Severity::corruption, false,
                     Error::make(kAny,
                                 "storage of guest data ends at %" PRIu64 "; a disk of %" PRIu64
                                 " bytes needs it to reach %" PRIu64,
                                 data_length, header.virtual_size, end_of_data(header)));
    }
    return true;
}

/* A disk that was made smaller clears what lay past its end after the header, or at the next open
 * if a cut came between: while the clean mark is missing that is nobody's fault. */
uint64_t count_leftover_bits(const Header& header, uint64_t offset, ConstBytes piece) {
    const uint64_t blocks = header.block_count();
    const uint64_t begin = std::max(offset, blocks / 8); /* what may hold bits of no block */
    if (begin >= offset + piece.size()) {
        return 0;
    }
    ConstBytes rest = piece.subspan(begin - offset);
    uint64_t leftover = 0;
    if (begin == blocks / 8) {
        leftover =
            static_cast<uint64_t>(std::popcount(static_cast<unsigned>(rest[0]) >> blocks % 8));
        rest = rest.subspan(1);
    }
    if (all_zero(rest)) {
        return leftover; /* as in every image that is well */
    }
    for (const std::byte byte : rest) {
        leftover += static_cast<uint64_t>(std::popcount(static_cast<unsigned>(byte)));
    }
    return leftover;
}

void audit_bitmap(uint64_t leftover_bits, Findings& findings) {
    if (leftover_bits != 0) {
        findings.add(
            Severity::leak, true,
            Error::make(kAny, "%" PRIu64 " bits of the bitmap are set that stand for no block",
                        leftover_bits));
    }
}

EntryState SlotJudge::judge(uint32_t entry) {
    if (entry == kNotStored) {
        return EntryState::not_stored;
    }
    if (entry >= taken_.bits() || reserved_.has(entry)) {
        return EntryState::impossible;
    }
    if (entry >= inside_) {
        return EntryState::past_end;
    }
    if (taken_.test(entry)) {
        return EntryState::shared;
    }
    taken_.set(entry, uint64_t{entry} + 1);
    return EntryState::stored;
}

uint64_t slots_inside(const Header& header, uint64_t data_length) {
    const uint64_t storage = data_length - std::min(data_length, header.data_offset);
    return std::min(header.slot_count(), storage / header.chunk_size);
}

uint64_t count_leftover_entries(const Header& header, uint64_t offset, ConstBytes piece) {
    const uint64_t first = std::max(offset, header.chunk_count() * sizeof(uint32_t));
    uint64_t leftover = 0;
    for (uint64_t at = first; at < offset + piece.size(); at += sizeof(uint32_t)) {
        leftover += load_le<uint32_t>(piece, at - offset) != kNotStored;
    }
    return leftover;
}

TableFacts judge_table(const ChunkTable& table, SlotJudge judge) {
    TableFacts facts;
    uint64_t expected = 0; /* behind the slot of the last stored chunk */
    for (uint64_t chunk = 0; chunk < table.chunks(); ++chunk) {
        const uint32_t entry = table.entry(ChunkIndex(chunk));
        switch (judge.judge(entry)) {
            case EntryState::not_stored:
                break;
            case EntryState::stored:
                facts.fragments += facts.stored != 0 && entry != expected;
                facts.stored += 1;
                facts.slots_end = std::max(facts.slots_end, uint64_t{entry} + 1);
                expected = uint64_t{entry} + 1;
                break;
            case EntryState::impossible:
                note_wrong(facts.impossible, chunk);
                break;
            case EntryState::past_end:
                note_wrong(facts.past_end, chunk);
                break;
            case EntryState::shared:
                note_wrong(facts.shared, chunk);
                break;
        }
    }
    return facts;
}

void audit_table(const TableFacts& facts, Findings& findings) {
    audit_wrong(facts.impossible, "chunks with a slot that cannot exist", findings);
    audit_wrong(facts.past_end, "chunks with a slot behind the end of storage", findings);
    audit_wrong(facts.shared, "chunks with a slot that another chunk has, too", findings);
    if (facts.leftover != 0) {
        findings.add(
            Severity::leak, true,
            Error::make(kAny, "%" PRIu64 " entries of the table are set that stand for no chunk",
                        facts.leftover));
    }
}

void audit_journal(const Header& header, const JournalFacts& facts, Findings& findings) {
    if (facts.plan.damaged) {
        findings.add(Severity::corruption, true,
                     Error::make(kAny,
                                 "journal units missing before the last group: %" PRIu64
                                 ", first number %" PRIu64 "; what only they say is lost",
                                 facts.missing_units, facts.plan.end_sequence));
    }
    if (facts.foreign_units != 0) {
        findings.add(Severity::corruption, true,
                     Error::make(kAny,
                                 "journal units that name blocks, chunks or slots which do not "
                                 "exist: %" PRIu64,
                                 facts.foreign_units));
    }
    if (facts.displaced != 0) {
        findings.add(Severity::note, false,
                     Error::make(kAny,
                                 "%" PRIu64 " chunks are not stored any more: a record behind the "
                                 "missing units gave their slots to other chunks",
                                 facts.displaced));
    }
    if (facts.newest_epoch > header.journal_epoch) {
        findings.add(
            Severity::corruption, true,
            Error::make(kAny,
                        "the journal holds units of epoch %" PRIu64 ", but the header says "
                        "%" PRIu64 ": the header is older than the journal",
                        facts.newest_epoch, header.journal_epoch));
    }
    if (header.clean_shutdown && facts.valid_units != 0) {
        findings.add(Severity::corruption, true,
                     Error::make(kAny,
                                 "the image is marked clean, but the journal holds %" PRIu64
                                 " current units",
                                 facts.valid_units));
    }
}

}  // namespace fvd
