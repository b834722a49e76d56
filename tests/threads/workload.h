/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once
/* One image under many threads: what they do, and how it is judged while and after they do it. */

#include <atomic>
#include <memory>
#include <string>

#include "sector_model.h"
#include "thread_host.h"

namespace fvd::threads {

struct WorldOptions {
    uint64_t seed = 1;
    unsigned threads = 8;
    uint64_t sectors = 12000;
    uint64_t base_sectors = 9001; /* odd: the last block of the base is cut */
    uint64_t block_size = 4096;
    uint32_t journal_unit = 512;
    bool planted_race = false;
};

/** Different sizes of blocks and units for each seed. */
WorldOptions options_of_seed(uint64_t seed);

class World {
  public:
    explicit World(const WorldOptions& options);

    /** False when something was wrong; complaint() says what. */
    bool create();
    /** All threads at once, for a while; then nothing is in flight. */
    bool run(double seconds);
    /** Flush, and open a copy of the file as it is now: nothing acknowledged may be missing. */
    bool check_recovery();
    bool stop_and_start();
    bool make_empty();
    bool finish();

    uint64_t requests() const { return requests_.load(); }
    const ThreadHost& host() const { return *host_; }
    const std::string& complaint() const { return complaint_; }

  private:
    class Worker;
    bool verify(Image& image, const char* when);
    bool complain(const std::string& text);
    bool must(Status status, const char* what);
    bool must(const Error& error, const char* what);

    const WorldOptions options_;
    SectorModel model_;
    std::unique_ptr<ThreadHost> host_;
    std::unique_ptr<Image> image_;
    std::atomic<bool> ending_{false};
    std::atomic<uint64_t> requests_{0};
    std::mutex complaint_mutex_;
    std::string complaint_; /* the first */
};

/** A host of the right size with a base that is filled; 4 KiB blocks of stamps. */
std::unique_ptr<ThreadHost> make_host(const WorldOptions& options, bool slow);
Error create_on(ThreadHost& host, const WorldOptions& options);

}  // namespace fvd::threads
