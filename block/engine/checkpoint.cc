/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Sessions, checkpoints and the clean mark: everything that moves changes to their home or writes
 * the header.
 */
#include <algorithm>
#include <cerrno>
#include <cstring>

#include "fvd/base/plant.h"
#include "fvd/engine/committer.h"
#include "fvd/engine/header_store.h"

namespace fvd {

namespace {

constexpr uint64_t kHomeWriteBytes = 256 * 1024;

}  // namespace

/* A request's own flush may fail while the header is written: the update must end there (I13). */
Status Committer::save_header() {
    const auto flush = [](void* self, Event event) {
        return static_cast<Committer*>(self)->flush_file(FVD_FILE_IMAGE, event,
                                                         "a flush of the header");
    };
    return update_header(host_, header_, &first_slot_, flush, this);
}

/* Under the mutex, because management may be looking at the header meanwhile. */
void Committer::set_mark(bool clean) {
    HostLock lock(host_);
    header_.clean_shutdown = clean;
    header_.journal_epoch += FVD_PLANT(keep_epoch) ? 0 : 1;
    header_.autoclear_features &= kKnownAutoclear;
}

/* The mark goes away, and a new epoch voids whatever the ring holds, before the first record.
 * Changes that only the ring of the old epoch knows must be at home before that. */
Status Committer::begin_session() {
    const Status status = checkpoint();
    return status.ok() ? start_epoch() : status;
}

Status Committer::start_epoch() {
    session_open_ = false; /* whatever becomes of the header */
    set_mark(false);
    const Status status = save_header();
    if (status.ok()) {
        head_ = tail_ = durable_tail_ = 0;
        session_open_ = true;
    }
    return status;
}

/* The header that did not become durable may stand on the disk all the same. Nothing may rely on
 * the one in memory before that one does. */
void Committer::restore_header(Status cause) {
    const bool nothing_was_written = cause.value() == -ENOMEM;
    if (!nothing_was_written && !failed() && !save_header().ok()) {
        fail("undoing a change of the header");
    }
}

/* Home of a larger table, complete and durable, before anything names it. */
Status Committer::write_larger(TrackedTable& larger, uint64_t offset) {
    /* Also what only the ring knows: the larger home has all that is committed. */
    larger.follow(table_);
    larger.pages.unsaved.set(0, larger.pages.unsaved.bits());
    const Status status = write_home(larger, offset);
    larger.pages.unsaved.clear(0, larger.pages.unsaved.bits());
    if (!status.ok() || FVD_PLANT(switch_before_flush)) {
        return status;
    }
    return flush_file(FVD_FILE_IMAGE, FVD_EVENT_HOME_FLUSH, "a flush of the larger table");
}

Status Committer::make_room(size_t units) {
    const uint64_t ring = header_.journal_units();
    if (FVD_PLANT(skip_checkpoint)) {
        durable_tail_ = tail_ = head_;
    }
    if (head_ - tail_ > ring / 2) {
        const Status status = checkpoint();
        if (!status.ok()) {
            return status;
        }
    }
    FVD_ASSERT(head_ + units - durable_tail_ <= ring); /* I7 */
    return {};
}

/* Afterwards home equals the committed view, and replay needs none of the units so far. */
Status Committer::checkpoint() {
    BlockBitmap& bits = bitmap_.pages.unsaved;
    BlockBitmap& entries = table_.pages.unsaved;
    if (!bits.any_set(0, bits.bits()) && !entries.any_set(0, entries.bits())) {
        tail_ = head_;
        return {};
    }
    Status status = FVD_PLANT(table_not_home) ? Status() : write_home(table_, header_.table_offset);
    if (status.ok() || FVD_PLANT(recycle_on_error)) {
        status = write_home(bitmap_, header_.bitmap_offset);
    }
    if (!status.ok() && !FVD_PLANT(recycle_on_error)) {
        return status; /* the pages stay unsaved, the ring is not recycled (R3) */
    }
    status = FVD_PLANT(skip_home_flush)
                 ? Status()
                 : flush_file(FVD_FILE_IMAGE, FVD_EVENT_HOME_FLUSH, "a flush of the metadata");
    if (!status.ok()) {
        return status;
    }
    bits.clear(0, bits.bits());
    entries.clear(0, entries.bits());
    tail_ = head_;
    return {};
}

template <typename Map>
Status Committer::write_home(const Map& map, uint64_t home) {
    const BlockBitmap& pages = map.pages.unsaved;
    const uint64_t most = kHomeWriteBytes / kPageSize;
    uint64_t page = 0;
    while (page < pages.bits()) {
        const uint64_t end = pages.run_end(page, std::min(pages.bits(), page + most));
        if (pages.test(page)) {
            const Status status = write_pages(map, home, page, end);
            if (!status.ok()) {
                return status;
            }
        }
        page = end;
    }
    return {};
}

template <typename Map>
Status Committer::write_pages(const Map& map, uint64_t home, uint64_t begin, uint64_t end) {
    HostBuffer buffer(host_, (end - begin) * kPageSize);
    if (!buffer) {
        return -ENOMEM;
    }
    map.store(begin, buffer.bytes());
    return write_metadata(FVD_EVENT_HOME_WRITE, home + begin * kPageSize, buffer.bytes());
}

/* The epoch grows once more, so that the ring holds nothing current (I8). */
Status Committer::mark_clean() {
    set_mark(true);
    /* Even if this fails: which epoch is on disk is not known then, so the next record needs its
     * own. */
    session_open_ = false;
    return save_header();
}

Status Committer::settle() {
    const Status status = FVD_PLANT(clean_mark_early) ? Status() : checkpoint();
    return status.ok() ? mark_clean() : status;
}

Status Committer::close() {
    {
        HostLock lock(host_);
        host_.cancel_timer(FVD_TIMER_COMMIT);
        timer_armed_ = false;
    }
    if (failed()) {
        return -EIO;
    }
    const Status status = commit();
    if (!status.ok() || header_.clean_shutdown) {
        return status;
    }
    return settle();
}

/* Nobody sees a bit clear before all of them are durably clear: what memory says and what a crash
 * would leave must not part, or the guest reads now one content of a block and now another. */
Status Committer::forget_all() {
    HostLock lock(host_);
    wait_for_lead();
    const Status status = lead_with([this] { return forget_on_disk(); });
    if (status.ok()) {
        bitmap_.forget_all();
        update_busy();
    }
    return status;
}

Status Committer::forget_on_disk() {
    /* Changes of the table that only the ring knows; the ring is void in a moment. */
    Status status = checkpoint();
    if (status.ok()) {
        status = clear_home();
    }
    if (status.value() == -ENOMEM) {
        return status;
    }
    if (status.ok()) {
        status = mark_clean();
    }
    if (!status.ok()) {
        /* Home may lack bits that are still in use. It must have them again before any success. */
        bitmap_.pages.unsaved.set(0, bitmap_.pages.unsaved.bits());
        if (!failed() && !checkpoint().ok()) {
            fail("undoing an attempt to empty the image");
        }
    }
    return status;
}

/* A life in which the base is not looked at any more replays no bits: it must not find any. */
Status Committer::set_filled(bool filled) {
    HostLock lock(host_);
    wait_for_lead();
    header_.base_fully_prefetched = filled;
    session_open_ = false;
    const Status status = lead_with([this] { return begin_session(); });
    if (!status.ok()) {
        header_.base_fully_prefetched = !filled;
    }
    return status;
}

void Committer::forget_past_end() {
    bitmap_.cut(header_.block_count());
    table_.cut(header_.chunk_count(), [this](SlotIndex slot) { slots_.give_up(slot); });
}

/* ENOMEM: nothing was written. */
Status Committer::clear_home() {
    HostBuffer zeroes(host_, std::min(header_.bitmap_size, kHomeWriteBytes));
    if (!zeroes) {
        return -ENOMEM;
    }
    std::memset(zeroes.data(), 0, zeroes.size());
    for (uint64_t at = 0; at < header_.bitmap_size; at += zeroes.size()) {
        const MutableBytes piece =
            zeroes.bytes().first(std::min<uint64_t>(header_.bitmap_size - at, zeroes.size()));
        const Status status =
            write_metadata(FVD_EVENT_HOME_WRITE, header_.bitmap_offset + at, piece);
        if (!status.ok()) {
            /* The host may say ENOMEM too, after it wrote. */
            return status.value() == -ENOMEM ? Status(-EIO) : status;
        }
    }
    return flush_file(FVD_FILE_IMAGE, FVD_EVENT_HOME_FLUSH, "a flush of the bitmap");
}

}  // namespace fvd
