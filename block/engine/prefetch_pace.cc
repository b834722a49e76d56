/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "fvd/engine/prefetch_pace.h"

#include <algorithm>

#include "fvd/base/assert.h"

namespace fvd {

namespace {

constexpr double kMs = static_cast<double>(kPaceMs);
constexpr double kKiB = 1024;

/* A queue counts as one when it makes requests this much longer: a fifth, and what machines lose
 * to scheduling. */
constexpr double kQueueShare = 0.2;
constexpr double kQueueNs = 1.0 * kMs;
/* From here on (1 Gbit/s) more of it is no queue: so much for each time that rate. */
constexpr double kFastRate = 0.125;
constexpr double kFastQueueNs = 3 * kMs;
constexpr double kMostFastQueueNs = 8 * kMs;
/* After a queue the window is what the pipe holds, and a little for requests that do not fit. */
constexpr double kDrain = 1.1;
constexpr double kLeastCut = 0.5;
constexpr double kSureContent = 0.9;
/* The window at the start: this, and as if the base gave so many bytes a nanosecond (8 MB/s). */
constexpr double kFirstWindow = 64 * kKiB;
constexpr double kFirstRate = 0.008;
constexpr double kFirstLatency = 200 * kMs;
/* Each byte that comes back at the start makes room for three more: four times as many a round. */
constexpr double kStartGrowth = 3;
/* From here on requests are spread over the round trip, or over a little less of it. */
constexpr double kSpreadLatency = 1 * kMs;
constexpr double kSpread = 0.9;
/* From here on a base is far, and it begins with 23 MB/s, and doubles each round trip. */
constexpr double kFarLatency = 5 * kMs;
constexpr double kFarFirstRate = 0.023;
/* Or with this part of what a burst of so many bytes says, which is not believed to be over sooner.
 */
constexpr double kFirstTrain = 256 * kKiB;
constexpr double kFirstTrainShare = 0.5;
constexpr double kLeastFirstTrainNs = 2 * kMs;
constexpr PaceTime kBurst = kPaceMs; /* sent within this time */
constexpr double kFarStartGrowth = 1;
/* One that gave that burst nearly as fast as it is believed is in for more. */
constexpr double kFastFarStartGrowth = 3;
constexpr double kFastFarRate = 0.75 * kFirstTrain / kLeastFirstTrainNs;
/* So many late scouts in a row end the start: one may have met a machine that was busy. */
constexpr uint32_t kLateScouts = 2;
/* A start that brings less than this is over after three rounds. */
constexpr double kStartGain = 1.25;
constexpr uint32_t kFlatRounds = 3;
/* The start goes on when these rounds after its end were clear. */
constexpr uint32_t kClearRounds = 2;
constexpr double kResumeLatency = 1 * kMs;
constexpr double kClearShare = 0.5; /* of what counts as a queue */
/* When so many in a row found the pipe empty, the window grows by this each round. */
constexpr uint32_t kEmptyRounds = 4;
constexpr double kEmptyShare = 0.125; /* of what counts as a queue */
constexpr double kEmptyGrowth = 1.5;

/* Growth per round is as if rounds were no longer than this. */
constexpr double kStepLatency = 25 * kMs;
constexpr double kStep = 8 * kKiB;
constexpr double kMostSteps = 4;

/* Requests are a tenth of the window: enough to keep the pipe full, few enough, with the scouts,
 * for NBD. */
constexpr double kRequestsInWindow = 10;
constexpr double kLeastRequest = 16 * kKiB;

/* More than this on its way into the image would only be in the way of the guest's own. */
constexpr uint64_t kMostStoring = uint64_t{16} << 20;

/* A round is judged by the best of so many scouts, so that jitter does not look like a queue. */
constexpr uint32_t kScoutsInRound = 5;
constexpr uint64_t kScoutEvery = 3;
constexpr uint64_t kDearScoutEvery = 32;
constexpr double kLongRound = 3;             /* latencies: it ends with fewer */
constexpr double kLongGuestRound = 50 * kMs; /* beside the guest, if that is longer */
constexpr PaceTime kLeastRound = 4 * kPaceMs;
/* At a distance, so that they do not wait for each other. */
constexpr uint32_t kAskScouts = 4;
constexpr double kAskDistance = 1.0 / 8; /* of the latency */
constexpr PaceTime kLeastAskDistance = kPaceMs;
constexpr PaceTime kAskSpan = 10 * kPaceSecond;
constexpr PaceTime kLongestAskSpan = 20 * kPaceSecond;
constexpr double kAskLatencies = 100;
/* Newcomers ask sooner. */
constexpr uint32_t kEarlyAsks = 3;
constexpr PaceTime kEarlyAskSpan = 2 * kPaceSecond;
constexpr double kEarlyAskLatencies = 50;

/* Beside the guest. */
constexpr double kQueueShareCut = 0.8;
constexpr double kQueueShareStep = 0.01;
constexpr double kSmallPart = 1.0 / 16; /* of what the pipe holds: a request that may be met */
/* The same for one that hides behind a guest's read. */
constexpr double kHiddenPart = 1.0 / 8;
constexpr double kLargePart = 1.0 / 2;
constexpr double kHiddenShare = 1.0 / 2; /* of the room there is, so that requests are few */
constexpr double kTolerance = 1.0 / 100; /* of the latency: how late the queue may be empty */
constexpr double kSaved = 1.0 / 2;       /* of the latency: what was not used is made up for */
constexpr PaceTime kLongestQueue = kPaceSecond;
constexpr double kLead = 5; /* times by what latency varies: so long a guest's read is overtaken */
constexpr double kGuestQueueShare = 1.0 / 8;
constexpr double kGuestQueueNs = 0.2 * kMs;
constexpr uint32_t kTrain = 8;
constexpr double kLeastTrainNs = 0.05 * kMs;

constexpr PaceTime kRatePeriod = 500 * kPaceMs;

PaceTime ms_time(int64_t ms) {
    return static_cast<PaceTime>(ms) * kPaceMs;
}

double square_root(double v) {
    double root = std::max(v, 1.0);
    for (int i = 0; i < 40; i++) {
        root = (root + v / root) / 2;
    }
    return root;
}

}  // namespace

const char* pace_reason_name(PaceReason reason) {
    static constexpr const char* kNames[] = {
        "none",        "finished",      "off",     "paused",     "start-delay",  "base-error",
        "store-error", "below-minimum", "storing", "rate-limit", "guest-active", "pipe-full",
    };
    static_assert(std::size(kNames) == static_cast<size_t>(PaceReason::count));
    return kNames[static_cast<size_t>(reason)];
}

PrefetchPace::PrefetchPace(const PaceParameters& parameters, uint64_t granule, uint64_t seed,
                           PaceTime now)
    : granule_(static_cast<double>(granule)),
      random_(seed),
      created_(now),
      now_(now),
      reason_since_(now),
      rate_mark_(now) {
    FVD_ASSERT(granule != 0);
    set_parameters(parameters, now);
    window_ = std::max(kFirstWindow, 2 * granule_);
    begin_round(now);
}

/* ------------------------------------------------------------------------------ what users say */

void PrefetchPace::set_parameters(const PaceParameters& parameters, PaceTime at) {
    (void)advance(at);
    parameters_ = resolved(parameters);
    const double least_burst = granule_;
    read_limit_.set(rate_of_kib(parameters_.max_read_throughput), least_burst);
    write_rate_ = rate_of_kib(parameters_.max_write_throughput);
    const PaceTime shortest = ms_time(parameters_.retry_min_time);
    const PaceTime longest = ms_time(parameters_.retry_max_time);
    base_backoff_.set(now_, shortest, longest);
    store_backoff_.set(now_, shortest, longest);
    read_guard_.set(rate_of_kib(parameters_.min_read_throughput),
                    ms_time(parameters_.read_measure_time));
    write_guard_.set(rate_of_kib(parameters_.min_write_throughput),
                     ms_time(parameters_.write_measure_time));
    guard_until_ = 0;
    window_ = std::min(window_, static_cast<double>(parameters_.max_in_flight));
    stop_measuring();
}

void PrefetchPace::pause(PaceTime now) {
    (void)advance(now);
    user_paused_ = true;
}

/** Whoever resumes does not want to wait for what was decided before. */
void PrefetchPace::resume(PaceTime now) {
    (void)advance(now);
    user_paused_ = false;
    guard_until_ = 0;
}

void PrefetchPace::finish(PaceTime now) {
    (void)advance(now);
    finished_ = true;
}

/* ------------------------------------------------------------------------------ deciding */

PaceDecision PrefetchPace::hold(PaceReason reason, PaceTime until) {
    return {reason, 0, until};
}

PaceDecision PrefetchPace::decide(PaceTime at) {
    const PaceTime now = advance(at);
    PaceDecision decision;
    if (!blocked(now, &decision)) {
        decision = judge(now);
    }
    account(decision.reason);
    return decision;
}

/** Reasons that have nothing to do with how full the pipe is. */
bool PrefetchPace::blocked(PaceTime now, PaceDecision* decision) {
    const PaceTime start = parameters_.start_delay < 0
                               ? kPaceNever
                               : pace_after(created_, ms_time(1000 * parameters_.start_delay));
    const struct {
        PaceReason reason;
        bool holds;
        PaceTime until;
    } reasons[] = {
        {PaceReason::finished, finished_, kPaceNever},
        {PaceReason::off, parameters_.start_delay < 0, kPaceNever},
        {PaceReason::paused, user_paused_, kPaceNever},
        {PaceReason::start_delay, now < start, start},
        {PaceReason::base_error, now < base_backoff_.until(), base_backoff_.until()},
        {PaceReason::store_error, now < store_backoff_.until(), store_backoff_.until()},
        {PaceReason::below_minimum, now < guard_until_, guard_until_},
    };
    for (const auto& reason : reasons) {
        if (reason.holds) {
            *decision = hold(reason.reason, reason.until);
            return true;
        }
    }
    return false;
}

PaceDecision PrefetchPace::judge(PaceTime now) {
    const uint64_t under_way = in_flight_ + storing_;
    /* After an error a single small request asks whether things are well again. */
    if (base_backoff_.active() || store_backoff_.active()) {
        const PaceReason reason =
            base_backoff_.active() ? PaceReason::base_error : PaceReason::store_error;
        return under_way == 0 ? limited(now, granule_) : hold(reason, kPaceNever);
    }
    if (storing_ != 0 && storing_ >= most_storing()) {
        return hold(PaceReason::storing, kPaceNever);
    }
    if (in_flight_count_ >= static_cast<uint64_t>(parameters_.slots)) {
        round_.window_was_limit = true;
        return hold(guest_active_ ? PaceReason::guest_active : PaceReason::pipe_full, kPaceNever);
    }
    PaceDecision learning;
    if (ask_latency(now, &learning) || first_train(now, &learning)) {
        return learning;
    }
    return guest_active_ ? beside_guest(now) : fill(now);
}

uint64_t PrefetchPace::most_storing() const {
    const auto two = 2 * static_cast<uint64_t>(parameters_.bytes_per_prefetch);
    return std::min(std::max(kMostStoring, two),
                    static_cast<uint64_t>(parameters_.max_in_flight) / 2);
}

/** A request of @p bytes, as far as memory and the user's limits allow. */
PaceDecision PrefetchPace::limited(PaceTime now, double bytes) {
    const double room =
        static_cast<double>(parameters_.max_in_flight) - static_cast<double>(in_flight_ + storing_);
    if (room < granule_ && in_flight_ + storing_ != 0) {
        return hold(storing_ != 0 ? PaceReason::storing : PaceReason::pipe_full, kPaceNever);
    }
    const double largest = static_cast<double>(parameters_.bytes_per_prefetch);
    const double allowed = whole_granules(std::min({bytes, room, largest, read_limit_.burst()}));
    const PaceTime ready = read_limit_.ready_at(now, allowed);
    if (ready > now) {
        return hold(PaceReason::rate_limit, ready);
    }
    return {PaceReason::none, pace_whole(allowed), now};
}

/*
 * Whoever comes to a link that others fill takes their queue for the base's latency. So everyone
 * stops now and then, until nothing of his own is in flight, and looks. The others see a shorter
 * queue meanwhile; for whom that is news, the time until he looks himself begins anew. So those who
 * share a link come to look at the same time, and then see the base as it is.
 */
bool PrefetchPace::ask_latency(PaceTime now, PaceDecision* decision) {
    ask_.open = ask_.open || (!starting_ && !guest_active_ && time_to_ask(now));
    if (!ask_.open) {
        return false;
    }
    stop_measuring(); /* it is we who are slow */
    if (ask_.issued >= kAskScouts) {
        return false; /* what goes behind the scouts is not in their way */
    }
    const bool alone = ask_.issued == 0 || (guest_active_ && !latency_.known());
    if (alone && in_flight_ != 0) {
        *decision = hold(PaceReason::pipe_full, kPaceNever);
    } else if (in_flight_ != 0 && now < ask_.next) {
        *decision = hold(PaceReason::pipe_full, ask_.next);
    } else {
        *decision = limited(now, granule_);
    }
    return true;
}

PaceTime PrefetchPace::ask_distance() const {
    return std::max(pace_whole(latency() * kAskDistance), kLeastAskDistance);
}

void PrefetchPace::note_answer(PaceTime now, const PaceTicket& ticket) {
    const double took = pace_ns(now - ticket.issued);
    ask_.least = ask_.answers == 0 ? took : std::min(ask_.least, took);
    ask_.sum += took;
    ask_.answers++;
    if (!ask_.answered) { /* nothing was fetched yet, and each answer may be less */
        (void)latency_.note(now, took, true);
        ask_.next = std::min(ask_.next, pace_after(ticket.issued, ask_distance()));
        window_ = first_window();
    }
    if (ask_.answers < kAskScouts) {
        return;
    }
    (void)latency_.note(now, ask_.least, true);
    latency_.note_spread(ask_.least, ask_.sum / kAskScouts, kAskScouts);
    ask_.answered = true;
    ask_.ended = now;
    drop_question();
}

void PrefetchPace::drop_question() {
    ask_ = {.open = !ask_.answered,
            .answered = ask_.answered,
            .number = ask_.number + 1,
            .ended = ask_.ended};
}

bool PrefetchPace::time_to_ask(PaceTime now) const {
    const bool new_here = ask_.number <= kEarlyAsks;
    const PaceTime span =
        new_here ? std::clamp(pace_whole(kEarlyAskLatencies * latency()), kEarlyAskSpan, kAskSpan)
                 : std::clamp(pace_whole(kAskLatencies * latency()), kAskSpan, kLongestAskSpan);
    return now - std::min(now, ask_.ended) > span;
}

PaceDecision PrefetchPace::fill(PaceTime now) {
    const double usual = request_size();
    const bool dear = scouts_are_dear();
    const uint64_t scouts = dear ? 1 : starting_ ? UINT64_MAX : kScoutsInRound;
    const bool scout =
        scouts_in_flight_ < scouts && since_scout_ + 1 >= (dear ? kDearScoutEvery : kScoutEvery);
    const double size = scout ? granule_ : usual;
    if (in_flight_ != 0 && static_cast<double>(in_flight_) + size > window_) {
        round_.window_was_limit = true;
        return hold(PaceReason::pipe_full, kPaceNever);
    }
    if (latency() > kSpreadLatency && in_flight_ != 0 && now < spread_until_) {
        round_.window_was_limit = true;
        return hold(PaceReason::pipe_full, spread_until_);
    }
    return limited(now, size);
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
    const bool scout = scouts_in_flight_ == 0 && since_scout_ + 1 >= kScoutEvery;
    return limited(now, scout ? granule_ : size);
}

/* The places in flight have to be enough to fill the pipe. */
double PrefetchPace::least_beside_guest() const {
    const double places = static_cast<double>(free_slots());
    return whole_granules(base_rate() * latency() * std::max(kSmallPart, 1.25 / places));
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

void PrefetchPace::account(PaceReason reason) {
    if (reason != PaceReason::none && reason != PaceReason::pipe_full) {
        stop_measuring();
    }
    if (reason == reason_) {
        return;
    }
    report_.held[static_cast<size_t>(reason_)] += now_ - reason_since_;
    report_.holds[static_cast<size_t>(reason)]++;
    reason_ = reason;
    reason_since_ = now_;
}

/* ------------------------------------------------------------------------------ the base */

PaceTicket PrefetchPace::issued(PaceTime at, uint64_t bytes) {
    const PaceTime now = advance(at);
    FVD_ASSERT(bytes != 0);
    const auto size = static_cast<double>(bytes);
    const bool scout = size <= granule_;
    const double queued = guest_active_ ? backlog(now) : 0;
    const PaceTicket ticket{
        now,    bytes,
        queued, window_,
        scout,  ask_.open && scout && ask_.issued < kAskScouts ? ask_.number : 0,
        phase_, train_.open ? train_.number : 0};
    if (ticket.ask != 0) {
        /* Whoever is near has answered before the second. */
        const bool unknown = ask_.issued++ == 0 && !latency_.known();
        ask_.next = pace_after(now, unknown ? pace_whole(kFarLatency) : ask_distance());
        if (ask_.issued == kAskScouts) {
            begin_round(now); /* of what goes behind them */
        }
    }
    if (train_.open) {
        train_.sent_first = train_.issued++ == 0 ? now : train_.sent_first;
        train_.sent_last = now;
    }
    train_.open = train_.open && train_.issued < kTrain;
    since_scout_ = scout ? 0 : since_scout_ + 1;
    scouts_in_flight_ += scout ? 1 : 0;
    issued_count_++;
    in_flight_count_++;
    in_flight_ += bytes;
    read_limit_.take(now, size);
    load(now, size, shared_rate());
    const double spread = latency() * size / window_ * (starting_ ? 1 : kSpread);
    const PaceTime next = pace_after(std::max(spread_until_, now), pace_whole(spread));
    spread_until_ = std::min(next, pace_after(now, pace_whole(latency())));
    return ticket;
}

void PrefetchPace::idle(PaceTime now) {
    (void)advance(now);
    stop_measuring();
}

void PrefetchPace::fetched(PaceTime at, const PaceTicket& ticket, bool ok) {
    const PaceTime now = advance(at);
    FVD_ASSERT(in_flight_ >= ticket.bytes && in_flight_count_ != 0);
    in_flight_ -= ticket.bytes;
    in_flight_count_--;
    scouts_in_flight_ -= ticket.scout ? 1 : 0;
    if (!ok) {
        report_.base_errors++;
        base_backoff_.failed(now, ticket.issued, random_);
        drop_question();
        drop_train();
        window_ = std::min(window_, first_window());
        starting_ = true;
        empty_rounds_ = 0;
        late_scouts_ = 0;
        stop_measuring();
        begin_round(now);
        return;
    }
    base_backoff_.succeeded(ticket.issued);
    const auto size = static_cast<double>(ticket.bytes);
    if (storing_ == 0) {
        write_mark_ = now;
    }
    storing_ += ticket.bytes;
    delivered_ += size;
    rate_bytes_ += size;
    report_.fetched += ticket.bytes;
    if (ticket.phase == phase_ && starting_ && !guest_active_ && round_.window_was_limit) {
        window_ = std::min(window_ + start_growth() * size,
                           static_cast<double>(parameters_.max_in_flight));
    }
    if (ticket.train != 0) {
        note_train(now, ticket);
    } else if (ticket.scout) {
        note_scout(now, ticket);
    } else if (scouts_are_dear()) {
        note_delay(now, ticket, pace_ns(now - ticket.issued) - size / base_rate());
    }
    measure_read(now, ticket.bytes);
}

/*
 * How much the base can give does not show beside a guest as long as little is asked of it. So now
 * and then a few small requests are sent at once: the distance of their answers tells.
 */
bool PrefetchPace::train_due(PaceTime now) {
    if (!train_.open && now >= train_.next && in_flight_count_ + kTrain <= free_slots() &&
        (train_hides(now) || in_flight_ == 0)) {
        train_ = {.open = true,
                  .number = train_.number + 1,
                  .next = pace_after(now, rates_.next_train())};
    }
    return train_.open;
}

/* Behind a read of the guest. */
bool PrefetchPace::train_hides(PaceTime now) const {
    PaceTime until = 0;
    const double takes = kTrain * granule_ / base_rate();
    return !guessing_ && served_at_ <= now && !may_overtake(now, &until) &&
           pace_ns(guest_.next(now) - now) >= takes;
}

/*
 * Of a far base each round trip counts, so behind the first scouts, and before any is back, goes as
 * much as is no harm anywhere, in one burst: the distance of its answers tells with how much it
 * pays to begin.
 */
bool PrefetchPace::first_train(PaceTime now, PaceDecision* decision) {
    if (guest_active_) {
        return false;
    }
    if (!train_.first && !latency_.known() && ask_.issued == kAskScouts && room_for_train()) {
        train_ = {.open = true, .number = train_.number + 1, .next = train_.next, .first = true};
    }
    if (train_.open) {
        *decision = limited(now, kFirstTrain / kTrain);
    } else if (train_.first) {
        *decision = hold(PaceReason::pipe_full, kPaceNever);
    }
    return train_.first;
}

bool PrefetchPace::room_for_train() const {
    const uint64_t least = in_flight_ + storing_ + static_cast<uint64_t>(kFirstTrain);
    return kTrain * granule_ <= kFirstTrain &&
           static_cast<double>(parameters_.bytes_per_prefetch) >= kFirstTrain / kTrain &&
           static_cast<uint64_t>(parameters_.slots) >= in_flight_count_ + kTrain &&
           static_cast<uint64_t>(parameters_.max_in_flight) >= least;
}

/* What is under way of it says nothing any more. */
void PrefetchPace::drop_train() {
    train_.open = train_.first = false;
    train_.number++;
}

void PrefetchPace::note_train(PaceTime now, const PaceTicket& ticket) {
    if (ticket.train != train_.number) {
        return;
    }
    if (train_.back++ == 0) {
        train_.began = now;
        return;
    }
    train_.bytes += static_cast<double>(ticket.bytes);
    if (train_.back != kTrain) {
        return;
    }
    /* Small pieces that were missing, or a limit that kept it from being sent at once, make it
     * none. */
    const bool burst = train_.sent_last - train_.sent_first <= kBurst &&
                       train_.bytes >= kFirstTrain * (kTrain - 1) / kTrain / 2;
    if (!train_.first || burst) {
        const double least = train_.first ? kLeastFirstTrainNs : kLeastTrainNs;
        const double rate = train_.bytes / std::max(pace_ns(now - train_.began), least);
        train_.first ? rates_.note(rate, true)
                     : rates_.note_train(rate, share() >= kPaceFirstShare);
        guessing_ = false;
    }
    if (train_.first) {
        train_.first = false;
        window_ = first_window();
    }
    begin_round(now);
}

void PrefetchPace::note_scout(PaceTime now, const PaceTicket& ticket) {
    const double took = pace_ns(now - ticket.issued);
    if (ticket.ask != 0) {
        if (ask_.open && ticket.ask == ask_.number) {
            note_answer(now, ticket);
        }
        return;
    }
    if (latency_.known() && latency_.note(now, took, false)) {
        ask_.ended = now;
    }
    note_delay(now, ticket, took);
}

/* Where scouts are dear, large requests tell delays, too, as far as the time of their own bytes on
 * the way is known: that is a tenth of a round trip at most. */
void PrefetchPace::note_delay(PaceTime now, const PaceTicket& ticket, double took) {
    if (ticket.phase != phase_ || ticket.issued < round_.begin) {
        return;
    }
    /* What waited behind the guest, as the model knew, was not delayed by us. */
    const double delay = std::max(0.0, took - ticket.queued - latency());
    round_.least_delay = round_.samples == 0 ? delay : std::min(round_.least_delay, delay);
    round_.samples++;
    const bool late_start = starting_ && !guest_active_ && delay > queue_limit();
    late_scouts_ = late_start ? late_scouts_ + 1 : 0;
    if (late_scouts_ >= kLateScouts) {
        end_start(ticket.window, delay);
    }
    const PaceTime took_so_far = now - round_.begin;
    const bool late = pace_ns(took_so_far) >
                      std::max(kLongRound * latency(), guest_active_ ? kLongGuestRound : 0.0);
    const bool early = starting_ && far() && !guest_active_ && pace_ns(took_so_far) < latency();
    if (took_so_far >= kLeastRound && !early && (round_.samples >= kScoutsInRound || late)) {
        end_round(now);
    }
}

void PrefetchPace::begin_round(PaceTime now) {
    round_ = {.begin = now, .delivered = delivered_};
}

void PrefetchPace::end_round(PaceTime now) {
    const double rate =
        (delivered_ - round_.delivered) / std::max(1.0, pace_ns(now - round_.begin));
    if (guest_active_) {
        adjust_share(rate, round_.least_delay);
    } else {
        adjust_window(rate, round_.least_delay);
    }
    begin_round(now);
}

/* A request that was issued under @p window met a queue: so much of it the pipe holds. Meanwhile
 * the window has grown on. */
void PrefetchPace::end_start(double window, double delay) {
    window_ = std::max(granule_, window * kDrain * latency() / (latency() + delay));
    starting_ = false;
    late_scouts_ = 0;
    guessing_ = false;
    resume_after_ = latency() > kResumeLatency ? kClearRounds : 0;
    begin_round(now_);
}

/* When all was clear after the start's end, what ended it was no queue, and the start goes on. And
 * where nothing waits at all, round after round, the pipe is far from full, whoever else uses it.
 */
void PrefetchPace::regain_window(double delay) {
    if (starting_) {
        return;
    }
    const bool clear = delay < queue_limit() * kClearShare;
    const bool ended_early = clear && resume_after_ == 1;
    resume_after_ = clear ? resume_after_ - std::min(resume_after_, 1U) : 0;
    const bool empty = round_.window_was_limit && delay < queue_limit() * kEmptyShare &&
                       window_ < static_cast<double>(parameters_.max_in_flight);
    empty_rounds_ = empty ? empty_rounds_ + 1 : 0;
    if (ended_early) {
        starting_ = true;
        flat_rounds_ = empty_rounds_ = 0;
        stop_measuring();
    } else if (empty_rounds_ >= kEmptyRounds && latency() > kResumeLatency) {
        window_ *= kEmptyGrowth;
    }
}

void PrefetchPace::adjust_window(double rate, double delay) {
    const bool queue = delay > queue_limit();
    regain_window(delay);
    rates_.note(rate, round_.window_was_limit || queue);
    guessing_ = false;
    const double most = static_cast<double>(parameters_.max_in_flight);
    if (queue) {
        const double cut = std::max(kLeastCut, kDrain * latency() / (latency() + delay));
        window_ = std::max(window_ * cut, std::min(window_, pipe_content()));
        starting_ = false;
        clear_rounds_ = 0;
    } else if (round_.window_was_limit && starting_) {
        flat_rounds_ = rate < kStartGain * last_rate_ ? flat_rounds_ + 1 : 0;
        starting_ = flat_rounds_ < kFlatRounds;
        last_rate_ = rate;
    } else if (round_.window_was_limit) {
        /* Steps do not grow with the window, so that several machines come to equal shares, but
         * they do with the time for which all was clear; and where rounds are long, each makes up
         * for several. Windows of a few requests take smaller ones: there may be many of them. */
        const double rounds = std::clamp(latency() / kStepLatency, 1.0, kMostSteps);
        const double step = std::min(kStep, square_root(window_ * kLeastRequest) / 4);
        const double speed = 1 + clear_rounds_ / 4.0;
        window_ += std::min(rounds * step * speed * speed, window_ / 4 + kLeastRequest);
        clear_rounds_++;
    }
    window_ = std::clamp(window_, std::min(granule_, most), most);
}

/* ------------------------------------------------------------------------------ the image */

PaceTime PrefetchPace::store_from(PaceTime at, uint64_t bytes) {
    const PaceTime now = advance(at);
    const PaceTime from = std::max(now, store_from_);
    store_from_ = pace_after(from, pace_whole(static_cast<double>(bytes) / write_rate_));
    return from;
}

void PrefetchPace::stored(PaceTime at, uint64_t bytes, bool ok) {
    const PaceTime now = advance(at);
    if (!ok) {
        report_.store_errors++;
        /* Those that come while we wait belong to the same trouble. */
        store_backoff_.failed(now, now < store_backoff_.until() ? 0 : now, random_);
        stop_measuring();
    } else if (now >= store_backoff_.until()) {
        store_backoff_.succeeded(now);
    }
    measure_write(now, ok ? bytes : 0);
    dropped(now, bytes);
}

void PrefetchPace::dropped(PaceTime at, uint64_t bytes) {
    (void)advance(at);
    FVD_ASSERT(storing_ >= bytes);
    storing_ -= bytes;
}

/* ------------------------------------------------------------------------------ contention */

/* Only undisturbed work says what base and image can do. */
void PrefetchPace::measure_read(PaceTime now, uint64_t bytes) {
    if (guest_active_ || starting_) {
        return;
    }
    if (read_mark_ != 0 &&
        read_guard_.note(static_cast<double>(bytes), now - read_mark_, random_)) {
        guard_until_ = pace_after(
            now,
            kPaceMs + pace_whole(random_.fraction() * pace_ns(ms_time(parameters_.throttle_time))));
    }
    read_mark_ = now;
}

void PrefetchPace::measure_write(PaceTime now, uint64_t bytes) {
    if (guest_active_ || starting_) {
        return;
    }
    if (write_mark_ != 0 &&
        write_guard_.note(static_cast<double>(bytes), now - write_mark_, random_)) {
        guard_until_ = pace_after(
            now,
            kPaceMs + pace_whole(random_.fraction() * pace_ns(ms_time(parameters_.throttle_time))));
    }
    write_mark_ = now;
}

void PrefetchPace::stop_measuring() {
    read_guard_.restart(false);
    write_guard_.restart(false);
    read_mark_ = write_mark_ = 0;
}

/* ------------------------------------------------------------------------------ the guest */

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

bool PrefetchPace::guest_is_active(PaceTime now) const {
    return guest_.active(now, ms_time(parameters_.guest_idle_time));
}

/* What is sent right behind a guest's read hides behind it, unless it comes to the front: where
 * the base takes different times for different requests, a lead is needed. */
bool PrefetchPace::may_overtake(PaceTime now, PaceTime* until) const {
    const double lead = std::min(kLead * latency_.mean_spread(), latency() / 2);
    *until = pace_after(guest_.last_begun(), pace_whole(lead));
    return guest_.count() != 0 && now < *until;
}

/* ------------------------------------------------------------------------------ the model */

PaceTime PrefetchPace::advance(PaceTime now) {
    now_ = std::max(now_, now);
    if (guest_active_ && !guest_is_active(now_)) {
        enter(false, now_);
    }
    if (now_ - rate_mark_ >= kRatePeriod) {
        const double recent = rate_bytes_ / pace_ns(now_ - rate_mark_);
        rate_ = now_ - rate_mark_ > 4 * kRatePeriod ? recent : (rate_ + recent) / 2;
        rate_mark_ = now_;
        rate_bytes_ = 0;
    }
    return now_;
}

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
        entered_ = now;
        guest_.forget_depth();
        /* What is in flight and does not fit into the pipe is waiting. */
        const double waiting = static_cast<double>(in_flight_) / base_rate() - latency();
        paced_until_ = served_at_ = pace_after(now, std::min(pace_whole(waiting), kLongestQueue));
    }
    stop_measuring();
    begin_round(now);
}

/* Where much is carried, machines take turns that look like a queue; and it is soon over. */
double PrefetchPace::queue_limit() const {
    const double fast = (base_rate() - kFastRate) / kFastRate * kFastQueueNs;
    return kQueueShare * latency() + kQueueNs + latency_.spread() +
           std::clamp(fast, 0.0, kMostFastQueueNs);
}

double PrefetchPace::first_window() const {
    const double seen =
        kFirstTrainShare * std::min(rates_.value(), kFirstTrain / kLeastFirstTrainNs);
    const double rate = !far() ? kFirstRate : seen != 0 ? seen : kFarFirstRate;
    const double window = kFirstWindow + rate * std::min(latency(), kFirstLatency);
    const double most = static_cast<double>(parameters_.max_in_flight);
    return std::clamp(window, std::min(2 * granule_, most), most);
}

/* Before anything is known: what two small requests a round trip bring. */
double PrefetchPace::base_rate() const {
    const double rate = rates_.value();
    return rate != 0 ? rate : 2 * granule_ / std::max(latency(), pace_ns(kPaceMs));
}

/* What guest and prefetch together may reach. */
double PrefetchPace::shared_rate() const {
    return share() * base_rate();
}

double PrefetchPace::request_size() const {
    const double most = static_cast<double>(parameters_.bytes_per_prefetch);
    const double least = std::min(kLeastRequest, window_ / 2);
    return whole_granules(std::min(most, std::max(least, window_ / kRequestsInWindow)));
}

/* Where latency varies, the pipe holds more than the least latency tells, and what looks like a
 * queue often is none: so much was in flight when the base gave what it last gave. */
double PrefetchPace::pipe_content() const {
    return latency_.spread() == 0 ? 0
                                  : kSureContent * base_rate() * (latency() + latency_.spread());
}

/* Where a round trip is long, it pays to begin with more. */
bool PrefetchPace::far() const {
    return latency() > kFarLatency;
}

/* Where requests cannot grow any more, places in flight are what is short. */
bool PrefetchPace::scouts_are_dear() const {
    return !guest_active_ &&
           request_size() >= whole_granules(static_cast<double>(parameters_.bytes_per_prefetch));
}

/* For each byte that comes back. */
double PrefetchPace::start_growth() const {
    if (!far()) {
        return kStartGrowth;
    }
    return rates_.value() >= kFastFarRate ? kFastFarStartGrowth : kFarStartGrowth;
}

/* At least one. */
double PrefetchPace::whole_granules(double bytes) const {
    const auto count = static_cast<uint64_t>(std::max(1.0, bytes / granule_));
    return static_cast<double>(count) * granule_;
}

double PrefetchPace::backlog(PaceTime now) const {
    return served_at_ > now ? pace_ns(served_at_ - now) : 0;
}

/* What the guest has in flight at times needs places, too. */
size_t PrefetchPace::free_slots() const {
    const double slots = static_cast<double>(parameters_.slots) + 1 - guest_.depth();
    return static_cast<size_t>(std::max(1.0, slots));
}

/* The model may be wrong: it never keeps us waiting for long. */
void PrefetchPace::load(PaceTime now, double bytes, double rate) {
    const PaceTime latest = pace_after(now, kLongestQueue);
    const PaceTime from = std::max(paced_until_, now - std::min(now, pace_whole(saved(rate))));
    const PaceTime paced = pace_after(from, pace_whole(bytes / rate));
    const PaceTime served = pace_after(std::max(served_at_, now), pace_whole(bytes / base_rate()));
    paced_until_ = std::min(paced, latest);
    served_at_ = std::min(served, latest);
}

PaceReport PrefetchPace::report(PaceTime at) const {
    const PaceTime now = std::max(now_, at);
    PaceReport report = report_;
    report.guest_active = guest_active_;
    report.in_flight = in_flight_;
    report.storing = storing_;
    report.window = pace_whole(window_);
    report.latency = pace_whole(latency());
    report.base_rate = pace_whole(base_rate() * pace_ns(kPaceSecond));
    const bool stale = now - rate_mark_ > 2 * kRatePeriod;
    const double recent = stale ? rate_bytes_ / pace_ns(now - rate_mark_) : rate_;
    report.rate = pace_whole(recent * pace_ns(kPaceSecond));
    report.share = share();
    report.held[static_cast<size_t>(reason_)] += now - reason_since_;
    return report;
}

}  // namespace fvd
