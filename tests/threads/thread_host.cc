/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "thread_host.h"

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>

namespace fvd::threads {

namespace {

struct Sleeper {
    std::condition_variable changed;
    bool woken = false; /* guarded by the host's mutex */
};

thread_local Sleeper this_task;
thread_local bool holds_mutex = false;

Random& thread_random() {
    static std::atomic<uint64_t> next_seed{1};
    thread_local Random random(next_seed.fetch_add(1, std::memory_order_relaxed));
    return random;
}

bool sooner(const std::optional<std::chrono::steady_clock::time_point>& a,
            const std::optional<std::chrono::steady_clock::time_point>& b) {
    return a && (!b || *a < *b);
}

std::byte* address(const Slice& slice) {
    return slice.memory != nullptr ? static_cast<std::byte*>(slice.memory)
                                   : static_cast<std::byte*>(slice.guest) + slice.guest_offset;
}

}  // namespace

/* ------------------------------------------------------------------------------- files */

void MemoryFile::set_length(uint64_t length) {
    FVD_ASSERT(length <= capacity_);
    const uint64_t old = length_.exchange(length, std::memory_order_relaxed);
    if (length < old) {
        zero(length, old - length);
    }
}

void MemoryFile::read(uint64_t offset, std::byte* to, uint64_t length) const {
    FVD_ASSERT(offset % 8 == 0 && length % 8 == 0);
    const uint64_t end = this->length();
    for (uint64_t i = 0; i < length; i += 8) {
        const uint64_t at = offset + i;
        const uint64_t word = at < end ? words_[at / 8].load(std::memory_order_relaxed) : 0;
        std::memcpy(to + i, &word, sizeof(word));
    }
}

void MemoryFile::write(uint64_t offset, const std::byte* from, uint64_t length) {
    FVD_ASSERT(offset % 8 == 0 && length % 8 == 0 && offset + length <= this->length());
    for (uint64_t i = 0; i < length; i += 8) {
        uint64_t word = 0;
        std::memcpy(&word, from + i, sizeof(word));
        words_[(offset + i) / 8].store(word, std::memory_order_relaxed);
    }
}

void MemoryFile::zero(uint64_t offset, uint64_t length) {
    FVD_ASSERT(offset % 8 == 0 && length % 8 == 0 && offset + length <= capacity_);
    for (uint64_t i = 0; i < length; i += 8) {
        words_[(offset + i) / 8].store(0, std::memory_order_relaxed);
    }
}

void MemoryFile::copy_from(const MemoryFile& other) {
    FVD_ASSERT(capacity_ >= other.length());
    set_length(other.length());
    for (uint64_t at = 0; at < other.length(); at += 8) {
        words_[at / 8].store(other.words_[at / 8].load(std::memory_order_relaxed),
                             std::memory_order_relaxed);
    }
}

/* ------------------------------------------------------------------------------- life */

ThreadHost::ThreadHost(const HostOptions& options)
    : image_(options.image_capacity),
      base_(options.base_capacity),
      options_(options),
      failing_writes_(options.failing_writes),
      timer_thread_([this] { run_timers(); }) {
}

ThreadHost::~ThreadHost() {
    quiesce();
    {
        const std::lock_guard guard(mutex_);
        ending_ = true;
        timer_changed_.notify_all();
    }
    timer_thread_.join();
}

void ThreadHost::attach(Image* image) {
    const std::lock_guard guard(mutex_);
    subject_ = image;
}

void ThreadHost::quiesce() {
    std::list<std::thread> ended;
    {
        std::unique_lock guard(mutex_);
        paused_ = true;
        task_ended_.wait(guard, [this] { return running_ == 0; });
        ended.swap(ended_);
    }
    for (std::thread& task : ended) {
        task.join();
    }
}

void ThreadHost::resume() {
    const std::lock_guard guard(mutex_);
    paused_ = false;
    timer_changed_.notify_all();
}

/* ------------------------------------------------------------------------------- I/O */

/* Without waits a request is over before another thread has begun. */
void ThreadHost::dawdle() {
    FVD_ASSERT(!holds_mutex); /* no I/O under the mutex */
    if (!options_.slow) {
        return;
    }
    const uint64_t draw = thread_random().below(64);
    if (draw == 0) {
        std::this_thread::sleep_for(std::chrono::microseconds(50));
    } else if (draw < 16) {
        std::this_thread::yield();
    }
}

Status ThreadHost::read(File which, uint64_t offset, std::span<const Slice> to, uint32_t) {
    dawdle();
    for (const Slice& slice : to) {
        file(which).read(offset, address(slice), slice.length);
        offset += slice.length;
    }
    return {};
}

Status ThreadHost::write(File which, uint64_t offset, std::span<const Slice> from, uint32_t) {
    dawdle();
    FVD_ASSERT(which != FVD_FILE_BASE);
    const uint32_t one_in = failing_writes_.load(std::memory_order_relaxed);
    if (which == FVD_FILE_IMAGE && one_in != 0 && thread_random().below(one_in) == 0) {
        return -EIO;
    }
    for (const Slice& slice : from) {
        file(which).write(offset, address(slice), slice.length);
        offset += slice.length;
    }
    dawdle();
    return {};
}

Status ThreadHost::write_zeroes(File which, uint64_t offset, uint64_t length, uint32_t flags) {
    dawdle();
    if ((flags & FVD_REQ_NO_FALLBACK) != 0 && options_.slow && thread_random().below(4) == 0) {
        return -ENOTSUP;
    }
    file(which).zero(offset, length);
    return {};
}

/* Half of the time nothing happens: it is only advice. */
Status ThreadHost::discard(File which, uint64_t offset, uint64_t length) {
    dawdle();
    if (thread_random().below(2) == 0) {
        file(which).zero(offset, length);
    }
    return {};
}

Status ThreadHost::flush(File) {
    dawdle();
    if (options_.slow) {
        std::this_thread::sleep_for(std::chrono::microseconds(30));
    }
    return {};
}

int64_t ThreadHost::length(File which) {
    return static_cast<int64_t>(file(which).length());
}

Status ThreadHost::resize(File which, uint64_t length, Preallocation) {
    file(which).set_length(length);
    return {};
}

Status ThreadHost::extent(File, uint64_t, uint64_t length, bool* zero, uint64_t* run) {
    *zero = false;
    *run = length;
    return {};
}

/* Filled with what no reader may ever see. */
void* ThreadHost::allocate(size_t size) {
    void* memory = std::aligned_alloc(4096, (size + 4095) / 4096 * 4096);
    if (memory != nullptr) {
        std::memset(memory, 0xA5, size);
    }
    return memory;
}

void ThreadHost::release(void* memory) {
    std::free(memory);
}

void ThreadHost::fill_guest_zero(void* guest, uint64_t guest_offset, uint64_t length) {
    std::memset(static_cast<std::byte*>(guest) + guest_offset, 0, length);
}

void ThreadHost::copy_to_guest(void* guest, uint64_t guest_offset, ConstBytes from) {
    std::memcpy(static_cast<std::byte*>(guest) + guest_offset, from.data(), from.size());
}

/* ------------------------------------------------------------------------------- tasks */

void ThreadHost::lock() {
    FVD_ASSERT(!holds_mutex);
    if (!options_.planted_race) {
        mutex_.lock();
    }
    holds_mutex = true;
}

void ThreadHost::unlock() {
    FVD_ASSERT(holds_mutex);
    holds_mutex = false;
    if (!options_.planted_race) {
        mutex_.unlock();
    }
}

void* ThreadHost::current_task() {
    return &this_task;
}

void ThreadHost::park() {
    FVD_ASSERT(holds_mutex);
    parks_.fetch_add(1, std::memory_order_relaxed);
    auto guard = options_.planted_race ? std::unique_lock(mutex_)
                                       : std::unique_lock(mutex_, std::adopt_lock);
    holds_mutex = false;
    this_task.changed.wait(guard, [] { return this_task.woken; });
    this_task.woken = false;
    holds_mutex = true;
    if (!options_.planted_race) {
        guard.release();
    }
}

void ThreadHost::wake(void* task) {
    FVD_ASSERT(holds_mutex);
    auto* sleeper = static_cast<Sleeper*>(task);
    sleeper->woken = true;
    sleeper->changed.notify_one();
}

/* ------------------------------------------------------------------------------- timers */

void ThreadHost::arm_timer(Timer timer, uint64_t delay_ns) {
    FVD_ASSERT(holds_mutex);
    deadlines_[timer] = Clock::now() + std::chrono::nanoseconds(delay_ns / options_.timer_divisor);
    timer_changed_.notify_all();
}

void ThreadHost::cancel_timer(Timer timer) {
    FVD_ASSERT(holds_mutex);
    deadlines_[timer].reset();
}

void ThreadHost::run_timers() {
    std::unique_lock guard(mutex_);
    while (!ending_) {
        const auto next = std::min_element(deadlines_.begin(), deadlines_.end(), sooner);
        if (paused_ || !*next) {
            timer_changed_.wait(guard);
        } else if (Clock::now() < **next) {
            timer_changed_.wait_until(guard, Clock::time_point(**next));
        } else {
            fire(static_cast<Timer>(next - deadlines_.begin()));
        }
    }
}

/* A new task, as the contract says; the timer may fire again before this one has ended. */
void ThreadHost::fire(Timer timer) {
    deadlines_[timer].reset();
    fired_.fetch_add(1, std::memory_order_relaxed);
    if (Image* const subject = subject_; subject != nullptr) {
        spawn([subject, timer] { subject->timer_expired(timer); });
    }
}

/* With the mutex held. */
void ThreadHost::spawn(std::function<void()> body) {
    for (std::thread& task : ended_) {
        task.join();
    }
    ended_.clear();
    running_++;
    const auto task = tasks_.emplace(tasks_.end());
    *task = std::thread([this, task, run = std::move(body)] {
        run();
        const std::lock_guard guard(mutex_);
        running_--;
        ended_.splice(ended_.end(), tasks_, task);
        task_ended_.notify_all();
    });
}

void ThreadHost::start_task(Task run, void* opaque) {
    FVD_ASSERT(holds_mutex);
    spawn([run, opaque] { run(opaque); });
}

/* In the time of the timers. */
uint64_t ThreadHost::now() {
    const auto since_start = Clock::now() - started_;
    return 1 + static_cast<uint64_t>(since_start / std::chrono::nanoseconds(1)) *
                   options_.timer_divisor;
}

void ThreadHost::warn(const char* sentence) {
    std::fprintf(stderr, "warning: %s\n", sentence);
}

void ThreadHost::random(MutableBytes bytes) {
    for (std::byte& byte : bytes) {
        byte = static_cast<std::byte>(thread_random().next());
    }
}

}  // namespace fvd::threads
