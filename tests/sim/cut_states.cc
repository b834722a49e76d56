/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "cut_states.h"

#include <algorithm>

namespace fvd::sim {

void CutStates::list_writes() {
    writes_.clear();
    for (const Candidate& candidate : candidates_) {
        for (const Candidate::Option& option : candidate.options) {
            writes_.push_back(option.write);
        }
    }
    std::sort(writes_.begin(), writes_.end());
    writes_.erase(std::unique(writes_.begin(), writes_.end()), writes_.end());
}

void CutStates::choose_writes(const std::function<bool(size_t)>& is_kept) {
    for (size_t i = 0; i < candidates_.size(); i++) {
        choice_[i] = 0;
        for (size_t o = 0; o < candidates_[i].options.size(); o++) {
            const auto at =
                std::lower_bound(writes_.begin(), writes_.end(), candidates_[i].options[o].write);
            if (is_kept(static_cast<size_t>(at - writes_.begin()))) {
                choice_[i] = static_cast<uint8_t>(o + 1);
            }
        }
    }
}

/* Count through the product of the options like an odometer. */
bool CutStates::visit_all(const Visit& visit) {
    std::fill(choice_.begin(), choice_.end(), 0);
    for (;;) {
        if (!visit(choice_)) {
            return false;
        }
        size_t i = 0;
        while (i < choice_.size() && choice_[i] == candidates_[i].options.size()) {
            choice_[i++] = 0;
        }
        if (i == choice_.size()) {
            return true;
        }
        choice_[i]++;
    }
}

const Choice& CutStates::random_choice() {
    list_writes();
    std::vector<bool> kept(writes_.size());
    const uint64_t keep = rng_.between(10, 90);
    for (size_t w = 0; w < kept.size(); w++) {
        kept[w] = rng_.chance(keep);
    }
    choose_writes([&](size_t w) { return kept[w]; });
    if (rng_.chance(50)) {
        /* Torn: single units decide for themselves. */
        for (size_t i = 0; i < choice_.size(); i++) {
            if (rng_.chance(30)) {
                choice_[i] = static_cast<uint8_t>(rng_.below(candidates_[i].options.size() + 1));
            }
        }
    }
    return choice_;
}

bool CutStates::visit_samples(size_t budget, const Visit& visit) {
    list_writes();
    const auto sample = [&](const std::function<bool(size_t)>& is_kept) {
        choose_writes(is_kept);
        return visit(choice_);
    };
    if (!sample([](size_t) { return false; }) || !sample([](size_t) { return true; })) {
        return false;
    }
    const size_t writes = writes_.size();
    const size_t turns = std::min(writes, budget / 4 + 1);
    const size_t first = rng_.below(writes);
    for (size_t k = 0; k < turns; k++) {
        const size_t one = (first + k) % writes;
        if (!sample([one](size_t w) { return w == one; }) ||
            !sample([one](size_t w) { return w != one; }) ||
            !sample([one](size_t w) { return w <= one; })) {
            return false;
        }
    }
    for (size_t k = 0; k < std::min(kRandom, budget); k++) {
        if (!visit(random_choice())) {
            return false;
        }
    }
    return true;
}

void CutStates::for_each(size_t budget, const Visit& visit) {
    uint64_t product = 1;
    for (const Candidate& candidate : candidates_) {
        product = std::min<uint64_t>(product * (candidate.options.size() + 1), 1 << 20);
    }
    if (product <= (uint64_t{1} << kCompleteUnits)) {
        visit_all(visit);
    } else {
        visit_samples(budget, visit);
    }
}

}  // namespace fvd::sim
