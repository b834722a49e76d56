/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once
/* What a verb of qemu-img does to an image; one file a verb in qemu-img/. fvd/fvd.h has the
 * contracts. */

#include "fvd/base/result.h"
#include "fvd/engine/host.h"
#include "fvd/format/layout.h"
#include "fvd/format/recovery.h"
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

/**
 * Give each chunk a slot of its own that exists, or none. The table in memory is changed, and its
 * pages are marked; on disk nothing changes but slots that nobody uses:
 *
 * - a slot that the storage holds only in part gets the rest of its storage, if that is possible;
 * - a chunk whose slot cannot exist or is lost is not stored any more;
 * - of chunks that share a slot all but the first get a copy of it, so that each reads what it read
 *   before.
 *
 * Copies are durable when this returns. After an error the table must not be written.
 */
Status repair_table(Host& host, const Header& header, ReplayTarget& target);

}  // namespace fvd
