/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "scenarios.h"

#include <algorithm>

namespace fvd::pace {

double fill_rate(Contender contender, const LinkShape& shape, uint64_t bytes, const Hangs& hangs,
                 uint64_t seed) {
    Clock clock;
    Link link(clock, shape, seed);
    Machine machine(clock, link, {.contender = contender, .image = bytes, .hangs = hangs}, seed);
    machine.job.store_rate = 2;
    const bool done = clock.run_while([&] { return !machine.done(); }, 600 * kSecond);
    return done ? static_cast<double>(bytes) / kMiB / seconds(clock.now()) : 0;
}

double mean_fill_rate(Contender contender, const LinkShape& link, uint64_t bytes,
                      const Hangs& hangs) {
    constexpr uint64_t kRuns = 6;
    double sum = 0;
    for (uint64_t seed = 1; seed <= kRuns; seed++) {
        sum += fill_rate(contender, link, bytes, hangs, seed);
    }
    return sum / kRuns;
}

BesideGuest beside_guest(const MachineShape& machine_shape, const LinkShape& shape,
                         const GuestLoad& load, uint64_t seed) {
    constexpr PaceTime kFrom = 5 * kSecond;
    constexpr PaceTime kUntil = 30 * kSecond;
    Clock clock;
    Link link(clock, shape, seed);
    Machine machine(clock, link, machine_shape, seed);
    GuestLoad later = load;
    later.from = 3 * kSecond;
    machine.add_guest(later, seed + 1);
    machine.guests[0]->judge(kFrom, kUntil);
    clock.run_until(kUntil);
    return {machine.guests[0]->rate(), machine.guests[0]->percentile(0.99),
            machine.rate(kFrom, kUntil)};
}

BesideGuest beside_guest(std::optional<Contender> contender, const LinkShape& shape,
                         const GuestLoad& load, PaceTime starts, uint64_t seed) {
    return beside_guest({.contender = contender.value_or(Contender::paced),
                         .starts = starts,
                         .prefetches = contender.has_value()},
                        shape, load, seed);
}

Manners mean_manners(const LinkShape& shape, const GuestLoad& load, PaceTime starts) {
    constexpr uint64_t kRuns = 6;
    constexpr double kLittle = 1.0 / 20;
    Manners sum;
    for (uint64_t seed = 1; seed <= kRuns; seed++) {
        const BesideGuest alone = beside_guest(std::nullopt, shape, load, 0, seed);
        const BesideGuest both = beside_guest(Contender::paced, shape, load, starts, seed);
        const double rate = shape.rate * 1e9;
        const double left = rate - alone.guest_rate * static_cast<double>(load.size);
        sum.kept += both.guest_rate / alone.guest_rate;
        sum.longer += static_cast<double>(both.p99) / static_cast<double>(alone.p99);
        sum.used += both.prefetch_rate / left;
        sum.little_left |= left < kLittle * rate;
    }
    return {sum.kept / kRuns, sum.longer / kRuns, sum.used / kRuns, sum.little_left};
}

PaceTime recovery_time(const LinkShape& shape, PaceTime from, PaceTime until) {
    constexpr PaceTime kStep = 50 * kMs;
    Clock clock;
    Link link(clock, shape, 1);
    Machine machine(clock, link, {}, 1);
    machine.add_guest({.from = from, .until = until}, 2);
    const PaceTime end = until + 10 * kSecond;
    clock.run_until(end);
    const PaceTime idle = machine.guests[0]->last_read_ended();
    for (PaceTime begin = idle; begin < end; begin += kStep) {
        if (machine.rate(begin, begin + 4 * kStep) >= 0.9 * shape.rate * 1e9) {
            return begin - idle;
        }
    }
    return kPaceNever;
}

Sharing share_link(size_t count, const LinkShape& shape, Contender contender, bool pauses,
                   uint64_t seed) {
    constexpr PaceTime kFrom = 20 * kSecond;
    constexpr PaceTime kUntil = 60 * kSecond;
    Clock clock;
    Link link(clock, shape, 1);
    std::vector<std::unique_ptr<Machine>> machines;
    for (size_t i = 0; i < count; i++) {
        MachineShape machine{.contender = contender, .starts = i * 500 * kMs};
        machine.parameters.min_read_throughput = pauses ? 0 : 1;
        machines.push_back(std::make_unique<Machine>(clock, link, machine, seed + i));
    }
    Sharing result;
    size_t looks = 0;
    for (PaceTime now = kFrom; now <= kUntil; now += 10 * kMs) {
        clock.run_until(now);
        const double queue = static_cast<double>(link.queue()) / static_cast<double>(kMs);
        result.queue += queue;
        result.longest_queue = std::max(result.longest_queue, queue);
        looks++;
    }
    result.queue /= static_cast<double>(looks);
    double sum = 0;
    double squares = 0;
    for (const auto& machine : machines) {
        const double rate = machine->rate(kFrom, kUntil);
        result.rates.push_back(rate);
        sum += rate;
        squares += rate * rate;
    }
    result.total = sum / (shape.rate * 1e9);
    result.jain = sum * sum / (static_cast<double>(count) * squares);
    return result;
}

std::vector<std::vector<double>> joining(const LinkShape& shape, size_t count, PaceTime apart,
                                         PaceTime until) {
    Clock clock;
    Link link(clock, shape, 1);
    std::vector<std::unique_ptr<Machine>> machines;
    for (size_t i = 0; i < count; i++) {
        MachineShape machine{.starts = i * apart};
        machine.parameters.min_read_throughput = 1;
        machines.push_back(std::make_unique<Machine>(clock, link, machine, 100 + i));
    }
    clock.run_until(until);
    std::vector<std::vector<double>> rates;
    for (const auto& machine : machines) {
        rates.emplace_back();
        for (PaceTime from = 0; from < until; from += kSecond) {
            rates.back().push_back(machine->rate(from, from + kSecond) / 1e6);
        }
    }
    return rates;
}

std::vector<double> around_guest(Contender contender, const LinkShape& shape) {
    Clock clock;
    Link link(clock, shape, 1);
    Machine machine(clock, link, {.contender = contender}, 1);
    machine.add_guest({.from = 5 * kSecond, .until = 10 * kSecond}, 2);
    clock.run_until(15 * kSecond);
    std::vector<double> rates;
    for (PaceTime from = 0; from < 15 * kSecond; from += 100 * kMs) {
        rates.push_back(machine.rate(from, from + 100 * kMs) / 1e6);
    }
    return rates;
}

PaceTime first_bytes_after_failure(PaceTime until) {
    Clock clock;
    Link link(clock, {.rate = kSlowLink, .round_trip = 2 * kMs}, 1);
    Machine machine(clock, link, {}, 1);
    clock.at(5 * kSecond, [&] { link.break_down(kMs); });
    clock.at(until, [&] { link.repair(); });
    clock.run_until(until + 200 * kSecond);
    for (size_t ms = until / kMs; ms < machine.job.fetched.size(); ms++) {
        if (machine.job.fetched[ms] != 0) {
            return ms * kMs;
        }
    }
    return kPaceNever;
}

double worst_excess(int64_t kib) {
    constexpr size_t kRun = 5000; /* ms */
    Clock clock;
    Link link(clock, {.rate = kFastLink, .round_trip = 10 * kMs, .base_time = kMs}, 1);
    MachineShape shape;
    shape.parameters.max_read_throughput = kib;
    Machine machine(clock, link, shape, 1);
    /* A guest that comes and goes, so that there is something to catch up with. */
    machine.add_guest({.from = kSecond, .until = 2 * kSecond}, 2);
    clock.run_until(kRun * kMs);
    std::vector<uint64_t> fetched = machine.job.fetched;
    fetched.resize(kRun);
    const double a_ms = static_cast<double>(kib) * 1024 / 1000;
    double worst = 0;
    for (size_t from = 0; from < kRun; from++) {
        double sum = 0;
        for (size_t to = from; to < kRun; to++) {
            sum += static_cast<double>(fetched[to]);
            worst = std::max(worst, sum - a_ms * static_cast<double>(to - from + 1));
        }
    }
    return worst;
}

}  // namespace fvd::pace
