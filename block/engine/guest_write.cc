/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Writes. A request whose blocks are all here goes straight to the data file. A first write to a
 * block holds a range lock, copies from the base only what the guest does not write, and writes old
 * and new with one request.
 */
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

Status Image::write_here(uint64_t offset, uint64_t length, GuestBuffer from, uint32_t flags) {
    return durably(flags, [&](uint32_t write_flags) {
        const Slice slice = guest_slice(from.handle, from.offset, length);
        host_.announce(FVD_EVENT_WRITE_DATA);
        return host_.write(FVD_FILE_DATA, data_at(offset), {&slice, 1}, write_flags);
    });
}

Status Image::write(uint64_t offset, uint64_t length, GuestBuffer from, uint32_t flags) {
    const BlockRange blocks = tracked_blocks(offset, length);
    if (all_here(blocks)) {
        return write_here(offset, length, from, flags);
    }
    const Status status =
        first_write(blocks, offset, length, from, flags & ~static_cast<uint32_t>(FVD_REQ_FUA));
    const bool durable = (flags & FVD_REQ_FUA) != 0 && !FVD_PLANT(ignore_fua);
    return status.ok() && durable ? committer_.flush() : status;
}

Status Image::first_write(BlockRange blocks, uint64_t offset, uint64_t length, GuestBuffer from,
                          uint32_t flags) {
    RangeLocks::Node node{.range = blocks};
    {
        HostLock lock(host_);
        locks_.acquire(host_, node);
    }
    /* A request that held the lock before may have brought the blocks here. */
    Status status;
    if (all_here(blocks)) {
        status = write_here(offset, length, from, flags);
    } else if (committer_.failed()) {
        status = -EIO;
    } else {
        if (FVD_PLANT(record_before_data)) {
            committer_.record(blocks);
        }
        status = copy_and_write(blocks, offset, length, from, flags);
        if (FVD_PLANT(swallow_error)) {
            status = Status();
        }
        if (status.ok()) {
            committer_.record(blocks);
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

Status Image::copy_and_write(BlockRange blocks, uint64_t offset, uint64_t length, GuestBuffer from,
                             uint32_t flags) {
    const uint64_t first = blocks.begin.value;
    const uint64_t last = blocks.end.value - 1;
    const uint64_t end = offset + length;
    Edges edges{{offset, offset}, {end, end}};
    if (!current_.test(first) && !FVD_PLANT(forget_head)) {
        edges.head.begin = first * header_.block_size;
    }
    if (!current_.test(last) && end < block_end(last) && !FVD_PLANT(forget_tail)) {
        edges.tail.end = block_end(last);
    }

    /* One read where both edges are of one block: a far base answers once, not twice. */
    const bool together = first == last && !edges.head.empty() && !edges.tail.empty();
    const uint64_t middle = together ? length : 0;
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
    const auto copy = [&](MutableBytes to, uint64_t at) -> Status {
        if (to.empty()) {
            return {};
        }
        host_.announce(FVD_EVENT_COW_READ);
        return read_bytes(host_, FVD_FILE_BASE, at, to);
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
    slices[count++] = guest_slice(from.handle, from.offset, length);
    if (!tail.empty()) {
        slices[count++] = memory_slice(tail.data(), tail.size());
    }
    host_.announce(FVD_EVENT_COW_WRITE);
    return host_.write(FVD_FILE_DATA, data_at(edges.head.begin), {slices, count}, flags);
}

/* Without a bitmap nothing of ours hangs on a flush: whether one that failed may be tried again is
 * for the storage to say, as it is for a raw disk. */
Status Image::flush() {
    if (tracked_size_ == 0) {
        host_.announce(FVD_EVENT_COMMIT_FLUSH);
        return host_.flush(FVD_FILE_DATA);
    }
    return committer_.flush();
}

Status Image::commit() {
    return writable_ && tracked_size_ != 0 ? committer_.commit() : Status();
}

void Image::timer_expired(Timer timer) {
    if (timer == FVD_TIMER_COMMIT && started_ && writable_) {
        committer_.timer_expired();
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
    const BlockRange blocks = tracked_blocks(offset, length);
    if (all_here(blocks)) {
        return durably(flags, [&](uint32_t write_flags) {
            host_.announce(FVD_EVENT_WRITE_DATA);
            return host_.write_zeroes(FVD_FILE_DATA, data_at(offset), length, write_flags);
        });
    }
    const Status status =
        zero_missing(blocks, offset, length, flags & ~static_cast<uint32_t>(FVD_REQ_FUA));
    const bool durable = (flags & FVD_REQ_FUA) != 0;
    return status.ok() && durable ? committer_.flush() : status;
}

Status Image::zero_missing(BlockRange blocks, uint64_t offset, uint64_t length, uint32_t flags) {
    RangeLocks::Node node{.range = blocks};
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
        host_.announce(FVD_EVENT_COW_WRITE);
        status = host_.write_zeroes(FVD_FILE_DATA, data_at(offset), length, flags);
        if (status.ok()) {
            committer_.record(blocks);
        }
    }
    HostLock lock(host_);
    locks_.release(host_, node);
    return status;
}

/* Whole blocks that are still in the base become zeros here, if that costs no data: then they are
 * never fetched. Parts of blocks, and hosts that cannot, keep what is there; a discard is only
 * advice. */
Status Image::discard_missing(uint64_t offset, uint64_t length) {
    const uint64_t block = header_.block_size;
    const uint64_t begin = offset % block == 0 ? offset : offset - offset % block + block;
    const uint64_t end =
        offset + length == tracked_size_ ? tracked_size_ : (offset + length) / block * block;
    if (begin >= end) {
        return {};
    }
    const Status status = zero_missing(tracked_blocks(begin, end - begin), begin, end - begin,
                                       FVD_REQ_MAY_UNMAP | FVD_REQ_NO_FALLBACK);
    return status.value() == -ENOTSUP ? Status() : status;
}

Status Image::discard(uint64_t offset, uint64_t length) {
    Status first_error;
    while (length != 0) {
        const Placement place = where(offset, length);
        const Status status = place.in_base
                                  ? discard_missing(offset, place.run)
                                  : host_.discard(FVD_FILE_DATA, place.data_offset, place.run);
        first_error = first_error.or_else(status);
        offset += place.run;
        length -= place.run;
    }
    return first_error;
}

}  // namespace fvd
