/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "link.h"

#include <algorithm>
#include <cmath>

namespace fvd::pace {

PaceTime random_time(PaceRandom& random, double mean) {
    return static_cast<PaceTime>(-std::log(1 - random.fraction()) * mean);
}

void Clock::at(PaceTime time, Action action) {
    events_.push({std::max(time, now_), number_++, std::move(action)});
}

void Clock::step() {
    /* The queue only shows a const top; the event is gone before anybody can look at it again. */
    Action action = std::move(const_cast<Event&>(events_.top()).action);
    now_ = events_.top().time;
    events_.pop();
    action();
}

void Clock::run_until(PaceTime end) {
    while (!events_.empty() && events_.top().time <= end) {
        step();
    }
    now_ = std::max(now_, end);
}

bool Clock::run_while(const std::function<bool()>& going, PaceTime end) {
    while (going()) {
        if (events_.empty() || events_.top().time > end) {
            return false;
        }
        step();
    }
    return true;
}

/* ------------------------------------------------------------------------------ programs */

Program::Program(const Hangs& hangs, uint64_t seed) : hangs_(hangs), random_(seed) {
    if (hangs_.every != 0) {
        hang_from(0);
    }
}

/* The next time after @p time. */
void Program::hang_from(PaceTime time) {
    from_ = time + random_time(random_, static_cast<double>(hangs_.every));
    until_ = from_ + random_time(random_, static_cast<double>(hangs_.length));
}

void Program::run(Clock& clock, Clock::Action action) {
    while (from_ != kPaceNever && until_ <= clock.now()) {
        hang_from(until_);
    }
    if (from_ <= clock.now()) {
        clock.at(until_, std::move(action));
    } else {
        action();
    }
}

/* ------------------------------------------------------------------------------ the link */

void Link::request(uint64_t bytes, Done done) {
    requests_++;
    if (broken_) {
        clock_.after(fails_after_, [done = std::move(done)] { done(false); });
        return;
    }
    PaceTime there = (shape_.round_trip + shape_.least) / 2;
    if (shape_.base_time != 0) {
        there += random_time(random_, static_cast<double>(shape_.base_time));
    }
    clock_.after(there, [this, bytes, done = std::move(done)] { arrive(bytes, done); });
}

void Link::arrive(uint64_t bytes, Done done) {
    server_.run(clock_, [this, bytes, done = std::move(done)] { send(bytes, done); });
}

void Link::send(uint64_t bytes, Done done) {
    const PaceTime now = clock_.now();
    const PaceTime credit = now > shape_.burst ? now - shape_.burst : 0;
    free_at_ = std::max(free_at_, credit) +
               static_cast<PaceTime>(static_cast<double>(bytes) / shape_.rate);
    delivered_ += bytes;
    const PaceTime back = shape_.round_trip + shape_.least - (shape_.round_trip + shape_.least) / 2;
    clock_.at(std::max(free_at_, now) + back, [done = std::move(done)] { done(true); });
}

void Connection::request(uint64_t bytes, Link::Done done) {
    if (used_ == slots_) {
        waiting_.emplace_back(bytes, std::move(done));
    } else {
        start(bytes, std::move(done));
    }
}

void Connection::start(uint64_t bytes, Link::Done done) {
    used_++;
    link_.request(bytes, [this, done = std::move(done)](bool ok) {
        program.run(clock_, [this, done, ok] { end(ok, done); });
    });
}

void Connection::end(bool ok, const Link::Done& done) {
    used_--;
    if (!waiting_.empty()) {
        auto [bytes, next] = std::move(waiting_.front());
        waiting_.pop_front();
        start(bytes, std::move(next));
    }
    done(ok);
}

}  // namespace fvd::pace
