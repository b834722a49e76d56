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

/** What a pass over the whole ring found. */
struct JournalFacts {
    ReplayPlan plan{};
    uint64_t valid_units = 0;   /* of the header's epoch */
    uint64_t missing_units = 0; /* between the tail and the newest unit, where plan.damaged */
    uint64_t foreign_units = 0; /* valid, but naming blocks that do not exist */
    uint64_t newest_epoch = 0;  /* of any unit with a right checksum */
};

void audit_journal(const Header& header, const JournalFacts& facts, Findings& findings);

}  // namespace fvd
