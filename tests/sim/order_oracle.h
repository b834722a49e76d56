/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once
/*
 * Watches the writes as they enter the device and judges their order, whether or not a crash state
 * happens to show it: data durable before the record that exposes it (R1), home durable before the
 * ring is written over (R2, I7), one good header at any moment, every write inside the region of
 * its kind (I11).
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

    /** Learn the layout; nothing is written yet. */
    void begin_image(const Header& header);
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
    bool home_bit(uint64_t block) const;
    bool header_is_good(uint64_t offset) const;
    std::vector<std::byte> durable_bytes(uint64_t offset, uint64_t length) const;

    SimDisk& image_;
    SimDisk& data_;
    Header header_;
    Regions regions_;
    bool read_only_ = false;
};

}  // namespace fvd::sim
