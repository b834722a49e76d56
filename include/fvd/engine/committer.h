/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once
/*
 * Makes changes of bitmap and table durable. Guest requests only record which pages hold changes;
 * a commit, at guest flush or a few seconds after the write, does in this order
 *
 *     collect records | flush data | write one group of units | flush metadata | committed =
 * recorded
 *
 * so a record never becomes durable before the data it exposes (R1). Changes of the table are
 * collected first: what a cut leaves of a group is its beginning, and a bit without the slot that
 * its data is in would show zeros. When half of the ring is used, a checkpoint writes the changed
 * pages to their home and flushes them; the next group carries the new tail, and only when that
 * group is durable the old units are written over (R2).
 *
 * A session begins with the first commit: the header loses its clean mark and gets a new epoch, so
 * that nothing left in the ring can ever be replayed (R4, R5). It ends with close(), which leaves
 * home metadata that needs no journal. An image that allocates nothing is never written to.
 *
 * One task at a time leads a commit; the others wait and are served by the next one.
 */

#include <atomic>
#include <cerrno>
#include <utility>

#include "fvd/engine/chunk_allocator.h"
#include "fvd/engine/header_store.h"
#include "fvd/engine/host.h"
#include "fvd/engine/journal_group.h"
#include "fvd/engine/tracked_map.h"
#include "fvd/format/header.h"

namespace fvd {

class Committer {
  public:
    /** Changes are committed in the background at the latest so long after the write. */
    static constexpr uint64_t kCommitPeriodNs = 5'000'000'000;

    Committer(Host& host, Header& header, ChunkAllocator& slots)
        : host_(host), header_(header), slots_(slots) {}

    /**
     * Get ready to record changes of @p recovered's bitmap and table; what stands in them now
     * counts as committed, and its dirty pages as not yet at home. ENOMEM.
     */
    Error begin(const ReplayTarget& recovered);
    /** A new life of an image without metadata: nothing is recorded, flushes pass. */
    void begin_untracked();
    const TrackedBitmap& bitmap() const { return bitmap_; }
    /** The header was loaded: the next update writes @p first first. */
    void set_first_slot(HeaderSlot first) { first_slot_ = first; }

    /** The data of @p blocks was written: set their bits in the current view, to be committed. */
    void record(BlockRange blocks);
    /** @p chunk is stored in @p slot from now on, which reads as zeros, or in none. With the mutex
     *  held. */
    void record_entry(ChunkIndex chunk, uint32_t entry);
    /** Nothing waits for a commit, and none is under way. Any thread; no lock. */
    bool quiet() const { return !busy_.load(std::memory_order_acquire); }
    bool failed() const { return failed_.load(std::memory_order_acquire); }

    /** Make everything acknowledged before this call durable. EIO for ever after a failed flush. */
    Status flush();
    /** Commit what is recorded; no flush of data where nothing is. */
    Status commit();
    /** Commit even where nothing but freed slots wait for it. With the mutex held. */
    Status commit_slots() { return join(); }
    void timer_expired();
    /** Have the timer expire in a while, for work that is not a commit. With the mutex held. */
    void arm_timer();

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
        const Status status = lead_with([this] { return save_header(); });
        if (!status.ok()) {
            undo(header_); /* before the next leader, who waits for the mutex, can see the change */
        }
        return status;
    }

    /**
     * The disk gets another size: change the header, durably. After an error it is as it was, also
     * on the disk, or the image is failed and either may be there. Requests and commits may go on
     * meanwhile.
     */
    template <typename Change, typename Undo>
    Status grow_disk(Change change, Undo undo) {
        HostLock lock(host_);
        wait_for_lead();
        return lead_with([&] { return switch_header(change, undo, Epoch::same); });
    }
    /** The disk gets smaller: the same, and then forget blocks and chunks past its end, whose slots
     *  become free. */
    template <typename Change, typename Undo>
    Status shrink_disk(Change change, Undo undo) {
        HostLock lock(host_);
        wait_for_lead();
        const Status status = lead_with([&] { return switch_header(change, undo, Epoch::next); });
        if (status.ok()) {
            forget_past_end();
            (void)lead_with([this] { return checkpoint(); }).ok(); /* else the next one does it */
        }
        return status;
    }
    /**
     * The disk grows past its table: @p larger, begun and of no chunks, takes its place, with home
     * at @p offset, a part of the file that nothing else uses. One update of the header, durable
     * after the larger home, decides which of the two counts; change() gives it the new place.
     * @p larger has the former table afterwards. switched() is called, with the mutex, at the
     * moment from which on changes are recorded in the larger one.
     */
    template <typename Change, typename Undo, typename Switched>
    Status move_table(TrackedTable& larger, uint64_t offset, Change change, Undo undo,
                      Switched switched) {
        HostLock lock(host_);
        wait_for_lead();
        return lead_with([&] {
            Status status = write_larger(larger, offset);
            if (status.ok()) {
                status = switch_header(change, undo, Epoch::next);
            }
            if (status.ok()) {
                HostLock locked(host_);
                larger.replace(table_);
                std::swap(table_, larger);
                switched();
            }
            return status;
        });
    }
    /** Say in the header, durably, that every block is here or that blocks may be in the base; what
     *  was committed is at home then, and the ring is void. Requests and commits may go on. */
    Status set_filled(bool filled);
    /** Everything committed goes home. */
    Status save_home() {
        HostLock lock(host_);
        wait_for_lead();
        return lead_with([this] { return checkpoint(); });
    }

    /** Pages with uncommitted changes. */
    uint64_t pending_pages() const {
        return bitmap_.pages.pending.count() + table_.pages.pending.count();
    }

  private:
    struct Waiter {
        uint64_t ticket = 0;
        void* task = nullptr;
        Waiter* next = nullptr;
        bool parked = false;
        bool done = false;
        Status status;
    };

    void update_busy();
    void fail(const char* what);
    Status flush_file(File file, Event event, const char* what);
    bool stopped() const;
    Status write_metadata(Event event, uint64_t offset, ConstBytes bytes);

    void enqueue(Waiter& me);
    void dequeue(Waiter& me);
    Status join();
    void lead();
    void wait_for_lead();
    /** With the mutex held and nobody leading; the work runs without the mutex. */
    template <typename Work>
    Status lead_with(Work work) {
        leading_ = true;
        host_.unlock();
        const Status status = failed() ? Status(-EIO) : work();
        host_.lock();
        leading_ = false;
        serve(0, Status());
        return status;
    }
    void serve(uint64_t ticket, Status status);

    Status commit_all();
    Status commit_group();
    bool collect(uint64_t* page);
    Status write_group();
    Status write_units(uint64_t sequence, size_t first, size_t count);
    void group_done();
    void group_failed();

    enum class Epoch { same, next };
    template <typename Change, typename Undo>
    Status switch_header(Change change, Undo undo, Epoch epoch) {
        Status status = epoch == Epoch::next ? checkpoint() : Status();
        if (!status.ok()) {
            return status;
        }
        change_under_lock(change);
        status = epoch == Epoch::next ? start_epoch() : save_header();
        if (!status.ok()) {
            change_under_lock(undo);
            restore_header(status);
        }
        return status;
    }
    template <typename Change>
    void change_under_lock(Change change) {
        HostLock lock(host_);
        change(header_);
    }
    void restore_header(Status cause);
    Status write_larger(TrackedTable& larger, uint64_t offset);

    void set_mark(bool clean);
    Status begin_session();
    Status start_epoch();
    Status make_room(size_t units);
    Status checkpoint();
    template <typename Map>
    Status write_home(const Map& map, uint64_t home);
    template <typename Map>
    Status write_pages(const Map& map, uint64_t home, uint64_t begin, uint64_t end);
    Status mark_clean();
    void forget_past_end();
    Status forget_on_disk();
    Status clear_home();
    Status save_header();

    Host& host_;
    Header& header_;
    ChunkAllocator& slots_;
    TrackedBitmap bitmap_;
    TrackedTable table_;
    JournalGroup group_;

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
