/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once
/*
 * Which images a power cut may leave. Given every unit that is uncertain and the contents it may
 * have, all combinations while they are few; otherwise none, all, each write alone, all but each,
 * and random ones, by whole writes and torn.
 */

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "rng.h"

namespace fvd::sim {

struct Candidate {
    struct Option {
        const std::byte* bytes = nullptr;
        uint64_t hash = 0;
        uint64_t write = 0;
    };
    unsigned disk = 0;
    uint64_t unit = 0;
    std::vector<Option> options; /* beside what is durable; oldest first */
};

/** One image: for each candidate 0 (what is durable) or 1 + index of an option. */
using Choice = std::vector<uint8_t>;

class CutStates {
  public:
    /** More uncertain units than this are sampled. */
    static constexpr size_t kCompleteUnits = 6;
    static constexpr size_t kRandom = 32;

    CutStates(std::span<const Candidate> candidates, Rng& rng)
        : candidates_(candidates), rng_(rng), choice_(candidates.size(), 0) {}

    /** Call visit(choice) until it returns false. @p budget bounds the sampled ones. */
    using Visit = std::function<bool(const Choice&)>;
    void for_each(size_t budget, const Visit& visit);

    /** A single state, for a cut that really happens. */
    const Choice& random_choice();

  private:
    bool visit_all(const Visit& visit);
    bool visit_samples(size_t budget, const Visit& visit);
    void list_writes();
    /** Newest option of each unit whose write is in the set. */
    void choose_writes(const std::function<bool(size_t)>& is_kept);

    std::span<const Candidate> candidates_;
    Rng& rng_;
    Choice choice_;
    std::vector<uint64_t> writes_;
};

}  // namespace fvd::sim
