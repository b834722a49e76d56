/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Changing the size of the virtual disk, with requests in flight. Grown space reads as zeros: it is
 * behind what the bitmap covers, and what stands there is made zeros before the header says that
 * there is more disk. A smaller disk is one header update; what it leaves behind in bitmap and
 * table is cleared after it, and if a cut prevents that, at the next open.
 */
#include <algorithm>
#include <cerrno>

#include "fvd/base/arith.h"
#include "fvd/engine/image.h"
#include "fvd/format/limits.h"

namespace fvd {

namespace {

Error check_size(const Header& header, uint64_t size) {
    if (size % limits::kSectorSize != 0 || size > limits::kMaxVirtualSize) {
        return Error::make(-EINVAL, "a disk of %llu bytes; must be a multiple of 512, at most %llu",
                           print(size), print(limits::kMaxVirtualSize));
    }
    const uint64_t entries = header.table_size / sizeof(uint32_t);
    if (header.has_table() && div_ceil(size, header.chunk_size) > entries) {
        return Error::make(-ENOTSUP,
                           "a disk of %llu bytes needs %llu entries of the table, which has room "
                           "for %llu: at most %llu bytes",
                           print(size), print(div_ceil(size, header.chunk_size)), print(entries),
                           print(entries * header.chunk_size));
    }
    return Error::none();
}

}  // namespace

Error Image::resize(uint64_t size, Preallocation mode) {
    FVD_ASSERT(started_ && writable_);
    if (Error error = check_size(header_, size); !error.ok()) {
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
    /* What an earlier shrink left past the old end must not come to life. */
    Status status = is_tracked() ? committer_.save_home() : Status();
    if (status.ok()) {
        status =
            header_.has_table() ? clear_tail(old_size, size) : lengthen_data(old_size, size, mode);
    }
    if (status.ok()) {
        status = host_.flush(FVD_FILE_DATA);
    }
    if (!status.ok()) {
        return Error::make(status.value(), "the data cannot be extended to %llu bytes",
                           print(size));
    }
    status = committer_.change_header([&](Header& header) { header.virtual_size = size; },
                                      [&](Header& header) { header.virtual_size = old_size; });
    if (!status.ok()) {
        return Error::make(status.value(), "the header cannot be written");
    }
    disk_size_ = size;
    return header_.has_table() ? preallocate(old_size, size, mode) : Error::none();
}

/* Of a linear image: what is new reads as zeros, whatever an earlier, longer life left there. */
Status Image::lengthen_data(uint64_t old_size, uint64_t size, Preallocation mode) {
    const uint64_t old_end = header_.data_offset + old_size;
    const uint64_t end = header_.data_offset + size;
    const int64_t length = host_.length(FVD_FILE_DATA);
    if (length < 0) {
        return Status(static_cast<int>(length));
    }
    const auto there = static_cast<uint64_t>(length);
    if (there > old_end) {
        const Status status = host_.write_zeroes(FVD_FILE_DATA, old_end,
                                                 std::min(there, end) - old_end, FVD_REQ_MAY_UNMAP);
        if (!status.ok()) {
            return status;
        }
    }
    /* Of metadata there is none to be made in advance. */
    const Preallocation storage = mode == FVD_PREALLOC_METADATA ? FVD_PREALLOC_OFF : mode;
    return there < end ? host_.resize(FVD_FILE_DATA, end, storage) : Status();
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

/* The disk has its new size already; what cannot be had in advance is had when it is needed. */
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
    return status.ok() ? Error::none()
                       : Error::make(status.value(),
                                     "the disk has %llu bytes now, but storage for them cannot be "
                                     "allocated in advance",
                                     print(size));
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
    const Status status = is_tracked() ? committer_.change_sizes(change, undo)
                                       : committer_.change_header(change, undo);
    if (!status.ok()) {
        return Error::make(status.value(), "the header cannot be written");
    }
    if (header_.has_table()) {
        (void)commit_freed().ok();
        give_space_back();
    } else {
        /* Space that stays is no harm: grown again it is made zeros first. */
        (void)host_.resize(FVD_FILE_DATA, header_.data_offset + size, FVD_PREALLOC_OFF).ok();
    }
    return Error::none();
}

}  // namespace fvd
