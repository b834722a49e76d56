/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Compact images: giving slots to chunks, and taking them back. A chunk gets its slot, which reads
 * as zeros, before data is written to it: whether a failed write leaves it stored or not, the guest
 * sees no difference.
 */
#include <algorithm>
#include <cerrno>

#include "fvd/base/arith.h"
#include "fvd/base/plant.h"
#include "fvd/engine/image.h"

namespace fvd {

namespace {

/* So many entries are changed without a break for others who want the mutex. */
constexpr uint64_t kChunksAtOnce = 1024;
/* So much storage is taken and made zeros at once, or one chunk. */
constexpr uint64_t kBytesAtOnce = 64 * 1024 * 1024;

}  // namespace

/* ------------------------------------------------------------------------------------ writes */

Status Image::write_compact(uint64_t offset, uint64_t length, GuestBuffer from, uint32_t flags) {
    const uint64_t end = offset + length;
    {
        const ChunkAllocator::Use use(slots_in_use());
        const Placement piece = stored_at(offset, length);
        if (piece.place == Place::data && piece.run == length) {
            return write_segment({offset, length, piece.data_offset}, from, flags);
        }
    }
    const uint32_t not_durable = flags & ~static_cast<uint32_t>(FVD_REQ_FUA);
    while (offset < end) {
        Status status = store_chunks(offset, end - offset);
        if (status.ok()) {
            status = write_stored(&offset, end, &from, not_durable);
        }
        if (!status.ok()) {
            return status;
        }
    }
    return (flags & FVD_REQ_FUA) != 0 ? committer_.flush() : Status();
}

/* Write to stored chunks; ends early where a discard has taken a chunk's slot meanwhile. */
Status Image::write_stored(uint64_t* offset, uint64_t end, GuestBuffer* from, uint32_t flags) {
    const ChunkAllocator::Use use(slots_in_use());
    while (*offset < end) {
        const Placement piece = stored_at(*offset, end - *offset);
        if (piece.place != Place::data) {
            return {};
        }
        const Status status = write_segment({*offset, piece.run, piece.data_offset}, *from, flags);
        if (!status.ok()) {
            return status;
        }
        *offset += piece.run;
        *from = from->advance(piece.run);
    }
    return {};
}

bool Image::all_stored(uint64_t offset, uint64_t length) {
    const ChunkAllocator::Use use(slots_in_use());
    const ChunkIndex end = chunk_end(offset + length);
    for (ChunkIndex chunk = chunk_at(offset); chunk < end; ++chunk) {
        if (!table().slot(chunk)) {
            return false;
        }
    }
    return true;
}

std::optional<SlotIndex> Image::slot_of(ChunkIndex chunk) {
    const ChunkAllocator::Use use(slots_in_use());
    return table().slot(chunk);
}

/* What one request needs is taken at once, up to 64 MiB: requests beside it do not come between. */
Status Image::store_chunks(uint64_t offset, uint64_t length) {
    if (all_stored(offset, length)) {
        return {};
    }
    const ChunkIndex begin = chunk_at(offset);
    const ChunkIndex end = chunk_end(offset + length);
    const uint64_t size = header_.chunk_size;
    const uint64_t most = std::clamp<uint64_t>(kBytesAtOnce / size, 1, kChunksAtOnce);
    RangeLocks::Node node{.range = {begin.value * size, end.value * size}};
    {
        HostLock lock(host_);
        chunk_locks_.acquire(host_, node);
    }
    Status status;
    for (ChunkIndex chunk = begin; chunk < end && status.ok();) {
        const uint64_t missing = count_unstored(chunk, std::min(end, chunk + most));
        uint64_t stored = 1;
        if (missing != 0) {
            status = store_missing(chunk, missing, &stored);
        }
        chunk = chunk + stored;
    }
    HostLock lock(host_);
    chunk_locks_.release(host_, node);
    return status;
}

/* How many chunks from @p begin on have no slot. */
uint64_t Image::count_unstored(ChunkIndex begin, ChunkIndex end) {
    const ChunkAllocator::Use use(slots_in_use());
    ChunkIndex chunk = begin;
    while (chunk < end && !table().slot(chunk)) {
        ++chunk;
    }
    return chunk - begin;
}

/* Slots for the first @p stored of @p count chunks. Where the chunk before is stored, the slots
 * behind it are the best. */
Status Image::store_missing(ChunkIndex chunk, uint64_t count, uint64_t* stored) {
    if (committer_.failed()) {
        return -EIO;
    }
    SlotIndex hint(kNotStored);
    if (chunk.value != 0) {
        const std::optional<SlotIndex> before = slot_of(ChunkIndex(chunk.value - 1));
        hint = before ? *before + 1 : hint;
    }
    SlotRange slots;
    Status status = take_slots(hint, count, &slots);
    if (!status.ok()) {
        return status;
    }
    status = FVD_PLANT(stale_slot) ? Status() : make_zero(slots);
    HostLock lock(host_);
    if (!status.ok()) {
        slots_.put_back(slots);
        return status;
    }
    *stored = slots.count();
    for (uint64_t i = 0; i < *stored; i++) {
        committer_.record_entry(chunk + i, static_cast<uint32_t>(slots.begin.value + i));
    }
    return status;
}

/* Slots inside the storage, as many as there are. While others wait to become free, storage that
 * cannot grow is not full. */
Status Image::take_slots(SlotIndex hint, uint64_t most, SlotRange* slots) {
    HostLock lock(host_);
    for (;;) {
        Status status = -ENOSPC;
        *slots = slots_.take(hint, most);
        if (!slots->empty()) {
            const SlotIndex begin = slots->begin;
            status = slots_.grow_to(slots->end);
            *slots = status.ok() ? *slots : slots_.put_back_unstored(*slots);
            if (!slots->empty()) {
                return {};
            }
            hint = SlotIndex(kNotStored);
            /* There may be room for one, or others beside us who wanted more have put it back. */
            if (most > 1 || slots_.has_free_below(begin)) {
                most = 1;
                continue;
            }
        }
        if (!slots_.has_waiting() || status.value() != -ENOSPC) {
            return status;
        }
        status = slots_.needs_commit() ? committer_.commit_slots() : Status();
        if (!status.ok()) {
            return status;
        }
        slots_.wait_until_drained();
    }
}

/* Afterwards these slots read as zeros. */
Status Image::make_zero(SlotRange slots) {
    for (;;) {
        SlotRange unknown;
        {
            HostLock lock(host_);
            unknown = slots_.first_unknown(slots);
        }
        if (unknown.empty()) {
            return {};
        }
        if (Status status = clear_slots(unknown); !status.ok()) {
            return status;
        }
        HostLock lock(host_);
        slots_.are_zero_now(unknown);
    }
}

/* Those that do not read as zeros already, whole. */
Status Image::clear_slots(SlotRange slots) {
    const uint64_t size = header_.chunk_size;
    const uint64_t origin = slots_.offset_of(SlotIndex(0));
    const uint64_t end = slots_.offset_of(slots.end);
    for (uint64_t at = slots_.offset_of(slots.begin); at < end;) {
        bool zero = false;
        uint64_t run = end - at;
        const bool known = host_.extent(FVD_FILE_DATA, at, end - at, &zero, &run).ok();
        uint64_t next = at + run;
        if (!known || !zero) {
            next = known ? origin + round_up(next - origin, size) : end;
            const uint64_t begin = origin + (at - origin) / size * size;
            const Status status =
                host_.write_zeroes(FVD_FILE_DATA, begin, next - begin, FVD_REQ_MAY_UNMAP);
            if (!status.ok()) {
                return status;
            }
        }
        at = next;
    }
    return {};
}

/* ----------------------------------------------------------------------------------- freeing */

/* Of [offset, end): the chunks that lie in it, of which the last may be cut by the disk's end. */
ByteRange Image::whole_chunks(uint64_t offset, uint64_t end) const {
    if (!header_.has_table()) {
        return {};
    }
    const uint64_t size = header_.chunk_size;
    return {div_ceil(offset, size) * size, end == disk_size_ ? end : end / size * size};
}

Status Image::zero_compact(uint64_t offset, uint64_t length, uint32_t flags) {
    const uint64_t end = offset + length;
    const uint32_t not_durable = flags & ~static_cast<uint32_t>(FVD_REQ_FUA);
    const ByteRange chunks =
        (flags & FVD_REQ_MAY_UNMAP) != 0 ? whole_chunks(offset, end) : ByteRange{};
    Status status;
    if (chunks.empty()) {
        status = zero_pieces(offset, end, not_durable);
    } else {
        status = zero_pieces(offset, chunks.begin, not_durable);
        status = status.ok() ? free_chunks(chunks) : status;
        status = status.ok() ? zero_pieces(chunks.end, end, not_durable) : status;
    }
    return status.ok() && (flags & FVD_REQ_FUA) != 0 ? committer_.flush() : status;
}

/* Chunks become zeros by having no slot, and all of their blocks here. */
Status Image::free_chunks(const ByteRange& range) {
    const ByteRange last = chunk_around(range.end);
    if (last.empty()) {
        return free_whole(range);
    }
    RangeLocks::Node node{.range = last};
    {
        HostLock lock(host_);
        chunk_locks_.acquire(host_, node);
    }
    Status status;
    if (range.end == disk_size_) {
        status = free_whole(range);
    } else { /* the disk has grown: that chunk is more than what is to be zeros */
        const uint64_t begin = std::max(range.begin, last.begin);
        status = range.begin < begin ? free_whole({range.begin, begin}) : Status();
        status = status.ok() ? zero_pieces(begin, range.end, FVD_REQ_MAY_UNMAP) : status;
    }
    HostLock lock(host_);
    chunk_locks_.release(host_, node);
    return status;
}

/* The chunk that ends behind @p at and begins before it; empty where a chunk begins there. */
ByteRange Image::chunk_around(uint64_t at) const {
    if (!header_.has_table() || at % header_.chunk_size == 0) {
        return {};
    }
    const uint64_t begin = at / header_.chunk_size * header_.chunk_size;
    return {begin, begin + header_.chunk_size};
}

void Image::free_slots(ChunkIndex begin, ChunkIndex end) {
    while (begin < end) {
        const ChunkIndex stop = std::min(end, begin + kChunksAtOnce);
        HostLock lock(host_);
        for (; begin < stop; ++begin) {
            if (const std::optional<SlotIndex> slot = table().slot(begin)) {
                committer_.record_entry(begin, kNotStored);
                slots_.give_up(*slot);
            }
        }
    }
}

/* Commit whatever keeps slots from being free. */
Status Image::commit_freed() {
    HostLock lock(host_);
    return slots_.needs_commit() ? committer_.commit_slots() : Status();
}

/* Slots that nobody needs give their space back, when nobody waits for it. */
void Image::give_space_back() {
    if (!header_.has_table() || committer_.failed()) {
        return;
    }
    HostLock lock(host_);
    slots_.trim();
    if (slots_.has_work()) {
        committer_.arm_timer();
    }
}

}  // namespace fvd
