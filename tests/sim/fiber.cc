/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

#if defined(__SANITIZE_ADDRESS__)
#define FVD_SIM_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define FVD_SIM_ASAN 1
#endif
#endif
#ifdef FVD_SIM_ASAN
#include <sanitizer/common_interface_defs.h>
#endif

/* void fvd_sim_switch(void** save, void* load): park the caller's registers on its stack, note the
 * stack pointer in *save, and go on where the stack at load was parked. */
extern "C" void fvd_sim_switch(void** save, void* load);

#if defined(__x86_64__)
asm(R"(
.text
.globl fvd_sim_switch
.type fvd_sim_switch, @function
fvd_sim_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size fvd_sim_switch, .-fvd_sim_switch
)");
#elif defined(__aarch64__)
asm(R"(
.text
.globl fvd_sim_switch
.type fvd_sim_switch, %function
fvd_sim_switch:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
.size fvd_sim_switch, .-fvd_sim_switch
)");
#else
#error "tests/sim/fiber.cc: write fvd_sim_switch for this processor"
#endif

namespace fvd::sim {

namespace {

#ifdef FVD_SIM_ASAN
constexpr size_t kStackSize = 512 * 1024;
#else
constexpr size_t kStackSize = 128 * 1024;
#endif

Fiber* running = nullptr;
void* outside = nullptr; /* stack pointer of whoever resumed */

#ifdef FVD_SIM_ASAN
const void* outside_stack = nullptr;
size_t outside_size = 0;
#endif

}  // namespace

Fiber::Fiber() {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    void* memory = mmap(nullptr, kStackSize + page, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, page, PROT_NONE) != 0) {
        std::perror("fvd-sim: no memory for a stack");
        std::abort();
    }
    stack_ = static_cast<std::byte*>(memory) + page;
}

Fiber::~Fiber() {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    munmap(stack_ - page, kStackSize + page);
}

Fiber* Fiber::current() {
    return running;
}

void Fiber::resume() {
    running = this;
#ifdef FVD_SIM_ASAN
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(&fake, stack_, kStackSize);
#endif
    fvd_sim_switch(&outside, stack_pointer_);
#ifdef FVD_SIM_ASAN
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
    running = nullptr;
}

void Fiber::yield() {
    Fiber* self = running;
#ifdef FVD_SIM_ASAN
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(self->finished_ ? nullptr : &fake, outside_stack, outside_size);
#endif
    fvd_sim_switch(&self->stack_pointer_, outside);
#ifdef FVD_SIM_ASAN
    __sanitizer_finish_switch_fiber(fake, &outside_stack, &outside_size);
#endif
}

void Fiber::entry() {
#ifdef FVD_SIM_ASAN
    __sanitizer_finish_switch_fiber(nullptr, &outside_stack, &outside_size);
#endif
    running->body_();
    running->body_ = nullptr;
    running->finished_ = true;
    yield();
    std::abort(); /* nobody resumes a finished fiber */
}

uint64_t Fiber::moment() {
    static uint64_t moments = 0;
    return ++moments;
}

void Fiber::make_ready() {
    ready = true;
    ready_since = moment();
}

FiberPool& FiberPool::shared() {
    static FiberPool pool;
    return pool;
}

Fiber* FiberPool::start(std::function<void()> body) {
    if (idle_.empty()) {
        all_.emplace_back(new Fiber);
        idle_.push_back(all_.back().get());
    }
    Fiber* fiber = idle_.back();
    idle_.pop_back();
    fiber->body_ = std::move(body);
    fiber->finished_ = false;
    fiber->make_ready();
    fiber->woken = fiber->saw_data_error = fiber->saw_flush_error = false;
    fiber->saw_base_error = fiber->fetches = false;

    /* The first switch pops registers nobody needs and "returns" into entry(), with the stack
     * aligned as after a call. */
    auto** top = reinterpret_cast<void**>(fiber->stack_ + kStackSize);
#if defined(__x86_64__)
    *--top = nullptr; /* a return address of zero ends a debugger's walk */
    *--top = reinterpret_cast<void*>(&Fiber::entry);
    for (int i = 0; i < 6; i++) {
        *--top = nullptr;
    }
#else
    top -= 20;
    for (int i = 0; i < 20; i++) {
        top[i] = nullptr;
    }
    top[11] = reinterpret_cast<void*>(&Fiber::entry); /* x30, the link register */
#endif
    fiber->stack_pointer_ = top;
    return fiber;
}

void FiberPool::recycle(Fiber* fiber) {
    idle_.push_back(fiber);
}

}  // namespace fvd::sim
