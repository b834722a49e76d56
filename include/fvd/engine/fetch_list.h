/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once
/*
 * What is on its way from the base into the image. Whoever wants a block that is neither here nor
 * in this list makes a Fetch of it; whoever finds one waits for its data instead of asking the base
 * again. The list is looked at only where a bit is clear, so it costs nothing where data is here.
 *
 *   reading -> storing -> off the list, for what the guest read
 *   reading -> waiting -> storing -> off the list, for prefetch, which may have to slow down
 *   reading -> failed, off the list; zeros begin as storing
 *
 * A Fetch lives until the last who uses it lets go. All members want the host's mutex, unless they
 * say otherwise.
 */

#include <atomic>
#include <cstdint>

#include "fvd/base/units.h"
#include "fvd/engine/host.h"
#include "fvd/engine/prefetch_pace.h"
#include "fvd/engine/wait_queue.h"

namespace fvd {

class Image;

enum class FetchState : uint8_t { reading, waiting, storing, failed };
enum class FetchFor : uint8_t { guest, prefetch, zeros };

struct Fetch {
    Image* image = nullptr;
    BlockRange blocks;
    ByteRange bytes;           /* of the disk; the end of the base may cut the last block */
    std::byte* data = nullptr; /* nullptr: zeros */
    FetchState state = FetchState::reading;
    FetchFor who = FetchFor::guest;
    uint32_t users = 1;  /* the list, and readers that wait for the data or copy it */
    PaceTicket ticket{}; /* of prefetch */
    PaceTime store_at = 0;
    WaitQueue readers{}; /* for the end of reading */
    uint64_t memory = 0; /* bytes of data and this, in one piece */
    Fetch* previous = nullptr;
    Fetch* next = nullptr;
};

class FetchList {
  public:
    explicit FetchList(Host& host) : host_(host) {}
    ~FetchList(); /* of an image that was not stopped */
    FetchList(const FetchList&) = delete;
    FetchList& operator=(const FetchList&) = delete;

    /** Any thread, no mutex. */
    bool empty() const { return count_.load(std::memory_order_acquire) == 0; }
    /** The first that ends behind @p block: the one that covers it, or the next; or nullptr. */
    Fetch* first_behind(uint64_t block) const;
    Fetch* first() const { return first_; }

    /** Put one on the list; nothing on it overlaps. nullptr: no memory. */
    Fetch* add(const Fetch& what);
    /** Take it off. It lives on until its readers let go. */
    void remove(Fetch& fetch);
    void use(Fetch& fetch) { fetch.users++; }
    void let_go(Fetch& fetch);
    /** Is memory of those that are over to be kept for the next? */
    void keep_memory(bool keep);

    /** Bytes held for the guest's reads, and in all. */
    uint64_t guest_memory() const { return guest_memory_; }
    uint64_t memory() const { return memory_; }

  private:
    /* Fresh memory costs a fault for each page, which is more than reading it from a base nearby.
     * So what is in use and what is kept for the next are together so much, or as much as was in
     * use at the peak (and a little, so that it is not forgotten at once) before the last so many
     * times that amount passed through. */
    static constexpr uint64_t kMostSpare = 4 * 1024 * 1024 + 4096;
    static constexpr uint64_t kForget = 64;
    static constexpr uint64_t kSlack = 8;
    static constexpr uint64_t kLeastRoom = 4096;
    struct Spare {
        Spare* newer;
        Spare* older;
        uint64_t size;
    };

    std::byte* take(uint64_t size, uint64_t* got);
    void give_back(void* memory, uint64_t size);
    void forget_spares();
    void* unlink(Spare& spare);
    void link(Fetch& fetch);
    uint64_t held_by(const Fetch& fetch) const {
        return fetch.data != nullptr ? fetch.bytes.count() : 0;
    }

    Host& host_;
    Fetch* first_ = nullptr;
    Fetch* last_ = nullptr;
    std::atomic<uint64_t> count_{0};
    uint64_t guest_memory_ = 0;
    uint64_t memory_ = 0;
    bool keep_ = false;
    Spare* newest_ = nullptr;
    Spare* oldest_ = nullptr;
    uint64_t spare_ = 0; /* bytes kept */
    uint64_t used_ = 0;  /* bytes of pieces in use */
    uint64_t peak_ = 0;
};

}  // namespace fvd
