/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "campaign.h"

#include <chrono>
#include <cinttypes>
#include <cstdio>

#include "call_loops.h"
#include "create_loops.h"
#include "damage.h"
#include "small_worlds.h"

namespace fvd::sim {

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
}

/** What one process does: a bit of everything in turn, until nothing is left or the time is over.
 */
class Worker {
  public:
    Worker(const CampaignOptions& options, Shared& shared, unsigned job, Clock::time_point start)
        : options_(options), shared_(shared), job_(job), start_(start), next_small_(0) {}

    void run() {
        for (uint64_t turn = 0; !shared_.stop; turn++) {
            if (time_is_over() || (options_.states != 0 && shared_.states >= options_.states)) {
                return;
            }
            if (job_ == 0) {
                tell_progress();
            }
            Piece piece;
            if (!choose(turn, piece)) {
                return;
            }
            perform(piece);
        }
    }

  private:
    bool time_is_over() const {
        return options_.seconds != 0 && seconds_since(start_) >= double(options_.seconds);
    }

    /* Stopped by a limit, not by the end of the work. */
    bool endless() const { return options_.seconds != 0 || options_.states != 0; }

    /* A run of hours that is killed must have said how far it was. */
    void tell_progress() {
        constexpr double kPeriod = 300;
        if (seconds_since(start_) >= next_progress_) {
            next_progress_ = seconds_since(start_) + kPeriod;
            std::printf("after %.0f s: %" PRIu64 " states, %" PRIu64 " seeds\n",
                        seconds_since(start_), shared_.states.load(), shared_.seeds.load());
            std::fflush(stdout);
        }
    }

    bool wants(const char* kind) const { return options_.only.empty() || options_.only == kind; }

    bool next_swarm(Piece& piece) {
        if (!wants("swarm")) {
            return false;
        }
        const uint64_t taken = shared_.next++;
        if (options_.histories != 0 && taken >= options_.histories) {
            return false;
        }
        piece = {PieceKind::swarm, options_.seed + taken};
        return true;
    }

    /* A job keeps to histories with the same first operation: those share states, and a state that
     * two jobs met would be counted twice. */
    bool next_small(Piece& piece) {
        constexpr uint64_t kFirstOperations = 16;
        while (next_small_ < small_world_count() &&
               next_small_ % kFirstOperations % options_.jobs != job_) {
            next_small_++;
        }
        if (!wants("small") || next_small_ >= small_world_count()) {
            return false;
        }
        piece = {PieceKind::small, next_small_++};
        shared_.small_worlds++;
        return true;
    }

    bool next_loop(Piece& piece) {
        const uint64_t all = scenario_count() * kFailureModes;
        if (!wants("loops") || shared_.loops >= all) {
            return false;
        }
        /* Neighbours are much alike: a step prime to the count goes through all of them mixed. */
        constexpr uint64_t kStep = 101;
        const uint64_t index = shared_.loops++;
        piece = {PieceKind::loop, index * kStep % all};
        return index < all;
    }

    bool next_create(Piece& piece) {
        if (!wants("create") || shared_.creates >= create_shape_count()) {
            return false;
        }
        piece = {PieceKind::create, shared_.creates++};
        return piece.index < create_shape_count();
    }

    bool next_damage(Piece& piece, uint64_t turn) {
        piece = {PieceKind::damage, mix(options_.seed, turn * kMostJobs + job_) >> 16};
        /* Without a time limit damage keeps pace with the rest, it does not outlive it. */
        return wants("damage");
    }

    bool choose(uint64_t turn, Piece& piece) {
        const uint64_t slot = turn % 16;
        if (slot % 4 == 3 && next_create(piece)) {
            return true;
        }
        if (slot == 0 && next_loop(piece)) {
            return true;
        }
        if (slot % 8 == 1 && next_damage(piece, turn)) {
            return true;
        }
        if (slot == 2 && wants("small")) {
            piece = {PieceKind::four, options_.seed * 65536 + turn * kMostJobs + job_};
            return true;
        }
        if (slot < 8 && next_small(piece)) {
            return true;
        }
        return next_swarm(piece) || next_small(piece) || next_loop(piece) || next_create(piece) ||
               (endless() && next_damage(piece, turn));
    }

    void perform(const Piece& piece) {
        shared_.at[job_] = piece.encode();
        CrashExplorer& explorer =
            piece.kind == PieceKind::small || piece.kind == PieceKind::four ? small_ : other_;
        const ExplorerStats before = explorer.stats();
        const PieceOutcome outcome = run_piece(piece, explorer, nullptr);
        const ExplorerStats& after = explorer.stats();
        shared_.states += after.states - before.states;
        shared_.nested += after.nested - before.nested;
        shared_.repeated += after.repeated - before.repeated;
        shared_.operations += outcome.operations;
        shared_.seeds += piece.kind == PieceKind::swarm;
        shared_.loop_runs += piece.kind == PieceKind::loop ? outcome.runs : 0;
        shared_.create_runs += piece.kind == PieceKind::create ? outcome.runs : 0;
        shared_.create_images += outcome.images;
        shared_.damaged += piece.kind == PieceKind::damage ? outcome.runs : 0;
        if (outcome.violation && !shared_.stop.exchange(true)) {
            shared_.failures++;
            report_failure(piece, outcome, options_.shrink_runs);
        }
        shared_.at[job_] = 0;
    }

    const CampaignOptions& options_;
    Shared& shared_;
    const unsigned job_;
    const Clock::time_point start_;
    uint64_t next_small_;
    double next_progress_ = 300;
    CrashExplorer small_;
    CrashExplorer other_;
};

void print_totals(const Shared& shared, double seconds) {
    std::printf("random histories: %" PRIu64 " seeds, %" PRIu64 " operations\n",
                shared.seeds.load(), shared.operations.load());
    std::printf("small worlds: %" PRIu64 " of %" PRIu64 "\n", shared.small_worlds.load(),
                small_world_count());
    std::printf("failing calls: %" PRIu64 " of %" PRIu64 " scenarios, %" PRIu64 " runs\n",
                std::min(shared.loops.load() / kFailureModes, scenario_count()), scenario_count(),
                shared.loop_runs.load());
    std::printf("failing and cut creates: %" PRIu64 " of %" PRIu64 " layouts, %" PRIu64
                " runs, %" PRIu64 " images\n",
                std::min(shared.creates.load(), create_shape_count()), create_shape_count(),
                shared.create_runs.load(), shared.create_images.load());
    std::printf("damaged images: %" PRIu64 "\n", shared.damaged.load());
    std::printf("cut during recovery: %" PRIu64 ", met again: %" PRIu64 "\n", shared.nested.load(),
                shared.repeated.load());
    std::printf("power-cut states: %" PRIu64 " in %.1f s, %.0f a second\n", shared.states.load(),
                seconds, double(shared.states.load()) / std::max(seconds, 0.001));
}

}  // namespace

std::string Piece::name() const {
    switch (kind) {
        case PieceKind::swarm:
            return "--seed " + std::to_string(index);
        case PieceKind::small:
            return "--only small --seed " + std::to_string(index);
        case PieceKind::four:
            return "--only four --seed " + std::to_string(index);
        case PieceKind::loop:
            return "--only loops --seed " + std::to_string(index);
        case PieceKind::damage:
            return "--only damage --seed " + std::to_string(index);
        case PieceKind::create:
            return "--only create --seed " + std::to_string(index);
    }
    return "?";
}

PieceOutcome run_piece(const Piece& piece, CrashExplorer& explorer, FILE* log) {
    PieceOutcome outcome;
    outcome.options.log = log;
    switch (piece.kind) {
        case PieceKind::loop: {
            LoopOutcome loop =
                run_call_loop(piece.index % (scenario_count() * kFailureModes), explorer);
            outcome.violation = loop.violation;
            outcome.history = std::move(loop.history);
            outcome.options = loop.options;
            outcome.runs = loop.runs;
            return outcome;
        }
        case PieceKind::damage: {
            const DamageOutcome damage = run_damage(piece.index);
            outcome.violation = damage.violation;
            outcome.history = damage.history;
            outcome.runs = damage.images;
            return outcome;
        }
        case PieceKind::create: {
            const CreateOutcome create = run_create_loop(piece.index % create_shape_count());
            outcome.violation = create.violation;
            outcome.runs = create.runs;
            outcome.images = create.images;
            return outcome;
        }
        case PieceKind::small:
            outcome.history = small_world(piece.index % small_world_count());
            outcome.options.exact_memory = true;
            break;
        case PieceKind::four:
            outcome.history = small_world_of_four(piece.index);
            outcome.options.exact_memory = true;
            break;
        case PieceKind::swarm:
            outcome.history = random_history(piece.index);
            break;
    }
    World world(outcome.history, explorer, outcome.options);
    const Outcome run = world.run();
    outcome.violation = run.violation;
    outcome.operations = run.operations;
    outcome.trace = mix(run.trace, explorer.stats().states);
    return outcome;
}

int run_campaign(const CampaignOptions& options) {
    const Clock::time_point start = Clock::now();
    Shared* shared = make_shared_counters();
    run_jobs(
        options.jobs, *shared, [&](unsigned job) { Worker(options, *shared, job, start).run(); },
        [&](unsigned job, int signal) {
            const uint64_t code = shared->at[job];
            if (code == 0) {
                std::printf("a process ended with signal %d between two worlds\n", signal);
                return;
            }
            PieceOutcome outcome;
            const Piece piece = Piece::decode(code);
            outcome.violation =
                Violation{"P8", "the core crashed (signal " + std::to_string(signal) + ")"};
            outcome.history = piece.kind == PieceKind::swarm   ? random_history(piece.index)
                              : piece.kind == PieceKind::small ? small_world(piece.index)
                              : piece.kind == PieceKind::four  ? small_world_of_four(piece.index)
                                                               : History{};
            report_failure(piece, outcome, options.shrink_runs);
        });
    print_totals(*shared, seconds_since(start));
    return shared->failures == 0 ? 0 : 1;
}

}  // namespace fvd::sim
