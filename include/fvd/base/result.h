/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once
/*
 * Errors as values. A Status is 0 or a negative errno, as QEMU's callers expect; where a person
 * will read about it an Error carries a sentence: what was read, where, and what would have been
 * legal. std::expected is missing from the compilers of Debian 12, hence the small Result.
 */

#include <cstddef>
#include <cstdint>
#include <utility>

#include "fvd/base/assert.h"

namespace fvd {

/** 0 on success, a negative errno otherwise. */
class [[nodiscard]] Status {
  public:
    constexpr Status() = default;
    /** errno_value is 0 or negative. */
    constexpr Status(int errno_value) : value_(errno_value) { FVD_ASSERT(errno_value <= 0); }
    constexpr bool ok() const { return value_ == 0; }
    constexpr int value() const { return value_; }
    /** The first error of two outcomes. */
    constexpr Status or_else(Status other) const { return ok() ? other : *this; }

  private:
    int value_ = 0;
};

/** A negative errno with the sentence a user will read. The text is cut, never overrun. */
struct [[nodiscard]] Error {
    static constexpr size_t kTextSize = 400;
    int code = 0;         /* negative errno; 0 means "no error" */
    char text[kTextSize]; /* what follows the first NUL means nothing */

    /* Most errors are none: clearing all of the text would be the dearest part of decoding a
     * header. */
    Error() { text[0] = '\0'; }
    /** printf-style. @p code is a negative errno. */
    [[gnu::format(printf, 2, 3)]] static Error make(int code, const char* format, ...);
    static Error none() { return Error{}; }
    bool ok() const { return code == 0; }
};

/** A number as printf's %llu takes it. */
constexpr unsigned long long print(uint64_t value) {
    return value;
}

/** Either a value or an Error. */
template <typename T>
class [[nodiscard]] Result {
  public:
    Result(T value) : value_(std::move(value)) {}
    Result(Error error) : error_(error) { FVD_ASSERT(error.code < 0); }
    bool ok() const { return error_.code == 0; }
    const Error& error() const { return error_; }
    T& value() {
        FVD_ASSERT(ok());
        return value_;
    }
    const T& value() const {
        FVD_ASSERT(ok());
        return value_;
    }

  private:
    T value_{};
    Error error_{};
};

}  // namespace fvd
