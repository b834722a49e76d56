/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "machine.h"

#include <algorithm>

namespace fvd::pace {

namespace {

/* Constants of 2011. */
constexpr uint64_t kStep2011 = 1024 * 1024;
constexpr int kSlots2011 = 2;
constexpr PaceTime kMeasure2011 = 100 * kMs;
constexpr double kMinimum2011 = 5120 * 1024.0 / 1e9;
constexpr double kHistory2011 = 0.8;
constexpr PaceTime kThrottle2011 = 30 * kSecond;

}  // namespace

void CopyJob::count(uint64_t size) {
    const auto slot = static_cast<size_t>(clock.now() / kMs);
    if (fetched.size() <= slot) {
        fetched.resize(slot + 1);
    }
    fetched[slot] += size;
}

uint64_t CopyJob::take(uint64_t size) {
    const uint64_t most = bytes == 0 ? size : std::min(size, bytes - taken);
    taken += most;
    return most;
}

void CopyJob::store(uint64_t size, std::function<void()> done_storing) {
    disk_free_at = std::max(disk_free_at, clock.now()) +
                   static_cast<PaceTime>(static_cast<double>(size) / store_rate);
    clock.at(disk_free_at + store_time, [this, size, done = std::move(done_storing)] {
        finished += size;
        done();
    });
}

/* ------------------------------------------------------------------------------ ours */

PacedPrefetcher::PacedPrefetcher(CopyJob& job, const PaceParameters& parameters, uint64_t granule,
                                 uint64_t seed)
    : job_(job), pace_(parameters, granule, seed, job.clock.now()), random_(seed + 1) {
}

void PacedPrefetcher::pump() {
    while (job_.bytes == 0 || job_.taken < job_.bytes) {
        const PaceDecision decision = pace_.decide(job_.clock.now());
        if (decision.reason == PaceReason::none) {
            issue(job_.take(decision.bytes));
            continue;
        }
        if (decision.until != kPaceNever && decision.until < armed_) {
            /* Timers are late. */
            armed_ = decision.until;
            const PaceTime late = static_cast<PaceTime>(random_.fraction() * 60) * kUs;
            job_.clock.at(decision.until + late, [this, when = decision.until] {
                job_.base.program.run(job_.clock, [this, when] { expire(when); });
            });
        }
        return;
    }
}

void PacedPrefetcher::expire(PaceTime when) {
    if (armed_ == when) {
        armed_ = kPaceNever;
    }
    pump();
}

void PacedPrefetcher::issue(uint64_t bytes) {
    const PaceTicket ticket = pace_.issued(job_.clock.now(), bytes);
    job_.base.request(bytes, [this, ticket](bool ok) {
        pace_.fetched(job_.clock.now(), ticket, ok);
        if (!ok) {
            job_.taken -= ticket.bytes; /* it is still to be fetched */
            pump();
            return;
        }
        job_.count(ticket.bytes);
        const PaceTime from = pace_.store_from(job_.clock.now(), ticket.bytes);
        job_.clock.at(from, [this, ticket] {
            job_.store(ticket.bytes, [this, ticket] {
                pace_.stored(job_.clock.now(), ticket.bytes, true);
                if (done()) {
                    pace_.finish(job_.clock.now());
                }
                pump();
            });
        });
        pump();
    });
}

void PacedPrefetcher::guest_begins(uint64_t bytes) {
    guest_.push_back(pace_.guest_begun(job_.clock.now(), bytes));
    /* Woken now, run when the guest's read is on its way. */
    job_.clock.after(0, [this] { pump(); });
}

void PacedPrefetcher::guest_ends(bool ok) {
    /* The link answers a machine's reads in order. */
    pace_.guest_ended(job_.clock.now(), guest_.front(), ok);
    guest_.pop_front();
    job_.clock.after(0, [this] { pump(); });
}

/* ------------------------------------------------------------------------------ theirs */

Prefetcher2011::Prefetcher2011(CopyJob& job, uint64_t seed) : job_(job), random_(seed) {
}

void Prefetcher2011::read() {
    if (reading_ || pausing_ || pause_wanted_ || filled_ == kSlots2011) {
        return;
    }
    const uint64_t size = job_.take(kStep2011);
    if (size != 0) {
        reading_ = true;
        const PaceTime begun = job_.clock.now();
        job_.base.request(size, [this, size, begun](bool) { read_done(size, begun); });
    }
}

void Prefetcher2011::read_done(uint64_t size, PaceTime begun) {
    reading_ = false;
    filled_++;
    job_.count(size);
    const PaceTime now = job_.clock.now();
    pause_wanted_ |= slow(&read_bytes_, &read_time_, &read_average_, size, now - begun);
    job_.store(size, [this, size, now] {
        filled_--;
        pause_wanted_ |=
            slow(&write_bytes_, &write_time_, &write_average_, size, job_.clock.now() - now);
        pause_if_asked();
        read();
    });
    read();
}

bool Prefetcher2011::slow(double* bytes, PaceTime* time, double* average, uint64_t size,
                          PaceTime took) {
    *bytes += static_cast<double>(size);
    *time += took;
    if (*time <= kMeasure2011) {
        return false;
    }
    const double measured = *bytes / static_cast<double>(*time);
    *average = *average < 0 ? measured : kHistory2011 * *average + (1 - kHistory2011) * measured;
    *bytes = 0;
    *time = 0;
    if (*average >= kMinimum2011) {
        return false;
    }
    const bool pause = random_.fraction() > 0.5;
    *average = pause ? *average : -1;
    return pause;
}

void Prefetcher2011::pause_if_asked() {
    if (!pause_wanted_ || filled_ != 0 || reading_ || pausing_) {
        return;
    }
    pausing_ = true;
    const auto span =
        static_cast<PaceTime>(random_.fraction() * static_cast<double>(kThrottle2011));
    job_.clock.after(kMs + span, [this] {
        pausing_ = pause_wanted_ = false;
        read_average_ = write_average_ = -1;
        read_bytes_ = write_bytes_ = 0;
        read_time_ = write_time_ = 0;
        read();
    });
}

void FixedPrefetcher::start() {
    for (int i = 0; i < depth_; i++) {
        next();
    }
}

void FixedPrefetcher::next() {
    const uint64_t size = job_.take(size_);
    if (size == 0) {
        return;
    }
    job_.base.request(size, [this, size](bool) {
        job_.count(size);
        job_.store(size, [this] { next(); });
    });
}

/* ------------------------------------------------------------------------------ the guest */

Guest::Guest(Clock& clock, Connection& base, Prefetcher* prefetcher, const GuestLoad& load,
             uint64_t seed)
    : clock_(clock), base_(base), prefetcher_(prefetcher), load_(load), random_(seed) {
    const int starts = load_.open_rate > 0 ? 1 : load_.depth;
    for (int i = 0; i < starts; i++) {
        const double spread = load_.open_rate > 0 ? 1e9 / load_.open_rate : 1e6;
        clock_.at(load_.from + random_time(random_, spread), [this] { read(true); });
    }
}

void Guest::read(bool again) {
    const PaceTime begun = clock_.now();
    if (begun >= load_.until) {
        return;
    }
    if (load_.open_rate > 0 && again) {
        clock_.after(random_time(random_, 1e9 / load_.open_rate), [this] { read(true); });
    }
    if (prefetcher_ != nullptr) {
        prefetcher_->guest_begins(load_.size);
    }
    base_.request(load_.size, [this, begun](bool ok) {
        const PaceTime now = clock_.now();
        last_ended_ = now;
        if (begun >= judged_from_ && begun < judged_until_) {
            latencies_.push_back(now - begun);
        }
        if (prefetcher_ != nullptr) {
            prefetcher_->guest_ends(ok);
        }
        if (load_.open_rate <= 0) {
            clock_.after(random_time(random_, static_cast<double>(load_.think)),
                         [this] { read(false); });
        }
    });
}

double Guest::rate() const {
    const PaceTime end = std::min({judged_until_, load_.until, clock_.now()});
    const PaceTime begin = std::max(judged_from_, load_.from);
    return static_cast<double>(latencies_.size()) / seconds(end - begin);
}

PaceTime Guest::percentile(double part) const {
    if (latencies_.empty()) {
        return 0;
    }
    std::sort(latencies_.begin(), latencies_.end());
    const auto last = static_cast<double>(latencies_.size() - 1);
    return latencies_[static_cast<size_t>(part * last)];
}

/* ------------------------------------------------------------------------------ together */

const char* name_of(Contender contender) {
    switch (contender) {
        case Contender::paced:
            return "fvd";
        case Contender::driver_2011:
            return "2011";
        case Contender::stream:
            return "stream";
        case Contender::convert:
            return "convert";
    }
    return "?";
}

Machine::Machine(Clock& its_clock, Link& link, const MachineShape& shape, uint64_t seed)
    : clock(its_clock),
      connection(its_clock, link, shape.slots, shape.hangs, seed + 2),
      job{its_clock, connection, shape.image, 0.5, 100 * kUs, {}},
      prefetches(shape.prefetches) {
    switch (shape.contender) {
        case Contender::paced:
            prefetcher =
                std::make_unique<PacedPrefetcher>(job, shape.parameters, shape.granule, seed);
            break;
        case Contender::driver_2011:
            prefetcher = std::make_unique<Prefetcher2011>(job, seed);
            break;
        case Contender::stream:
            prefetcher = std::make_unique<FixedPrefetcher>(job, 1, 512 * 1024);
            break;
        case Contender::convert:
            prefetcher = std::make_unique<FixedPrefetcher>(job, 16, 2 * 1024 * 1024);
            break;
    }
    if (prefetches) {
        clock.at(shape.starts, [this] { prefetcher->start(); });
    }
}

void Machine::add_guest(const GuestLoad& load, uint64_t seed) {
    Prefetcher* told = prefetches ? prefetcher.get() : nullptr;
    guests.push_back(std::make_unique<Guest>(clock, connection, told, load, seed));
}

double Machine::rate(PaceTime from, PaceTime until) const {
    uint64_t sum = 0;
    for (size_t ms = from / kMs; ms < std::min<size_t>(until / kMs, job.fetched.size()); ms++) {
        sum += job.fetched[ms];
    }
    return static_cast<double>(sum) / seconds(until - from);
}

}  // namespace fvd::pace
