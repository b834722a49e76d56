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

namespace {

constexpr size_t kGroupBytes = 256 * 1024;

std::span<uint64_t> words_of(const HostBuffer& buffer) {
    return {reinterpret_cast<uint64_t*>(buffer.data()), buffer.size() / sizeof(uint64_t)};
}

}  // namespace

size_t Committer::max_group_units() const {
    /* A quarter of the ring: with a checkpoint at half, a group always fits. */
    const uint64_t quarter = header_.journal_units() / 4;
    return static_cast<size_t>(
        std::min({uint64_t{kMaxGroupUnits}, quarter, kGroupBytes / header_.journal_unit}));
}

Error Committer::begin(BlockBitmap current, BlockBitmap unsaved_pages) {
    const uint64_t words = BlockBitmap::bits_to_words(current.bits());
    const uint64_t page_words = BlockBitmap::bits_to_words(page_count());
    committed_words_ = HostBuffer(host_, words * sizeof(uint64_t));
    page_words_ = HostBuffer(host_, 2 * page_words * sizeof(uint64_t));
    group_bytes_ = HostBuffer(host_, kGroupBytes);
    if (!committed_words_ || !page_words_ || !group_bytes_) {
        return Error::make(-ENOMEM, "no memory for a bitmap of %llu bytes",
                           static_cast<unsigned long long>(header_.bitmap_size));
    }
    current_ = current;
    committed_ = BlockBitmap(words_of(committed_words_), current.bits());
    std::memset(page_words_.data(), 0, page_words_.size());
    pending_pages_ = BlockBitmap(words_of(page_words_).first(page_words), page_count());
    unsaved_pages_ = BlockBitmap(words_of(page_words_).subspan(page_words), page_count());
    for (uint64_t w = 0; w < words; w++) {
        words_of(committed_words_)[w] = current.word(w);
    }
    for (uint64_t page = 0; page < page_count(); page++) {
        if (unsaved_pages.test(page)) {
            unsaved_pages_.set(page, page + 1);
        }
    }
    session_open_ = false;
    head_ = tail_ = durable_tail_ = 0;
    leading_ = timer_armed_ = false;
    busy_.store(false, std::memory_order_release);
    failed_.store(false, std::memory_order_release);
    return Error::none();
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
    pending_pages_.set(blocks.begin.value / kBlocksPerPage,
                       div_ceil(blocks.end.value, kBlocksPerPage));
    current_.set(blocks.begin.value, blocks.end.value);
    arm_timer();
}

void Committer::arm_timer() {
    if (!timer_armed_ && !failed()) {
        timer_armed_ = true;
        host_.arm_timer(FVD_TIMER_COMMIT, kCommitPeriodMs);
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
    busy_.store(leading_ || pending_pages_.any_set(0, pending_pages_.bits()),
                std::memory_order_release);
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
    const bool ignored = FVD_PLANT(flush_beside_failed) || FVD_PLANT(write_when_failed);
    return failed() && !ignored ? status.or_else(-EIO) : status;
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

/* With the mutex held and nobody leading; the work runs without the mutex. */
Status Committer::lead_with(Status (Committer::*work)()) {
    leading_ = true;
    host_.unlock();
    const Status status = failed() ? Status(-EIO) : (this->*work)();
    host_.lock();
    leading_ = false;
    serve(0, Status());
    return status;
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
    group_.next_page = 0;
    do {
        if (failed() && !FVD_PLANT(write_when_failed)) {
            return -EIO;
        }
        collect();
        host_.unlock();
        const Status status = commit_group();
        host_.lock();
        if (!status.ok()) {
            group_failed();
            return status;
        }
        group_done();
    } while (group_.more);
    return {};
}

Status Committer::commit_group() {
    if (group_.count != 0 && !session_open_) {
        const Status status = begin_session();
        if (!status.ok()) {
            return status;
        }
    }
    const Status status =
        FVD_PLANT(skip_data_flush) && group_.count != 0
            ? Status()
            : flush_file(FVD_FILE_DATA, FVD_EVENT_COMMIT_FLUSH, "a flush of guest data");
    if (!status.ok() || group_.count == 0) {
        return status;
    }
    return write_group();
}

/* Fill group_ with records of pending pages from next_page on; takes them off the pending set. */
void Committer::collect() {
    group_.count = 0;
    group_.more = false;
    const uint64_t pages = pending_pages_.bits();
    uint64_t page = group_.next_page;
    while (page < pages) {
        if (!pending_pages_.test(page)) {
            page = pending_pages_.run_end(page, pages);
            continue;
        }
        if (!collect_page(page)) {
            group_.more = true;
            break;
        }
        pending_pages_.clear(page, page + 1);
        page++;
    }
    group_.next_page = page;
}

/* False when the group is full; the page then stays pending, and what of it is already in the group
 * is committed by the time it is looked at again. */
bool Committer::collect_page(uint64_t page) {
    const uint64_t end = std::min((page + 1) * kBlocksPerPage, current_.bits());
    uint64_t run_begin = 0;
    uint64_t run_end = 0; /* empty: no run is open */
    for (uint64_t bit = page * kBlocksPerPage; bit < end; bit += 64) {
        uint64_t news = current_.word(bit / 64) & ~committed_.word(bit / 64);
        while (news != 0) {
            const uint64_t low = static_cast<uint64_t>(__builtin_ctzll(news));
            const uint64_t shifted = news >> low;
            const uint64_t ones =
                ~shifted == 0 ? 64 : static_cast<uint64_t>(__builtin_ctzll(~shifted));
            if (run_end != bit + low) {
                if (run_end != run_begin &&
                    !add_record({BlockIndex(run_begin), BlockIndex(run_end)})) {
                    return false;
                }
                run_begin = bit + low;
            }
            run_end = bit + low + ones;
            news = low + ones == 64 ? 0 : news & (~uint64_t{0} << (low + ones));
        }
    }
    return run_end == run_begin || add_record({BlockIndex(run_begin), BlockIndex(run_end)});
}

bool Committer::add_record(BlockRange run) {
    if (group_.count != 0 && group_.units[group_.count - 1]->add_bitmap(run)) {
        return true;
    }
    return open_unit() && group_.units[group_.count - 1]->add_bitmap(run);
}

bool Committer::open_unit() {
    if (group_.count == max_group_units()) {
        return false;
    }
    const size_t unit = header_.journal_unit;
    group_.units[group_.count].emplace(group_bytes_.bytes().subspan(group_.count * unit, unit));
    group_.count++;
    return true;
}

Status Committer::write_group() {
    const size_t count = group_.count;
    Status status = make_room(count);
    if (!status.ok()) {
        return status;
    }
    for (size_t i = 0; i < count; i++) {
        UnitHeader header;
        header.epoch = header_.journal_epoch;
        header.sequence = head_ + i;
        header.tail_sequence = tail_;
        header.group_index = static_cast<uint32_t>(i);
        header.group_size = static_cast<uint32_t>(count);
        group_.units[i]->finish(header, header_.image_id);
    }
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
    host_.announce(FVD_EVENT_JOURNAL_WRITE);
    return write_bytes(host_, FVD_FILE_IMAGE, header_.journal_offset + place * unit,
                       group_bytes_.bytes().subspan(first * unit, count * unit));
}

template <typename Visit>
void Committer::for_each_record(Visit visit) const {
    const size_t unit = header_.journal_unit;
    for (size_t i = 0; i < group_.count; i++) {
        const auto view =
            UnitView::decode(group_bytes_.bytes().subspan(i * unit, unit), header_.image_id);
        FVD_ASSERT(view.has_value());
        size_t position = 0;
        JournalRecord record;
        while (view->next(&position, &record)) {
            visit(record.blocks);
        }
    }
}

void Committer::group_done() {
    if (group_.count == 0) {
        return;
    }
    for_each_record([this](BlockRange blocks) {
        committed_.set(blocks.begin.value, blocks.end.value);
        unsaved_pages_.set(blocks.begin.value / kBlocksPerPage,
                           div_ceil(blocks.end.value, kBlocksPerPage));
    });
    if (FVD_PLANT(commit_too_much)) {
        for (uint64_t b = 0; b < current_.bits(); b++) {
            current_.test(b) ? committed_.set(b, b + 1) : void();
        }
    }
    head_ += group_.count;
    durable_tail_ = tail_;
}

/* The records never became durable: their pages are pending again. The units may not have a header
 * yet, so every page that was passed is looked at: those that differ are pending. */
void Committer::group_failed() {
    if (FVD_PLANT(forget_failed_group)) {
        return;
    }
    const uint64_t words_a_page = kBlocksPerPage / 64;
    for (uint64_t page = 0; page < pending_pages_.bits(); page++) {
        const uint64_t end = std::min((page + 1) * words_a_page, current_.words());
        for (uint64_t w = page * words_a_page; w < end; w++) {
            if ((current_.word(w) & ~committed_.word(w)) != 0) {
                pending_pages_.set(page, page + 1);
                break;
            }
        }
    }
    if (!failed()) {
        arm_timer();
    }
}

}  // namespace fvd
