/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once
/* A run of many worlds on several processes, and what is said about the one that broke. */

#include <cstdint>
#include <string>

#include "crash_explorer.h"
#include "history.h"
#include "jobs.h"
#include "world.h"

namespace fvd::sim {

enum class PieceKind : uint8_t { swarm, small, four, loop, damage, create };

/** One world, or one family of them, that can be named again. */
struct Piece {
    PieceKind kind = PieceKind::swarm;
    uint64_t index = 0;

    uint64_t encode() const { return (static_cast<uint64_t>(kind) << 56 | index) + 1; }
    static Piece decode(uint64_t code) {
        return {static_cast<PieceKind>((code - 1) >> 56), (code - 1) & ((uint64_t{1} << 56) - 1)};
    }
    std::string name() const;
};

struct CampaignOptions {
    uint64_t seed = 1;
    uint64_t seconds = 0;   /* 0: until everything asked for is done */
    uint64_t states = 0;    /* 0: no limit */
    uint64_t histories = 0; /* random ones; 0: as many as the time allows */
    unsigned jobs = 1;
    std::string only; /* swarm, small, loops, damage, create; empty: all */
    size_t shrink_runs = 300;
};

/** 0 when every promise was kept. */
int run_campaign(const CampaignOptions& options);

/** What a piece came to; a loop's failing history and fault come back too. */
struct PieceOutcome {
    std::optional<Violation> violation;
    History history;
    WorldOptions options;
    uint64_t operations = 0;
    uint64_t trace = 0; /* of all that happened, in its order */
    uint64_t runs = 1;
    uint64_t images = 0; /* that a failed or cut create left */
};
PieceOutcome run_piece(const Piece& piece, CrashExplorer& explorer, FILE* log);

/** Run one history in a process of its own; the promise it broke, "crash", or nothing. */
std::string promise_broken_by(const History& history, const WorldOptions& options);

/** Print everything about a broken world, with its history made short. */
void report_failure(const Piece& piece, const PieceOutcome& outcome, size_t shrink_runs);

}  // namespace fvd::sim
