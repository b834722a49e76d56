/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once
/*
 * Exclusive locks on ranges of the virtual disk, for writes to blocks that are not here yet and for
 * giving slots to chunks. First come,
 * first served: a request waits for every earlier one that overlaps it, so none starves. The nodes
 * live on the stacks of the waiting tasks; nothing is allocated. All members want the host's mutex
 * held.
 */

#include "fvd/base/units.h"
#include "fvd/engine/host.h"

namespace fvd {

class RangeLocks {
  public:
    struct Node {
        ByteRange range;
        void* task = nullptr;
        Node* previous = nullptr;
        Node* next = nullptr;
        bool waiting = false;
    };

    /** Take @p node.range; may suspend (the mutex is released meanwhile). */
    void acquire(Host& host, Node& node);
    void release(Host& host, Node& node);
    bool empty() const { return first_ == nullptr; }

  private:
    bool must_wait(const Node& node) const;

    Node* first_ = nullptr;
    Node* last_ = nullptr;
};

}  // namespace fvd
