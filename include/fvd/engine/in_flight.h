/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once
/*
 * When have all requests ended that began before some moment? Requests count themselves in the
 * phase they begin in; turn() begins a new phase, and when the old one's count is zero, they have.
 * Entering and leaving take no lock; the phase is turned by one task at a time, under the host's
 * mutex, and only when the phase before is empty.
 */

#include <array>
#include <atomic>
#include <cstdint>

namespace fvd {

class InFlight {
  public:
    /** Returns the phase to give to leave(). *emptied is set when a phase that is over got empty.
     */
    unsigned enter(bool* emptied) {
        for (;;) {
            const unsigned phase = phase_.load();
            count_[phase & 1].fetch_add(1);
            if (phase_.load() == phase) {
                return phase;
            }
            *emptied |= leave(phase); /* turned meanwhile: too late for that one */
        }
    }
    /** True when this was the last of a phase that is over. */
    bool leave(unsigned phase) {
        return count_[phase & 1].fetch_sub(1) == 1 && phase_.load() != phase;
    }

    void turn() { phase_.fetch_add(1); }
    /** The present one; requests begin in it. */
    unsigned phase() const { return phase_.load(); }
    /** Nobody is in the phase before this one. */
    bool former_is_empty() const { return count_[(phase_.load() + 1) & 1].load() == 0; }

  private:
    std::atomic<unsigned> phase_{0};
    std::array<std::atomic<uint64_t>, 2> count_{};
};

}  // namespace fvd
