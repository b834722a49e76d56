/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once
/*
 * A simulated link between virtual machines and the base they share. Replies queue first in, first
 * out before a bottleneck of a certain rate; everything else takes a fixed time. A run is a
 * function of its seeds.
 */

#include <cstdint>
#include <deque>
#include <functional>
#include <queue>
#include <vector>

#include "fvd/engine/pace_parts.h"

namespace fvd::pace {

constexpr PaceTime kUs = 1000;
constexpr PaceTime kMs = kPaceMs;
constexpr PaceTime kSecond = kPaceSecond;
constexpr double kMiB = 1024 * 1024;

constexpr double seconds(PaceTime time) {
    return static_cast<double>(time) / static_cast<double>(kSecond);
}

/** Exponential, of this mean (ns). */
PaceTime random_time(PaceRandom& random, double mean);

class Clock {
  public:
    using Action = std::function<void()>;

    PaceTime now() const { return now_; }
    void at(PaceTime time, Action action);
    void after(PaceTime span, Action action) { at(now_ + span, std::move(action)); }
    /** Run what is due until @p end; then it is @p end. */
    void run_until(PaceTime end);
    /** Run until @p done says so or @p end; true when done. */
    bool run_while(const std::function<bool()>& going, PaceTime end);

  private:
    struct Event {
        PaceTime time;
        uint64_t number; /* of two at the same time the older one first */
        Action action;
    };
    struct Later {
        bool operator()(const Event& a, const Event& b) const {
            return a.time != b.time ? a.time > b.time : a.number > b.number;
        }
    };
    void step();

    std::priority_queue<Event, std::vector<Event>, Later> events_;
    PaceTime now_ = 0;
    uint64_t number_ = 0;
};

/** A program that stands still now and then: its processor does something else, or a lock is held.
 */
struct Hangs {
    PaceTime every = 0;  /* mean time from the end of one to the next, exponential; 0: never */
    PaceTime length = 0; /* mean, exponential */
};

class Program {
  public:
    Program(const Hangs& hangs, uint64_t seed);
    /** Now, or when it stands still no more. */
    void run(Clock& clock, Clock::Action action);

  private:
    void hang_from(PaceTime time);

    Hangs hangs_;
    PaceRandom random_;
    PaceTime from_ = kPaceNever; /* of the next hang, or the one now */
    PaceTime until_ = 0;
};

struct LinkShape {
    double rate = 0.025;       /* bytes/ns: 0.025 is 200 Mbit/s */
    PaceTime round_trip = 0;   /* without queue and transfer */
    PaceTime base_time = 0;    /* mean of an exponential time each request takes at the base */
    PaceTime burst = 0;        /* a token bucket's credit: idle time that is made up for later */
    PaceTime least = 50 * kUs; /* system calls, context switches: part of every round trip */
    Hangs hangs{};             /* of the base's server */
};

class Link {
  public:
    using Done = std::function<void(bool ok)>;

    Link(Clock& clock, const LinkShape& shape, uint64_t seed)
        : clock_(clock), shape_(shape), random_(seed), server_(shape.hangs, seed + 1) {}

    void request(uint64_t bytes, Done done);
    /** From now on requests fail after @p after, or are answered again. */
    void break_down(PaceTime after) { fails_after_ = after, broken_ = true; }
    void repair() { broken_ = false; }
    void set_rate(double rate) { shape_.rate = rate; }

    const LinkShape& shape() const { return shape_; }
    /** What a request that arrives now waits for. */
    PaceTime queue() const { return free_at_ > clock_.now() ? free_at_ - clock_.now() : 0; }
    uint64_t delivered() const { return delivered_; }
    uint64_t requests() const { return requests_; }

  private:
    void arrive(uint64_t bytes, Done done);
    void send(uint64_t bytes, Done done);

    Clock& clock_;
    LinkShape shape_;
    PaceRandom random_;
    Program server_;
    PaceTime free_at_ = 0;
    PaceTime fails_after_ = 0;
    bool broken_ = false;
    uint64_t delivered_ = 0;
    uint64_t requests_ = 0;
};

/** What NBD does in QEMU: so many requests at a time, the others wait in order. */
class Connection {
  public:
    Connection(Clock& clock, Link& link, size_t slots, const Hangs& hangs, uint64_t seed)
        : program(hangs, seed), clock_(clock), link_(link), slots_(slots) {}
    void request(uint64_t bytes, Link::Done done);

    Program program; /* of the machine */

  private:
    void start(uint64_t bytes, Link::Done done);
    void end(bool ok, const Link::Done& done);

    Clock& clock_;
    Link& link_;
    size_t slots_;
    size_t used_ = 0;
    std::deque<std::pair<uint64_t, Link::Done>> waiting_;
};

}  // namespace fvd::pace
