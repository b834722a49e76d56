/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once
/*
 * One open image: what an adapter calls. Straight-line code; every wait is a call on the Host.
 *
 * A block's bit is set in the current view only after its data was written, and under a range lock,
 * so a request that finds all its bits set needs no lock, allocates nothing and costs what raw
 * costs. Making bits durable is the Committer's job.
 */

#include <cstdint>

#include "fvd/engine/committer.h"
#include "fvd/engine/host.h"
#include "fvd/engine/range_lock.h"
#include "fvd/format/block_bitmap.h"
#include "fvd/format/header.h"
#include "fvd/format/layout.h"

namespace fvd {

enum class StartMode { read_only = FVD_START_READ_ONLY, writable = FVD_START_WRITABLE };

/** The guest's buffer of one request: the adapter's handle and where the request starts in it. */
struct GuestBuffer {
    void* handle = nullptr;
    uint64_t offset = 0;
    GuestBuffer advance(uint64_t bytes) const { return {handle, offset + bytes}; }
};

/** Where the piece of the virtual disk of @p run bytes at some offset is. */
struct Placement {
    bool in_base = false;
    uint64_t run = 0;
    uint64_t data_offset = 0; /* in the data file; only where !in_base */
};

class Image {
  public:
    explicit Image(Host& host) : host_(host), committer_(host, header_) {}
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
    Placement where(uint64_t offset, uint64_t length) const;

    /* Background and management. */
    Status commit();
    void timer_expired(Timer timer);
    Status make_empty();
    Error set_base(const char* name, const char* format);
    bool needs_base() const;
    bool is_clean() const;
    void describe(fvd_info* info) const;

  private:
    /* Blocks whose place the bitmap decides: none past base_size, none without a bitmap. */
    BlockRange tracked_blocks(uint64_t offset, uint64_t length) const;
    bool all_here(BlockRange blocks) const;
    uint64_t block_end(uint64_t block) const;
    uint64_t data_at(uint64_t offset) const { return header_.data_offset + offset; }
    bool cuts_missing_block(BlockRange blocks, uint64_t offset, uint64_t length) const;

    Error check_startable() const;
    Error check_data_length() const;
    Error load_bitmap();
    Error recover(bool* settle);
    Error scan_journal(struct ReplayPlan* plan);
    Error replay(const struct ReplayPlan& plan);
    bool first_unit_is_current();
    template <typename Visit>
    Error read_ring(uint64_t first, uint64_t count, Visit visit);

    Status first_write(BlockRange blocks, uint64_t offset, uint64_t length, GuestBuffer from,
                       uint32_t flags);
    Status copy_and_write(BlockRange blocks, uint64_t offset, uint64_t length, GuestBuffer from,
                          uint32_t flags);
    Status write_here(uint64_t offset, uint64_t length, GuestBuffer from, uint32_t flags);
    Status zero_missing(BlockRange blocks, uint64_t offset, uint64_t length, uint32_t flags);
    Status discard_missing(uint64_t offset, uint64_t length);
    template <typename Write>
    Status durably(uint32_t flags, Write write);

    Host& host_;
    Header header_;
    bool header_copy_stale_ = false; /* one of the copies wants to be rewritten */
    Committer committer_;
    RangeLocks locks_;
    HostBuffer current_words_;
    BlockBitmap current_;
    HostBuffer unsaved_words_;
    BlockBitmap unsaved_pages_; /* pages that replay changed */
    uint64_t tracked_size_ = 0; /* bytes of the virtual disk that the bitmap decides about */
    bool started_ = false;
    bool writable_ = false;
};

}  // namespace fvd
