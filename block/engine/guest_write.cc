/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Writes. A request whose blocks are all here goes straight to the data file. A first write to a
 * block holds a range lock, copies from the base only what the guest does not write, and writes old
 * and new with one request.
 */
#include <algorithm>
#include <cerrno>

#include "fvd/base/plant.h"
#include "fvd/engine/image.h"

namespace fvd {

/*
 * Perform write(flags), and keep the promise of FUA: data that is here already is durable with one
 * durable write; where bits wait for a commit, only a flush covers both.
 */
template <typename Write>
Status Image::durably(uint32_t flags, Write write) {
    const bool durable = (flags & FVD_REQ_FUA) != 0;
    if (!durable || (committer_.quiet() && !committer_.failed())) {
        return write(flags);
    }
    const Status status = write(flags & ~static_cast<uint32_t>(FVD_REQ_FUA));
    return status.ok() ? committer_.flush() : status;
}

Status Image::write_here(const Segment& to, GuestBuffer from, uint32_t flags) {
    return durably(flags, [&](uint32_t write_flags) {
        const Slice slice = guest_slice(from.handle, from.offset, to.length);
        host_.announce(FVD_EVENT_WRITE_DATA);
        return host_.write(FVD_FILE_DATA, to.data_offset, {&slice, 1}, write_flags);
    });
}

Status Image::write(uint64_t offset, uint64_t length, GuestBuffer from, uint32_t flags) {
    if (header_.has_table()) {
        return write_compact(offset, length, from, flags);
    }
    return write_segment({offset, length, header_.data_offset + offset}, from, flags);
}

Status Image::write_segment(const Segment& to, GuestBuffer from, uint32_t flags) {
    const BlockRange blocks = tracked_blocks(to.offset, to.length);
    if (all_here(blocks)) {
        return write_here(to, from, flags);
    }
    const Status status =
        first_write(blocks, to, from, flags & ~static_cast<uint32_t>(FVD_REQ_FUA));
    const bool durable = (flags & FVD_REQ_FUA) != 0 && !FVD_PLANT(ignore_fua);
    return status.ok() && durable ? committer_.flush() : status;
}

/* The last block may come here by the guest's own hand: who fills the image has to hear of that. */
void Image::record(BlockRange blocks) {
    committer_.record(blocks);
    if (fills()) {
        HostLock lock(host_);
        if (committer_.bitmap().missing() == 0) {
            prefetcher_.wake();
        }
    }
}

Status Image::first_write(BlockRange blocks, const Segment& to, GuestBuffer from, uint32_t flags) {
    RangeLocks::Node node{.range = bytes_of(blocks)};
    {
        HostLock lock(host_);
        locks_.acquire(host_, node);
    }
    /* A request that held the lock before may have brought the blocks here. */
    Status status;
    if (all_here(blocks)) {
        status = write_here(to, from, flags);
    } else if (committer_.failed()) {
        status = -EIO;
    } else {
        if (FVD_PLANT(record_before_data)) {
            record(blocks);
        }
        status = copy_and_write(blocks, to, from, flags);
        if (FVD_PLANT(swallow_error)) {
            status = Status();
        }
        if (status.ok()) {
            record(blocks);
        }
    }
    HostLock lock(host_);
    locks_.release(host_, node);
    return status;
}

namespace {

/* What the guest does not write of its first and last block, where those are still in the base. */
struct Edges {
    ByteRange head;
    ByteRange tail;
};

}  // namespace

Status Image::copy_and_write(BlockRange blocks, const Segment& to, GuestBuffer from,
                             uint32_t flags) {
    const uint64_t first = blocks.begin.value;
    const uint64_t last = blocks.end.value - 1;
    const uint64_t end = to.end();
    Edges edges{{to.offset, to.offset}, {end, end}};
    if (!current_.test(first) && !FVD_PLANT(forget_head)) {
        edges.head.begin = first * header_.block_size;
    }
    if (!current_.test(last) && end < block_end(last) && !FVD_PLANT(forget_tail)) {
        edges.tail.end = block_end(last);
    }

    /* One read where both edges are of one block: a far base answers once, not twice. */
    const bool together = first == last && !edges.head.empty() && !edges.tail.empty();
    const uint64_t middle = together ? to.length : 0;
    const uint64_t copied = edges.head.count() + middle + edges.tail.count();
    HostBuffer buffer;
    if (copied != 0) {
        buffer = HostBuffer(host_, copied);
        if (!buffer) {
            return -ENOMEM;
        }
    }
    const MutableBytes head = buffer.bytes().first(edges.head.count());
    const MutableBytes tail = buffer.bytes().last(edges.tail.count());
    const auto copy = [&](MutableBytes into, uint64_t at) -> Status {
        if (into.empty()) {
            return {};
        }
        host_.announce(FVD_EVENT_COW_READ);
        const Slice slice = memory_slice(into.data(), into.size());
        return read_base({&slice, 1}, at, into.size(), 0);
    };
    Status status =
        together ? copy(buffer.bytes(), edges.head.begin) : copy(head, edges.head.begin);
    if (status.ok() && !together) {
        status = copy(tail, edges.tail.begin);
    }
    if (!status.ok()) {
        return status;
    }

    Slice slices[3];
    size_t count = 0;
    if (!head.empty()) {
        slices[count++] = memory_slice(head.data(), head.size());
    }
    slices[count++] = guest_slice(from.handle, from.offset, to.length);
    if (!tail.empty()) {
        slices[count++] = memory_slice(tail.data(), tail.size());
    }
    host_.announce(FVD_EVENT_COW_WRITE);
    return host_.write(FVD_FILE_DATA, to.data_at(edges.head.begin), {slices, count}, flags);
}

/* Without metadata nothing of ours hangs on a flush: whether one that failed may be tried again is
 * for the storage to say, as it is for a raw disk. */
Status Image::flush() {
    if (!is_tracked()) {
        host_.announce(FVD_EVENT_COMMIT_FLUSH);
        return host_.flush(FVD_FILE_DATA);
    }
    return committer_.flush();
}

Status Image::commit() {
    return writable_ && is_tracked() ? committer_.commit() : Status();
}

void Image::timer_expired(Timer timer) {
    if (!started_ || !writable_) {
        return;
    }
    if (timer == FVD_TIMER_COMMIT) {
        committer_.timer_expired();
        give_space_back();
    } else if (timer == FVD_TIMER_PREFETCH) {
        HostLock lock(host_);
        prefetcher_.timer_expired();
    }
}

/* ------------------------------------------------------------------------- zeroes and discard */

/* True when the range ends inside a block that is still in the base: zeroing it needs a copy. */
bool Image::cuts_missing_block(BlockRange blocks, uint64_t offset, uint64_t length) const {
    const uint64_t last = blocks.end.value - 1;
    const bool cuts_first = offset % header_.block_size != 0 && !current_.test(blocks.begin.value);
    const bool cuts_last = offset + length < block_end(last) && !current_.test(last);
    return (cuts_first || cuts_last) && !FVD_PLANT(zero_cut_block);
}

Status Image::write_zeroes(uint64_t offset, uint64_t length, uint32_t flags) {
    if (header_.has_table()) {
        return zero_compact(offset, length, flags);
    }
    return zero_segment({offset, length, header_.data_offset + offset}, flags);
}

Status Image::zero_segment(const Segment& to, uint32_t flags) {
    const BlockRange blocks = tracked_blocks(to.offset, to.length);
    if (all_here(blocks)) {
        return durably(flags, [&](uint32_t write_flags) {
            host_.announce(FVD_EVENT_WRITE_DATA);
            return host_.write_zeroes(FVD_FILE_DATA, to.data_offset, to.length, write_flags);
        });
    }
    const Status status = bring_zeroes(blocks, to.offset, to.length, [&] {
        host_.announce(FVD_EVENT_COW_WRITE);
        return host_.write_zeroes(FVD_FILE_DATA, to.data_offset, to.length,
                                  flags & ~static_cast<uint32_t>(FVD_REQ_FUA));
    });
    const bool durable = (flags & FVD_REQ_FUA) != 0;
    return status.ok() && durable ? committer_.flush() : status;
}

/* Whole blocks that are still in the base become zeros here, by write(). */
template <typename Write>
Status Image::bring_zeroes(BlockRange blocks, uint64_t offset, uint64_t length, Write write) {
    RangeLocks::Node node{.range = bytes_of(blocks)};
    {
        HostLock lock(host_);
        locks_.acquire(host_, node);
    }
    Status status;
    if (committer_.failed()) {
        status = -EIO;
    } else if (cuts_missing_block(blocks, offset, length)) {
        status = -ENOTSUP;
    } else {
        status = write();
        if (status.ok()) {
            record(blocks);
        }
    }
    HostLock lock(host_);
    locks_.release(host_, node);
    return status;
}

/* Whole chunks: without a slot, to be here is to be zeros. The slots go first. A commit between the
 * two leaves blocks that are here without one, which are zeros, and others in the base; the other
 * way round it would show what a slot holds besides the blocks that were here. */
Status Image::free_whole(const ByteRange& range) {
    if (committer_.failed()) {
        return -EIO;
    }
    const auto take_slots_away = [&] {
        free_slots(chunk_at(range.begin), chunk_end(range.end));
        return Status();
    };
    const BlockRange blocks = tracked_blocks(range.begin, range.count());
    return all_here(blocks) ? take_slots_away()
                            : bring_zeroes(blocks, range.begin, range.count(), take_slots_away);
}

/* It had no slot a moment ago. A write beside us may give it one, and copy from the base into it,
 * so that is looked at again: what is here and has no slot after that, is zeros. */
Status Image::zero_without_slot(uint64_t offset, uint64_t length, uint32_t flags) {
    const BlockRange blocks = tracked_blocks(offset, length);
    const bool here = all_here(blocks);
    const Placement piece = stored_at(offset, length);
    if (blocks.empty() || (here && piece.place == Place::zero && piece.run == length)) {
        return {};
    }
    return bring_zeroes(blocks, offset, length,
                        [&] { return zero_stored(offset, offset + length, flags); });
}

/* With its blocks locked: only zeros get slots meanwhile. */
Status Image::zero_stored(uint64_t offset, uint64_t end, uint32_t flags) {
    Status status;
    while (offset < end && status.ok()) {
        const Placement piece = stored_at(offset, end - offset);
        if (piece.place == Place::data) {
            host_.announce(FVD_EVENT_COW_WRITE);
            status = host_.write_zeroes(FVD_FILE_DATA, piece.data_offset, piece.run,
                                        flags & ~static_cast<uint32_t>(FVD_REQ_FUA));
        }
        offset += piece.run;
    }
    return status;
}

Status Image::zero_pieces(uint64_t offset, uint64_t end, uint32_t flags) {
    const ChunkAllocator::Use use(slots_in_use());
    while (offset < end) {
        const Placement piece = stored_at(offset, end - offset);
        const Status status = piece.place == Place::zero
                                  ? zero_without_slot(offset, piece.run, flags)
                                  : zero_segment({offset, piece.run, piece.data_offset}, flags);
        if (!status.ok()) {
            return status;
        }
        offset += piece.run;
    }
    return {};
}

/* Whole blocks that are still in the base become zeros here, if that costs no data: then they are
 * never fetched. Parts of blocks, and hosts that cannot, keep what is there; a discard is only
 * advice. */
Status Image::discard_missing(uint64_t offset, uint64_t length) {
    const uint64_t block = header_.block_size;
    const uint64_t begin = offset % block == 0 ? offset : offset - offset % block + block;
    const uint64_t end =
        offset + length == tracked_size_ ? offset + length : (offset + length) / block * block;
    if (begin >= end) {
        return {};
    }
    const Status status = zero_pieces(begin, end, FVD_REQ_MAY_UNMAP | FVD_REQ_NO_FALLBACK);
    return status.value() == -ENOTSUP ? Status() : status;
}

Status Image::discard_pieces(uint64_t offset, uint64_t end) {
    const ChunkAllocator::Use use(slots_in_use());
    Status first_error;
    while (offset < end) {
        const Placement piece = place_of(offset, end - offset);
        if (piece.place == Place::base) {
            first_error = first_error.or_else(discard_missing(offset, piece.run));
        } else if (piece.place == Place::data) {
            first_error =
                first_error.or_else(host_.discard(FVD_FILE_DATA, piece.data_offset, piece.run));
        }
        offset += piece.run;
    }
    return first_error;
}

Status Image::discard(uint64_t offset, uint64_t length) {
    const uint64_t end = offset + length;
    const ByteRange chunks = whole_chunks(offset, end);
    if (chunks.empty()) {
        return discard_pieces(offset, end);
    }
    const Status before = discard_pieces(offset, chunks.begin);
    const Status freed = free_chunks(chunks);
    return before.or_else(freed).or_else(discard_pieces(chunks.end, end));
}

}  // namespace fvd
