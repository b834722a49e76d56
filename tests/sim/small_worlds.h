/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once
/*
 * Complete small worlds: on a disk of four blocks, on a compact one of two chunks, and on one whose
 * device has room for one, all histories of up to three operations, and a part of those of four
 * that changes with the seed. Nearly every crash bug known of file systems needs no more.
 */

#include "history.h"

namespace fvd::sim {

/** Histories of one, two and three operations. */
uint64_t small_world_count();
/** @p index below small_world_count(). */
History small_world(uint64_t index);
/** One of those with four operations. */
History small_world_of_four(uint64_t seed);

}  // namespace fvd::sim
