/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once
/*
 * When the next piece of the base may be fetched, and how large it is. A pure unit: it performs no
 * I/O, has no clock, and its randomness comes from a seed. The prefetcher tells it what happens and
 * asks it what may be done; docs/prefetch-study.md tells how well it does.
 *
 * While the guest does not read from the base, a window of bytes in flight grows until requests
 * begin to wait for each other, and shrinks to what the pipe holds (additive increase,
 * multiplicative decrease on delay). While the guest reads, prefetch keeps a model of the queue at
 * the bottleneck, and fills it only as far as it will be empty again when the guest's next read can
 * arrive.
 *
 * Not thread-safe: its owner calls it under the image's mutex. Times never run backwards; one that
 * does counts as the latest seen.
 */

#include <array>
#include <cstddef>

#include "fvd/engine/pace_guest.h"
#include "fvd/engine/pace_parameters.h"
#include "fvd/engine/pace_parts.h"

namespace fvd {

/** Why nothing may be issued now, in the order in which they are looked at. */
enum class PaceReason {
    none,          /* a request may be issued */
    finished,      /* everything is here */
    off,           /* prefetch_start_delay is negative */
    paused,        /* by the user */
    start_delay,   /* prefetch_start_delay has not passed */
    base_error,    /* backing off after an error of the base */
    store_error,   /* backing off after an error of the image */
    below_minimum, /* a random pause after too low a throughput */
    storing,       /* the image takes data slower than the base gives it */
    rate_limit,    /* prefetch_max_read_throughput */
    guest_active,  /* the guest reads from the base */
    pipe_full,     /* more in flight would only wait */
    count
};

/** A word for people: "guest-active". */
const char* pace_reason_name(PaceReason reason);

struct PaceDecision {
    PaceReason reason = PaceReason::none;
    uint64_t bytes = 0; /* none: size of the next request, a multiple of the granule */
    /* Otherwise: ask again at this time, or at the next event if that is earlier. kPaceNever only
     * where an event is bound to come: a request is in flight or being stored, or the reason is
     * finished, off or paused. */
    PaceTime until = kPaceNever;
};

/** Travels with a request and is handed back at its end. */
struct PaceTicket {
    PaceTime issued = 0;
    uint64_t bytes = 0;
    double queued = 0; /* ns that the model says it waits behind others */
    double window = 0; /* as it was then */
    bool scout = false;
    uint64_t ask = 0; /* which question about the latency it answers; 0: none */
    uint64_t phase = 0;
    uint64_t train = 0; /* which one it belongs to; 0: none */
};

/** Travels with a read of the base that a guest request waits for. */
struct PaceGuestTicket {
    PaceTime begun = 0;
    uint64_t bytes = 0;
    uint64_t issued_before = 0; /* prefetch requests */
    uint64_t phase = 0;
    size_t slot = 0;
    bool alone = false; /* no prefetch was in flight */
};

/** For people who watch. */
struct PaceReport {
    bool guest_active = false;
    uint64_t in_flight = 0; /* bytes at the base */
    uint64_t storing = 0;   /* bytes on their way into the image */
    uint64_t window = 0;    /* bytes that may be in flight while the guest is idle */
    PaceTime latency = 0;   /* of the base, unloaded; 0: not known */
    uint64_t base_rate = 0; /* bytes/s the base was seen to give, to the guest and us */
    uint64_t rate = 0;      /* bytes/s of prefetch, smoothed over seconds */
    double share = 0;       /* of the base's rate that is used beside the guest */
    uint64_t fetched = 0;   /* bytes since the beginning */
    uint64_t base_errors = 0;
    uint64_t store_errors = 0;
    std::array<uint64_t, static_cast<size_t>(PaceReason::count)> holds{};
    std::array<PaceTime, static_cast<size_t>(PaceReason::count)> held{};
};

class PrefetchPace {
  public:
    /** @p granule: requests are multiples of it (bytes; at least the block size, and the smallest
     *  request, which measures latency). */
    PrefetchPace(const PaceParameters& parameters, uint64_t granule, uint64_t seed, PaceTime now);

    /** May be called at any time; what was learnt about the base stays. */
    void set_parameters(const PaceParameters& parameters, PaceTime now);
    void pause(PaceTime now);
    void resume(PaceTime now);
    void finish(PaceTime now);
    bool user_paused() const { return user_paused_; }

    /** What may be done now. Where it answers with bytes, issue them and ask again. */
    PaceDecision decide(PaceTime now);

    /** A request of 0 < @p bytes was issued; fewer than decide() said where the base has fewer left
     *  to fetch. */
    PaceTicket issued(PaceTime now, uint64_t bytes);
    /** There is nothing to issue for now, whatever decide() says: that is not the base's fault, and
     *  no contention. */
    void idle(PaceTime now);
    /** It came back; where @p ok, its data is now being stored until stored() or dropped(). */
    void fetched(PaceTime now, const PaceTicket& ticket, bool ok);
    /** Storing of @p bytes must not begin before this time (prefetch_max_write_throughput). */
    PaceTime store_from(PaceTime now, uint64_t bytes);
    void stored(PaceTime now, uint64_t bytes, bool ok);
    /** The guest wrote them in the meantime: they are not stored. */
    void dropped(PaceTime now, uint64_t bytes);

    PaceGuestTicket guest_begun(PaceTime now, uint64_t bytes);
    void guest_ended(PaceTime now, const PaceGuestTicket& ticket, bool ok);

    PaceReport report(PaceTime now) const;

  private:
    /* The time in which the requests issued at its begin come back. */
    struct Round {
        PaceTime begin = 0;
        double delivered = 0;
        double least_delay = 0;
        uint32_t samples = 0; /* of the delay: scouts, or large requests */
        bool window_was_limit = false;
        bool held_back = false; /* by something else than the base */
    };

    /* A few small requests with nothing else of ours in flight: what is the base's latency? */
    struct Ask {
        bool open = true;      /* it is the first that we want to know */
        bool answered = false; /* once */
        uint64_t number = 1;
        uint32_t issued = 0;
        PaceTime next = 0; /* not before this time */
        uint32_t answers = 0;
        double least = 0;
        double sum = 0;
        PaceTime ended = 0;
    };

    /* Small requests that are sent at once. */
    struct Train {
        bool open = false; /* for more of them */
        uint64_t number = 0;
        uint32_t length = 0; /* requests */
        PaceTime next = 0;
        uint32_t issued = 0;
        PaceTime sent_first = 0;
        PaceTime sent_last = 0;
        uint32_t back = 0;
        PaceTime began = 0; /* to come back */
        double bytes = 0;   /* since then */
        bool first = false; /* of a far base: nothing goes behind it before it is back */
    };

    /* Deciding, rounds, limits: prefetch_pace.cc */
    PaceDecision hold(PaceReason reason, PaceTime until);
    PaceDecision judge(PaceTime now);
    bool blocked(PaceTime now, PaceDecision* decision);
    PaceDecision limited(PaceTime now, double bytes);
    uint64_t most_storing() const;
    void account(PaceReason reason);
    bool scout_due() const;
    bool scouts_are_dear() const;
    void note_scout(PaceTime now, const PaceTicket& ticket);
    void note_delay(PaceTime now, const PaceTicket& ticket, double took);
    void begin_round(PaceTime now);
    void end_round(PaceTime now);
    void measure_read(PaceTime now, uint64_t bytes);
    void measure_write(PaceTime now, uint64_t bytes);
    void pause_at_random(PaceTime now);
    void stop_measuring();
    PaceTime advance(PaceTime now);
    double latency() const { return latency_.value(); }
    double base_rate() const;
    double whole_granules(double bytes) const;

    /* What is asked of the base only to learn about it: pace_questions.cc */
    bool ask_latency(PaceTime now, PaceDecision* decision);
    uint64_t take_question(PaceTime now);
    PaceTime ask_distance() const;
    void note_answer(PaceTime now, const PaceTicket& ticket);
    void drop_question();
    bool time_to_ask(PaceTime now) const;
    bool train_due(PaceTime now);
    uint32_t train_length() const;
    double train_bytes() const;
    PaceTime least_train_span() const;
    bool train_hides(PaceTime now) const;
    bool first_train(PaceTime now, PaceDecision* decision);
    bool room_for_train(PaceTime now);
    uint64_t take_train(PaceTime now);
    void note_train(PaceTime now, const PaceTicket& ticket);
    void drop_train();
    bool far() const;
    double first_rate() const;
    double start_growth() const;

    /* While the guest is idle: pace_alone.cc */
    PaceDecision fill(PaceTime now);
    double request_size() const;
    void spread_from(PaceTime now, double bytes);
    double first_window() const;
    void end_start(double window, double delay);
    void regain_window(double delay);
    void adjust_window(double rate, double delay);
    double queue_limit() const;
    double pipe_content() const;

    /* Beside the guest: pace_beside_guest.cc */
    void enter(bool guest_active, PaceTime now);
    bool guest_is_active(PaceTime now) const;
    PaceDecision beside_guest(PaceTime now);
    double share() const { return std::min(queue_share_, comparison_.share()); }
    double shared_rate() const;
    void wait_for_turn(PaceTime now);
    double least_beside_guest() const;
    double allowed_beside_guest(PaceTime now) const;
    PaceTime allowed_at(PaceTime now, double missing) const;
    double saved(double rate) const;
    size_t free_slots() const;
    bool hides(PaceTime now, double allowed, double* size, PaceTime* until) const;
    bool may_overtake(PaceTime now, PaceTime* until) const;
    void load(PaceTime now, double bytes, double rate);
    double backlog(PaceTime now) const;
    void adjust_share(double rate, double delay);

    /* What was asked for. */
    PaceParameters parameters_;
    double granule_;
    PaceRandom random_;
    PaceTime created_;
    PaceTime now_;
    bool user_paused_ = false;
    bool finished_ = false;

    /* What is under way. */
    uint64_t in_flight_ = 0;
    uint64_t in_flight_count_ = 0;
    uint64_t scouts_in_flight_ = 0;
    uint64_t storing_ = 0;
    uint64_t issued_count_ = 0;
    uint64_t since_scout_ = 0;

    /* What is known of the base. */
    BaseLatency latency_; /* of scouts, ns */
    Ask ask_;
    Train train_;
    BaseRate rates_;
    double delivered_ = 0; /* bytes, to the guest as well */
    Round round_;
    uint64_t phase_ = 0; /* counts changes between the two ways of working */

    /* While the guest is idle. */
    double window_ = 0;
    bool starting_ = true;
    PaceTime spread_until_ = 0; /* so that what comes back is no burst */
    uint32_t clear_rounds_ = 0;
    uint32_t flat_rounds_ = 0;
    uint32_t empty_rounds_ = 0; /* in a row */
    uint32_t late_scouts_ = 0;  /* in a row */
    uint32_t resume_after_ = 0; /* clear rounds after which the start goes on; 0: never again */
    double last_rate_ = 0;

    /* While the guest reads. */
    bool guest_active_ = false;
    PaceTime entered_ = 0;
    PaceTime turn_ = 0;        /* when we may ask, whatever the guest does */
    PaceTime fitted_ = 0;      /* when a request last found room beside the guest */
    PaceTime paced_until_ = 0; /* when it is free, at the rate we allow ourselves */
    PaceTime served_at_ = 0;   /* when it is free, as far as we know */
    /* Of the base's rate: as far as no queue shows. */
    double queue_share_ = kPaceFirstShare;
    bool guessing_ = true; /* the base's rate was never seen */
    GuestReads guest_;
    GuestComparison comparison_;

    /* Limits. */
    RateLimit read_limit_;
    double write_rate_ = 0;
    PaceTime store_from_ = 0;
    Backoff base_backoff_;
    Backoff store_backoff_;
    ThroughputGuard read_guard_;
    ThroughputGuard write_guard_;
    PaceTime guard_until_ = 0;
    PaceTime read_mark_ = 0; /* measured up to here; 0: not measuring */
    PaceTime write_mark_ = 0;

    /* For people. */
    PaceReport report_;
    PaceReason reason_ = PaceReason::none;
    PaceTime reason_since_ = 0;
    PaceTime rate_mark_ = 0;
    double rate_bytes_ = 0;
    double rate_ = 0;
};

}  // namespace fvd
