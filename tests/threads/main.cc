/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * fvd-threads: the core on real threads, under the race detector as a test, without it as a measure
 * of what several queues give.
 */
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "workload.h"

namespace fvd::threads {
namespace {

struct Arguments {
    double seconds = 15;
    uint64_t seed = 1;
    unsigned threads = 8;
    bool throughput = false;
    bool planted_race = false;
};

int usage() {
    std::fputs(
        "usage: fvd-threads [--seconds N] [--seed N] [--threads N] [--throughput] [--plant-race]\n"
        "  --seconds N   how long (15); with --throughput: for each line (1)\n"
        "  --seed N      the first world (1)\n"
        "  --threads N   queues (8)\n"
        "  --throughput  requests a second with 1, 2, 4 and 8 queues\n"
        "  --plant-race  the core's mutex excludes nobody\n",
        stderr);
    return 2;
}

bool parse(int argc, char** argv, Arguments& arguments) {
    bool seconds_given = false;
    for (int i = 1; i < argc; i++) {
        const bool has_value = i + 1 < argc;
        if (std::strcmp(argv[i], "--throughput") == 0) {
            arguments.throughput = true;
        } else if (std::strcmp(argv[i], "--plant-race") == 0) {
            arguments.planted_race = true;
        } else if (std::strcmp(argv[i], "--seconds") == 0 && has_value) {
            arguments.seconds = std::atof(argv[++i]);
            seconds_given = true;
        } else if (std::strcmp(argv[i], "--seed") == 0 && has_value) {
            arguments.seed = std::strtoull(argv[++i], nullptr, 10);
        } else if (std::strcmp(argv[i], "--threads") == 0 && has_value) {
            arguments.threads = static_cast<unsigned>(std::atoi(argv[++i]));
        } else {
            return false;
        }
    }
    if (arguments.throughput && !seconds_given) {
        arguments.seconds = 1;
    }
    return arguments.threads >= 1 && arguments.threads <= 64 && arguments.seconds > 0;
}

/* ------------------------------------------------------------------------------- the test */

/** A few lives of one image. */
bool live(World& world, double seconds) {
    return world.create() &&                                      //
           world.run(seconds * 0.4) && world.check_recovery() &&  //
           world.stop_and_start() && world.run(seconds * 0.2) &&  //
           world.check_recovery() && world.make_empty() &&        //
           world.run(seconds * 0.4) && world.check_recovery() &&  //
           world.stop_and_start() && world.finish();
}

int test(const Arguments& arguments) {
    const auto start = std::chrono::steady_clock::now();
    const auto elapsed = [&] {
        return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    };
    uint64_t passed = 0;
    uint64_t failed = 0;
    uint64_t requests = 0;
    uint64_t parks = 0;
    uint64_t timers = 0;
    for (uint64_t seed = arguments.seed; elapsed() < arguments.seconds; seed++) {
        WorldOptions options = options_of_seed(seed);
        options.threads = arguments.threads;
        options.planted_race = arguments.planted_race;
        World world(options);
        const bool right = live(world, std::min(2.0, arguments.seconds / 6));
        (right ? passed : failed)++;
        if (!right) {
            std::printf("world %llu: %s\n", static_cast<unsigned long long>(seed),
                        world.complaint().c_str());
        }
        requests += world.requests();
        parks += world.host().parks();
        timers += world.host().timers_fired();
    }
    std::printf("%llu requests of %u threads, %llu waits for each other, %llu timers\n",
                static_cast<unsigned long long>(requests), arguments.threads,
                static_cast<unsigned long long>(parks), static_cast<unsigned long long>(timers));
    std::printf("threads: %llu passed, %llu failed\n", static_cast<unsigned long long>(passed),
                static_cast<unsigned long long>(failed));
    return failed == 0 && parks != 0 && timers != 0 ? 0 : 1;
}

/* ------------------------------------------------------------------------------- throughput */

constexpr uint64_t kRequest = 4096;

enum class Load { first_writes, writes, reads };

/** Requests a second of @p queues threads, each with a part of the disk of its own. */
double measure(Image& image, uint64_t disk, unsigned queues, Load load, double seconds) {
    std::atomic<uint64_t> done{0};
    std::atomic<bool> ending{false};
    const uint64_t share = disk / queues / kRequest * kRequest;
    std::vector<std::thread> threads;
    const auto start = std::chrono::steady_clock::now();
    for (unsigned queue = 0; queue < queues; queue++) {
        threads.emplace_back([&, queue] {
            alignas(4096) std::byte buffer[kRequest] = {};
            uint64_t count = 0;
            for (uint64_t at = 0; !ending.load(std::memory_order_relaxed); at += kRequest) {
                if (at == share && load == Load::first_writes) {
                    break; /* there is no second first write */
                }
                const uint64_t offset = queue * share + at % share;
                const Status status = load == Load::reads
                                          ? image.read(offset, kRequest, {buffer, 0}, 0)
                                          : image.write(offset, kRequest, {buffer, 0}, 0);
                FVD_ASSERT(status.ok());
                count++;
            }
            done.fetch_add(count);
        });
    }
    if (load != Load::first_writes) {
        std::this_thread::sleep_for(std::chrono::duration<double>(seconds));
        ending.store(true);
    }
    for (std::thread& thread : threads) {
        thread.join();
    }
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    return static_cast<double>(done.load()) / took.count();
}

int throughput(const Arguments& arguments) {
    std::printf("requests of 4 KiB a second, files in memory\n%8s %14s %12s %12s\n", "queues",
                "first writes", "writes", "reads");
    for (const unsigned queues : {1u, 2u, 4u, 8u}) {
        WorldOptions options;
        options.sectors = options.base_sectors = 256 * 2048; /* 256 MiB */
        options.block_size = 65536;
        const std::unique_ptr<ThreadHost> host = make_host(options, false);
        Image image(*host);
        if (!create_on(*host, options).ok() || !image.load().ok() ||
            !image.start(StartMode::writable).ok()) {
            std::fputs("the image cannot be made\n", stderr);
            return 1;
        }
        host->attach(&image);
        const uint64_t disk = options.sectors * kSector;
        const double first = measure(image, disk, queues, Load::first_writes, arguments.seconds);
        const double writes = measure(image, disk, queues, Load::writes, arguments.seconds);
        const double reads = measure(image, disk, queues, Load::reads, arguments.seconds);
        std::printf("%8u %14.0f %12.0f %12.0f\n", queues, first, writes, reads);
        host->quiesce();
        if (!image.stop().ok()) {
            return 1;
        }
    }
    return 0;
}

}  // namespace
}  // namespace fvd::threads

int main(int argc, char** argv) {
    fvd::threads::Arguments arguments;
    if (!fvd::threads::parse(argc, argv, arguments)) {
        return fvd::threads::usage();
    }
    return arguments.throughput ? fvd::threads::throughput(arguments)
                                : fvd::threads::test(arguments);
}
