/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "direct_host.h"

#include <algorithm>
#include <cerrno>
#include <cstdlib>

namespace fvd::sim {

namespace {

/* Buffers are used again: a crash state opens the image a few times, and malloc would dominate. */
struct Block {
    size_t size;
    Block* next;
};
constexpr size_t kPrefix = 64; /* keeps the alignment of what follows */
Block* free_blocks = nullptr;

}  // namespace

DirectHost::~DirectHost() = default;

Status DirectHost::read(File file, uint64_t offset, std::span<const Slice> to, uint32_t) {
    for (const Slice& slice : to) {
        const MutableBytes bytes = slice_bytes(slice);
        if (file == FVD_FILE_IMAGE && offset < unreadable.end &&
            offset + bytes.size() > unreadable.begin) {
            return -EIO;
        }
        if (file == FVD_FILE_BASE) {
            const uint64_t end = std::min<uint64_t>(base_.size(), offset + bytes.size());
            const size_t there = end > offset ? end - offset : 0;
            std::memcpy(bytes.data(), base_.data() + (there != 0 ? offset : 0), there);
            std::fill(bytes.begin() + static_cast<ptrdiff_t>(there), bytes.end(), std::byte{0});
        } else {
            medium_.read(disk_of(file), offset, bytes);
        }
        offset += slice.length;
    }
    return {};
}

Status DirectHost::store(File file, uint64_t offset, ConstBytes bytes) {
    if (file == FVD_FILE_BASE || !medium_.write(disk_of(file), offset, bytes, log_)) {
        misbehaviour_ = "wrote to the base, or far outside of its file";
        return -EIO;
    }
    return {};
}

Status DirectHost::write(File file, uint64_t offset, std::span<const Slice> from, uint32_t flags) {
    gather(from, gathered_);
    const Status status = store(file, offset, gathered_);
    return status.ok() && (flags & FVD_REQ_FUA) != 0 ? flush(file) : status;
}

Status DirectHost::write_zeroes(File file, uint64_t offset, uint64_t length, uint32_t) {
    gathered_.assign(length, std::byte{0});
    return store(file, offset, gathered_);
}

Status DirectHost::discard(File file, uint64_t offset, uint64_t length) {
    return write_zeroes(file, offset, length, 0);
}

Status DirectHost::flush(File file) {
    if (file != FVD_FILE_BASE) {
        LogStep step;
        step.is_flush = true;
        step.disk = disk_of(file);
        log_.steps.push_back(step);
    }
    return {};
}

int64_t DirectHost::length(File file) {
    return static_cast<int64_t>(file == FVD_FILE_BASE ? base_.size()
                                                      : medium_.length(disk_of(file)));
}

Status DirectHost::resize(File file, uint64_t length, Preallocation) {
    medium_.set_length(disk_of(file), length);
    return {};
}

Status DirectHost::extent(File file, uint64_t offset, uint64_t length, bool* zero, uint64_t* run) {
    /* Only the base is ever asked about; holes are told sector by sector. */
    constexpr uint64_t kSector = 512;
    const auto is_zero = [&](uint64_t at) {
        if (file != FVD_FILE_BASE || !base_is_sparse) {
            return false;
        }
        const uint64_t end = std::min<uint64_t>(base_.size(), (at / kSector + 1) * kSector);
        return at >= end || std::all_of(base_.begin() + static_cast<ptrdiff_t>(at),
                                        base_.begin() + static_cast<ptrdiff_t>(end),
                                        [](std::byte b) { return b == std::byte{0}; });
    };
    *zero = is_zero(offset);
    uint64_t at = (offset / kSector + 1) * kSector;
    while (at < offset + length && is_zero(at) == *zero) {
        at += kSector;
    }
    *run = std::min(at, offset + length) - offset;
    return {};
}

void* DirectHost::allocate(size_t size) {
    allocated_++;
    for (Block** link = &free_blocks; *link != nullptr; link = &(*link)->next) {
        if ((*link)->size >= size && (*link)->size <= 2 * size + 4096) {
            Block* block = *link;
            *link = block->next;
            return reinterpret_cast<std::byte*>(block) + kPrefix;
        }
    }
    const size_t rounded = (size + kPrefix + 63) / 64 * 64;
    auto* block = static_cast<Block*>(std::aligned_alloc(64, rounded));
    block->size = rounded - kPrefix;
    std::memset(reinterpret_cast<std::byte*>(block) + kPrefix, 0xA5, block->size);
    return reinterpret_cast<std::byte*>(block) + kPrefix;
}

void DirectHost::release(void* memory) {
    if (memory == nullptr) {
        return;
    }
    allocated_--;
    auto* block = reinterpret_cast<Block*>(static_cast<std::byte*>(memory) - kPrefix);
    block->next = free_blocks;
    free_blocks = block;
}

void DirectHost::fill_guest_zero(void* guest, uint64_t guest_offset, uint64_t length) {
    const Slice slice = guest_slice(guest, guest_offset, length);
    const MutableBytes bytes = slice_bytes(slice);
    std::fill(bytes.begin(), bytes.end(), std::byte{0});
}

void DirectHost::copy_to_guest(void* guest, uint64_t guest_offset, ConstBytes from) {
    const Slice slice = guest_slice(guest, guest_offset, from.size());
    std::memcpy(slice_bytes(slice).data(), from.data(), from.size());
}

/* An image that was not asked to fill itself does nothing in the background. */
void DirectHost::start_task(Task, void*) {
    misbehaviour_ = "started a task nobody asked for";
}

void DirectHost::park() {
    if (!woken_) {
        /* Nobody else runs here: this sleep would last for ever. */
        std::fputs("fvd-sim: the core sleeps and nothing can wake it\n", stderr);
        std::abort();
    }
    woken_ = false;
}

void DirectHost::warn(const char* sentence) {
    warning_count_++;
    warnings_ += warnings_.empty() ? "" : "; ";
    warnings_ += sentence;
}

void DirectHost::random(MutableBytes bytes) {
    for (std::byte& b : bytes) {
        b = static_cast<std::byte>(random_.next());
    }
}

}  // namespace fvd::sim
