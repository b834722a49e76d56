/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "fvd/base/assert.h"

#include <cstdio>
#include <cstdlib>

namespace fvd {

void assertion_failed(const char* condition, const char* file, int line) {
    std::fprintf(stderr, "fvd: %s:%d: assertion failed: %s\n", file, line, condition);
    std::abort();
}

}  // namespace fvd
