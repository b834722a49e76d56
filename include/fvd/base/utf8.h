/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once
/* Text that came from a file and will be shown on a terminal, in a log, or used as a file name. */

#include <cstddef>
#include <optional>
#include <string_view>

namespace fvd {

/**
 * Offset of the first byte that is not part of valid UTF-8 (shortest form, no surrogates, at most
 * U+10FFFF) or that begins a control character (U+0000..U+001F, U+007F..U+009F); nullopt when all
 * of
 * @p text is plain.
 */
std::optional<size_t> first_bad_utf8(std::string_view text);

}  // namespace fvd
