/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Bringing an image to life: header, bitmap, replay of the journal; and laying it to rest. */
#include <algorithm>
#include <cerrno>
#include <cstring>

#include "fvd/base/arith.h"
#include "fvd/base/plant.h"
#include "fvd/engine/header_store.h"
#include "fvd/engine/host_memory.h"
#include "fvd/engine/image.h"
#include "fvd/format/limits.h"
#include "fvd/format/recovery.h"

namespace fvd {

namespace {

constexpr uint64_t kReadBytes = 1024 * 1024;

Error no_memory(uint64_t size) {
    return Error::make(-ENOMEM, "no memory: %llu bytes are needed for metadata", print(size));
}

}  // namespace

Error Image::load() {
    const Result<ChosenHeader> chosen = load_header(host_);
    if (!chosen.ok()) {
        return chosen.error();
    }
    header_ = chosen.value().header;
    header_copy_stale_ =
        chosen.value().primary != CopyState::valid || chosen.value().copy != CopyState::valid;
    committer_.set_first_slot(expendable_slot(chosen.value()));
    const int64_t length = host_.length(FVD_FILE_IMAGE);
    if (length < 0) {
        return Error::make(static_cast<int>(length), "the length of the image cannot be read");
    }
    return check_layout(header_, static_cast<uint64_t>(length));
}

Error Image::check_startable() const {
    if ((header_.has_bitmap() || header_.has_table()) && header_.journal_size == 0) {
        return Error::make(-ENOTSUP,
                           "journal_size is 0: an image with a bitmap or a table needs a journal");
    }
    return Error::none();
}

/* Create gave the data of a linear image its whole length; a file that is shorter was cut, and must
 * not read as zeros. An adapter that was told not to open the data file says -ENOMEDIUM. */
Error Image::check_data_length(int64_t length) const {
    if (length == -ENOMEDIUM) {
        return Error::none();
    }
    const char* file = header_.has_data_file() ? header_.data_file : "the image";
    if (length < 0) {
        return Error::make(static_cast<int>(length), "the length of %s cannot be read", file);
    }
    const uint64_t needed = header_.data_offset + header_.virtual_size;
    if (!header_.has_table() && static_cast<uint64_t>(length) < needed) {
        return Error::make(-EINVAL, "%s is %llu bytes long; its guest data ends at %llu", file,
                           print(static_cast<uint64_t>(length)), print(needed));
    }
    return Error::none();
}

/* May follow an earlier life (migration hand-over), so everything is read again. */
Error Image::start(StartMode mode) {
    FVD_ASSERT(!started_);
    /* What a killed process wrote may be in a cache only: a header that is good to read but not
     * durable must not be the reason to write over the other one. */
    if (mode == StartMode::writable && !FVD_PLANT(header_not_durable)) {
        if (Status status = host_.flush(FVD_FILE_IMAGE); !status.ok()) {
            return Error::make(status.value(), "the image cannot be flushed");
        }
    }
    if (Error error = load(); !error.ok()) {
        return error;
    }
    if (Error error = check_startable(); !error.ok()) {
        return error;
    }
    const int64_t data_length = host_.length(FVD_FILE_DATA);
    if (Error error = check_data_length(data_length); !error.ok()) {
        return error;
    }
    writable_ = mode == StartMode::writable;
    uses_bitmap_ = header_.has_bitmap() && !header_.base_fully_prefetched;
    disk_size_ = header_.virtual_size;
    tracked_size_ = uses_bitmap_ ? header_.base_size : 0;
    data_end_ =
        header_.has_table() ? static_cast<uint64_t>(std::max<int64_t>(data_length, 0)) : UINT64_MAX;
    committer_.begin_untracked();
    bool settle = header_copy_stale_ || (header_.autoclear_features & ~kKnownAutoclear) != 0;
    settle |= !is_tracked() && !header_.clean_shutdown; /* killed after it was filled */
    if (is_tracked()) {
        if (Error error = recover(&settle); !error.ok()) {
            return error;
        }
    }
    if (is_tracked() && writable_) {
        if (Error error = begin_changes(data_length); !error.ok()) {
            return error;
        }
    }
    if ((writable_ || FVD_PLANT(write_read_only)) && settle) {
        if (Status status = committer_.settle(); !status.ok()) {
            return Error::make(status.value(), "recovered metadata cannot be written");
        }
        header_copy_stale_ = false;
    }
    started_ = true;
    begin_filling();
    return Error::none();
}

Error Image::recover(bool* settle) {
    if (Error error = load_metadata(); !error.ok()) {
        return error;
    }
    const bool current = header_.clean_shutdown && first_unit_is_current();
    if (current) {
        host_.warn("marked clean, but the journal holds current records: replaying them");
    }
    const bool skip = FVD_PLANT(skip_replay_read_only) && !writable_;
    if ((!header_.clean_shutdown || current) && !skip) {
        ReplayPlan plan;
        if (Error error = scan_journal(&plan); !error.ok()) {
            return error;
        }
        if (Error error = replay(plan); !error.ok()) {
            return error;
        }
        mark_leftovers();
        *settle = true;
    }
    return Error::none();
}

/* A disk that was made smaller may not have come to clear what lay past its end. */
void Image::mark_leftovers() {
    if (uses_bitmap_) {
        const uint64_t page = header_.block_count() / kBlocksPerPage;
        unsaved_pages_.set(std::min(page, unsaved_pages_.bits()), unsaved_pages_.bits());
    }
    const uint64_t page = header_.chunk_count() / kChunksPerPage;
    unsaved_entries_.set(std::min(page, unsaved_entries_.bits()), unsaved_entries_.bits());
}

ReplayTarget Image::metadata() const {
    return {current_, unsaved_pages_, table(), unsaved_entries_, header_.slot_count()};
}

Error Image::begin_changes(int64_t data_length) {
    if (header_.has_table()) {
        const auto length = static_cast<uint64_t>(std::max<int64_t>(data_length, 0));
        if (Error error = slots_.begin(header_, table(), length); !error.ok()) {
            return error;
        }
        data_end_ = UINT64_MAX; /* every slot was looked at, and storage grows from now on */
    }
    return committer_.begin(metadata());
}

/* Call load(position in the region, bytes) for @p size bytes of a region. */
Error Image::load_region(const char* name, uint64_t offset, uint64_t size, auto load) {
    HostBuffer buffer(host_, std::clamp<uint64_t>(size, 1, kReadBytes));
    if (!buffer) {
        return no_memory(kReadBytes);
    }
    for (uint64_t at = 0; at < size; at += buffer.size()) {
        const MutableBytes piece = buffer.bytes().first(std::min(size - at, buffer.size()));
        host_.announce(FVD_EVENT_OPEN_READ);
        const Status status = read_bytes(host_, FVD_FILE_IMAGE, offset + at, piece);
        if (!status.ok()) {
            return Error::make(status.value(), "the %s cannot be read at offset %llu", name,
                               print(offset + at));
        }
        load(at, piece);
    }
    return Error::none();
}

Error Image::load_metadata() {
    const uint64_t blocks = uses_bitmap_ ? header_.block_count() : 0;
    const uint64_t entries = header_.table_size / sizeof(uint32_t); /* the disk may grow */
    const uint64_t bitmap_pages = header_.bitmap_size / kPageSize;
    const uint64_t table_pages = header_.table_size / kPageSize;
    table_entries_ = memory_for<uint32_t>(host_, entries);
    if (!make_bitmap(host_, blocks, &current_words_, &current_) ||
        !make_bitmap(host_, bitmap_pages, &unsaved_words_, &unsaved_pages_) ||
        !make_bitmap(host_, table_pages, &unsaved_entry_words_, &unsaved_entries_) ||
        !table_entries_) {
        return no_memory(header_.bitmap_size + header_.table_size);
    }
    tables_[0] = ChunkTable(items_of<uint32_t>(table_entries_, entries));
    table_ = &tables_[0];
    Error error = load_region("bitmap", header_.bitmap_offset, round_up(div_ceil(blocks, 8), 8),
                              [&](uint64_t at, MutableBytes piece) { current_.load(at, piece); });
    if (error.ok()) {
        table().clear(ChunkIndex(header_.chunk_count()), ChunkIndex(entries)); /* not read below */
        error = load_region("table", header_.table_offset, header_.chunk_count() * sizeof(uint32_t),
                            [&](uint64_t at, MutableBytes piece) { table().load(at, piece); });
    }
    return error;
}

/* Call visit(place in the ring, unit) for units of the ring, read in large pieces. */
template <typename Visit>
Error Image::read_ring(uint64_t first, uint64_t count, Visit visit) {
    const uint64_t unit = header_.journal_unit;
    const uint64_t most = kReadBytes / unit;
    HostBuffer buffer(host_, std::min(count, most) * unit);
    if (!buffer) {
        return no_memory(kReadBytes);
    }
    while (count != 0) {
        const uint64_t units = std::min(count, most);
        const uint64_t offset = header_.journal_offset + first * unit;
        host_.announce(FVD_EVENT_OPEN_READ);
        const Status status =
            read_bytes(host_, FVD_FILE_IMAGE, offset, buffer.bytes().first(units * unit));
        if (!status.ok()) {
            return Error::make(status.value(), "the journal cannot be read at offset %llu",
                               print(offset));
        }
        for (uint64_t i = 0; i < units; i++) {
            visit(first + i, ConstBytes(buffer.bytes().subspan(i * unit, unit)));
        }
        first += units;
        count -= units;
    }
    return Error::none();
}

bool Image::first_unit_is_current() {
    bool found = false;
    const Error error = read_ring(0, 1, [&](uint64_t, ConstBytes unit) {
        const auto view = UnitView::decode(unit, header_.image_id);
        found = view.has_value() && view->header().epoch == header_.journal_epoch &&
                view->header().sequence == 0;
    });
    return error.ok() && found;
}

Error Image::scan_journal(ReplayPlan* plan) {
    const uint64_t units = header_.journal_units();
    HostBuffer sequences(host_, units * sizeof(uint64_t));
    if (!sequences) {
        return no_memory(units * sizeof(uint64_t));
    }
    JournalScan scan(items_of<uint64_t>(sequences, units), header_.journal_epoch, header_.image_id);
    Error error =
        read_ring(0, units, [&](uint64_t place, ConstBytes unit) { scan.add(place, unit); });
    if (!error.ok()) {
        return error;
    }
    *plan = scan.plan();
    if (plan->damaged) {
        return Error::make(-EIO,
                           "the journal is damaged: unit %llu is missing, later ones are there; "
                           "'qemu-img check -r all' keeps what can be kept",
                           print(plan->end_sequence));
    }
    /* Only an update of the header that was lost leaves a later epoch in the ring. The next epoch
     * has to be above it, or what is void now would come to life. */
    if (scan.newest_epoch() > header_.journal_epoch) {
        host_.warn("the journal holds an epoch later than the header's; it is not replayed");
        header_.journal_epoch = std::min(scan.newest_epoch(), limits::kMaxCounter - 1);
    }
    return Error::none();
}

Error Image::replay(const ReplayPlan& plan) {
    const uint64_t ring = header_.journal_units();
    ReplayTarget target = metadata();
    uint64_t sequence = plan.first_sequence;
    Error bad = Error::none();
    while (sequence < plan.end_sequence && bad.ok()) {
        const uint64_t place = sequence % ring;
        const uint64_t count = std::min(plan.end_sequence - sequence, ring - place);
        const Error error = read_ring(place, count, [&](uint64_t at, ConstBytes unit) {
            const auto view = UnitView::decode(unit, header_.image_id);
            if (bad.ok() && (!view.has_value() || !apply_unit(*view, target))) {
                bad = Error::make(-EINVAL,
                                  "journal unit at offset %llu names a block, chunk or slot that "
                                  "does not exist (%llu blocks, %llu chunks, %llu slots)",
                                  print(header_.journal_offset + at * header_.journal_unit),
                                  print(current_.bits()), print(table().chunks()),
                                  print(header_.slot_count()));
            }
        });
        if (!error.ok()) {
            return error;
        }
        sequence += count;
    }
    return bad;
}

Status Image::stop() {
    if (!started_) {
        return {};
    }
    end_filling();
    started_ = false;
    FVD_ASSERT(locks_.empty() && chunk_locks_.empty());
    if (!writable_ || !is_tracked()) {
        return writable_ && committer_.failed() ? Status(-EIO) : Status();
    }
    /* Space of slots that were freed goes back once their records are durable. */
    if (committer_.commit().ok() && commit_freed().ok()) {
        give_space_back();
    }
    return committer_.close();
}

}  // namespace fvd
