/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The study of docs/prefetch-study.md: its tables on standard output, and with a directory as
 * argument the data of its plots as CSV files there.
 */
#include <algorithm>
#include <cstdio>

#include "scenarios.h"

namespace fvd::pace {
namespace {

constexpr Contender kAll[] = {Contender::paced, Contender::convert, Contender::stream,
                              Contender::driver_2011};
constexpr uint64_t kImage = uint64_t{1} << 30;

struct NamedLoad {
    const char* name;
    GuestLoad load;
};
const NamedLoad kLoads[] = {
    {"one by one, 4 KiB", {}},
    {"four at a time, 4 KiB", {.depth = 4}},
    {"one by one, 5 ms between", {.think = 5 * kMs}},
    {"50 a second at random", {.open_rate = 50}},
    {"one by one, 256 KiB", {.size = 256 * 1024}},
};

unsigned long long whole_ms(PaceTime time) {
    return time / kMs;
}

void print_fill() {
    std::puts("### Filling: MiB/s of a 1 GiB image\n");
    std::puts("| link | round trip | base | fvd | convert -m 16 -W | block-stream | 2011 |");
    std::puts("|---|---|---|---|---|---|---|");
    for (const double rate : {kFastLink, 10 * kFastLink}) {
        for (const PaceTime base : {PaceTime{0}, 5 * kMs}) {
            for (const PaceTime round_trip : kRoundTrips) {
                std::printf("| %.0f Gbit/s | %llu ms | %s |", rate * 8, whole_ms(round_trip),
                            base == 0 ? "even" : "+5 ms, exponential");
                for (const Contender contender : kAll) {
                    const double mib = fill_rate(
                        contender, {.rate = rate, .round_trip = round_trip, .base_time = base},
                        kImage);
                    mib == 0 ? std::printf(" < 1.8 |") : std::printf(" %.1f |", mib);
                }
                std::puts("");
            }
        }
    }
}

void print_hangs() {
    std::puts("\n### Filling over 1 Gbit/s where programs hang: MiB/s of a 1 GiB image\n");
    std::puts("| round trip | who hangs | fvd | convert -m 16 -W |\n|---|---|---|---|");
    for (const PaceTime round_trip : kRoundTrips) {
        for (const bool server : {false, true}) {
            const LinkShape link{.rate = kFastLink,
                                 .round_trip = round_trip,
                                 .hangs = server ? kBusyMachine : Hangs{}};
            std::printf("| %llu ms | %s | %.1f | %.1f |\n", whole_ms(round_trip),
                        server ? "machine and base" : "machine",
                        mean_fill_rate(Contender::paced, link, kImage, kBusyMachine),
                        mean_fill_rate(Contender::convert, link, kImage, kBusyMachine));
        }
    }
}

void print_beside(PaceTime base) {
    std::printf("\n### Beside a guest, 200 Mbit/s%s\n\n",
                base == 0 ? "" : ", base +0.5 ms, exponential");
    std::puts(
        "| round trip | guest | reads/s alone | p99 alone, ms | fvd: guest | p99 | of the rest "
        "| block-stream: guest | p99 | of the rest | 2011: guest | p99 | of the rest |");
    std::puts("|---|---|---|---|---|---|---|---|---|---|---|---|---|");
    for (const PaceTime round_trip : kRoundTrips) {
        for (const NamedLoad& named : kLoads) {
            const LinkShape link{.rate = kSlowLink, .round_trip = round_trip, .base_time = base};
            const BesideGuest alone = beside_guest(std::nullopt, link, named.load);
            const double rest =
                kSlowLink * 1e9 - alone.guest_rate * static_cast<double>(named.load.size);
            std::printf("| %llu ms | %s | %.0f | %.2f |", whole_ms(round_trip), named.name,
                        alone.guest_rate, static_cast<double>(alone.p99) / 1e6);
            for (const Contender contender :
                 {Contender::paced, Contender::stream, Contender::driver_2011}) {
                const BesideGuest both = beside_guest(contender, link, named.load);
                std::printf(" %.1f %% | %.2fx |", 100 * both.guest_rate / alone.guest_rate,
                            static_cast<double>(both.p99) / static_cast<double>(alone.p99));
                /* Where the guest alone takes nearly all, or is pushed aside, there is no rest. */
                rest < kSlowLink * 5e7 || both.guest_rate < 0.9 * alone.guest_rate
                    ? std::printf(" - |")
                    : std::printf(" %.0f %% |", 100 * both.prefetch_rate / rest);
            }
            std::puts("");
        }
    }
}

void print_manners() {
    std::puts("\n### Beside a guest, 200 Mbit/s, 2 ms\n");
    std::puts("| reads | even base | base +0.13 ms, exponential | and a bucket of 64 KiB |");
    std::puts("|---|---|---|---|");
    for (const uint64_t kib : {4U, 16U, 64U}) {
        std::printf("| %llu KiB |", static_cast<unsigned long long>(kib));
        for (const LinkShape& link : {kNear, kNearUneven, kNearBucket}) {
            const Manners manners =
                mean_manners(link, {.size = kib * 1024, .think = 150 * kUs}, 4 * kSecond);
            std::printf(" %.1f %%, %.2fx, ", 100 * manners.kept, manners.longer);
            manners.little_left ? std::printf("- |") : std::printf("%.0f %% |", 100 * manners.used);
        }
        std::puts("");
    }
}

void print_recovery() {
    std::puts("\n### After the guest goes idle\n");
    std::puts("| round trip | until nine tenths of the link |\n|---|---|");
    for (const PaceTime round_trip : kRoundTrips) {
        std::printf("| %llu ms | %llu ms |\n", whole_ms(round_trip),
                    whole_ms(recovery_time({.rate = kSlowLink, .round_trip = round_trip})));
    }
}

void print_sharing(bool pauses) {
    std::printf("\n### Machines that share 200 Mbit/s%s\n\n",
                pauses ? ", with the pauses of 2011 below 5 MiB/s" : "");
    std::puts(
        "| round trip | machines | link used | fairness (Jain) | least, MB/s | most, MB/s "
        "| mean queue, ms | longest queue, ms |");
    std::puts("|---|---|---|---|---|---|---|---|");
    for (const PaceTime round_trip : kRoundTrips) {
        for (const size_t count : {1U, 2U, 4U, 8U, 16U}) {
            const Sharing sharing = share_link(count, {.rate = kSlowLink, .round_trip = round_trip},
                                               Contender::paced, pauses);
            const auto [least, most] =
                std::minmax_element(sharing.rates.begin(), sharing.rates.end());
            std::printf("| %llu ms | %zu | %.0f %% | %.2f | %.1f | %.1f | %.1f | %.0f |\n",
                        whole_ms(round_trip), count, 100 * sharing.total, sharing.jain,
                        *least / 1e6, *most / 1e6, sharing.queue, sharing.longest_queue);
        }
    }
}

std::FILE* open_csv(const std::string& directory, const char* name) {
    std::FILE* file = std::fopen((directory + "/" + name).c_str(), "w");
    if (file == nullptr) {
        std::perror(name);
    }
    return file;
}

void write_fill(const std::string& directory) {
    std::FILE* file = open_csv(directory, "fill.csv");
    if (file == nullptr) {
        return;
    }
    std::fputs("round trip (ms),fvd,convert -m 16 -W,block-stream,2011\n", file);
    for (const PaceTime round_trip : kRoundTrips) {
        std::fprintf(file, "%llu", whole_ms(round_trip));
        for (const Contender contender : kAll) {
            std::fprintf(
                file, ",%.2f",
                fill_rate(contender, {.rate = kFastLink, .round_trip = round_trip}, kImage));
        }
        std::fputs("\n", file);
    }
    std::fclose(file);
}

void write_around(const std::string& directory) {
    std::FILE* file = open_csv(directory, "around-guest.csv");
    if (file == nullptr) {
        return;
    }
    const LinkShape link{.rate = kSlowLink, .round_trip = 2 * kMs};
    const auto ours = around_guest(Contender::paced, link);
    const auto stream = around_guest(Contender::stream, link);
    std::fputs("time (s),fvd,block-stream\n", file);
    for (size_t i = 0; i < ours.size(); i++) {
        std::fprintf(file, "%.1f,%.2f,%.2f\n", 0.1 * static_cast<double>(i), ours[i], stream[i]);
    }
    std::fclose(file);
}

void write_joining(const std::string& directory) {
    constexpr size_t kCount = 4;
    std::FILE* file = open_csv(directory, "joining.csv");
    if (file == nullptr) {
        return;
    }
    const auto rates =
        joining({.rate = kSlowLink, .round_trip = 10 * kMs}, kCount, 10 * kSecond, 60 * kSecond);
    std::fputs("time (s)", file);
    for (size_t i = 0; i < kCount; i++) {
        std::fprintf(file, ",machine %zu", i + 1);
    }
    std::fputs("\n", file);
    for (size_t second = 0; second < rates[0].size(); second++) {
        std::fprintf(file, "%zu", second);
        for (const auto& machine : rates) {
            std::fprintf(file, ",%.2f", machine[second]);
        }
        std::fputs("\n", file);
    }
    std::fclose(file);
}

}  // namespace
}  // namespace fvd::pace

int main(int argc, char** argv) {
    using namespace fvd::pace;
    print_fill();
    print_hangs();
    print_beside(0);
    print_manners();
    print_beside(kMs / 2);
    print_recovery();
    print_sharing(false);
    print_sharing(true);
    if (argc > 1) {
        write_fill(argv[1]);
        write_around(argv[1]);
        write_joining(argv[1]);
    }
    return 0;
}
