/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once
/*
 * The two maps whose changes the committer makes durable, bitmap and table, in the same shape: a
 * current view that requests look at, a committed view that replay would give, and two sets of 4
 * KiB pages of the home: pending (the views differ) and unsaved (committed differs from home).
 *
 *   request -> record() -> current, pending
 *   commit  -> collect() -> group of journal units -> applied() -> committed, unsaved
 *   checkpoint -> store() of unsaved pages -> home
 *
 * All members but store() want the host's mutex; committed and unsaved belong to the leader.
 */

#include <algorithm>
#include <span>

#include "fvd/engine/host_memory.h"
#include "fvd/engine/journal_group.h"
#include "fvd/format/block_bitmap.h"
#include "fvd/format/chunk_table.h"
#include "fvd/format/recovery.h"

namespace fvd {

inline constexpr uint64_t kPageSize = 4096;

/** The page sets of a map. */
class PageSets {
  public:
    /** Pages of the home; those in @p unsaved, which may be of fewer pages, count as not yet at
     * home. False: no memory. */
    bool begin(Host& host, uint64_t pages, const BlockBitmap& unsaved);
    BlockBitmap pending;
    BlockBitmap unsaved;

  private:
    HostBuffer pending_words_;
    HostBuffer unsaved_words_;
};

class TrackedBitmap {
  public:
    /** Every bit set in @p current counts as committed. False: no memory. */
    bool begin(Host& host, BlockBitmap current, uint64_t pages, const BlockBitmap& unsaved);

    void record(BlockRange blocks);
    /** Blocks that are not here, in the current view. */
    uint64_t missing() const { return missing_; }
    /** Add records of the pages in [*page, end) that changed to the group; they are no longer
     *  pending. False when the group is full: *page is where to go on. */
    bool collect(JournalGroup& group, uint64_t* page);
    /** A record is durable. */
    void applied(const JournalRecord& record);
    /** Records were lost: every page that differs is pending. */
    void collect_again();
    /** Bytes of the committed view's page. */
    void store(uint64_t page, MutableBytes to) const { committed_.store(page * kPageSize, to); }
    void forget_all();
    /** Forget what lies from @p bits on. */
    void cut(uint64_t bits);
    /** A planted bug: what came since collect() passes for committed. */
    void commit_everything();

    BlockBitmap current;
    PageSets pages;

  private:
    bool collect_page(JournalGroup& group, uint64_t page);

    HostBuffer committed_words_;
    BlockBitmap committed_;
    uint64_t blocks_ = 0; /* of the disk, which may have become smaller than the bitmap */
    uint64_t missing_ = 0;
};

class TrackedTable {
  public:
    bool begin(Host& host, ChunkTable current, uint64_t pages, const BlockBitmap& unsaved);
    /** Begin to take the place of @p smaller, all of which is at home: what is committed there is
     *  committed and current here. For the leader, without the mutex. */
    void follow(const TrackedTable& smaller);
    /** Take its place: what changed there since its last commit is pending here. */
    void replace(const TrackedTable& smaller);

    void record(ChunkIndex chunk, uint32_t entry);
    bool collect(JournalGroup& group, uint64_t* page);
    void applied(const JournalRecord& record);
    void collect_again();
    void store(uint64_t page, MutableBytes to) const { committed_.store(page * kPageSize, to); }
    /** Forget the chunks from @p chunks on; visit(slot) for each slot that one of them has. */
    template <typename Visit>
    void cut(uint64_t chunks, Visit visit) {
        for (uint64_t c = chunks; c < current.chunks(); c++) {
            if (const std::optional<SlotIndex> slot = current.slot(ChunkIndex(c))) {
                visit(*slot);
            }
            current.clear(ChunkIndex(c));
            committed_.clear(ChunkIndex(c));
        }
        const uint64_t page = chunks / kChunksPerPage;
        pages.unsaved.set(std::min(page, pages.unsaved.bits()), pages.unsaved.bits());
    }

    ChunkTable current;
    PageSets pages;

  private:
    bool collect_page(JournalGroup& group, uint64_t page);

    HostBuffer committed_entries_;
    ChunkTable committed_;
};

}  // namespace fvd
