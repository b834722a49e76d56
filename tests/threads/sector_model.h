/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once
/*
 * What each sector may read as while threads write. One thread owns a sector and alone writes it,
 * so a sector has versions 0 (the base), 1, 2, ...; the owner says before a request that version v
 * begins and afterwards that it ended, and a reader on any thread must find a version between the
 * last that had ended before the read and the last that had begun after it.
 *
 * Owners change every few sectors, at places that have nothing to do with blocks: most blocks have
 * several owners, who race for the first write.
 */

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "fvd/base/bytes.h"

namespace fvd::threads {

inline constexpr uint64_t kSector = 512;

/** What the numbers of versions say of their content. */
enum class Kind { data, zero, discarded_then_data };

struct Run {
    uint64_t begin = 0; /* sectors */
    uint64_t count = 0;
};

class SectorModel {
  public:
    SectorModel(uint64_t sectors, uint64_t base_sectors, unsigned owners, uint64_t seed);

    uint64_t sectors() const { return sectors_; }
    const std::vector<Run>& runs_of(unsigned owner) const { return runs_[owner]; }

    /* For the owner of all sectors of @p run. */
    uint64_t begin(Run run, Kind kind); /* the version that begins */
    void end(Run run, uint64_t version);
    void fill(Run run, uint64_t version, std::byte* data) const;

    /** Ask for what is allowed before a read ... */
    void before_read(Run run, std::vector<uint64_t>& least) const;
    /** ... and judge it afterwards: empty, or a sentence. */
    std::string judge(Run run, const std::vector<uint64_t>& least, const std::byte* data) const;

    /** The disk reads as the base again. No request in flight. */
    void forget();
    static void fill_base(uint64_t sector, std::byte* data);

  private:
    struct Versions {
        std::atomic<uint64_t> begun{0};
        std::atomic<uint64_t> ended{0};
    };
    bool zero_allowed(uint64_t sector, uint64_t least, uint64_t most) const;

    uint64_t sectors_;
    uint64_t base_sectors_;
    uint64_t floor_ = 0; /* changes only between lives */
    std::unique_ptr<Versions[]> versions_;
    std::vector<std::vector<Run>> runs_;
};

}  // namespace fvd::threads
