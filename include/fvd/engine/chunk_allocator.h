/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once
/*
 * Which slots of a compact image are free, and when a freed one may be used again.
 *
 *   free -> used -> freed -> collected -> durable -> draining -> free
 *
 * A slot that a chunk gave up is handed out again only when the record that says so is durable
 * (R9): `freed` waits for a commit to collect the record, `collected` for that commit to succeed.
 * After that requests may still be reading the slot, because they looked up its number before: it
 * is `draining` until all that began before have ended. Its space goes back to the storage when it
 * is free and somebody has time (trim).
 *
 * What a free slot holds is `unknown` unless it came from growth that yields zeros, or was trimmed;
 * whoever takes an unknown one makes it zeros first, so stale data never shows.
 *
 * Free slots are taken lowest first, or next to a neighbour, and while one is merely waiting no new
 * one is made: storage never exceeds one slot a chunk.
 *
 * All members want the host's mutex, unless they say that they suspend.
 */

#include <array>
#include <cstdint>

#include "fvd/engine/host.h"
#include "fvd/engine/in_flight.h"
#include "fvd/engine/range_lock.h"
#include "fvd/engine/wait_queue.h"
#include "fvd/format/block_bitmap.h"
#include "fvd/format/chunk_table.h"
#include "fvd/format/header.h"

namespace fvd {

/** A set of slots that knows how many they are. */
class SlotSet {
  public:
    void begin(std::span<uint64_t> memory, uint64_t slots) { bits_ = BlockBitmap(memory, slots); }
    /** The same set in other memory, which is clear; @p slots may exist from now on. */
    void enlarge(std::span<uint64_t> memory, uint64_t slots);
    bool empty() const { return count_ == 0; }
    uint64_t count() const { return count_; }
    bool has(SlotIndex slot) const { return bits_.test(slot.value); }
    void add(uint64_t begin, uint64_t end);
    /** None of these is a member yet. */
    void add_others(uint64_t begin, uint64_t end) {
        count_ += end - begin;
        bits_.set(begin, end);
    }
    void remove(uint64_t begin, uint64_t end);
    void add(SlotIndex slot) { add(slot.value, slot.value + 1); }
    void remove(SlotIndex slot) { remove(slot.value, slot.value + 1); }
    /** Call visit(begin, end) for each run of members. */
    template <typename Visit>
    void for_each_run(Visit visit) const {
        uint64_t at = 0;
        while (at < bits_.bits()) {
            const bool member = bits_.test(at);
            const uint64_t end = bits_.run_end(at, bits_.bits(), member);
            if (member) {
                visit(at, end);
            }
            at = end;
        }
    }
    void move_to(SlotSet& other);
    /** How many of [begin, end). */
    uint64_t members(uint64_t begin, uint64_t end) const;
    /** Behind the last member; 0 of none. */
    uint64_t end() const;
    /** The first slot in [from, end) that is a member, or is not; @p end without one. */
    uint64_t first(uint64_t from, uint64_t end, bool member) const;

  private:
    BlockBitmap bits_;
    uint64_t count_ = 0;
};

class ChunkAllocator {
  public:
    explicit ChunkAllocator(Host& host) : host_(host) {}

    /**
     * Learn from @p table what is in use; @p data_length is the length of the file that holds the
     * data. ENOMEM; EINVAL names a chunk whose slot does not exist or belongs to another chunk.
     */
    Error begin(const Header& header, const ChunkTable& table, uint64_t data_length);

    /** Take up to @p most free slots that follow each other, the first one @p hint if that is free.
     *  They may lie past the end of the storage. Empty when none is free: has_waiting() tells
     *  whether there will be. */
    SlotRange take(SlotIndex hint, uint64_t most);
    /** Undo a take(). */
    void put_back(SlotRange slots);
    /** Undo it for those past the end of the storage; what is left. */
    SlotRange put_back_unstored(SlotRange slots);
    /** The first of these taken slots whose content may be anything, and those behind it that are
     *  like it. */
    SlotRange first_unknown(SlotRange slots) const;
    void are_zero_now(SlotRange slots) { unknown_.remove(slots.begin.value, slots.end.value); }

    /** May suspend. Make storage reach to @p end. ENOSPC and the like. */
    Status grow_to(SlotIndex end);
    /** The disk has so many chunks now. Slots that are in use stay, wherever they are. */
    void disk_has(uint64_t chunks) {
        limit_ = std::max(std::min(chunks + reserved_, slot_count_), used_.end());
    }
    /** A slot below @p slot is free. */
    bool has_free_below(SlotIndex slot) const {
        return used_.first(first_free_, slot.value, false) < slot.value;
    }
    /** May suspend. */
    void wait_until_drained();
    /** May suspend. Until every request has ended that began before. */
    void wait_for_requests();

    /** Without the mutex. Keep books about @p slots slots at least. ENOMEM. */
    Error have_slots(uint64_t slots);
    /** Take so many free slots that follow each other, inside the storage or not. */
    bool take_run(uint64_t slots, SlotIndex* first);
    /** They are free again; what they hold is not known any more. */
    void put_back_run(ReservedSlots::Range run);
    /** A region moved, durably: regions stand on @p now, and slots it stood on are free. */
    void region_moved(ReservedSlots::Range from, const ReservedSlots& now);

    /** A chunk gave up its slot. */
    void give_up(SlotIndex slot);
    /** A commit collected every change of the table: what was freed so far is in it, */
    void group_collected() { freed_.move_to(collected_); }
    /** and is durable, or not. */
    void group_durable();
    void group_failed() { collected_.move_to(freed_); }
    /** A group without records still has to void those of a failed one before slots pass. */
    bool has_collected() const { return !collected_.empty(); }

    /** Slots will be free: after a commit, */
    bool needs_commit() const { return !freed_.empty() || !collected_.empty(); }
    /** after one and when requests have ended, or when trim() is done. */
    bool has_waiting() const {
        return needs_commit() || !durable_.empty() || !draining_.empty() || trimming_;
    }
    /** Slots wait to be trimmed, or for requests that are in flight. */
    bool has_work() const { return !stale_.empty() || !durable_.empty() || !draining_.empty(); }
    /** May suspend. Give free space back; stops at the first error. */
    void trim();

    /** A request that looks up slots begins and ends; any thread, no mutex. */
    class Use {
      public:
        explicit Use(ChunkAllocator* slots) : slots_(slots) {
            bool emptied = false;
            phase_ = slots_ != nullptr ? slots_->in_flight_.enter(&emptied) : 0;
            if (emptied) {
                slots_->phase_drained();
            }
        }
        ~Use() {
            if (slots_ != nullptr && slots_->in_flight_.leave(phase_)) {
                slots_->phase_drained();
            }
        }
        Use(const Use&) = delete;
        Use& operator=(const Use&) = delete;

      private:
        ChunkAllocator* slots_;
        unsigned phase_;
    };

    uint64_t used() const { return used_.count(); }
    uint64_t offset_of(SlotIndex slot) const { return data_offset_ + slot.value * chunk_size_; }

  private:
    static constexpr size_t kSets = 7;
    std::array<SlotSet*, kSets> sets() {
        return {&used_, &unknown_, &stale_, &freed_, &collected_, &durable_, &draining_};
    }
    HostBuffer memory_of_sets(uint64_t slots);
    Error allocate_sets();
    Error learn(const Header& header, const ChunkTable& table);
    void reserve(const Header& header);
    void advance();
    void phase_drained();
    uint64_t find_free(SlotIndex hint);
    void set_free(uint64_t begin, uint64_t end);
    uint64_t slots_within(uint64_t length) const {
        return length <= data_offset_ ? 0 : (length - data_offset_) / chunk_size_;
    }
    Status measure_storage();
    Status grow_storage(uint64_t wanted);
    void storage_is(uint64_t slots, bool zero);

    Host& host_;
    InFlight in_flight_;
    RangeLocks growing_; /* one at a time */
    WaitQueue drain_waiters_;
    HostBuffer memory_;
    SlotSet used_;    /* not free: named by a chunk, or any of the states before it is free */
    SlotSet unknown_; /* content may be anything */
    SlotSet stale_;   /* free, and its space was not given back */
    SlotSet freed_;
    SlotSet collected_;
    SlotSet durable_;
    SlotSet draining_;
    uint64_t slot_count_ = 0;    /* slots are below this */
    uint64_t limit_ = 0;         /* and are taken below this: one a chunk, and the reserved ones */
    uint64_t reserved_ = 0;      /* regions stand on so many */
    uint64_t storage_slots_ = 0; /* slots inside the storage */
    uint64_t chunk_size_ = 0;
    uint64_t data_offset_ = 0;
    uint64_t grow_unit_ = 0;
    uint64_t first_free_ = 0; /* none is free below */
    bool trimming_ = false;
    bool cannot_trim_ = false;
};

}  // namespace fvd
