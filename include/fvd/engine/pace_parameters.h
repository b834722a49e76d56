/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once
/*
 * What a person may say about the pace of prefetch: one table of names, units, standard values and
 * legal ranges, for the header, the runtime options and the documentation alike. Names that the
 * FVD specification of 2011 has are kept.
 */

#include <cstddef>
#include <cstdint>
#include <span>

#include "fvd/format/header.h"

namespace fvd {

/** In the units of the table. Members are legal after resolved(). */
struct PaceParameters {
    int64_t start_delay = -1; /* s; negative: no prefetch */
    int64_t slots = 0;
    int64_t bytes_per_prefetch = 0;
    int64_t min_read_throughput = 0; /* KiB/s, as are the next three */
    int64_t max_read_throughput = 0;
    int64_t min_write_throughput = 0;
    int64_t max_write_throughput = 0;
    int64_t throttle_time = 0; /* ms, as are the next two */
    int64_t read_measure_time = 0;
    int64_t write_measure_time = 0;
    int64_t max_in_flight = 0;
    int64_t guest_idle_time = 0; /* ms */
    int64_t guest_slowdown = 0;  /* percent */
    int64_t retry_min_time = 0;  /* ms, as is the next */
    int64_t retry_max_time = 0;

    friend bool operator==(const PaceParameters&, const PaceParameters&) = default;
};

struct PaceParameter {
    const char* name;
    const char* unit;
    int64_t PaceParameters::*field;
    size_t option;    /* its offset in struct fvd_fill */
    int64_t standard; /* what 0 stands for; the start delay has no such zero */
    int64_t min;
    int64_t max;
    const char* what;
};

std::span<const PaceParameter> pace_parameter_table();

/** Zeros become standard values, and what is out of range its nearest legal value: this is advice,
 *  and advice never keeps an image from opening. */
PaceParameters resolved(PaceParameters advice);

/** What an image asks for, not resolved. */
PaceParameters pace_parameters_of(const Header& header);

}  // namespace fvd
