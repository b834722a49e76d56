/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once
/*
 * Loops at every call: each scenario again and again, with the first, the second, the third ... call of
 * the Host failing, once or for ever, until a run has no call left that could fail.
 */

#include "crash_explorer.h"
#include "history.h"
#include "world.h"

namespace fvd::sim {

struct Scenario {
    const char* name;
    const char* ops; /* the language of call_loops.cc */
};

uint64_t scenario_count();
const char* scenario_name(uint64_t index);

struct LoopOutcome {
    std::optional<Violation> violation;
    History history; /* that broke */
    WorldOptions options;
    uint64_t runs = 0;
};

/** All runs of one scenario. */
LoopOutcome run_scenario(uint64_t index, CrashExplorer& explorer);

}  // namespace fvd::sim
