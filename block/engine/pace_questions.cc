/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The pace: what is asked of the base only to learn about it. Questions are a few small requests
 * with nothing of ours in their way: they tell the latency. Trains are several that are sent at
 * once: the distance of their answers tells the rate.
 */
#include <algorithm>

#include "fvd/engine/prefetch_pace.h"

namespace fvd {

namespace {

constexpr double kMs = pace_ns(kPaceMs);

/* Scouts of a question are sent at a distance, so that they do not wait for each other. */
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

/* A train is of so many requests; of fewer, but at least so many, where they are large or places in
 * flight are few. */
constexpr uint32_t kTrain = 8;
constexpr uint32_t kShortTrain = 3;
constexpr uint32_t kLeastTrain = 2;
constexpr double kTrainBytes = 32 * 1024;
constexpr double kLeastTrainNs = 0.05 * kMs;
constexpr double kTrainShare = 0.005; /* of the base's time, at most, where blocks are large */
/* Who found no room for so long does not believe what keeps him out. */
constexpr PaceTime kKeptOut = 10 * kPaceSecond;

/* Prefetch begins as if the base gave so many bytes a nanosecond (8 MB/s), and each byte that comes
 * back makes room for three more: four times as many a round. */
constexpr double kFirstRate = 0.008;
constexpr double kStartGrowth = 3;
/* From here on a base is far, and it begins with 23 MB/s, and doubles each round trip. */
constexpr double kFarLatency = 5 * kMs;
constexpr double kFarFirstRate = 0.023;
constexpr double kFarStartGrowth = 1;
/* Or with this part of what a train of so many bytes says, which is not believed to be over sooner.
 */
constexpr double kFirstTrain = 256 * 1024;
constexpr double kFirstTrainShare = 0.5;
constexpr double kLeastFirstTrainNs = 2 * kMs;
constexpr PaceTime kBurst = kPaceMs; /* sent within this time */
/* A base that gave that train nearly as fast as it is believed is in for more. */
constexpr double kFastFarRate = 0.75 * kFirstTrain / kLeastFirstTrainNs;
constexpr double kFastFarStartGrowth = 3;

}  // namespace

/* ----------------------------------------------------------------------------------- questions */

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

/* Which question a small request that is issued now answers; 0: none. */
uint64_t PrefetchPace::take_question(PaceTime now) {
    if (!ask_.open || ask_.issued >= kAskScouts) {
        return 0;
    }
    /* Whoever is near has answered before the second. */
    const bool unknown = ask_.issued++ == 0 && !latency_.known();
    ask_.next = pace_after(now, unknown ? pace_whole(kFarLatency) : ask_distance());
    if (ask_.issued == kAskScouts) {
        begin_round(now); /* of what goes behind them */
    }
    return ask_.number;
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

/* -------------------------------------------------------------------------------------- trains */

/*
 * How much the base can give does not show beside a guest as long as little is asked of it. So now
 * and then a few small requests are sent at once: the distance of their answers tells. Where the
 * user's limit does not let them, it is what counts, and not the base.
 */
bool PrefetchPace::train_due(PaceTime now) {
    const uint64_t length = std::min(uint64_t{train_length()}, uint64_t{free_slots()});
    const bool room = length >= kLeastTrain && in_flight_count_ + length <= free_slots();
    if (!train_.open && now >= train_.next && room && read_limit_.tokens(now) >= train_bytes() &&
        (train_hides(now) || in_flight_ == 0)) {
        train_ = {.open = true,
                  .number = train_.number + 1,
                  .length = static_cast<uint32_t>(length),
                  .next = pace_after(now, std::max(rates_.next_train(), least_train_span()))};
    }
    return train_.open;
}

uint32_t PrefetchPace::train_length() const {
    return std::clamp(static_cast<uint32_t>(kTrainBytes / granule_), kShortTrain, kTrain);
}

double PrefetchPace::train_bytes() const {
    return train_length() * granule_;
}

/* Large blocks are much for a guest to meet. */
PaceTime PrefetchPace::least_train_span() const {
    return train_length() == kTrain ? 0 : pace_whole(train_bytes() / base_rate() / kTrainShare);
}

/* Behind a read of the guest. */
bool PrefetchPace::train_hides(PaceTime now) const {
    PaceTime until = 0;
    const double takes = train_bytes() / base_rate();
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
    if (!train_.first && !latency_.known() && ask_.issued == kAskScouts && room_for_train(now)) {
        train_ = {.open = true,
                  .number = train_.number + 1,
                  .length = kTrain,
                  .next = train_.next,
                  .first = true};
    }
    if (train_.open) {
        *decision = limited(now, kFirstTrain / kTrain);
    } else if (train_.first) {
        *decision = hold(PaceReason::pipe_full, kPaceNever);
    }
    return train_.first;
}

bool PrefetchPace::room_for_train(PaceTime now) {
    const uint64_t least = in_flight_ + storing_ + static_cast<uint64_t>(kFirstTrain);
    return kTrain * granule_ <= kFirstTrain && read_limit_.tokens(now) >= kFirstTrain &&
           static_cast<double>(parameters_.bytes_per_prefetch) >= kFirstTrain / kTrain &&
           static_cast<uint64_t>(parameters_.slots) >= in_flight_count_ + kTrain &&
           static_cast<uint64_t>(parameters_.max_in_flight) >= least;
}

/* Which train a request that is issued now belongs to; 0: none. */
uint64_t PrefetchPace::take_train(PaceTime now) {
    if (!train_.open) {
        return 0;
    }
    train_.sent_first = train_.issued++ == 0 ? now : train_.sent_first;
    train_.sent_last = now;
    train_.open = train_.issued < train_.length;
    return train_.number;
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
    if (train_.back != train_.length) {
        return;
    }
    /* What kept it from being sent at once, or that only small pieces were missing, make it none.
     */
    const bool burst = train_.sent_last - train_.sent_first <= kBurst;
    const bool whole = !train_.first || train_.bytes >= kFirstTrain * (kTrain - 1) / kTrain / 2;
    if (burst && whole) {
        const double least = train_.first ? kLeastFirstTrainNs : kLeastTrainNs;
        const double rate = train_.bytes / std::max(pace_ns(now - train_.began), least);
        train_.first
            ? rates_.note(rate, true)
            : rates_.note_train(rate, share() >= kPaceFirstShare || now - fitted_ > kKeptOut);
        guessing_ = false;
    }
    if (train_.first) {
        train_.first = false;
        window_ = first_window();
    }
    begin_round(now);
}

/* What is under way of it says nothing any more. */
void PrefetchPace::drop_train() {
    train_.open = train_.first = false;
    train_.number++;
}

/* -------------------------------------------------------------------------- with what to begin */

/* Where a round trip is long, it pays to begin with more. */
bool PrefetchPace::far() const {
    return latency() > kFarLatency;
}

/* As if the base gave so much. */
double PrefetchPace::first_rate() const {
    if (!far()) {
        return kFirstRate;
    }
    const double seen = std::min(rates_.value(), kFirstTrain / kLeastFirstTrainNs);
    return seen != 0 ? kFirstTrainShare * seen : kFarFirstRate;
}

/* For each byte that comes back. */
double PrefetchPace::start_growth() const {
    if (!far()) {
        return kStartGrowth;
    }
    return rates_.value() >= kFastFarRate ? kFastFarStartGrowth : kFarStartGrowth;
}

}  // namespace fvd
