/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once
/*
 * Loops at every call: each scenario again and again, with the first, the second, the third ...
 * call of the Host failing, once or for ever, until a run has no call left that could fail.
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
/** Ways a call may fail: I/O error or no space, once or for ever; no memory, once or for ever. */
inline constexpr uint64_t kFailureModes = 6;

struct LoopOutcome {
    std::optional<Violation> violation;
    History history; /* that broke */
    WorldOptions options;
    uint64_t runs = 0;
};

/** All runs of one scenario in one mode; @p index is scenario x kFailureModes + mode. */
LoopOutcome run_call_loop(uint64_t index, CrashExplorer& explorer);

}  // namespace fvd::sim
