/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once
/*
 * What is fetched from the base ahead of the guest, and when. The pace says how much; this class
 * finds it, starts the tasks that fetch and store it, and knows when nothing is left. It never
 * waits: Image does what takes time, in tasks, and tells about it.
 *
 * pump() looks at everything anew. It runs on the timer and whenever something has ended, so no
 * event can be missed that another would not make up for.
 *
 * All members want the host's mutex, unless they say otherwise.
 */

#include <atomic>
#include <cstdint>
#include <optional>

#include "fvd/engine/fetch_list.h"
#include "fvd/engine/host.h"
#include "fvd/engine/prefetch_pace.h"
#include "fvd/engine/tracked_map.h"
#include "fvd/engine/wait_queue.h"

namespace fvd {

class Prefetcher {
  public:
    struct Tasks {
        Host::Task fetch;  /* gets a Fetch that is to be read, */
        Host::Task store;  /* one that is to be stored, */
        Host::Task look;   /* the image: what of the base is zeros? */
        Host::Task finish; /* the image: everything is here */
    };

    Prefetcher(Host& host, FetchList& fetches, Image& image, const Tasks& tasks)
        : host_(host), fetches_(fetches), image_(image), tasks_(tasks) {}

    /** An image of which @p tracked bytes may be in the base was started, or emptied. */
    void begin(const TrackedBitmap* bitmap, uint64_t block_size, uint64_t tracked);
    /** Nothing is started any more, until begin(). */
    void end();
    void set_parameters(const PaceParameters& parameters, bool copy_on_read);
    void set_paused(bool paused);
    void set_tracked(uint64_t tracked) { tracked_ = tracked; }
    /** Start nothing until the same number of release() calls. */
    void hold() { holds_++; }
    void release();
    bool held() const { return holds_ != 0; }
    /** May suspend. While held: wait until nothing is fetched or stored any more; what waits to be
     *  stored is forgotten. */
    void wait_until_idle();

    /** Does anybody want to know about the guest's reads of the base? Any thread, no mutex. */
    bool wanted() const { return wanted_.load(std::memory_order_acquire); }
    PaceGuestTicket guest_begun(uint64_t bytes);
    void guest_ended(const PaceGuestTicket& ticket, bool ok);

    void pump();
    /** Have pump() run, but not before the caller's request was sent. */
    void wake();
    void timer_expired();
    /** Run @p task(@p of) in a task that calls task_ended() as its last act. */
    void start(Host::Task task, void* of);
    void task_ended();
    /** A Fetch is over. */
    void remove(Fetch& fetch);

    /** A Fetch of ours has its data, or none. True: store it now. */
    bool fetched(Fetch& fetch, bool ok);
    /** Of a Fetch of ours @p kept bytes are in the image now. */
    void stored(const Fetch& fetch, uint64_t kept, bool ok);

    /** The bytes that the base is to be asked about. */
    ByteRange begin_look() const;
    /** The next piece of @p zeros that nobody cares for, as a Fetch to be stored; or nullptr. */
    Fetch* claim_zeros(ByteRange zeros);
    /** It took so long to learn that [@p from, @p from + @p run) is of one kind. */
    void end_look(uint64_t from, uint64_t run, bool zero, PaceTime took);
    /** The header says that all is here, or could not be written. */
    void finished(bool ok);

    /** Bytes that were fetched and forgotten while they waited to be stored. */
    uint64_t forgotten() const { return forgotten_; }
    const std::optional<PrefetchPace>& pace() const { return pace_; }
    const PaceDecision& decision() const { return decision_; }

  private:
    bool may_start() const;
    bool finish_due() const;
    uint64_t blocks() const;
    ByteRange bytes_of(BlockRange blocks) const;
    BlockRange next_missing(uint64_t from, uint64_t end, uint64_t most) const;
    PaceTime store_due(PaceTime now);
    PaceTime fetch_more(PaceTime now);
    bool fetch_one(PaceTime now);
    void look();
    PaceTime finish_if_quiet(PaceTime now);
    void arm(PaceTime now, PaceTime when);
    void keep_memory();
    void drop_waiting();

    Host& host_;
    FetchList& fetches_;
    Image& image_;
    const Tasks tasks_;
    const TrackedBitmap* bitmap_ = nullptr;
    uint64_t block_size_ = 0;
    uint64_t tracked_ = 0;
    std::optional<PrefetchPace> pace_; /* from the first wish on */
    PaceDecision decision_{PaceReason::off, 0, kPaceNever};
    std::atomic<bool> wanted_{false};
    bool alive_ = false;
    bool keeps_ = false; /* what the guest reads */
    bool paused_ = false;
    unsigned holds_ = 0;
    uint64_t running_ = 0; /* tasks */
    WaitQueue idle_;
    uint64_t cursor_ = 0; /* block; what is before it was fetched, or is tried again later */
    uint64_t looked_ = 0; /* block; no zeros that are worth it are left before it */
    bool looking_ = false;
    bool finishing_ = false;
    bool finished_ = false; /* the header says that all is here */
    PaceTime armed_ = kPaceNever;
    PaceTime retry_at_ = 0;
    uint64_t forgotten_ = 0;
};

}  // namespace fvd
