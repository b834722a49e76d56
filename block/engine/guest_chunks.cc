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

Status Image::store_chunks(uint64_t offset, uint64_t length) {
    if (all_stored(offset, length)) {
        return {};
    }
    const ChunkIndex begin = chunk_at(offset);
    const ChunkIndex end = chunk_end(offset + length);
    const uint64_t size = header_.chunk_size;
    RangeLocks::Node node{.range = {begin.value * size, end.value * size}};
    {
        HostLock lock(host_);
        chunk_locks_.acquire(host_, node);
    }
    Status status;
    for (ChunkIndex chunk = begin; chunk < end && status.ok(); ++chunk) {
        if (!slot_of(chunk)) {
            status = store_chunk(chunk);
        }
    }
    HostLock lock(host_);
    chunk_locks_.release(host_, node);
    return status;
}

/* Where the chunk before is stored, the slot behind it is the best one. */
Status Image::store_chunk(ChunkIndex chunk) {
    if (committer_.failed()) {
        return -EIO;
    }
    SlotIndex hint(kNotStored);
    if (chunk.value != 0) {
        const std::optional<SlotIndex> before = slot_of(ChunkIndex(chunk.value - 1));
        hint = before ? *before + 1 : hint;
    }
    SlotIndex slot;
    Status status = take_slot(hint, &slot);
    if (!status.ok()) {
        return status;
    }
    status = FVD_PLANT(stale_slot) ? Status() : make_zero(slot);
    HostLock lock(host_);
    if (status.ok()) {
        committer_.record_entry(chunk, static_cast<uint32_t>(slot.value));
    } else {
        slots_.put_back(slot);
    }
    return status;
}

/* A slot inside the storage. While others wait to become free, storage that cannot grow is not
 * full. */
Status Image::take_slot(SlotIndex hint, SlotIndex* slot) {
    HostLock lock(host_);
    for (;;) {
        Status status = -ENOSPC;
        if (slots_.take(hint, slot)) {
            status = slots_.grow_to(*slot);
            if (status.ok()) {
                return status;
            }
            slots_.put_back(*slot);
            hint = SlotIndex(kNotStored);
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

/* Afterwards the slot reads as zeros. */
Status Image::make_zero(SlotIndex slot) {
    if (!slots_.is_unknown(slot)) {
        return {};
    }
    const uint64_t begin = slots_.offset_of(slot);
    const uint64_t end = begin + header_.chunk_size;
    bool zero = true;
    for (uint64_t at = begin; at < end && zero;) {
        uint64_t run = end - at;
        zero = host_.extent(FVD_FILE_DATA, at, end - at, &zero, &run).ok() && zero;
        at += run;
    }
    if (!zero) {
        const Status status =
            host_.write_zeroes(FVD_FILE_DATA, begin, header_.chunk_size, FVD_REQ_MAY_UNMAP);
        if (!status.ok()) {
            return status;
        }
    }
    HostLock lock(host_);
    slots_.is_zero_now(slot);
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

/* Chunks become zeros by having no slot, and all of their blocks here. A commit collects slots
 * before bits, so no cut can show what a slot holds besides the blocks that were here. */
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

Status Image::free_whole(const ByteRange& range) {
    if (committer_.failed()) {
        return -EIO;
    }
    const Status status = zero_unstored(range.begin, range.count());
    if (status.ok()) {
        free_slots(chunk_at(range.begin), chunk_end(range.end));
    }
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
