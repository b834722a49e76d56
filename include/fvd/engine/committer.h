/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once
/*
 * Makes changes of the bitmap durable. Guest writes only record which pages of the bitmap hold
 * changes; a commit, at guest flush or a few seconds after the write, does in this order
 *
 *     collect records | flush data | write one group of units | flush metadata | committed =
 * recorded
 *
 * so a record never becomes durable before the data it exposes (R1). When half of the ring is used,
 * a checkpoint writes the changed pages to their home and flushes them; the next group carries the
 * new tail, and only when that group is durable the old units are written over (R2).
 *
 * A session begins with the first commit: the header loses its clean mark and gets a new epoch, so
 * that nothing left in the ring can ever be replayed (R4, R5). It ends with close(), which leaves
 * home metadata that needs no journal. An image that allocates nothing is never written to.
 *
 * One task at a time leads a commit; the others wait and are served by the next one.
 */

#include <array>
#include <atomic>
#include <optional>

#include "fvd/engine/header_store.h"
#include "fvd/engine/host.h"
#include "fvd/format/block_bitmap.h"
#include "fvd/format/header.h"
#include "fvd/format/journal_unit.h"
#include "fvd/format/recovery.h"

namespace fvd {

class Committer {
  public:
    /** Changes are committed in the background at the latest so long after the write. */
    static constexpr uint64_t kCommitPeriodMs = 5000;
    /** Units written at once, at most. */
    static constexpr size_t kMaxGroupUnits = 64;

    Committer(Host& host, Header& header) : host_(host), header_(header) {}

    /**
     * Get ready to record changes of @p current; every bit set in it now counts as committed, and
     * the pages in @p unsaved_pages as not yet at home. ENOMEM.
     */
    Error begin(BlockBitmap current, BlockBitmap unsaved_pages);
    /** A new life of an image without bitmap: nothing is recorded, flushes pass. */
    void begin_untracked() { failed_.store(false, std::memory_order_release); }
    /** The header was loaded: the next update writes @p first first. */
    void set_first_slot(HeaderSlot first) { first_slot_ = first; }
    /** Pages of the bitmap's home. */
    uint64_t page_count() const { return header_.bitmap_size / kPageSize; }

    /** The data of @p blocks was written: set their bits in the current view, to be committed. */
    void record(BlockRange blocks);
    /** Nothing waits for a commit, and none is under way. Any thread; no lock. */
    bool quiet() const { return !busy_.load(std::memory_order_acquire); }
    bool failed() const { return failed_.load(std::memory_order_acquire); }

    /** Make everything acknowledged before this call durable. EIO for ever after a failed flush. */
    Status flush();
    /** Commit what is recorded; no flush of data where nothing is. */
    Status commit();
    void timer_expired();

    /** After recovery, or to heal the header: home and clean mark durable, before any request. */
    Status settle();
    /** Commit, checkpoint, clean mark. No request in flight. */
    Status close();
    /** Every bit clear, durably, or none. No request in flight. */
    Status forget_all();
    /** Change names in the header, durably; @p change gets the header under the mutex. Requests and
     *  commits may go on meanwhile. */
    template <typename Change, typename Undo>
    Status change_header(Change change, Undo undo) {
        HostLock lock(host_);
        wait_for_lead();
        change(header_);
        const Status status = lead_with(&Committer::save_header);
        if (!status.ok()) {
            undo(header_); /* before the next leader, who waits for the mutex, can see the change */
        }
        return status;
    }

    /** Pages with uncommitted changes. */
    uint64_t pending_pages() const { return pending_pages_.count(); }

    static constexpr uint64_t kPageSize = 4096;

  private:
    struct Waiter {
        uint64_t ticket = 0;
        void* task = nullptr;
        Waiter* next = nullptr;
        bool parked = false;
        bool done = false;
        Status status;
    };

    /* The group being collected and written. */
    struct Group {
        std::array<std::optional<UnitWriter>, kMaxGroupUnits> units;
        size_t count = 0;
        uint64_t next_page = 0; /* collecting goes on here */
        bool more = false;
    };

    void arm_timer();
    void update_busy();
    void fail(const char* what);
    Status flush_file(File file, Event event, const char* what);

    void enqueue(Waiter& me);
    void dequeue(Waiter& me);
    Status join();
    void lead();
    void wait_for_lead();
    Status lead_with(Status (Committer::*work)());
    void serve(uint64_t ticket, Status status);

    Status commit_all();
    Status commit_group();
    void collect();
    bool collect_page(uint64_t page);
    bool add_record(BlockRange run);
    bool open_unit();
    size_t max_group_units() const;
    Status write_group();
    Status write_units(uint64_t sequence, size_t first, size_t count);
    void group_done();
    void group_failed();
    template <typename Visit>
    void for_each_record(Visit visit) const;

    void set_mark(bool clean);
    Status begin_session();
    Status make_room(size_t units);
    Status checkpoint();
    Status write_home(BlockBitmap& pages);
    Status write_pages(uint64_t begin, uint64_t end);
    Status mark_clean();
    Status forget_on_disk();
    Status clear_home();
    Status save_header();

    Host& host_;
    Header& header_;
    BlockBitmap current_;
    HostBuffer committed_words_;
    BlockBitmap committed_;
    HostBuffer page_words_;     /* both page sets */
    BlockBitmap pending_pages_; /* current differs from committed */
    BlockBitmap unsaved_pages_; /* committed differs from home */
    HostBuffer group_bytes_;
    Group group_;

    /* Guarded by the host's mutex. */
    Waiter* waiters_ = nullptr;
    uint64_t requested_ = 0;
    bool leading_ = false;
    bool timer_armed_ = false;

    /* Only the leader, or a task alone with the image, touches these. */
    HeaderSlot first_slot_ = HeaderSlot::copy; /* what the next header update writes first */
    bool session_open_ = false;
    uint64_t head_ = 0;         /* sequence of the next unit */
    uint64_t tail_ = 0;         /* oldest unit replay needs */
    uint64_t durable_tail_ = 0; /* what the newest durable unit says of it */

    std::atomic<bool> busy_{false};
    std::atomic<bool> failed_{false};
};

}  // namespace fvd
