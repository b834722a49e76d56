/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once
/*
 * Stackful fibers on one thread. A switch saves the callee-saved registers and nothing else: no
 * system call, which is what makes millions of crash states affordable.
 */

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

namespace fvd::sim {

class Fiber {
  public:
    ~Fiber();
    Fiber(const Fiber&) = delete;
    Fiber& operator=(const Fiber&) = delete;

    /** Run until the fiber yields or its body returns. Only from outside any fiber. */
    void resume();
    /** Go back to whoever resumed. Only from inside a fiber. */
    static void yield();
    /** The fiber that is running, or nullptr outside. */
    static Fiber* current();
    bool finished() const { return finished_; }
    /** May be resumed from now on: what it learns of the world until it next waits was fixed now.
     */
    void make_ready();
    /** Counts up by one a call. */
    static uint64_t moment();

    /* The world's notes on this fiber. */
    bool ready = true;           /* may be resumed */
    uint64_t ready_since = 0;    /* what moment() said when it last became ready */
    bool woken = false;          /* wake() came, perhaps before the sleep */
    bool saw_data_error = false; /* an injected error hit its own data I/O */
    bool saw_flush_error = false;
    bool saw_base_error = false;
    bool fetches = false; /* its next read of the base is to be kept */

  private:
    friend class FiberPool;
    Fiber();
    static void entry();

    std::function<void()> body_;
    std::byte* stack_ = nullptr;
    void* stack_pointer_ = nullptr;
    bool finished_ = true;
};

/** Fibers are used again and again, by one world after the other: a stack costs four system calls.
 */
class FiberPool {
  public:
    static FiberPool& shared();
    Fiber* start(std::function<void()> body);
    void recycle(Fiber* fiber);

  private:
    std::vector<std::unique_ptr<Fiber>> all_;
    std::vector<Fiber*> idle_;
};

}  // namespace fvd::sim
