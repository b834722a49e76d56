/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "fvd/base/result.h"

#include <cstdarg>
#include <cstdio>

namespace fvd {

Error Error::make(int code, const char* format, ...) {
    FVD_ASSERT(code < 0);
    Error error;
    error.code = code;
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(error.text, sizeof(error.text), format, arguments);
    va_end(arguments);
    return error;
}

}  // namespace fvd
