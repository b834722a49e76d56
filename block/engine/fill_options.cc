/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "fvd/engine/fill_options.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstring>

#include "fvd/format/limits.h"

namespace fvd {

namespace {

/* A guest that reads in large pieces has several of them on their way into the image; what does not
 * fit is not kept, and so fetched once more by prefetch. */
constexpr int64_t kCopyOnReadMemory = 16 * 1024 * 1024;

constexpr size_t kFirstWithoutField = offsetof(fvd_fill, prefetch_max_in_flight);
constexpr size_t kCount =
    (sizeof(fvd_fill) - offsetof(fvd_fill, max_outstanding_copy_on_read_data)) / sizeof(int64_t);

std::array<fvd_fill_parameter, kCount> make_table() {
    std::array<fvd_fill_parameter, kCount> table{};
    table[0] = {"max_outstanding_copy_on_read_data",
                "bytes",
                "memory for what the guest read, on its way into the image",
                kCopyOnReadMemory,
                1,
                static_cast<int64_t>(limits::kMaxOutstandingCopyOnRead),
                offsetof(fvd_fill, max_outstanding_copy_on_read_data),
                true};
    size_t next = 1;
    for (const PaceParameter& one : pace_parameter_table()) {
        table[next++] = {one.name, one.unit, one.what,   one.standard,
                         one.min,  one.max,  one.option, one.option < kFirstWithoutField};
    }
    FVD_ASSERT(next == kCount);
    return table;
}

/* A number that may be unset, and 0 for the standard. */
void put(int64_t number, uint64_t* field) {
    if (number != FVD_UNSET) {
        *field = static_cast<uint64_t>(number);
    }
}

int64_t shown(uint64_t field) {
    return static_cast<int64_t>(std::min<uint64_t>(field, INT64_MAX));
}

int64_t given_or(int64_t number, int64_t otherwise) {
    return number == FVD_UNSET ? otherwise : number;
}

/* A switch and a delay say together when prefetch starts. */
int64_t start_delay(fvd_switch prefetch, int64_t delay) {
    if (prefetch == FVD_OFF) {
        return -1;
    }
    return prefetch == FVD_ON ? std::max<int64_t>(delay, 0) : delay;
}

}  // namespace

std::span<const fvd_fill_parameter> fill_parameters() {
    static const std::array<fvd_fill_parameter, kCount> table = make_table();
    return table;
}

int64_t& number_of(fvd_fill& fill, const fvd_fill_parameter& parameter) {
    return *reinterpret_cast<int64_t*>(reinterpret_cast<std::byte*>(&fill) + parameter.offset);
}

int64_t number_of(const fvd_fill& fill, const fvd_fill_parameter& parameter) {
    return number_of(const_cast<fvd_fill&>(fill), parameter);
}

fvd_fill empty_fill() {
    fvd_fill fill;
    fill.copy_on_read = fill.prefetch = FVD_AUTO;
    for (const fvd_fill_parameter& parameter : fill_parameters()) {
        number_of(fill, parameter) = FVD_UNSET;
    }
    return fill;
}

Error check_fill(const fvd_fill& fill, bool for_header) {
    for (const fvd_fill_parameter& parameter : fill_parameters()) {
        const int64_t number = number_of(fill, parameter);
        if (number == FVD_UNSET) {
            continue;
        }
        if (for_header && !parameter.in_header) {
            return Error::make(-ENOTSUP,
                               "%s cannot be kept in an image; it is an option of the "
                               "program that opens it",
                               parameter.name);
        }
        if (number != 0 && (number < parameter.min || number > parameter.max)) {
            return Error::make(-EINVAL, "%s is %lld; must be in %lld..%lld (%s)", parameter.name,
                               static_cast<long long>(number),
                               static_cast<long long>(parameter.min),
                               static_cast<long long>(parameter.max), parameter.unit);
        }
    }
    return Error::none();
}

fvd_fill fill_of(const Header& header) {
    fvd_fill fill = empty_fill();
    const PaceParameters pace = pace_parameters_of(header);
    size_t next = 1;
    for (const PaceParameter& one : pace_parameter_table()) {
        const fvd_fill_parameter& parameter = fill_parameters()[next++];
        number_of(fill, parameter) = parameter.in_header ? pace.*one.field : FVD_UNSET;
    }
    fill.copy_on_read = header.copy_on_read ? FVD_ON : FVD_OFF;
    fill.prefetch = header.prefetch_start_delay < 0 ? FVD_OFF : FVD_ON;
    fill.max_outstanding_copy_on_read_data = shown(header.max_outstanding_copy_on_read_data);
    return fill;
}

void put_fill(const fvd_fill& fill, Header* header) {
    header->copy_on_read =
        fill.copy_on_read == FVD_AUTO ? header->copy_on_read : fill.copy_on_read == FVD_ON;
    header->prefetch_start_delay = start_delay(
        fill.prefetch, given_or(fill.prefetch_start_delay, header->prefetch_start_delay));
    put(fill.max_outstanding_copy_on_read_data, &header->max_outstanding_copy_on_read_data);
    put(fill.bytes_per_prefetch, &header->bytes_per_prefetch);
    put(fill.prefetch_min_read_throughput, &header->prefetch_min_read_throughput);
    put(fill.prefetch_max_read_throughput, &header->prefetch_max_read_throughput);
    put(fill.prefetch_min_write_throughput, &header->prefetch_min_write_throughput);
    put(fill.prefetch_max_write_throughput, &header->prefetch_max_write_throughput);
    put(fill.prefetch_throttle_time, &header->prefetch_throttle_time);
    put(fill.prefetch_read_throughput_measure_time, &header->prefetch_read_throughput_measure_time);
    put(fill.prefetch_write_throughput_measure_time,
        &header->prefetch_write_throughput_measure_time);
    header->num_prefetch_slots =
        static_cast<uint32_t>(given_or(fill.num_prefetch_slots, header->num_prefetch_slots));
}

FillPlan plan_fill(const fvd_fill& options, const Header& header) {
    const fvd_fill from_header = fill_of(header);
    PaceParameters pace;
    size_t next = 1;
    for (const PaceParameter& one : pace_parameter_table()) {
        const fvd_fill_parameter& parameter = fill_parameters()[next++];
        const int64_t otherwise = number_of(from_header, parameter);
        pace.*one.field =
            given_or(number_of(options, parameter), otherwise == FVD_UNSET ? 0 : otherwise);
    }
    pace.start_delay = start_delay(options.prefetch, pace.start_delay);
    const fvd_switch keep =
        options.copy_on_read == FVD_AUTO ? from_header.copy_on_read : options.copy_on_read;
    const int64_t memory = given_or(options.max_outstanding_copy_on_read_data,
                                    from_header.max_outstanding_copy_on_read_data);
    return {keep == FVD_ON, static_cast<uint64_t>(memory == 0 ? kCopyOnReadMemory : memory),
            resolved(pace)};
}

fvd_fill describe_plan(const FillPlan& plan) {
    fvd_fill fill = empty_fill();
    size_t next = 1;
    for (const PaceParameter& one : pace_parameter_table()) {
        number_of(fill, fill_parameters()[next++]) = plan.pace.*one.field;
    }
    fill.copy_on_read = plan.copy_on_read ? FVD_ON : FVD_OFF;
    fill.prefetch = plan.prefetch() ? FVD_ON : FVD_OFF;
    fill.max_outstanding_copy_on_read_data = static_cast<int64_t>(plan.copy_on_read_memory);
    return fill;
}

}  // namespace fvd
