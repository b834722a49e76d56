/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once
/*
 * The two copies of the header on disk: chosen at open, updated so that one torn copy never costs
 * the image: copy, flush, primary, flush. Where an earlier update was cut short the better of the
 * two is written last, whichever it is: a second cut must not take the only good one.
 */

#include "fvd/engine/host.h"
#include "fvd/format/header.h"

namespace fvd {

/** Which of the two an update writes first. */
enum class HeaderSlot { copy, primary };

/** The slot that may be written over: the one that was not chosen. */
inline HeaderSlot expendable_slot(const ChosenHeader& chosen) {
    return chosen.primary == CopyState::valid ? HeaderSlot::copy : HeaderSlot::primary;
}

/** Read both copies and choose. EIO when they cannot be read; decode errors as choose_header(). */
Result<ChosenHeader> load_header(Host& host);

/** How an update makes a copy durable. An error ends the update. */
using FlushHeader = Status (*)(void* owner, Event event);

/**
 * Make @p header durable under a new generation, which it is given here. The generation grows even
 * when this fails, so that a retry never writes a second content under one number. After an error
 * the older state is intact in at least one copy.
 *
 * The generation changes under the host's mutex; nobody else may change the header meanwhile.
 *
 * @p first is the slot to write first, and becomes the one that the next update has to write first.
 * @p flush is called with @p owner; it may refuse where a flush beside it failed (rule R13).
 */
Status update_header(Host& host, Header& header, HeaderSlot* first, FlushHeader flush, void* owner);

}  // namespace fvd
