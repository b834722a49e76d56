/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once
/* The two copies of the header on disk: chosen at open, updated so that one torn copy never costs the
 * image (copy, flush, primary, flush). */

#include "fvd/engine/host.h"
#include "fvd/format/header.h"

namespace fvd {

/** Read both copies and choose. EIO when they cannot be read; decode errors as choose_header(). */
Result<ChosenHeader> load_header(Host& host);

/**
 * Make @p header durable under a new generation, which it is given here. The generation grows even
 * when this fails, so that a retry never writes a second content under one number. After an error the
 * older state is intact in at least one copy.
 *
 * The generation changes under the host's mutex; nobody else may change the header meanwhile.
 *
 * @p flush_failed is set when it was a flush that failed: then nothing is known about what earlier
 * writes became, and the caller must not go on (rule R13).
 */
Status update_header(Host& host, Header& header, bool* flush_failed);

}  // namespace fvd
