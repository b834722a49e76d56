/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "fvd/base/crc32c.h"

#include <algorithm>

extern "C" {
#include <isa-l/crc.h>
}

namespace fvd {

uint32_t crc32c(ConstBytes bytes, uint32_t previous) {
    /* ISA-L counts in int, takes a pointer to non-const, and leaves both inversions to its caller.
     */
    uint32_t crc = ~previous;
    while (!bytes.empty()) {
        const size_t step = std::min<size_t>(bytes.size(), size_t{1} << 30);
        auto* data = reinterpret_cast<unsigned char*>(const_cast<std::byte*>(bytes.data()));
        crc = crc32_iscsi(data, static_cast<int>(step), crc);
        bytes = bytes.subspan(step);
    }
    return ~crc;
}

}  // namespace fvd
