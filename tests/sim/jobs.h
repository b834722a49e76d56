/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once
/*
 * Work on several processes: what they share is one page of counters and the first failure. A
 * process that crashes says which piece of work it was at.
 */

#include <atomic>
#include <cstdint>
#include <functional>

namespace fvd::sim {

inline constexpr unsigned kMostJobs = 64;

struct Shared {
    std::atomic<uint64_t> next{0};
    std::atomic<uint64_t> states{0};
    std::atomic<uint64_t> nested{0};
    std::atomic<uint64_t> repeated{0};
    std::atomic<uint64_t> seeds{0};
    std::atomic<uint64_t> small_worlds{0};
    std::atomic<uint64_t> loop_runs{0};
    std::atomic<uint64_t> loops{0}; /* handed out */
    std::atomic<uint64_t> damaged{0};
    std::atomic<uint64_t> creates{0}; /* handed out */
    std::atomic<uint64_t> create_runs{0};
    std::atomic<uint64_t> create_images{0};
    std::atomic<uint64_t> operations{0};
    std::atomic<bool> stop{false};
    std::atomic<uint64_t> failures{0};
    std::atomic<uint64_t> at[kMostJobs]; /* 1 + the piece each process works on */
};

/** Memory that all processes see. */
Shared* make_shared_counters();

/** Run @p work(job) in @p jobs processes; false when one ended badly. @p crashed hears of crashes.
 */
bool run_jobs(unsigned jobs, Shared& shared, const std::function<void(unsigned)>& work,
              const std::function<void(unsigned job, int signal)>& crashed);

}  // namespace fvd::sim
