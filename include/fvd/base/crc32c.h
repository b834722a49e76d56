/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once
/* CRC-32C (Castagnoli), as iSCSI, ext4 and Btrfs use it. Computed by Intel's ISA-L. */

#include <cstdint>

#include "fvd/base/bytes.h"

namespace fvd {

/** CRC-32C of @p bytes, continuing from @p previous (0 to start). crc32c("123456789") = 0xE3069283.
 */
uint32_t crc32c(ConstBytes bytes, uint32_t previous = 0);

}  // namespace fvd
