/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once
/* A virtual machine that reads from a shared base: its guest, and one of several prefetchers. */

#include <memory>
#include <vector>

#include "fvd/engine/prefetch_pace.h"
#include "link.h"

namespace fvd::pace {

/** Somebody who copies an image from the base into a local file. */
class Prefetcher {
  public:
    virtual ~Prefetcher() = default;
    virtual void start() = 0;
    virtual bool done() const = 0;
    /* What its machine's guest does. */
    virtual void guest_begins(uint64_t bytes) { (void)bytes; }
    virtual void guest_ends(bool ok) { (void)ok; }
};

struct CopyJob {
    Clock& clock;
    Connection& base;
    uint64_t bytes = 0;      /* of the image, 0: endless */
    double store_rate = 0.5; /* bytes/ns of the local disk */
    PaceTime store_time = 100 * kUs;
    std::vector<uint64_t> fetched; /* bytes by millisecond */

    void count(uint64_t size);
    uint64_t take(uint64_t size);
    /** Store in the background; one after the other. */
    void store(uint64_t size, std::function<void()> done);
    uint64_t taken = 0;
    uint64_t finished = 0;
    PaceTime disk_free_at = 0;
};

/** The unit under test, driven as the engine drives it. */
class PacedPrefetcher : public Prefetcher {
  public:
    PacedPrefetcher(CopyJob& job, const PaceParameters& parameters, uint64_t granule,
                    uint64_t seed);
    void start() override { pump(); }
    bool done() const override { return job_.bytes != 0 && job_.finished == job_.bytes; }
    void guest_begins(uint64_t bytes) override;
    void guest_ends(bool ok) override;
    PrefetchPace& pace() { return pace_; }
    void pump();

  private:
    void expire(PaceTime when);
    void issue(uint64_t bytes);

    CopyJob& job_;
    PrefetchPace pace_;
    PaceRandom random_;
    std::deque<PaceGuestTicket> guest_;
    PaceTime armed_ = kPaceNever;
};

/** The driver of 2011: one read at a time, two buffers, random pauses. */
class Prefetcher2011 : public Prefetcher {
  public:
    Prefetcher2011(CopyJob& job, uint64_t seed);
    void start() override { read(); }
    bool done() const override { return job_.bytes != 0 && job_.finished == job_.bytes; }

  private:
    void read();
    void read_done(uint64_t size, PaceTime begun);
    bool slow(double* bytes, PaceTime* time, double* average, uint64_t size, PaceTime took);
    void pause_if_asked();

    CopyJob& job_;
    PaceRandom random_;
    bool reading_ = false;
    bool pause_wanted_ = false;
    bool pausing_ = false;
    int filled_ = 0;
    double read_bytes_ = 0, read_average_ = -1, write_bytes_ = 0, write_average_ = -1;
    PaceTime read_time_ = 0, write_time_ = 0;
};

/** So many requests of one size, always: qemu-img convert -m 16 -W; with one of 512 KiB,
 *  block-stream. */
class FixedPrefetcher : public Prefetcher {
  public:
    FixedPrefetcher(CopyJob& job, int depth, uint64_t size)
        : job_(job), depth_(depth), size_(size) {}
    void start() override;
    bool done() const override { return job_.bytes != 0 && job_.finished == job_.bytes; }

  private:
    void next();

    CopyJob& job_;
    int depth_;
    uint64_t size_;
};

struct GuestLoad {
    uint64_t size = 4096;
    int depth = 1;             /* closed loop */
    double open_rate = 0;      /* instead: reads a second at random times */
    PaceTime think = 50 * kUs; /* mean time between answer and next read, exponential */
    PaceTime from = 0;
    PaceTime until = kPaceNever;
};

class Guest {
  public:
    Guest(Clock& clock, Connection& base, Prefetcher* prefetcher, const GuestLoad& load,
          uint64_t seed);

    /** Only reads that began in [from, until) count. */
    void judge(PaceTime from, PaceTime until) { judged_from_ = from, judged_until_ = until; }
    uint64_t reads() const { return latencies_.size(); }
    double rate() const; /* reads a second */
    /** 0 <= @p part <= 1; nanoseconds. */
    PaceTime percentile(double part) const;
    PaceTime last_read_ended() const { return last_ended_; }

  private:
    void read(bool again);

    Clock& clock_;
    Connection& base_;
    Prefetcher* prefetcher_;
    GuestLoad load_;
    PaceRandom random_;
    PaceTime judged_from_ = 0;
    PaceTime judged_until_ = kPaceNever;
    PaceTime last_ended_ = 0;
    mutable std::vector<PaceTime> latencies_;
};

enum class Contender { paced, driver_2011, stream, convert };
const char* name_of(Contender contender);

struct MachineShape {
    Contender contender = Contender::paced;
    uint64_t image = 0; /* bytes, 0: endless */
    uint64_t granule = 4096;
    PaceParameters parameters{.start_delay = 0};
    PaceTime starts = 0;
    bool prefetches = true;
    size_t slots = 16;
    Hangs hangs{}; /* of its program */
};

struct Machine {
    Machine(Clock& clock, Link& link, const MachineShape& shape, uint64_t seed);
    Machine(const Machine&) = delete;

    void add_guest(const GuestLoad& load, uint64_t seed);
    bool done() const { return prefetcher->done(); }
    PrefetchPace& pace() { return static_cast<PacedPrefetcher&>(*prefetcher).pace(); }
    /** Bytes/s that prefetch got from the base in [from, until). */
    double rate(PaceTime from, PaceTime until) const;

    Clock& clock;
    Connection connection;
    CopyJob job;
    std::unique_ptr<Prefetcher> prefetcher;
    bool prefetches;
    std::vector<std::unique_ptr<Guest>> guests;
};

}  // namespace fvd::pace
