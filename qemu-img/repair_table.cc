/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The part of `qemu-img check -r all` that deals with slots. */
#include <algorithm>
#include <cerrno>

#include "fvd/base/arith.h"
#include "fvd/engine/host_memory.h"
#include "fvd/format/audit.h"
#include "fvd/format/layout.h"
#include "fvd/verbs.h"

namespace fvd {

namespace {

constexpr uint64_t kPieceBytes = 1024 * 1024;

class TableRepair {
  public:
    TableRepair(Host& host, const Header& header, ReplayTarget& target)
        : host_(host), header_(header), target_(target) {}

    Status run();

  private:
    Status allocate();
    Status complete_last_slot();
    void forget_lost_chunks();
    Status separate_chunks();
    Status move(ChunkIndex chunk);
    Status provide(SlotIndex slot);
    Status copy(SlotIndex from, SlotIndex to);
    void set_entry(ChunkIndex chunk, uint32_t entry);
    uint64_t offset_of(SlotIndex slot) const {
        return header_.data_offset + slot.value * header_.chunk_size;
    }

    Host& host_;
    const Header& header_;
    ReplayTarget& target_;
    HostBuffer taken_words_, seen_words_, buffer_;
    BlockBitmap taken_; /* slots that chunks have */
    BlockBitmap seen_;  /* slots whose first chunk has been found */
    uint64_t inside_ = 0;
    uint64_t cursor_ = 0; /* no slot below it is free */
    bool copied_ = false;
};

Status TableRepair::allocate() {
    const uint64_t slots = header_.slot_count();
    buffer_ = HostBuffer(host_, std::min(header_.chunk_size, kPieceBytes));
    const bool all = make_bitmap(host_, slots, &taken_words_, &taken_) &&
                     make_bitmap(host_, slots, &seen_words_, &seen_) && buffer_;
    return all ? Status() : Status(-ENOMEM);
}

/** Part of a slot may be all that is left of a chunk; it is too good to be given up. */
Status TableRepair::complete_last_slot() {
    const int64_t length = host_.length(FVD_FILE_DATA);
    if (length < 0) {
        return static_cast<int>(length);
    }
    inside_ = slots_inside(header_, static_cast<uint64_t>(length));
    const SlotIndex last(inside_);
    if (inside_ == header_.slot_count() || offset_of(last) >= static_cast<uint64_t>(length)) {
        return {};
    }
    for (ChunkIndex chunk(0); chunk.value < target_.table.chunks(); ++chunk) {
        if (target_.table.slot(chunk) == last) {
            const Status status =
                host_.resize(FVD_FILE_DATA, offset_of(last + 1), FVD_PREALLOC_OFF);
            inside_ += status.ok();
            break;
        }
    }
    return {};
}

void TableRepair::set_entry(ChunkIndex chunk, uint32_t entry) {
    target_.table.set_entry(chunk, entry);
    const uint64_t page = chunk.value / kChunksPerPage;
    target_.dirty_entries.set(page, page + 1);
}

void TableRepair::forget_lost_chunks() {
    for (const ReservedSlots::Range& range : header_.reserved_slots().ranges) {
        const uint64_t slots = taken_.bits();
        taken_.set(std::min(range.begin, slots), std::min(range.end, slots));
    }
    SlotJudge judge(taken_, inside_, header_.reserved_slots());
    for (ChunkIndex chunk(0); chunk.value < target_.table.chunks(); ++chunk) {
        const EntryState state = judge.judge(target_.table.entry(chunk));
        if (state == EntryState::impossible || state == EntryState::past_end) {
            set_entry(chunk, kNotStored);
        }
    }
}

/** There are as many slots as chunks, so a chunk that shares one leaves another without a chunk. */
Status TableRepair::separate_chunks() {
    SlotJudge judge(seen_, inside_, header_.reserved_slots());
    for (ChunkIndex chunk(0); chunk.value < target_.table.chunks(); ++chunk) {
        if (judge.judge(target_.table.entry(chunk)) == EntryState::shared) {
            if (Status status = move(chunk); !status.ok()) {
                return status;
            }
        }
    }
    return copied_ ? host_.flush(FVD_FILE_DATA) : Status();
}

Status TableRepair::move(ChunkIndex chunk) {
    while (taken_.test(cursor_)) {
        ++cursor_;
    }
    const SlotIndex to(cursor_);
    Status status = provide(to);
    if (status.ok()) {
        status = copy(*target_.table.slot(chunk), to);
    }
    if (status.ok()) {
        taken_.set(to.value, to.value + 1);
        seen_.set(to.value, to.value + 1);
        set_entry(chunk, static_cast<uint32_t>(to.value));
        copied_ = true;
    }
    return status;
}

Status TableRepair::provide(SlotIndex slot) {
    if (slot.value < inside_) {
        return {};
    }
    const uint64_t length = header_.data_offset + storage_size(header_, slot.value + 1);
    const Status status = host_.resize(FVD_FILE_DATA, length, FVD_PREALLOC_OFF);
    if (status.ok()) {
        inside_ = slots_inside(header_, length);
    }
    return status;
}

Status TableRepair::copy(SlotIndex from, SlotIndex to) {
    for (uint64_t at = 0; at < header_.chunk_size; at += buffer_.size()) {
        const MutableBytes piece =
            buffer_.bytes().first(std::min<uint64_t>(buffer_.size(), header_.chunk_size - at));
        Status status = read_bytes(host_, FVD_FILE_DATA, offset_of(from) + at, piece);
        if (status.ok()) {
            status = write_bytes(host_, FVD_FILE_DATA, offset_of(to) + at, piece);
        }
        if (!status.ok()) {
            return status;
        }
    }
    return {};
}

Status TableRepair::run() {
    Status status = allocate();
    if (status.ok()) {
        status = complete_last_slot();
    }
    if (!status.ok()) {
        return status;
    }
    forget_lost_chunks();
    return separate_chunks();
}

}  // namespace

Status repair_table(Host& host, const Header& header, ReplayTarget& target) {
    return TableRepair(host, header, target).run();
}

}  // namespace fvd
