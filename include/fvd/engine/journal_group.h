/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once
/* The units that one commit writes: records are added until they are full, then all get numbers. */

#include <array>
#include <optional>
#include <span>

#include "fvd/engine/host.h"
#include "fvd/format/header.h"
#include "fvd/format/journal_unit.h"

namespace fvd {

class JournalGroup {
  public:
    static constexpr size_t kMaxUnits = 64;
    static constexpr size_t kBytes = 256 * 1024;
    /** Entries of one table record, at most: they fit into an empty unit of any size. */
    static constexpr size_t kMaxEntries = 100;

    /** Units of @p unit_size bytes, at most @p most of them. False: no memory. */
    bool begin(Host& host, size_t unit_size, uint64_t most);
    void clear() { count_ = 0; }
    bool empty() const { return count_ == 0; }
    size_t count() const { return count_; }

    /** False when the group is full; it is unchanged then. */
    bool add(BlockRange blocks);
    /** At most kMaxEntries entries of consecutive chunks. */
    bool add(ChunkIndex first, std::span<const uint32_t> entries);

    /** Number and seal the units; the first gets header.sequence. */
    void finish(UnitHeader header, const ImageId& image_id);
    /** Bytes of the units [first, first + count). */
    ConstBytes units(size_t first, size_t count) const;

    /** Call visit(const JournalRecord&) for each record of the finished units. */
    template <typename Visit>
    void for_each_record(const ImageId& image_id, Visit visit) const {
        for (size_t i = 0; i < count_; i++) {
            const auto view = UnitView::decode(units(i, 1), image_id);
            FVD_ASSERT(view.has_value());
            size_t position = 0;
            JournalRecord record;
            while (view->next(&position, &record)) {
                visit(record);
            }
        }
    }

  private:
    bool open_unit();

    std::array<std::optional<UnitWriter>, kMaxUnits> writers_;
    HostBuffer bytes_;
    size_t unit_ = 0;
    size_t most_ = 0;
    size_t count_ = 0;
};

}  // namespace fvd
