/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once
/*
 * Pulls the plug. At a moment of a running world it builds the images that a power cut may leave,
 * and each of them must open read-only without a byte written (P6), show the guest only what the
 * reference disk allows (P1-P3), satisfy the check verb (P9), open for writing, show the same
 * again, and do all of that once more after power cuts in the middle of the recovery (P5).
 */

#include <array>
#include <optional>
#include <string>

#include "cut_states.h"
#include "direct_host.h"
#include "fvd/engine/image.h"
#include "medium.h"
#include "reference_disk.h"

namespace fvd::sim {

/** A broken promise, in words that let a stranger fix it. */
struct Violation {
    std::string promise; /* P1..P9, I1..I15, R1..R13 */
    std::string text;
};

struct ExplorerStats {
    uint64_t states = 0;   /* different images with different expectations, each fully judged */
    uint64_t repeated = 0; /* states met again and not judged again */
    uint64_t cuts = 0;     /* moments looked at */
    uint64_t nested = 0;   /* of states: cut during a recovery */
};

struct ExplorerOptions {
    size_t budget = 40;           /* sampled states a moment */
    uint64_t nested_percent = 25; /* of states, whose recovery is cut too */
    bool exact_memory = false; /* remember states across worlds (small worlds share beginnings) */
};

class CrashExplorer {
  public:
    static constexpr int kMaxDepth = 4;

    /** Start over with a new world. */
    void begin(const SimDisk& image, const SimDisk& data, const std::vector<std::byte>* base,
               bool separate_data, ReferenceDisk* reference, const ExplorerOptions& options,
               uint64_t seed);
    /** The power may fail now. */
    void explore(SimDisk& image, SimDisk& data);
    /** The base was written to: nothing seen before counts. */
    void base_changed() { world_salt_ = mix(world_salt_ + 1); }

    const std::optional<Violation>& violation() const { return violation_; }
    const ExplorerStats& stats() const { return stats_; }
    void forget_all() { seen_.clear(); }

    /** What may be on the disks after a cut now. */
    static std::vector<Candidate> candidates_of(const SimDisk& image, const SimDisk& data);

  private:
    struct Depth {
        WriteLog log;
        GuestMemory content; /* what the guest sees here; deeper ones must see the same */
        uint64_t size = 0;   /* of its disk; zeros follow */
        uint64_t content_hash = 0;
    };

    bool visit(std::span<const Candidate> candidates, const Choice& choice, int depth);
    bool judge(int depth);
    bool open_read_only(int depth);
    bool run_check();
    bool open_writable(int depth);
    static bool read_all(Image& image, uint64_t size, GuestMemory& content);
    bool judge_content(const GuestMemory& content, uint64_t disk_size, const char* how);
    bool same_content(int depth, const GuestMemory& content, const char* how);
    bool cut_recovery(int depth);
    bool cut_step(int depth, std::vector<Candidate>& candidates);
    bool broken(const char* promise, const std::string& text);
    std::string describe_cell(uint64_t cell, Value seen) const;

    Medium medium_;
    const std::vector<std::byte>* base_ = nullptr;
    bool separate_data_ = false;
    ReferenceDisk* reference_ = nullptr;
    ExplorerOptions options_;
    Rng rng_{0};
    uint64_t world_salt_ = 0;
    uint64_t expectation_ = 0;
    HashSet seen_;
    std::array<Depth, kMaxDepth + 1> depths_;
    GuestMemory scratch_;
    std::optional<Violation> violation_;
    ExplorerStats stats_;
};

}  // namespace fvd::sim
