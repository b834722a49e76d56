/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once
/*
 * One open image: what an adapter calls. Straight-line code; every wait is a call on the Host.
 *
 * A block's bit is set in the current view only after its data was written, and under a range lock,
 * so a request that finds all its bits set needs no lock, allocates nothing and costs what raw
 * costs. Making bits durable is the Committer's job.
 */

#include <atomic>
#include <cstdint>

#include "fvd/engine/chunk_allocator.h"
#include "fvd/engine/committer.h"
#include "fvd/engine/fetch_list.h"
#include "fvd/engine/fill_options.h"
#include "fvd/engine/host.h"
#include "fvd/engine/prefetcher.h"
#include "fvd/engine/range_lock.h"
#include "fvd/format/block_bitmap.h"
#include "fvd/format/header.h"
#include "fvd/format/layout.h"
#include "fvd/format/recovery.h"

namespace fvd {

enum class StartMode { read_only = FVD_START_READ_ONLY, writable = FVD_START_WRITABLE };

/** The guest's buffer of one request: the adapter's handle and where the request starts in it. */
struct GuestBuffer {
    void* handle = nullptr;
    uint64_t offset = 0;
    GuestBuffer advance(uint64_t bytes) const { return {handle, offset + bytes}; }
};

enum class Place {
    base = FVD_PLACE_BASE,
    data = FVD_PLACE_DATA,
    zero = FVD_PLACE_ZERO, /* in this image, and no slot stores it */
};

/** Where the piece of the virtual disk of @p run bytes at some offset is. */
struct Placement {
    Place place = Place::data;
    uint64_t run = 0;
    uint64_t data_offset = 0; /* in the data file; only of Place::data */
};

/** A piece of a request whose data stands in one piece in the data file. */
struct Segment {
    uint64_t offset = 0; /* of the virtual disk */
    uint64_t length = 0;
    uint64_t data_offset = 0;
    uint64_t end() const { return offset + length; }
    /** Where in the data file the byte at @p at, which may lie outside the segment, stands. */
    uint64_t data_at(uint64_t at) const { return data_offset + at - offset; }
};

class Image {
  public:
    explicit Image(Host& host)
        : host_(host),
          slots_(host),
          committer_(host, header_, slots_),
          fetches_(host),
          prefetcher_(host, fetches_, *this, {fetch_task, store_task, look_task, finish_task}) {}
    Image(const Image&) = delete;
    Image& operator=(const Image&) = delete;

    /* The life of an image; fvd.h tells the order. */
    Error load();
    Error start(StartMode mode);
    Status stop();
    const Header& header() const { return header_; }

    /* Guest requests, inside [0, virtual_size). */
    Status read(uint64_t offset, uint64_t length, GuestBuffer to, uint32_t flags);
    Status write(uint64_t offset, uint64_t length, GuestBuffer from, uint32_t flags);
    Status write_zeroes(uint64_t offset, uint64_t length, uint32_t flags);
    Status discard(uint64_t offset, uint64_t length);
    Status flush();
    /** Where the piece at @p offset is at this moment. */
    Placement where(uint64_t offset, uint64_t length);
    bool is_here(uint64_t offset, uint64_t length, uint64_t* data_offset) const;

    /* Background and management. */
    Status commit();
    void timer_expired(Timer timer);
    Status make_empty();
    Error set_base(const char* name, const char* format);
    /** Change the size of the virtual disk. Requests may be in flight, but not past the new end. */
    Error resize(uint64_t size, Preallocation mode);
    bool needs_base() const;
    bool is_clean() const;
    void describe(fvd_info* info) const;

    /* Filling from the base; fvd.h tells what each does. None but amend() suspends. */
    Error set_fill(const fvd_fill& options);
    fvd_fill fill(bool in_header) const;
    Error amend(const fvd_fill& fill);
    void pause_prefetch(bool paused);
    void quiesce(bool quiesce);
    void progress(fvd_progress* progress) const;

  private:
    /* Blocks whose place the bitmap decides: none past base_size, none without a bitmap. */
    BlockRange tracked_blocks(uint64_t offset, uint64_t length) const;
    bool all_here(BlockRange blocks) const;
    uint64_t block_end(uint64_t block) const;
    ByteRange bytes_of(BlockRange blocks) const;
    bool cuts_missing_block(BlockRange blocks, uint64_t offset, uint64_t length) const;
    /** There is metadata whose changes go through the journal. */
    bool is_tracked() const { return uses_bitmap_ || header_.has_table(); }

    /* Compact images: which slots hold [offset, offset + length). */
    ChunkIndex chunk_at(uint64_t offset) const { return ChunkIndex(offset / header_.chunk_size); }
    ChunkIndex chunk_end(uint64_t end) const;
    Placement stored_at(uint64_t offset, uint64_t length) const;
    Placement place_of(uint64_t offset, uint64_t length) const;
    ChunkTable& table() const { return *table_.load(std::memory_order_acquire); }
    std::optional<SlotIndex> slot_of(ChunkIndex chunk);
    ChunkAllocator* slots_in_use() { return header_.has_table() ? &slots_ : nullptr; }

    /* The data of these blocks is here now. */
    void record(BlockRange blocks);

    /* Reads that the base serves. */
    enum class Way { again, share, keep, alone };
    bool fills() const {
        return keeping_.load(std::memory_order_acquire) || prefetcher_.wanted() ||
               !fetches_.empty();
    }
    Way choose_way(uint64_t offset, uint64_t* run, Fetch** fetch);
    Fetch* keep(BlockRange blocks);
    Status read_missing(Placement* piece, uint64_t offset, GuestBuffer to, uint32_t flags);
    Status read_alone(const ByteRange& range, GuestBuffer to, uint32_t flags);
    Status read_shared(Fetch& fetch, const ByteRange& range, GuestBuffer to, uint32_t flags);
    Status check_base_has(const ByteRange& bytes);
    Status read_and_keep(Fetch& fetch, const ByteRange& range, GuestBuffer to, uint32_t flags);
    Status read_base(std::span<const Slice> to, uint64_t offset, uint64_t length, uint32_t flags);
    void give(const Fetch& fetch, const ByteRange& range, GuestBuffer to);

    /* Storing what was fetched, and prefetch. */
    void store(Fetch& fetch);
    Status store_blocks(const Fetch& fetch, uint64_t* kept);
    Status give_slots(const Fetch& fetch);
    Status store_run(const Fetch& fetch, BlockRange run, uint64_t* kept);
    Status store_piece(const Fetch& fetch, uint64_t at, uint64_t length, const Placement& place,
                       bool zero);
    uint64_t same_kind(ConstBytes data, bool* zero) const;
    void fetch(Fetch& fetch);
    ByteRange store_zeros(const ByteRange& zeros);
    static void fetch_task(void* fetch);
    static void store_task(void* fetch);
    static void look_task(void* image);
    static void finish_task(void* image);
    void describe_pace(PaceTime now, uint64_t to_go, fvd_progress* progress) const;
    void begin_filling();
    void end_filling();
    void apply_plan();
    void wait_for_fetches();

    Status empty_now();

    Error check_startable() const;
    Error check_data_length(int64_t length) const;
    Error load_metadata();
    void mark_leftovers();
    ReplayTarget metadata() const;
    Error load_region(const char* name, uint64_t offset, uint64_t size, auto load);
    Error recover(bool* settle);
    Error begin_changes(int64_t data_length);
    Error scan_journal(ReplayPlan* plan);
    Error replay(const ReplayPlan& plan);
    bool first_unit_is_current();
    template <typename Visit>
    Error read_ring(uint64_t first, uint64_t count, Visit visit);

    bool is_guest_data(const Placement& piece) const;
    Status read_piece(Placement* piece, uint64_t offset, GuestBuffer to, uint32_t flags);
    Status write_segment(const Segment& to, GuestBuffer from, uint32_t flags);
    Status first_write(BlockRange blocks, const Segment& to, GuestBuffer from, uint32_t flags);
    Status copy_and_write(BlockRange blocks, const Segment& to, GuestBuffer from, uint32_t flags);
    Status write_here(const Segment& to, GuestBuffer from, uint32_t flags);
    Status zero_segment(const Segment& to, uint32_t flags);
    Status zero_without_slot(uint64_t offset, uint64_t length, uint32_t flags);
    Status zero_stored(uint64_t offset, uint64_t end, uint32_t flags);
    Status zero_pieces(uint64_t offset, uint64_t end, uint32_t flags);
    template <typename Write>
    Status bring_zeroes(BlockRange blocks, uint64_t offset, uint64_t length, Write write);
    Status discard_missing(uint64_t offset, uint64_t length);
    Status discard_pieces(uint64_t offset, uint64_t end);
    template <typename Write>
    Status durably(uint32_t flags, Write write);

    Status write_compact(uint64_t offset, uint64_t length, GuestBuffer from, uint32_t flags);
    Status write_stored(uint64_t* offset, uint64_t end, GuestBuffer* from, uint32_t flags);
    bool all_stored(uint64_t offset, uint64_t length);
    Status store_chunks(uint64_t offset, uint64_t length);
    uint64_t count_unstored(ChunkIndex begin, ChunkIndex end);
    Status store_missing(ChunkIndex chunk, uint64_t count, uint64_t* stored);
    Status take_slots(SlotIndex hint, uint64_t most, SlotRange* slots);
    Status make_zero(SlotRange slots);
    Status clear_slots(SlotRange slots);
    Status zero_compact(uint64_t offset, uint64_t length, uint32_t flags);
    ByteRange whole_chunks(uint64_t offset, uint64_t end) const;
    Status free_chunks(const ByteRange& range);
    Status free_whole(const ByteRange& range);
    ByteRange chunk_around(uint64_t at) const;
    void free_slots(ChunkIndex begin, ChunkIndex end);
    Status commit_freed();
    void give_space_back();

    /** Where a region is going to stand, and on which slots. */
    struct NewPlace {
        ByteRange region;
        ReservedSlots::Range slots;
    };
    Error grow(uint64_t size, Preallocation mode);
    Error enlarge(uint64_t size, Preallocation mode);
    Error change_size(uint64_t size);
    Error move_table(uint64_t size);
    Error find_place(uint64_t bytes, NewPlace* place);
    Error place_among_slots(uint64_t bytes, NewPlace* place);
    void leave_place(const NewPlace& place);
    void give_region_back(const ByteRange& former);
    Status lengthen_data(uint64_t old_size, uint64_t size, Preallocation mode);
    Status clear_tail(uint64_t old_size, uint64_t size);
    Status occupy(uint64_t offset, uint64_t end);
    Error preallocate(uint64_t old_size, uint64_t size, Preallocation mode);
    Error shrink(uint64_t size);

    Host& host_;
    Header header_;
    bool header_copy_stale_ = false; /* one of the copies wants to be rewritten */
    ChunkAllocator slots_;
    Committer committer_;
    RangeLocks locks_;       /* of blocks that come here */
    RangeLocks chunk_locks_; /* of chunks that get a slot */
    HostBuffer current_words_;
    BlockBitmap current_;
    HostBuffer table_entries_;
    /* Requests look at the table without a lock. A larger one takes its place while they do, so
     * whoever looks twice gets it anew, inside a ChunkAllocator::Use or with the mutex held. */
    ChunkTable tables_[2];
    std::atomic<ChunkTable*> table_{&tables_[0]};
    HostBuffer unsaved_words_; /* pages that replay changed */
    BlockBitmap unsaved_pages_;
    HostBuffer unsaved_entry_words_;
    BlockBitmap unsaved_entries_;
    uint64_t data_end_ = UINT64_MAX; /* slots that end behind this cannot be read */
    RangeLocks resizing_;            /* one at a time */
    /* Changed by a resize while requests look at them; a request past the new end may see either.
     */
    std::atomic<uint64_t> disk_size_{0};
    std::atomic<uint64_t> tracked_size_{0}; /* bytes of the disk that the bitmap decides about */
    bool started_ = false;
    bool writable_ = false;
    bool uses_bitmap_ =
        false; /* in this life: the flag that ends its use counts from the next on */

    /* Filling from the base; guarded by the host's mutex. */
    FetchList fetches_;
    Prefetcher prefetcher_;
    fvd_fill fill_options_ = empty_fill(); /* of this process */
    FillPlan plan_;
    PaceTime keep_again_at_ = 0;
    fvd_progress progress_{}; /* the counters of it */
    std::atomic<bool> warned_of_base_{false};
    std::atomic<bool> keeping_{false}; /* copy-on-read is in force */
    std::atomic<uint64_t> bytes_guest_{0};
};

}  // namespace fvd
