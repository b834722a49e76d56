/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once
/*
 * Assertions that stay on in release builds. They guard only what the program itself computed:
 * bytes of an image are judged by decoders that return errors, and can never reach one.
 */

namespace fvd {

[[noreturn]] void assertion_failed(const char* condition, const char* file, int line);

}  // namespace fvd

#define FVD_ASSERT(condition)                          \
    (__builtin_expect(static_cast<bool>(condition), 1) \
         ? static_cast<void>(0)                        \
         : ::fvd::assertion_failed(#condition, __FILE__, __LINE__))
