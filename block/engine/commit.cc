/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Recording and committing. docs/durability.md has the rules (R1..R13) this file keeps.
 */
#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "fvd/base/arith.h"
#include "fvd/base/plant.h"
#include "fvd/engine/committer.h"

namespace fvd {

Error Committer::begin(const ReplayTarget& recovered) {
    /* A quarter of the ring: with a checkpoint at half, a group always fits. */
    const uint64_t most_units = header_.journal_units() / 4;
    if (!bitmap_.begin(host_, recovered.bitmap, header_.bitmap_size / kPageSize,
                       recovered.dirty_pages) ||
        !table_.begin(host_, recovered.table, header_.table_size / kPageSize,
                      recovered.dirty_entries) ||
        !group_.begin(host_, header_.journal_unit, most_units)) {
        return Error::make(-ENOMEM,
                           "no memory for a bitmap of %llu bytes and a table of %llu bytes",
                           static_cast<unsigned long long>(header_.bitmap_size),
                           static_cast<unsigned long long>(header_.table_size));
    }
    session_open_ = false;
    head_ = tail_ = durable_tail_ = 0;
    leading_ = timer_armed_ = false;
    busy_.store(false, std::memory_order_release);
    failed_.store(false, std::memory_order_release);
    return Error::none();
}

void Committer::begin_untracked() {
    bitmap_ = TrackedBitmap();
    table_ = TrackedTable();
    session_open_ = false;
    failed_.store(false, std::memory_order_release);
}

/* ------------------------------------------------------------------------------- recording */

/* busy_ goes up before the bits: whoever finds a bit set, and the image quiet after that, knows
 * that the bit is durable. */
void Committer::record(BlockRange blocks) {
    if (blocks.empty()) {
        return;
    }
    HostLock lock(host_);
    busy_.store(true, std::memory_order_release);
    bitmap_.record(blocks);
    arm_timer();
}

void Committer::record_entry(ChunkIndex chunk, uint32_t entry) {
    busy_.store(true, std::memory_order_release);
    table_.record(chunk, entry);
    arm_timer();
}

void Committer::arm_timer() {
    if (!timer_armed_ && !failed()) {
        timer_armed_ = true;
        host_.arm_timer(FVD_TIMER_COMMIT, kCommitPeriodNs);
    }
}

void Committer::timer_expired() {
    {
        HostLock lock(host_);
        timer_armed_ = false;
    }
    /* An error stays with the pages: they are pending again, and the next flush reports it. */
    (void)commit().ok();
    HostLock lock(host_);
    if (!quiet()) {
        arm_timer();
    }
}

void Committer::update_busy() {
    const BlockBitmap& bits = bitmap_.pages.pending;
    const BlockBitmap& entries = table_.pages.pending;
    const bool pending = bits.any_set(0, bits.bits()) || entries.any_set(0, entries.bits());
    busy_.store(leading_ || pending, std::memory_order_release);
}

void Committer::fail(const char* what) {
    if (!failed_.exchange(true, std::memory_order_acq_rel)) {
        char sentence[200];
        std::snprintf(
            sentence, sizeof(sentence),
            "%s failed: what was written since the last flush may be lost; no metadata is "
            "written until the image is opened again",
            what);
        host_.warn(sentence);
    }
}

Status Committer::flush_file(File file, Event event, const char* what) {
    host_.announce(event);
    const Status status = host_.flush(file);
    if (!status.ok() && !FVD_PLANT(flush_fails_unnoticed)) {
        fail(what);
    }
    /* A flush beside this one may have failed and taken the cache with it: success says nothing
     * then. */
    return stopped() && !FVD_PLANT(flush_beside_failed) ? status.or_else(-EIO) : status;
}

bool Committer::stopped() const {
    return failed() && !FVD_PLANT(write_when_failed);
}

/* Of journal and home. A flush of the guest, which waits for no leader, may fail between any two of
 * them. */
Status Committer::write_metadata(Event event, uint64_t offset, ConstBytes bytes) {
    if (stopped()) {
        return -EIO;
    }
    host_.announce(event);
    return write_bytes(host_, FVD_FILE_IMAGE, offset, bytes);
}

/* ------------------------------------------------------------------------------- who leads */

Status Committer::flush() {
    if (failed()) {
        return -EIO;
    }
    {
        HostLock lock(host_);
        if (!quiet() && !FVD_PLANT(flush_without_commit)) {
            return join(); /* a commit that starts after this call, so its data flush covers it */
        }
    }
    return flush_file(FVD_FILE_DATA, FVD_EVENT_COMMIT_FLUSH, "a flush of guest data");
}

Status Committer::commit() {
    HostLock lock(host_);
    return quiet() ? Status() : join();
}

/* Not inlined: the compiler would otherwise suspect that `me` outlives its task's stack. serve()
 * takes every waiter off the list before its task goes on. */
[[gnu::noinline]] void Committer::enqueue(Waiter& me) {
    me.ticket = ++requested_;
    me.task = host_.current_task();
    me.next = waiters_;
    waiters_ = &me;
}

void Committer::dequeue(Waiter& me) {
    for (Waiter** link = &waiters_; *link != nullptr; link = &(*link)->next) {
        if (*link == &me) {
            *link = me.next;
            return;
        }
    }
}

Status Committer::join() {
    Waiter me;
    enqueue(me);
    while (!me.done) {
        if (leading_) {
            me.parked = true;
            host_.park();
            me.parked = false;
        } else {
            lead();
        }
    }
    return me.status;
}

void Committer::lead() {
    leading_ = true;
    const uint64_t covered = requested_;
    const Status status = commit_all();
    leading_ = false;
    update_busy();
    serve(covered, status);
}

/* For work that is not a commit but must not meet one. */
void Committer::wait_for_lead() {
    Waiter me;
    while (leading_) {
        enqueue(me);
        me.ticket = UINT64_MAX; /* no commit serves it; it is only woken */
        me.parked = true;
        host_.park();
        dequeue(me);
    }
}

void Committer::serve(uint64_t ticket, Status status) {
    for (Waiter** link = &waiters_; *link != nullptr;) {
        Waiter* waiter = *link;
        if (waiter->ticket > ticket) {
            link = &waiter->next;
        } else {
            *link = waiter->next;
            waiter->done = true;
            waiter->status = status;
        }
        /* Whoever is not served wakes too: one of them leads the next commit. */
        if (waiter->parked) {
            waiter->parked = false;
            host_.wake(waiter->task);
        }
    }
}

/* ------------------------------------------------------------------------------- a commit */

/* Called and left with the mutex held. */
Status Committer::commit_all() {
    bool all = false;
    uint64_t page = 0; /* of the bitmap: what comes behind it meanwhile is for the next commit */
    while (!all) {
        if (stopped()) {
            return -EIO;
        }
        all = collect(&page);
        host_.unlock();
        const Status status = commit_group();
        host_.lock();
        if (!status.ok()) {
            group_failed();
            return status;
        }
        group_done();
    }
    return {};
}

/* Slots that a group sets free must be out of reach of an earlier, failed one that may stand in the
 * ring, even if this one has no records. */
Status Committer::commit_group() {
    if ((!group_.empty() || slots_.has_collected()) && !session_open_) {
        const Status status = begin_session();
        if (!status.ok()) {
            return status;
        }
    }
    const Status status =
        FVD_PLANT(skip_data_flush) && !group_.empty()
            ? Status()
            : flush_file(FVD_FILE_DATA, FVD_EVENT_COMMIT_FLUSH, "a flush of guest data");
    if (!status.ok() || group_.empty()) {
        return status;
    }
    return write_group();
}

/* Fill the group with records of pending pages, of the bitmap from *page on, and take them off the
 * pending sets. True at the end of the bitmap. */
bool Committer::collect(uint64_t* page) {
    group_.clear();
    if (FVD_PLANT(bit_before_slot) && !bitmap_.collect(group_, page)) {
        return false;
    }
    uint64_t first_page = 0;
    if (!FVD_PLANT(forget_entry) && !table_.collect(group_, &first_page)) {
        return false;
    }
    slots_.group_collected();
    return bitmap_.collect(group_, page);
}

Status Committer::write_group() {
    const size_t count = group_.count();
    Status status = make_room(count);
    if (!status.ok()) {
        return status;
    }
    UnitHeader first;
    first.epoch = header_.journal_epoch;
    first.sequence = head_;
    first.tail_sequence = tail_;
    group_.finish(first, header_.image_id);
    const uint64_t place = head_ % header_.journal_units();
    const size_t until_wrap =
        static_cast<size_t>(std::min<uint64_t>(count, header_.journal_units() - place));
    status = write_units(head_, 0, until_wrap);
    if (status.ok() && until_wrap != count) {
        status = write_units(head_ + until_wrap, until_wrap, count - until_wrap);
    }
    if (!status.ok()) {
        /* Some units may stand in the ring all the same. A new epoch makes them void. */
        session_open_ = false;
        return status;
    }
    if (FVD_PLANT(skip_journal_flush)) {
        return status;
    }
    return flush_file(FVD_FILE_IMAGE, FVD_EVENT_JOURNAL_FLUSH, "a flush of the journal");
}

Status Committer::write_units(uint64_t sequence, size_t first, size_t count) {
    const uint64_t unit = header_.journal_unit;
    const uint64_t place = (sequence + FVD_PLANT(wrong_place)) % header_.journal_units();
    return write_metadata(FVD_EVENT_JOURNAL_WRITE, header_.journal_offset + place * unit,
                          group_.units(first, count));
}

void Committer::group_done() {
    slots_.group_durable();
    if (group_.empty()) {
        return;
    }
    group_.for_each_record(header_.image_id, [this](const JournalRecord& record) {
        record.kind == JournalRecord::Kind::bitmap ? bitmap_.applied(record)
                                                   : table_.applied(record);
    });
    if (FVD_PLANT(commit_too_much)) {
        bitmap_.commit_everything();
    }
    head_ += group_.count();
    durable_tail_ = tail_;
}

/* The records never became durable: their pages are pending again. */
void Committer::group_failed() {
    if (FVD_PLANT(forget_failed_group)) {
        return;
    }
    slots_.group_failed();
    bitmap_.collect_again();
    table_.collect_again();
    if (!failed()) {
        arm_timer();
    }
}

}  // namespace fvd
