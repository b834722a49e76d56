/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "fvd/engine/chunk_allocator.h"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>

#include "fvd/base/arith.h"
#include "fvd/base/plant.h"
#include "fvd/engine/host_memory.h"
#include "fvd/format/layout.h"

namespace fvd {

namespace {

/* Given back at once, at most. */
constexpr uint64_t kTrimBytes = 64 * 1024 * 1024;

std::span<uint64_t> memory_of_set(const HostBuffer& memory, size_t number, uint64_t slots) {
    const uint64_t words = BlockBitmap::bits_to_words(slots);
    return items_of<uint64_t>(memory, (number + 1) * words).subspan(number * words);
}

/* A slot that a chunk cannot have. */
Error not_its_own(const Header& header, ChunkIndex chunk, uint64_t slot, uint64_t slots) {
    if (slot >= slots) {
        return Error::make(-EINVAL,
                           "chunk %llu is in slot %llu, past the last one of the storage "
                           "(%llu slots of %llu bytes); 'qemu-img check -r all' gives it up",
                           print(chunk.value), print(slot), print(slots), print(header.chunk_size));
    }
    return Error::make(-EINVAL,
                       "chunk %llu is in slot %llu, which is not its own; 'qemu-img check "
                       "-r all' repairs it",
                       print(chunk.value), print(slot));
}

Error no_memory(uint64_t slots) {
    return Error::make(-ENOMEM, "no memory to remember %llu slots", print(slots));
}

}  // namespace

uint64_t SlotSet::members(uint64_t begin, uint64_t end) const {
    uint64_t total = 0;
    while (begin < end) {
        const bool member = bits_.test(begin);
        const uint64_t run = bits_.run_end(begin, end, member);
        total += member ? run - begin : 0;
        begin = run;
    }
    return total;
}

void SlotSet::add(uint64_t begin, uint64_t end) {
    count_ += end - begin - members(begin, end);
    bits_.set(begin, end);
}

void SlotSet::remove(uint64_t begin, uint64_t end) {
    count_ -= members(begin, end);
    bits_.clear(begin, end);
}

void SlotSet::enlarge(std::span<uint64_t> memory, uint64_t slots) {
    for (uint64_t w = 0; w < bits_.words(); w++) {
        memory[w] = bits_.word(w);
    }
    bits_ = BlockBitmap(memory, slots);
}

void SlotSet::move_to(SlotSet& other) {
    if (empty()) {
        return;
    }
    for_each_run([&](uint64_t begin, uint64_t end) { other.add(begin, end); });
    bits_.clear(0, bits_.bits());
    count_ = 0;
}

uint64_t SlotSet::first(uint64_t from, uint64_t end, bool member) const {
    if (from >= end || bits_.test(from) == member) {
        return std::min(from, end);
    }
    return bits_.run_end(from, end, !member);
}

uint64_t SlotSet::end() const {
    uint64_t words = bits_.words();
    while (words != 0 && bits_.word(words - 1) == 0) {
        words--;
    }
    return words == 0 ? 0
                      : 64 * words - static_cast<uint64_t>(std::countl_zero(bits_.word(words - 1)));
}

/* ----------------------------------------------------------------------------------- begin */

/* All sets in one piece, and clear. */
HostBuffer ChunkAllocator::memory_of_sets(uint64_t slots) {
    HostBuffer memory = memory_for<uint64_t>(host_, kSets * BlockBitmap::bits_to_words(slots));
    if (memory) {
        std::memset(memory.data(), 0, memory.size());
    }
    return memory;
}

Error ChunkAllocator::allocate_sets() {
    memory_ = memory_of_sets(slot_count_);
    if (!memory_) {
        return no_memory(slot_count_);
    }
    for (size_t i = 0; i < kSets; i++) {
        *sets()[i] = SlotSet();
        sets()[i]->begin(memory_of_set(memory_, i, slot_count_), slot_count_);
    }
    return Error::none();
}

/* Nothing that is known about a slot changes. Storage behind the former last one is looked at when
 * it is needed. */
Error ChunkAllocator::have_slots(uint64_t slots) {
    if (slots <= slot_count_) {
        return Error::none();
    }
    HostBuffer larger = memory_of_sets(slots);
    if (!larger) {
        return no_memory(slots);
    }
    HostLock lock(host_);
    for (size_t i = 0; i < kSets; i++) {
        sets()[i]->enlarge(memory_of_set(larger, i, slots), slots);
    }
    std::swap(memory_, larger);
    slot_count_ = slots;
    return Error::none();
}

Error ChunkAllocator::begin(const Header& header, const ChunkTable& table, uint64_t data_length) {
    slot_count_ = header.slot_count();
    reserved_ = header.reserved_slots().count();
    limit_ = std::min(header.chunk_count() + reserved_, slot_count_);
    chunk_size_ = header.chunk_size;
    data_offset_ = header.data_offset;
    grow_unit_ = header.storage_grow_unit;
    first_free_ = 0;
    cannot_trim_ = false;
    if (Error error = allocate_sets(); !error.ok()) {
        return error;
    }
    storage_slots_ = 0;
    storage_is(slots_within(data_length), false);
    reserve(header);
    return learn(header, table);
}

/* A table that outgrew its place may stand where slots would be. */
void ChunkAllocator::reserve(const Header& header) {
    for (const ReservedSlots::Range& range : header.reserved_slots().ranges) {
        used_.add(std::min(range.begin, slot_count_), std::min(range.end, slot_count_));
    }
}

/* Run by run: a table may have hundreds of millions of entries. */
Error ChunkAllocator::learn(const Header& header, const ChunkTable& table) {
    const uint64_t slots = std::min(slot_count_, storage_slots_);
    const ChunkIndex end(table.chunks());
    ChunkIndex chunk(0);
    while (chunk < end) {
        const ChunkRun run = table.run(chunk, end);
        if (run.slot) {
            const uint64_t first = run.slot->value;
            const uint64_t last = first + (run.end - chunk);
            const uint64_t taken =
                first < slots ? used_.first(first, std::min(last, slots), true) : first;
            if (taken < last) {
                return not_its_own(header, chunk + (taken - first), taken, slots);
            }
            used_.add_others(first, last);
            limit_ = std::max(limit_, last); /* the disk may have been larger */
        }
        chunk = run.end;
    }
    return Error::none();
}

/* ------------------------------------------------------------------------------------ take */

/* The hint, unless storage would have to grow for it and need not for another. */
uint64_t ChunkAllocator::find_free(SlotIndex hint) {
    first_free_ = used_.first(first_free_, limit_, false);
    const bool may_grow = hint.value < storage_slots_ || first_free_ >= storage_slots_;
    return hint.value < limit_ && !used_.has(hint) && may_grow ? hint.value : first_free_;
}

SlotRange ChunkAllocator::take(SlotIndex hint, uint64_t most) {
    advance();
    const uint64_t begin = find_free(hint);
    const bool may_grow = begin == first_free_ || begin >= storage_slots_;
    const uint64_t limit = may_grow ? limit_ : std::min(storage_slots_, limit_);
    if (begin >= limit) {
        return {};
    }
    const uint64_t end = used_.first(begin, begin + std::min(most, limit - begin), true);
    used_.add_others(begin, end);
    stale_.remove(begin, end);
    return {SlotIndex(begin), SlotIndex(end)};
}

void ChunkAllocator::set_free(uint64_t begin, uint64_t end) {
    used_.remove(begin, end);
    first_free_ = std::min(first_free_, begin);
}

/* What was not given back to the storage before is still to be given. */
void ChunkAllocator::put_back(SlotRange slots) {
    set_free(slots.begin.value, slots.end.value);
    while (!slots.empty() && !cannot_trim_) {
        const SlotRange unknown = first_unknown(slots);
        stale_.add(unknown.begin.value, unknown.end.value);
        slots.begin = unknown.end;
    }
}

SlotRange ChunkAllocator::put_back_unstored(SlotRange slots) {
    const SlotIndex end(std::clamp(storage_slots_, slots.begin.value, slots.end.value));
    put_back({end, slots.end});
    return {slots.begin, end};
}

SlotRange ChunkAllocator::first_unknown(SlotRange slots) const {
    const uint64_t begin = unknown_.first(slots.begin.value, slots.end.value, true);
    return {SlotIndex(begin), SlotIndex(unknown_.first(begin, slots.end.value, false))};
}

/* Others turn phases, too: durable ones may wait where none is draining. */
void ChunkAllocator::wait_until_drained() {
    const bool waiting = !draining_.empty() || !durable_.empty();
    if (trimming_ || (waiting && !in_flight_.former_is_empty())) {
        drain_waiters_.wait(host_);
    }
}

/* --------------------------------------------------------------------------------- regions */

bool ChunkAllocator::take_run(uint64_t slots, SlotIndex* first) {
    advance();
    for (uint64_t at = 0; at < slot_count_;) {
        const uint64_t begin = used_.first(at, slot_count_, false);
        const uint64_t end = used_.first(begin, std::min(begin + slots, slot_count_), true);
        if (end - begin == slots) {
            used_.add(begin, end);
            stale_.remove(begin, end);
            *first = SlotIndex(begin);
            return true;
        }
        at = end;
    }
    return false;
}

void ChunkAllocator::put_back_run(ReservedSlots::Range run) {
    if (run.empty()) {
        return;
    }
    set_free(run.begin, run.end);
    unknown_.add(run.begin, run.end);
    stale_.add(run.begin, run.end);
}

void ChunkAllocator::region_moved(ReservedSlots::Range from, const ReservedSlots& now) {
    reserved_ = now.count();
    for (uint64_t slot = from.begin; slot < from.end; slot++) {
        if (!now.has(slot)) { /* another region may end on a slot of this one */
            put_back_run({slot, slot + 1});
        }
    }
}

/* A phase may be turned only when the one before it is empty. Who turns it after us has found empty
 * what we wait for. */
void ChunkAllocator::wait_for_requests() {
    do {
        while (!in_flight_.former_is_empty()) {
            drain_waiters_.wait(host_);
        }
        advance();
    } while (!in_flight_.former_is_empty());
    in_flight_.turn();
    const unsigned phase = in_flight_.phase();
    while (in_flight_.phase() == phase && !in_flight_.former_is_empty()) {
        drain_waiters_.wait(host_);
    }
}

/* ---------------------------------------------------------------------------------- growth */

void ChunkAllocator::storage_is(uint64_t slots, bool zero) {
    const uint64_t now = std::min(slots, slot_count_);
    if (now > storage_slots_ && !zero) {
        unknown_.add(storage_slots_, now);
    }
    storage_slots_ = std::max(storage_slots_, now);
}

Status ChunkAllocator::grow_to(SlotIndex end) {
    RangeLocks::Node node{.range = {0, 1}};
    growing_.acquire(host_, node);
    Status status;
    if (end.value > storage_slots_) {
        host_.unlock();
        status = grow_storage(end.value);
        host_.lock();
    }
    growing_.release(host_, node);
    return status;
}

/* What others made of a device may hold anything. */
Status ChunkAllocator::measure_storage() {
    const int64_t length = host_.length(FVD_FILE_DATA);
    if (length < 0) {
        return Status(static_cast<int>(length));
    }
    HostLock lock(host_);
    storage_is(slots_within(static_cast<uint64_t>(length)), FVD_PLANT(old_bytes_are_zeros));
    return {};
}

/* Without the mutex, and alone. A file is grown by us; a device by others, and until they did it is
 * full. */
Status ChunkAllocator::grow_storage(uint64_t wanted) {
    Status status = measure_storage();
    if (!status.ok() || storage_slots_ >= wanted) {
        return status;
    }
    const uint64_t unit = std::max<uint64_t>(grow_unit_ / chunk_size_, 1);
    for (const uint64_t slots :
         {std::max(wanted, std::min(round_up(wanted, unit), limit_)), wanted}) {
        status = host_.resize(FVD_FILE_DATA, offset_of(SlotIndex(slots)), FVD_PREALLOC_OFF);
        if (status.ok() || FVD_PLANT(growth_unchecked)) {
            HostLock lock(host_);
            storage_is(slots, true);
            return {};
        }
        /* Before the next try, which might shorten what it has become. */
        if (const Status measured = measure_storage(); !measured.ok() || storage_slots_ >= wanted) {
            return measured;
        }
    }
    return status.value() == -EINVAL || status.value() == -ENOTSUP ? Status(-ENOSPC) : status;
}

/* --------------------------------------------------------------------------------- freeing */

void ChunkAllocator::give_up(SlotIndex slot) {
    FVD_ASSERT(used_.has(slot));
    unknown_.add(slot);
    if (FVD_PLANT(reuse_before_durable)) {
        put_back({slot, slot + 1});
        return;
    }
    freed_.add(slot);
}

void ChunkAllocator::group_durable() {
    collected_.move_to(durable_);
    advance();
}

/* What is durable drains, what has drained is free. */
void ChunkAllocator::advance() {
    if (!draining_.empty() && (in_flight_.former_is_empty() || FVD_PLANT(reuse_while_read))) {
        draining_.for_each_run([this](uint64_t begin, uint64_t end) {
            set_free(begin, end);
            stale_.add(begin, end);
        });
        draining_.remove(0, slot_count_);
    }
    if (draining_.empty() && !durable_.empty() && in_flight_.former_is_empty()) {
        durable_.move_to(draining_);
        in_flight_.turn();
        if (in_flight_.former_is_empty()) {
            advance();
        }
    }
}

/* The last request of a phase that is over has ended. */
void ChunkAllocator::phase_drained() {
    HostLock lock(host_);
    drain_waiters_.wake_all(host_);
}

/* ------------------------------------------------------------------------------------ trim */

void ChunkAllocator::trim() {
    advance();
    const uint64_t most = std::max<uint64_t>(kTrimBytes / chunk_size_, 1);
    while (!stale_.empty() && !cannot_trim_ && !trimming_) {
        const uint64_t begin = stale_.first(0, slot_count_, true);
        const uint64_t end = stale_.first(begin, std::min(begin + most, slot_count_), false);
        used_.add(begin, end); /* nobody takes them meanwhile */
        stale_.remove(begin, end);
        trimming_ = true;
        host_.unlock();
        const Status status = host_.write_zeroes(FVD_FILE_DATA, offset_of(SlotIndex(begin)),
                                                 (end - begin) * chunk_size_,
                                                 FVD_REQ_MAY_UNMAP | FVD_REQ_NO_FALLBACK);
        host_.lock();
        set_free(begin, end);
        if (status.ok()) {
            unknown_.remove(begin, end);
        }
        cannot_trim_ = !status.ok();
        trimming_ = false;
        drain_waiters_.wake_all(host_);
    }
    if (cannot_trim_) {
        stale_.remove(0, slot_count_);
    }
}

}  // namespace fvd
