/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The pace while the guest reads from the base: a model of the queue at the bottleneck, which is
 * filled only as far as it will be empty again when the guest's next read can arrive.
 */
#include <algorithm>

#include "fvd/engine/prefetch_pace.h"

namespace fvd {

namespace {

constexpr double kMs = pace_ns(kPaceMs);

constexpr double kQueueShareCut = 0.8;
constexpr double kQueueShareStep = 0.01;
constexpr double kSmallPart = 1.0 / 16; /* of what the pipe holds: a request that may be met */
constexpr double kMostSmallPart = 1.0 / 4;
/* The same for one that hides behind a guest's read. */
constexpr double kHiddenPart = 1.0 / 8;
constexpr double kLargePart = 1.0 / 2;
constexpr double kHiddenShare = 1.0 / 2; /* of the room there is, so that requests are few */
constexpr double kTolerance = 1.0 / 100; /* of the latency: how late the queue may be empty */
constexpr double kSaved = 1.0 / 2;       /* of the latency: what was not used is made up for */
constexpr PaceTime kLongestQueue = kPaceSecond;
/* Where nothing hides, one small request after so long, or longer where it would be more than this
 * part of the base's time. */
constexpr PaceTime kTurn = kPaceSecond;
constexpr PaceTime kLongestTurn = 10 * kPaceSecond;
constexpr double kTurnShare = 0.01;
constexpr double kLead = 5; /* times by what latency varies: so long a guest's read is overtaken */
constexpr double kGuestQueueShare = 1.0 / 8;
constexpr double kGuestQueueNs = 0.2 * kMs;

}  // namespace

void PrefetchPace::enter(bool guest_active, PaceTime now) {
    drop_question();
    drop_train();
    train_.next = guessing_ ? now : std::max(train_.next, pace_after(now, rates_.train_span()));
    guest_active_ = guest_active;
    spread_until_ = now;
    late_scouts_ = 0;
    phase_++;
    comparison_.restart();
    if (guest_active) {
        wait_for_turn(now);
        fitted_ = now;
        entered_ = now;
        guest_.forget_depth();
        /* What is in flight and does not fit into the pipe is waiting. */
        const double waiting = static_cast<double>(in_flight_) / base_rate() - latency();
        paced_until_ = served_at_ = pace_after(now, std::min(pace_whole(waiting), kLongestQueue));
    }
    stop_measuring();
    begin_round(now);
}

bool PrefetchPace::guest_is_active(PaceTime now) const {
    return guest_.active(now, pace_ms(parameters_.guest_idle_time));
}

/*
 * The model: whatever was issued and is not served yet is a queue that the guest's next read would
 * meet, so the queue has to be empty when that read can come. A guest whose reads are all in flight
 * issues the next one when the oldest of them ends, and until then the pipe is ours; else it may
 * come at any time, and the queue is at most one small request. Two things are looked at: what our
 * share allows, and what hides behind the guest's read.
 */
PaceDecision PrefetchPace::beside_guest(PaceTime now) {
    PaceTime until = 0;
    if (comparison_.in_gap(now, latency())) {
        return hold(PaceReason::guest_active, comparison_.gap_until());
    }
    if (in_flight_ == 0 && now >= turn_) {
        return limited(now, granule_);
    }
    if (guest_.thinks(now, latency() / 2, &until)) {
        return hold(PaceReason::guest_active, until);
    }
    if (train_due(now)) {
        return limited(now, granule_);
    }
    const double least = least_beside_guest();
    const double most_in_flight = 1.25 * base_rate() * latency() + 4 * least;
    if (in_flight_count_ >= free_slots() || static_cast<double>(in_flight_) > most_in_flight) {
        return hold(PaceReason::guest_active, kPaceNever);
    }
    const double allowed = allowed_beside_guest(now);
    if (allowed < least) {
        return hold(PaceReason::guest_active, allowed_at(now, least - allowed));
    }
    double size = 0;
    if (!hides(now, allowed, &size, &until)) {
        return hold(PaceReason::guest_active, until);
    }
    fitted_ = now;
    return limited(now, scout_due() ? granule_ : size);
}

/* ----------------------------------------------------------------------- what the share allows */

/* What guest and prefetch together may reach. */
double PrefetchPace::shared_rate() const {
    return share() * base_rate();
}

/* The places in flight have to be enough to fill the pipe, as far as requests stay small. */
double PrefetchPace::least_beside_guest() const {
    const double places = static_cast<double>(free_slots());
    const double part = std::clamp(1.25 / places, kSmallPart, kMostSmallPart);
    return whole_granules(base_rate() * latency() * part);
}

/* A guest that always reads does not keep us out for ever: what is known of the base may be wrong,
 * and blocks may be larger than what finds room between its reads. */
void PrefetchPace::wait_for_turn(PaceTime now) {
    const PaceTime span = pace_whole(granule_ / base_rate() / kTurnShare);
    turn_ = pace_after(now, std::clamp(span, kTurn, kLongestTurn));
}

/* What our share lets us ask for now, with what was not used a moment ago. */
double PrefetchPace::allowed_beside_guest(PaceTime now) const {
    const double rate = shared_rate();
    const double from = pace_ns(now) - saved(rate);
    const double paced = std::max(pace_ns(paced_until_), from);
    const double allowed = (pace_ns(now) + latency() * (1 + kTolerance) - paced) * rate;
    return std::max(allowed, pace_ns(paced_until_) <= from ? least_beside_guest() : 0);
}

PaceTime PrefetchPace::allowed_at(PaceTime now, double missing) const {
    return pace_after(now, 1 + pace_whole(missing / shared_rate()));
}

/* For so long what was not used is saved up; at least for one request, however small the share. */
double PrefetchPace::saved(double rate) const {
    return std::max(kSaved * latency(), least_beside_guest() / rate);
}

/* What the guest has in flight at times needs places, too. */
size_t PrefetchPace::free_slots() const {
    const double slots = static_cast<double>(parameters_.slots) + 1 - guest_.depth();
    return static_cast<size_t>(std::max(1.0, slots));
}

/* ---------------------------------------------------------- what hides behind the guest's read */

/*
 * Whether something may be sent now that is served before the guest's next read can arrive, and how
 * much; else @p until says when to look again. At first after the guest's read, as long as we may
 * overtake it, that is one small request at a time, and only as many as will not find room later.
 */
bool PrefetchPace::hides(PaceTime now, double allowed, double* size, PaceTime* until) const {
    PaceTime lead_ends = 0;
    const bool lead = may_overtake(now, &lead_ends);
    const PaceTime answer = guest_.next(now);
    const PaceTime free = std::max(served_at_, now);
    if (lead && answer > lead_ends &&
        allowed < pace_ns(answer - std::min(answer, std::max(free, lead_ends))) * base_rate()) {
        *until = lead_ends;
        return false;
    }
    const PaceTime next = lead ? now : answer;
    const double room = (pace_ns(next) + latency() * kTolerance - pace_ns(free)) * base_rate();
    const double pipe = base_rate() * latency();
    const double least = least_beside_guest();
    const double most = std::max(least, whole_granules(pipe * kLargePart));
    const double few = std::min(std::max({room * kHiddenShare, least, pipe * kHiddenPart}), most);
    const double saved_up = (saved(shared_rate()) + latency()) * shared_rate();
    const double wanted = next > now ? whole_granules(std::min(few, saved_up)) : least;
    if (room < wanted && (free > now || next > now)) {
        *until = std::max({free, next, now + 1});
        *until = lead ? std::min(*until, lead_ends) : *until;
        return false;
    }
    if (allowed < wanted && next > now) {
        *until = allowed_at(now, wanted - allowed);
        return false;
    }
    *size = std::clamp(whole_granules(std::min(room, allowed)), least, most);
    return true;
}

/* What is sent right behind a guest's read hides behind it, unless it comes to the front: where
 * the base takes different times for different requests, a lead is needed. */
bool PrefetchPace::may_overtake(PaceTime now, PaceTime* until) const {
    const double lead = std::min(kLead * latency_.mean_spread(), latency() / 2);
    *until = pace_after(guest_.last_begun(), pace_whole(lead));
    return guest_.count() != 0 && now < *until;
}

/* ---------------------------------------------------------------------- the model of the queue */

/* The model may be wrong: it never keeps us waiting for long. */
void PrefetchPace::load(PaceTime now, double bytes, double rate) {
    const PaceTime latest = pace_after(now, kLongestQueue);
    const PaceTime from = std::max(paced_until_, now - std::min(now, pace_whole(saved(rate))));
    const PaceTime paced = pace_after(from, pace_whole(bytes / rate));
    const PaceTime served = pace_after(std::max(served_at_, now), pace_whole(bytes / base_rate()));
    paced_until_ = std::min(paced, latest);
    served_at_ = std::min(served, latest);
}

double PrefetchPace::backlog(PaceTime now) const {
    return served_at_ > now ? pace_ns(served_at_ - now) : 0;
}

/* --------------------------------------------------------------------------- the guest's reads */

PaceGuestTicket PrefetchPace::guest_begun(PaceTime at, uint64_t bytes) {
    const PaceTime now = advance(at);
    if (!guest_active_) {
        enter(true, now);
    }
    /* Our scouts tell how long a small read takes. */
    const double more = std::max(0.0, static_cast<double>(bytes) - granule_) / base_rate();
    const PaceTime least = std::min(pace_whole(latency() + more), kLongestQueue);
    const PaceGuestTicket ticket{
        now, bytes, issued_count_, phase_, guest_.begun(now, least), in_flight_ == 0};
    comparison_.begun();
    load(now, static_cast<double>(bytes), base_rate());
    return ticket;
}

void PrefetchPace::guest_ended(PaceTime at, const PaceGuestTicket& ticket, bool ok) {
    const PaceTime now = advance(at);
    guest_.ended(now, ticket.slot);
    if (!ok) {
        return;
    }
    delivered_ += static_cast<double>(ticket.bytes);
    const double took = pace_ns(now - ticket.begun);
    /* What was in flight when the guest began is no fault of how we behave beside it. */
    const bool settled = ticket.phase == phase_ &&
                         pace_ns(ticket.begun - std::min(ticket.begun, entered_)) > 3 * latency();
    if (!settled) {
        return;
    }
    const bool alone = ticket.alone && ticket.issued_before == issued_count_;
    comparison_.note(took, alone, static_cast<double>(parameters_.guest_slowdown) / 100);
}

void PrefetchPace::adjust_share(double rate, double delay) {
    const bool queue =
        delay > latency() * kGuestQueueShare + kGuestQueueNs + latency_.mean_spread();
    if (guessing_ && !queue) {
        rates_.note(2 * shared_rate(), false);
        return;
    }
    if (!rates_.doubted()) {
        rates_.note(rate, queue && guessing_);
    }
    if (queue && !guessing_) {
        queue_share_ = std::max(kPaceLeastShare, queue_share_ * kQueueShareCut);
    } else {
        queue_share_ = std::min(kPaceMostShare, queue_share_ + kQueueShareStep);
    }
    if (rates_.note_round(rate, queue && !guessing_)) {
        queue_share_ = kPaceFirstShare;
        train_.next = pace_after(now_, rates_.train_span());
    }
    guessing_ = false;
}

}  // namespace fvd
