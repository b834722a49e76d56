/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once
/*
 * Judgement of a whole image, from facts that `qemu-img check` reads: what is wrong, how bad that
 * is, and whether it can be repaired. Pure, and silent on every state that our own writer can leave
 * behind at a power cut (P9): a torn mark, an older copy of the header, records that wait for
 * replay.
 */

#include <array>
#include <cstdint>
#include <span>

#include "fvd/format/header.h"
#include "fvd/format/recovery.h"

namespace fvd {

enum class Severity {
    note,       /* worth knowing; counts as nothing */
    leak,       /* leftovers that no reader looks at */
    corruption, /* something that is relied on is wrong or missing */
};

struct Finding {
    Severity severity = Severity::note;
    bool repairable = false;
    char text[Error::kTextSize] = {}; /* one sentence */
};

/** A short list without heap. What does not fit is counted, not kept. */
class Findings {
  public:
    static constexpr size_t kMost = 12;

    void add(Severity severity, bool repairable, const Error& sentence);
    std::span<const Finding> list() const { return {list_.data(), kept_}; }
    uint64_t count(Severity severity) const;
    uint64_t repairable(Severity severity) const;

  private:
    std::array<Finding, kMost> list_;
    size_t kept_ = 0;
    std::array<uint64_t, 3> counts_{};
    std::array<uint64_t, 3> repairable_{};
};

/** The two copies, and what the chosen one says. @p file_start: what choose_header() looked at. */
void audit_header(const ChosenHeader& chosen, ConstBytes file_start, Findings& findings);

/**
 * Regions and storage. @p data_length is the length of the file that holds guest data. False when
 * the metadata cannot be read because its regions are wrong.
 */
bool audit_regions(const Header& header, uint64_t file_length, uint64_t data_length,
                   Findings& findings);

/** Bits set in a piece of the bitmap's home that stand for no block; @p offset within the region.
 */
uint64_t count_leftover_bits(const Header& header, uint64_t offset, ConstBytes piece);

/** @p leftover_bits of the whole region. */
void audit_bitmap(uint64_t leftover_bits, Findings& findings);

/** What stands in an entry of the table. */
enum class EntryState {
    not_stored,
    stored,
    impossible, /* names a slot that no image of this size has, or that a region stands on */
    past_end,   /* its slot does not lie wholly inside the storage of guest data */
    shared,     /* a chunk before it has the same slot */
};

/** Judges the entries of a table one after the other. */
class SlotJudge {
  public:
    /**
     * Slots below @p inside lie wholly inside storage, no chunk can have @p reserved ones. @p
     * taken, a clear bit for each slot that can exist, is the caller's memory.
     */
    SlotJudge(BlockBitmap taken, uint64_t inside, const ReservedSlots& reserved = {})
        : taken_(taken), inside_(inside), reserved_(reserved) {}
    /** A slot that is not impossible, past the end or shared is taken by this. */
    EntryState judge(uint32_t entry);
    const BlockBitmap& taken() const { return taken_; }

  private:
    BlockBitmap taken_;
    uint64_t inside_;
    ReservedSlots reserved_;
};

/** Slots that lie wholly inside storage of guest data of this length. */
uint64_t slots_inside(const Header& header, uint64_t data_length);

/** Entries in a piece of the table's home that stand for no chunk and say anything but "not
 * stored"; @p offset within the region. */
uint64_t count_leftover_entries(const Header& header, uint64_t offset, ConstBytes piece);

/** What a pass over the whole table, with the journal's records applied, found. */
struct TableFacts {
    uint64_t stored = 0;    /* entries that are as they should be */
    uint64_t fragments = 0; /* of those: not in the slot behind that of the one before */
    uint64_t slots_end = 0; /* behind the highest slot in use */
    uint64_t leftover = 0;  /* entries for which there is no chunk */
    struct Wrong {
        uint64_t count = 0;
        ChunkIndex first;
    } impossible, past_end, shared;
};

/** Judges all entries; leftovers are the caller's to count. */
TableFacts judge_table(const ChunkTable& table, SlotJudge judge);

void audit_table(const TableFacts& facts, Findings& findings);

/** What a pass over the whole ring found. */
struct JournalFacts {
    ReplayPlan plan{};
    uint64_t valid_units = 0;   /* of the header's epoch */
    uint64_t missing_units = 0; /* between the tail and the newest unit, where plan.damaged */
    uint64_t foreign_units = 0; /* valid, but naming what does not exist */
    uint64_t displaced = 0;     /* chunks whose slot a later record gave to another one */
    uint64_t newest_epoch = 0;  /* of any unit with a right checksum */
};

void audit_journal(const Header& header, const JournalFacts& facts, Findings& findings);

}  // namespace fvd
