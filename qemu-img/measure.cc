/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * qemu-img measure: how long the FVD file will be. A linear image has a place for each byte of the
 * disk from the first day, however little of it is data.
 */
#include <algorithm>

#include "fvd/format/layout.h"
#include "fvd/verbs.h"

namespace fvd {

Error measure_image(const fvd_create_options& options, uint64_t, fvd_measure_result* result) {
    const Result<Header> planned = plan_layout(layout_request(options));
    if (!planned.ok()) {
        return planned.error();
    }
    const Regions regions = regions_of(planned.value());
    const uint64_t data_end = options.data_file != nullptr ? 0 : regions.data.end;
    const uint64_t end = std::max(
        {regions.header.end, regions.bitmap.end, regions.table.end, regions.journal.end, data_end});
    *result = {end, end};
    return Error::none();
}

}  // namespace fvd
