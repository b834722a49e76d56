/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "shrink.h"

#include <algorithm>
#include <cstddef>

namespace fvd::sim {

namespace {

History without(const History& history, size_t begin, size_t end) {
    History shorter = history;
    shorter.ops.erase(shorter.ops.begin() + static_cast<std::ptrdiff_t>(begin),
                      shorter.ops.begin() + static_cast<std::ptrdiff_t>(end));
    return shorter;
}

}  // namespace

/* Leave out halves, quarters, ... single operations. The schedule depends on what is left, so each
 * step tries a few schedules too: the seed of the devices is a number like any other. */
History shrink(const History& history, const std::function<bool(const History&)>& still_breaks,
               size_t runs) {
    History best = history;
    constexpr uint64_t kSchedules = 3;
    const auto try_it = [&](History candidate) {
        for (uint64_t s = 0; s < kSchedules && runs != 0; s++, runs--) {
            candidate.seed = best.seed + s;
            if (still_breaks(candidate)) {
                best = candidate;
                return true;
            }
        }
        return false;
    };
    for (size_t piece = std::max<size_t>(best.ops.size() / 2, 1);; piece /= 2) {
        bool shorter = true;
        while (shorter && runs != 0) {
            shorter = false;
            for (size_t at = 0; at < best.ops.size() && runs != 0;) {
                const size_t end = std::min(at + piece, best.ops.size());
                if (try_it(without(best, at, end))) {
                    shorter = true;
                } else {
                    at = end;
                }
            }
        }
        if (piece <= 1 || runs == 0) {
            return best;
        }
    }
}

}  // namespace fvd::sim
