/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once
/*
 * Silent damage: bits flip, writes are lost, arrive at the wrong place. No promise says that the
 * image survives; but damage of metadata must be detected or harmless: the guest never sees bytes
 * that nobody wrote, and what only the newest commit could tell may be lost, nothing else without a
 * word.
 */

#include "crash_explorer.h"
#include "history.h"

namespace fvd::sim {

struct DamageOutcome {
    std::optional<Violation> violation;
    History history;
    uint64_t images = 0;
};

/** Make a world, kill it, and damage copies of its image in many ways. */
DamageOutcome run_damage(uint64_t seed);

}  // namespace fvd::sim
