/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once
/*
 * Watches the writes as they enter the device and judges their order, whether or not a crash state
 * happens to show it: data durable before the record that exposes it (R1), home durable before the
 * ring is written over (R2, I7), one good header at any moment, a table that moves durable before
 * the header names it (R14), every write inside the region of its kind (I11). Of a compact image it
 * follows the table, record by record.
 */

#include <optional>
#include <string>

#include "crash_explorer.h"
#include "fvd/engine/image.h"
#include "fvd/format/journal_unit.h"
#include "fvd/format/layout.h"
#include "sim_disk.h"

namespace fvd::sim {

class OrderOracle {
  public:
    OrderOracle(SimDisk& image, SimDisk& data) : image_(image), data_(data) {}

    /** Learn the layout of an image whose disk may grow to @p most_size; nothing is written yet. */
    void begin_image(const Header& header, uint64_t most_size);
    /** The image is going to be opened, or checked, as it stands there now. */
    void look_at_header();
    /** The image was opened for writing: its home is complete. */
    void session_begins(const Header& header);
    /** Meanwhile a table may be written where nothing else is. */
    void set_resizing(bool resizing);
    /** Every block is forgotten: what is written from now on must become durable anew. */
    void forget_blocks() { data_.forget_written(); }
    void set_read_only(bool read_only) { read_only_ = read_only; }

    std::optional<Violation> write_enters(File file, uint64_t offset, ConstBytes bytes);
    bool is_metadata(File file, uint64_t offset) const;
    static bool condition_failed(const Image& image);

  private:
    using Verdict = std::optional<Violation>;
    Verdict judge_header(uint64_t offset, ConstBytes bytes);
    Verdict judge_bitmap(uint64_t offset, ConstBytes bytes);
    Verdict judge_journal(uint64_t offset, ConstBytes bytes);
    Verdict judge_unit(uint64_t place, ConstBytes unit);
    Verdict judge_overwritten(uint64_t place, const UnitView& fresh);
    Verdict judge_exposed(BlockRange blocks, const char* what);
    Verdict judge_entries(const JournalRecord& record);
    Verdict judge_data(const ByteRange& range) const;
    Verdict judge_elsewhere(const ByteRange& range, ConstBytes bytes);
    void follow_header(const Header& header);
    void follow_entry(uint64_t chunk, uint32_t entry);
    void load_table();
    bool is_durable(uint64_t unit) const;
    bool touches_region(const ByteRange& range) const;
    ByteRange slot_bytes(uint32_t slot) const;
    /** Where the bytes of the disk from @p offset on are; with the others of their block. */
    std::optional<ByteRange> place_of(uint64_t begin, uint64_t end) const;
    bool home_bit(uint64_t block) const;
    bool header_is_good(uint64_t offset) const;
    std::vector<std::byte> durable_bytes(uint64_t offset, uint64_t length) const;

    SimDisk& image_;
    SimDisk& data_;
    Header header_;
    Regions regions_;
    uint64_t most_size_ = 0;
    bool read_only_ = false;
    bool resizing_ = false;
    ByteRange moving_; /* of the FVD file: what a resize wrote elsewhere last, in one piece */
    std::vector<uint32_t> table_; /* as the last records, or home, say; of no entries without */
    uint64_t bits_in_group_ = 0;  /* epoch and first unit of the last group with a bit, mixed */
};

}  // namespace fvd::sim
