/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "fvd/engine/pace_parameters.h"

#include <algorithm>

#include "fvd/format/limits.h"
#include "fvd/fvd.h"

namespace fvd {

namespace {

constexpr int64_t kKiB = 1024;
constexpr int64_t kMiB = 1024 * kKiB;
constexpr int64_t kMaxKiBs = static_cast<int64_t>(limits::kMaxPrefetchThroughput);
constexpr int64_t kMaxMs = static_cast<int64_t>(limits::kMaxPrefetchTime);
constexpr int64_t kMaxSlots = static_cast<int64_t>(limits::kMaxPrefetchSlots);
constexpr int64_t kMaxStep = static_cast<int64_t>(limits::kMaxBytesPerPrefetch);

using P = PaceParameters;

constexpr PaceParameter kTable[] = {
    {"prefetch_start_delay", "s", &P::start_delay, offsetof(fvd_fill, prefetch_start_delay), -1, -1,
     limits::kMaxPrefetchStartDelay,
     "time from opening to the first request; negative: no prefetch"},
    /* QEMU's NBD client has 16 requests in flight: one is left for the guest. */
    {"num_prefetch_slots", "requests", &P::slots, offsetof(fvd_fill, num_prefetch_slots), 15, 1,
     kMaxSlots, "requests in flight at the base, at most"},
    {"bytes_per_prefetch", "bytes", &P::bytes_per_prefetch, offsetof(fvd_fill, bytes_per_prefetch),
     4 * kMiB, 4 * kKiB, kMaxStep,
     "largest request; its size follows the base's speed and latency"},
    {"prefetch_min_read_throughput", "KiB/s", &P::min_read_throughput,
     offsetof(fvd_fill, prefetch_min_read_throughput), 5120, 1, kMaxKiBs,
     "below this, and below half of what the base can do: random pauses"},
    {"prefetch_max_read_throughput", "KiB/s", &P::max_read_throughput,
     offsetof(fvd_fill, prefetch_max_read_throughput), kMaxKiBs, 1, kMaxKiBs,
     "never more than this from the base"},
    {"prefetch_min_write_throughput", "KiB/s", &P::min_write_throughput,
     offsetof(fvd_fill, prefetch_min_write_throughput), 5120, 1, kMaxKiBs,
     "as prefetch_min_read_throughput, for storing"},
    {"prefetch_max_write_throughput", "KiB/s", &P::max_write_throughput,
     offsetof(fvd_fill, prefetch_max_write_throughput), kMaxKiBs, 1, kMaxKiBs,
     "never more than this into the image"},
    {"prefetch_throttle_time", "ms", &P::throttle_time, offsetof(fvd_fill, prefetch_throttle_time),
     30000, 1, kMaxMs, "longest random pause after too low a throughput"},
    {"prefetch_read_throughput_measure_time", "ms", &P::read_measure_time,
     offsetof(fvd_fill, prefetch_read_throughput_measure_time), 100, 1, kMaxMs,
     "length of a measurement of the base"},
    {"prefetch_write_throughput_measure_time", "ms", &P::write_measure_time,
     offsetof(fvd_fill, prefetch_write_throughput_measure_time), 100, 1, kMaxMs,
     "length of a measurement of storing"},
    {"prefetch_max_in_flight", "bytes", &P::max_in_flight,
     offsetof(fvd_fill, prefetch_max_in_flight), 64 * kMiB, 64 * kKiB, 1024 * kMiB,
     "memory for data on its way from the base into the image"},
    {"prefetch_guest_idle_time", "ms", &P::guest_idle_time,
     offsetof(fvd_fill, prefetch_guest_idle_time), 250, 1, 60000,
     "quiet time at the base after which the guest counts as idle"},
    {"prefetch_guest_slowdown", "percent", &P::guest_slowdown,
     offsetof(fvd_fill, prefetch_guest_slowdown), 3, 1, 100,
     "longer guest reads than this, as far as measurable, slow prefetch down"},
    {"prefetch_retry_min_time", "ms", &P::retry_min_time,
     offsetof(fvd_fill, prefetch_retry_min_time), 500, 1, kMaxMs,
     "first pause after an error; it doubles from error to error"},
    {"prefetch_retry_max_time", "ms", &P::retry_max_time,
     offsetof(fvd_fill, prefetch_retry_max_time), 60000, 1, kMaxMs, "longest pause after an error"},
};

int64_t signed_of(uint64_t value) {
    return static_cast<int64_t>(std::min<uint64_t>(value, INT64_MAX));
}

}  // namespace

std::span<const PaceParameter> pace_parameter_table() {
    return kTable;
}

PaceParameters resolved(PaceParameters advice) {
    for (const PaceParameter& parameter : kTable) {
        int64_t& value = advice.*parameter.field;
        if (value == 0 && parameter.min > 0) {
            value = parameter.standard;
        }
        value = std::clamp(value, parameter.min, parameter.max);
    }
    advice.bytes_per_prefetch = std::min(advice.bytes_per_prefetch, advice.max_in_flight);
    advice.retry_max_time = std::max(advice.retry_max_time, advice.retry_min_time);
    return advice;
}

PaceParameters pace_parameters_of(const Header& header) {
    PaceParameters advice;
    advice.start_delay = header.prefetch_start_delay;
    advice.slots = header.num_prefetch_slots;
    advice.bytes_per_prefetch = signed_of(header.bytes_per_prefetch);
    advice.min_read_throughput = signed_of(header.prefetch_min_read_throughput);
    advice.max_read_throughput = signed_of(header.prefetch_max_read_throughput);
    advice.min_write_throughput = signed_of(header.prefetch_min_write_throughput);
    advice.max_write_throughput = signed_of(header.prefetch_max_write_throughput);
    advice.throttle_time = signed_of(header.prefetch_throttle_time);
    advice.read_measure_time = signed_of(header.prefetch_read_throughput_measure_time);
    advice.write_measure_time = signed_of(header.prefetch_write_throughput_measure_time);
    return advice;
}

}  // namespace fvd
