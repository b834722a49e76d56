/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Changing the size of the virtual disk, with requests in flight. Grown space reads as zeros: it is
 * behind what the bitmap covers, and what stands there is made zeros before the header says that
 * there is more disk. A smaller disk is one header update; what it leaves behind in bitmap and
 * table is cleared after it, and if a cut prevents that, at the next open.
 */
#include <algorithm>
#include <cerrno>
#include <cstring>

#include "fvd/base/arith.h"
#include "fvd/base/plant.h"
#include "fvd/engine/image.h"
#include "fvd/format/limits.h"

namespace fvd {

namespace {

Error check_size(uint64_t size) {
    if (size % limits::kSectorSize != 0 || size > limits::kMaxVirtualSize) {
        return Error::make(-EINVAL, "a disk of %llu bytes; must be a multiple of 512, at most %llu",
                           print(size), print(limits::kMaxVirtualSize));
    }
    return Error::none();
}

}  // namespace

Error Image::resize(uint64_t size, Preallocation mode) {
    FVD_ASSERT(started_ && writable_);
    if (Error error = check_size(size); !error.ok()) {
        return error;
    }
    RangeLocks::Node node{.range = {0, UINT64_MAX}};
    {
        HostLock lock(host_);
        resizing_.acquire(host_, node);
    }
    Error error = Error::none();
    if (size > disk_size_) {
        error = grow(size, mode);
    } else if (size < disk_size_) {
        error = shrink(size);
    }
    HostLock lock(host_);
    resizing_.release(host_, node);
    return error;
}

/* ------------------------------------------------------------------------------------- grow */

Error Image::grow(uint64_t size, Preallocation mode) {
    const uint64_t old_size = disk_size_;
    /* Whoever frees the chunk that the end of the disk cuts does so before or after, not meanwhile:
     * what is written behind the old end must not go with it. */
    RangeLocks::Node node{.range = chunk_around(old_size)};
    if (!node.range.empty()) {
        HostLock lock(host_);
        chunk_locks_.acquire(host_, node);
    }
    const Error error = enlarge(size, mode);
    if (!node.range.empty()) {
        HostLock lock(host_);
        chunk_locks_.release(host_, node);
    }
    return error.ok() && header_.has_table() ? preallocate(old_size, size, mode) : error;
}

Error Image::enlarge(uint64_t size, Preallocation mode) {
    const uint64_t old_size = disk_size_;
    /* What an earlier shrink left past the old end must not come to life. */
    Status status = is_tracked() ? committer_.save_home() : Status();
    if (status.ok()) {
        status =
            header_.has_table() ? clear_tail(old_size, size) : lengthen_data(old_size, size, mode);
    }
    if (status.ok()) {
        status = flush(); /* a failure is every request's affair (R13) */
    }
    if (!status.ok()) {
        return Error::make(status.value(), "the data cannot be extended to %llu bytes: %s",
                           print(size), std::strerror(-status.value()));
    }
    const bool fits = !header_.has_table() || chunk_end(size).value <= table().chunks();
    if (Error error = fits ? change_size(size) : move_table(size); !error.ok()) {
        return error;
    }
    disk_size_ = size;
    return Error::none();
}

Error Image::change_size(uint64_t size) {
    const uint64_t old_size = disk_size_;
    const Status status =
        committer_.grow_disk([&](Header& header) { header.virtual_size = size; },
                             [&](Header& header) { header.virtual_size = old_size; });
    return status.ok() ? Error::none()
                       : Error::make(status.value(), "the header cannot be written");
}

/* Of a linear image: what is new reads as zeros, whatever an earlier, longer life left there. */
Status Image::lengthen_data(uint64_t old_size, uint64_t size, Preallocation mode) {
    const uint64_t end = header_.data_offset + size;
    /* Of metadata there is none to be made in advance. */
    const Preallocation storage = mode == FVD_PREALLOC_METADATA ? FVD_PREALLOC_OFF : mode;
    const uint32_t hole = storage == FVD_PREALLOC_OFF ? FVD_REQ_MAY_UNMAP : 0;
    uint64_t zeros_to = header_.data_offset + old_size;
    for (;;) {
        const int64_t length = host_.length(FVD_FILE_DATA);
        if (length < 0) {
            return Status(static_cast<int>(length));
        }
        const uint64_t there = std::min(static_cast<uint64_t>(length), end);
        if (there > zeros_to) {
            const Status status =
                host_.write_zeroes(FVD_FILE_DATA, zeros_to, there - zeros_to, hole);
            if (!status.ok()) {
                return status;
            }
            zeros_to = there;
        }
        const Status status = there < end ? host_.resize(FVD_FILE_DATA, end, storage) : Status();
        /* That a device is longer than it was, somebody may notice only by failing to lengthen it.
         */
        if (status.ok() || host_.length(FVD_FILE_DATA) <= length) {
            return status;
        }
    }
}

/* Of a compact image: the rest of the chunk that the end of the disk cuts. */
Status Image::clear_tail(uint64_t old_size, uint64_t size) {
    const uint64_t chunk_size = header_.chunk_size;
    const uint64_t end = std::min(round_up(old_size, chunk_size), size);
    if (end == old_size) {
        return {};
    }
    const ChunkAllocator::Use use(slots_in_use());
    const Placement tail = stored_at(old_size, end - old_size);
    return tail.place == Place::zero
               ? Status()
               : host_.write_zeroes(FVD_FILE_DATA, tail.data_offset, tail.run, FVD_REQ_MAY_UNMAP);
}

/* The disk has its new size already, but nobody was told so: what cannot be had in advance takes it
 * back. */
Error Image::preallocate(uint64_t old_size, uint64_t size, Preallocation mode) {
    {
        HostLock lock(host_);
        slots_.disk_has(chunk_end(size).value);
    }
    if (mode == FVD_PREALLOC_OFF) {
        return Error::none();
    }
    Status status = store_chunks(old_size, size - old_size);
    if (status.ok() && mode != FVD_PREALLOC_METADATA) {
        status = occupy(old_size, size);
    }
    if (status.ok()) {
        return Error::none();
    }
    const bool undone = shrink(old_size).ok();
    return Error::make(status.value(),
                       "storage for a disk of %llu bytes cannot be allocated in advance%s: %s",
                       print(size), undone ? "" : ", and the disk has that size now",
                       std::strerror(-status.value()));
}

/* Zeros that may not be holes make a file system or a thin device allocate. */
Status Image::occupy(uint64_t offset, uint64_t end) {
    const ChunkAllocator::Use use(slots_in_use());
    while (offset < end) {
        const Placement piece = stored_at(offset, end - offset);
        if (piece.place == Place::data) {
            const Status status =
                host_.write_zeroes(FVD_FILE_DATA, piece.data_offset, piece.run, 0);
            if (!status.ok()) {
                return status;
            }
        }
        offset += piece.run;
    }
    return {};
}

/* ------------------------------------------------------------------------- a table that moves */

/*
 * The disk outgrows its table. A larger one is made ready where nothing else is, in memory and in
 * the file; then one update of the header changes places and size at once. Requests go on with the
 * former table until the moment of the switch, and those that began before may look at it longer:
 * its memory is released when they have ended.
 */
Error Image::move_table(uint64_t size) {
    const Result<uint64_t> bytes = larger_table_size(header_, size);
    if (!bytes.ok()) {
        return bytes.error();
    }
    const uint64_t count = bytes.value() / sizeof(uint32_t);
    HostBuffer entries = memory_for<uint32_t>(host_, count);
    ChunkTable& next = tables_[table_ == &tables_[0] ? 1 : 0];
    TrackedTable tracked;
    if (entries) {
        next = ChunkTable(items_of<uint32_t>(entries, count));
        next.clear_all();
    }
    if (!entries || !tracked.begin(host_, next, bytes.value() / kPageSize, {})) {
        return Error::make(-ENOMEM, "no memory for a table of %llu bytes", print(bytes.value()));
    }
    NewPlace place;
    if (Error error = find_place(bytes.value(), &place); !error.ok()) {
        return error;
    }
    const uint64_t old_size = disk_size_;
    const ByteRange former = regions_of(header_).table;
    const auto change = [&](Header& header) {
        header.virtual_size = size;
        header.table_offset = place.region.begin;
        header.table_size = place.region.count();
    };
    const auto undo = [&](Header& header) {
        header.virtual_size = old_size;
        header.table_offset = former.begin;
        header.table_size = former.count();
    };
    const ReservedSlots::Range former_slots = header_.slots_under(former);
    const auto switched = [&] {
        table_.store(&next, std::memory_order_release);
        std::swap(table_entries_, entries);
        slots_.region_moved(former_slots, header_.reserved_slots());
    };
    const Status status =
        committer_.move_table(tracked, place.region.begin, change, undo, switched);
    if (!status.ok()) {
        leave_place(place);
        return Error::make(status.value(), "a table of %llu bytes cannot be written",
                           print(bytes.value()));
    }
    {
        HostLock lock(host_);
        slots_.wait_for_requests();
    }
    give_region_back(former);
    return Error::none();
}

/* Slots give their space back as slots do. In front of the data nothing may ever stand there again,
 * so a host that can takes the space back. */
void Image::give_region_back(const ByteRange& former) {
    if (header_.slots_under(former).empty()) {
        (void)host_
            .write_zeroes(FVD_FILE_IMAGE, former.begin, former.count(),
                          FVD_REQ_MAY_UNMAP | FVD_REQ_NO_FALLBACK)
            .ok();
    }
    give_space_back();
}

/* In front of the data if there is room, else on slots. The file reaches to its end then. */
Error Image::find_place(uint64_t bytes, NewPlace* place) {
    const uint64_t slots = bytes / sizeof(uint32_t) + header_.reserved_slots().count() +
                           slots_for_region(header_, bytes);
    if (Error error = slots_.have_slots(slots); !error.ok()) {
        return error;
    }
    const std::optional<uint64_t> gap = find_gap(header_, bytes);
    if (!gap) {
        return place_among_slots(bytes, place);
    }
    place->region = {*gap, *gap + bytes};
    const int64_t length = host_.length(FVD_FILE_IMAGE);
    Status status = length < 0 ? Status(static_cast<int>(length)) : Status();
    if (status.ok() && static_cast<uint64_t>(length) < place->region.end) {
        status = host_.resize(FVD_FILE_IMAGE, place->region.end, FVD_PREALLOC_OFF);
    }
    return status.ok()
               ? Error::none()
               : Error::make(status.value(), "the image cannot be extended to %llu bytes: %s",
                             print(place->region.end), std::strerror(-status.value()));
}

Error Image::place_among_slots(uint64_t bytes, NewPlace* place) {
    const uint64_t run = slots_for_region(header_, bytes);
    HostLock lock(host_);
    SlotIndex first;
    Status status = slots_.take_run(run, &first) ? Status() : Status(-ENOSPC);
    if (status.ok()) {
        const uint64_t begin = round_up(slots_.offset_of(first), limits::kRegionAlignment);
        place->region = {begin, begin + bytes};
        place->slots = header_.slots_under(place->region);
        slots_.put_back_run({place->slots.end, first.value + run});
        status = slots_.grow_to(SlotIndex(place->slots.end));
        if (!status.ok()) {
            slots_.put_back_run(place->slots);
        }
    }
    return status.ok() ? Error::none()
                       : Error::make(status.value(),
                                     "there is no room for a table of %llu bytes behind the data: "
                                     "%s",
                                     print(bytes), std::strerror(-status.value()));
}

/* A failed image keeps it: which of the two headers is on the disk is not known. */
void Image::leave_place(const NewPlace& place) {
    if (!committer_.failed()) {
        HostLock lock(host_);
        slots_.put_back_run(place.slots);
    }
}

/* ----------------------------------------------------------------------------------- shrink */

Error Image::shrink(uint64_t size) {
    const uint64_t old_size = disk_size_;
    const uint64_t old_tracked = tracked_size_;
    const uint64_t old_base_size = header_.base_size;
    const auto change = [&](Header& header) {
        header.virtual_size = size;
        header.base_size = std::min(header.base_size, size);
        disk_size_ = size;
        tracked_size_ = std::min(old_tracked, size);
    };
    const auto undo = [&](Header& header) {
        header.virtual_size = old_size;
        header.base_size = old_base_size;
        disk_size_ = old_size;
        tracked_size_ = old_tracked;
    };
    if (FVD_PLANT(truncate_early) && !header_.has_table()) {
        (void)host_.resize(FVD_FILE_DATA, header_.data_offset + size, FVD_PREALLOC_OFF).ok();
    }
    wait_for_fetches(); /* some may be of what goes away */
    const Status status =
        is_tracked() ? committer_.shrink_disk(change, undo) : committer_.grow_disk(change, undo);
    {
        HostLock lock(host_);
        prefetcher_.set_tracked(tracked_size_);
    }
    quiesce(false);
    if (!status.ok()) {
        return Error::make(status.value(), "the header cannot be written");
    }
    if (header_.has_table()) {
        (void)commit_freed().ok();
        give_space_back();
        HostLock lock(host_);
        slots_.disk_has(header_.chunk_count());
    } else {
        /* Space that stays is no harm: grown again it is made zeros first. */
        (void)host_.resize(FVD_FILE_DATA, header_.data_offset + size, FVD_PREALLOC_OFF).ok();
    }
    return Error::none();
}

}  // namespace fvd
