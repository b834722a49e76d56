/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once
/* Tasks that wait for something to change. All members want the host's mutex. */

#include "fvd/engine/host.h"

namespace fvd {

class WaitQueue {
  public:
    bool empty() const { return first_ == nullptr; }
    /** May suspend; the caller looks again at what it waits for. */
    void wait(Host& host) {
        Node me{host.current_task(), nullptr, false};
        enqueue(me);
        while (!me.woken) {
            host.park();
        }
    }
    void wake_all(Host& host) {
        while (first_ != nullptr) {
            Node* node = first_;
            first_ = node->next;
            node->woken = true;
            host.wake(node->task);
        }
    }

  private:
    struct Node {
        void* task;
        Node* next;
        bool woken;
    };
    /* Not inlined: the compiler would suspect that the node outlives its task's stack. Whoever is
     * woken is off the list before its task goes on. */
    [[gnu::noinline]] void enqueue(Node& node) {
        node.next = first_;
        first_ = &node;
    }
    Node* first_ = nullptr;
};

}  // namespace fvd
