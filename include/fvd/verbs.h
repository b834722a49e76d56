/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once
/* What a verb of qemu-img does to an image; one file a verb in qemu-img/. fvd/fvd.h has the
 * contracts. */

#include "fvd/base/result.h"
#include "fvd/engine/host.h"
#include "fvd/format/layout.h"
#include "fvd/fvd.h"

namespace fvd {

/** What create and measure ask of plan_layout(). */
inline LayoutRequest layout_request(const fvd_create_options& options) {
    return {.virtual_size = options.virtual_size,
            .base_size = options.base_size,
            .has_base = options.base_img != nullptr,
            .separate_data_file = options.data_file != nullptr,
            .compact = options.compact_image,
            .block_size = options.block_size,
            .chunk_size = options.chunk_size,
            .storage_grow_unit = options.storage_grow_unit,
            .journal_size = options.journal_size,
            .journal_unit = options.journal_unit};
}

Error create_image(Host& host, const fvd_create_options& options);
Error measure_image(const fvd_create_options& options, uint64_t data_bytes,
                    fvd_measure_result* result);
Error check_image(Host& host, uint32_t fix, fvd_check_result* result);
/** check_image() for an image of January 2011; EROFS for any fix. */
Error check_heritage(Host& host, uint32_t fix, fvd_check_result* result);

}  // namespace fvd
