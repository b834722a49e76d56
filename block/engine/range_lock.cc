/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "fvd/engine/range_lock.h"

#include "fvd/base/plant.h"

namespace fvd {

bool RangeLocks::must_wait(const Node& node) const {
    for (const Node* earlier = node.previous; earlier != nullptr; earlier = earlier->previous) {
        if (earlier->range.overlaps(node.range)) {
            return true;
        }
    }
    return false;
}

void RangeLocks::acquire(Host& host, Node& node) {
    FVD_ASSERT(!node.range.empty());
    node.task = host.current_task();
    node.previous = last_;
    node.next = nullptr;
    (last_ != nullptr ? last_->next : first_) = &node;
    last_ = &node;
    while (must_wait(node) && !FVD_PLANT(no_range_lock)) {
        node.waiting = true;
        host.park();
    }
    node.waiting = false;
}

void RangeLocks::release(Host& host, Node& node) {
    (node.previous != nullptr ? node.previous->next : first_) = node.next;
    (node.next != nullptr ? node.next->previous : last_) = node.previous;
    for (Node* later = node.next; later != nullptr; later = later->next) {
        if (later->waiting && later->range.overlaps(node.range) && !must_wait(*later) &&
            !FVD_PLANT(lose_waiter)) {
            later->waiting = false;
            host.wake(later->task);
        }
    }
}

}  // namespace fvd
