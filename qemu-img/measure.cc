/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * qemu-img measure: how long the FVD file will be. A linear image has a place for each byte of the
 * disk from the first day, however little of it is data. A compact one has slots for the chunks
 * that hold data, and never more slots than there are chunks, whatever the guest writes and frees.
 */
#include <algorithm>

#include "fvd/base/arith.h"
#include "fvd/format/layout.h"
#include "fvd/verbs.h"

namespace fvd {

namespace {

/** Bytes of storage when @p data_bytes of the disk hold data. */
uint64_t storage_for(const Header& header, const fvd_create_options& options, uint64_t data_bytes) {
    if (!header.has_table()) {
        return header.virtual_size;
    }
    const bool all = options.preallocation != FVD_PREALLOC_OFF;
    const uint64_t chunks = div_ceil(data_bytes, header.chunk_size);
    return storage_size(header,
                        all ? header.chunk_count() : std::min(chunks, header.chunk_count()));
}

}  // namespace

Error measure_image(const fvd_create_options& options, uint64_t data_bytes,
                    fvd_measure_result* result) {
    const Result<Header> planned = plan_layout(layout_request(options));
    if (!planned.ok()) {
        return planned.error();
    }
    const Header& header = planned.value();
    const auto length = [&](uint64_t storage) {
        return options.data_file != nullptr ? regions_of(header).metadata_end()
                                            : header.data_offset + storage;
    };
    *result = {.required = length(storage_for(header, options, data_bytes)),
               .fully_allocated = length(storage_for(header, options, header.virtual_size)),
               .granularity = header.has_table() ? header.chunk_size : 1};
    return Error::none();
}

}  // namespace fvd
