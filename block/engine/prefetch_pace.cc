/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "fvd/engine/prefetch_pace.h"

#include <algorithm>

#include "fvd/base/assert.h"

namespace fvd {

namespace {

constexpr double kMs = pace_ns(kPaceMs);

/* More than this on its way into the image would only be in the way of the guest's own. */
constexpr uint64_t kMostStoring = uint64_t{16} << 20;

/* A round is judged by the best of so many scouts, so that jitter does not look like a queue. */
constexpr uint32_t kScoutsInRound = 5;
constexpr uint64_t kScoutEvery = 3;
constexpr uint64_t kDearScoutEvery = 32;
constexpr double kLongRound = 3;             /* latencies: it ends with fewer */
constexpr double kLongGuestRound = 50 * kMs; /* beside the guest, if that is longer */
constexpr PaceTime kLeastRound = 4 * kPaceMs;
/* So many late scouts in a row end the start: one may have met a machine that was busy. */
constexpr uint32_t kLateScouts = 2;

constexpr PaceTime kRatePeriod = 500 * kPaceMs;

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
    window_ = first_window();
    begin_round(now);
}

/* ------------------------------------------------------------------------------ what users say */

void PrefetchPace::set_parameters(const PaceParameters& parameters, PaceTime at) {
    (void)advance(at);
    parameters_ = resolved(parameters);
    read_limit_.set(rate_of_kib(parameters_.max_read_throughput), train_bytes());
    write_rate_ = rate_of_kib(parameters_.max_write_throughput);
    const PaceTime shortest = pace_ms(parameters_.retry_min_time);
    const PaceTime longest = pace_ms(parameters_.retry_max_time);
    base_backoff_.set(now_, shortest, longest);
    store_backoff_.set(now_, shortest, longest);
    read_guard_.set(rate_of_kib(parameters_.min_read_throughput),
                    pace_ms(parameters_.read_measure_time));
    write_guard_.set(rate_of_kib(parameters_.min_write_throughput),
                     pace_ms(parameters_.write_measure_time));
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
                               : pace_after(created_, pace_ms(1000 * parameters_.start_delay));
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

void PrefetchPace::account(PaceReason reason) {
    if (reason != PaceReason::none && reason != PaceReason::pipe_full) {
        stop_measuring();
        round_.held_back = true;
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
    const PaceTicket ticket{.issued = now,
                            .bytes = bytes,
                            .queued = guest_active_ ? backlog(now) : 0,
                            .window = window_,
                            .scout = scout,
                            .ask = scout ? take_question(now) : 0,
                            .phase = phase_,
                            .train = take_train(now)};
    since_scout_ = scout ? 0 : since_scout_ + 1;
    scouts_in_flight_ += scout ? 1 : 0;
    issued_count_++;
    in_flight_count_++;
    in_flight_ += bytes;
    read_limit_.take(now, size);
    load(now, size, shared_rate());
    wait_for_turn(now);
    spread_from(now, size);
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
        flat_rounds_ = empty_rounds_ = 0;
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

/* ------------------------------------------------------------------------------ rounds and scouts
 */

/* Whether the next request is a small one, which tells of delays. */
bool PrefetchPace::scout_due() const {
    const bool dear = scouts_are_dear();
    const bool one = dear || guest_active_;
    const uint64_t most = one ? 1 : starting_ ? UINT64_MAX : kScoutsInRound;
    return scouts_in_flight_ < most && since_scout_ + 1 >= (dear ? kDearScoutEvery : kScoutEvery);
}

/* Where requests cannot grow any more, places in flight are what is short. */
bool PrefetchPace::scouts_are_dear() const {
    return !guest_active_ &&
           request_size() >= whole_granules(static_cast<double>(parameters_.bytes_per_prefetch));
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

void PrefetchPace::pause_at_random(PaceTime now) {
    const double longest = pace_ns(pace_ms(parameters_.throttle_time));
    guard_until_ = pace_after(now, kPaceMs + pace_whole(random_.fraction() * longest));
}

/* Only undisturbed work says what base and image can do. */
void PrefetchPace::measure_read(PaceTime now, uint64_t bytes) {
    if (guest_active_ || starting_) {
        return;
    }
    if (read_mark_ != 0 &&
        read_guard_.note(static_cast<double>(bytes), now - read_mark_, random_)) {
        pause_at_random(now);
    }
    read_mark_ = now;
}

void PrefetchPace::measure_write(PaceTime now, uint64_t bytes) {
    if (guest_active_ || starting_) {
        return;
    }
    if (write_mark_ != 0 &&
        write_guard_.note(static_cast<double>(bytes), now - write_mark_, random_)) {
        pause_at_random(now);
    }
    write_mark_ = now;
}

void PrefetchPace::stop_measuring() {
    read_guard_.restart(false);
    write_guard_.restart(false);
    read_mark_ = write_mark_ = 0;
}

/* ------------------------------------------------------------------------------ what is known */

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

/* Before anything is known: what two small requests a round trip bring. */
double PrefetchPace::base_rate() const {
    const double rate = rates_.value();
    return rate != 0 ? rate : 2 * granule_ / std::max(latency(), pace_ns(kPaceMs));
}

/* At least one. */
double PrefetchPace::whole_granules(double bytes) const {
    const auto count = static_cast<uint64_t>(std::max(1.0, bytes / granule_));
    return static_cast<double>(count) * granule_;
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
