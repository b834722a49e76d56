/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once
/* Delta debugging: the shortest history that still breaks the same promise. */

#include <functional>

#include "history.h"

namespace fvd::sim {

/** @p still_breaks runs a history; at most @p runs of them are tried. */
History shrink(const History& history, const std::function<bool(const History&)>& still_breaks,
               size_t runs);

}  // namespace fvd::sim
