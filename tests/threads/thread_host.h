/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once
/*
 * The world on real threads: every task is a thread, files are memory, the mutex is a mutex.
 *
 * The bytes of files are relaxed atomics and not guarded by locks: a lock in here would order the
 * core's threads among each other and so hide from the race detector what the core itself forgot to
 * order.
 */

#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "fvd/engine/image.h"

namespace fvd::threads {

/** A file in memory, of a length that may change up to @p capacity while nobody uses it. */
class MemoryFile {
  public:
    explicit MemoryFile(uint64_t capacity)
        : capacity_(capacity), words_(new std::atomic<uint64_t>[capacity / 8]()) {}

    uint64_t length() const { return length_.load(std::memory_order_relaxed); }
    void set_length(uint64_t length);
    /* Offsets and lengths are multiples of 8. Reads past the end yield zeros. */
    void read(uint64_t offset, std::byte* to, uint64_t length) const;
    void write(uint64_t offset, const std::byte* from, uint64_t length);
    void zero(uint64_t offset, uint64_t length);
    void copy_from(const MemoryFile& other);

  private:
    uint64_t capacity_;
    std::atomic<uint64_t> length_{0};
    std::unique_ptr<std::atomic<uint64_t>[]> words_;
};

struct HostOptions {
    uint64_t image_capacity = 0;
    uint64_t base_capacity = 0;
    bool slow = true;              /* I/O sometimes gives way to other threads */
    uint32_t failing_writes = 0;   /* one of so many writes of metadata fails; 0: none */
    uint64_t timer_divisor = 1000; /* time goes so much faster for timers */
    bool planted_race = false;     /* the mutex excludes nobody: the race detector must say so */
};

class ThreadHost final : public Host {
  public:
    explicit ThreadHost(const HostOptions& options);
    ~ThreadHost();
    ThreadHost(const ThreadHost&) = delete;
    ThreadHost& operator=(const ThreadHost&) = delete;

    /** Whom expired timers are for. */
    void attach(Image* image);
    /** No timer fires until resume(), and no task of a timer is running. */
    void quiesce();
    void resume();
    void let_writes_fail(uint32_t one_in) { failing_writes_.store(one_in); }

    MemoryFile& file(File which) { return which == FVD_FILE_BASE ? base_ : image_; }
    uint64_t parks() const { return parks_.load(); }
    uint64_t timers_fired() const { return fired_.load(); }

    Status read(File file, uint64_t offset, std::span<const Slice> to, uint32_t flags) override;
    Status write(File file, uint64_t offset, std::span<const Slice> from, uint32_t flags) override;
    Status write_zeroes(File file, uint64_t offset, uint64_t length, uint32_t flags) override;
    Status discard(File file, uint64_t offset, uint64_t length) override;
    Status flush(File file) override;
    int64_t length(File file) override;
    Status resize(File file, uint64_t length, Preallocation mode) override;
    Status extent(File file, uint64_t offset, uint64_t length, bool* zero, uint64_t* run) override;
    bool has_zero_init(File) override { return true; }
    void* allocate(size_t size) override;
    void release(void* memory) override;
    void fill_guest_zero(void* guest, uint64_t guest_offset, uint64_t length) override;
    void copy_to_guest(void* guest, uint64_t guest_offset, ConstBytes from) override;
    void lock() override;
    void unlock() override;
    void* current_task() override;
    void park() override;
    void wake(void* task) override;
    void start_task(Task run, void* opaque) override;
    uint64_t now() override;
    void arm_timer(Timer timer, uint64_t delay_ns) override;
    void cancel_timer(Timer timer) override;
    void announce(Event) override {}
    void warn(const char* sentence) override;
    void random(MutableBytes bytes) override;

  private:
    using Clock = std::chrono::steady_clock;

    void dawdle();
    void run_timers();
    void fire(Timer timer);
    void spawn(std::function<void()> body);

    MemoryFile image_;
    MemoryFile base_;
    const HostOptions options_;
    const Clock::time_point started_ = Clock::now();
    std::atomic<uint32_t> failing_writes_;
    std::atomic<uint64_t> parks_{0};
    std::atomic<uint64_t> fired_{0};

    std::mutex mutex_; /* the core's; guards everything below too */
    std::condition_variable timer_changed_;
    std::condition_variable task_ended_;
    std::array<std::optional<Clock::time_point>, FVD_TIMER_COUNT> deadlines_;
    Image* subject_ = nullptr;
    bool paused_ = false;
    bool ending_ = false;
    size_t running_ = 0; /* tasks of timers, and those that the core started */
    std::list<std::thread> tasks_;
    std::list<std::thread> ended_; /* to be joined */
    std::thread timer_thread_;
};

/** A small generator of its own for each thread. */
class Random {
  public:
    explicit Random(uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15u + 0xD1B54A32D192ED03u) {}
    uint64_t next() {
        state_ ^= state_ << 13;
        state_ ^= state_ >> 7;
        state_ ^= state_ << 17;
        return state_ * 0x2545F4914F6CDD1Du;
    }
    uint64_t below(uint64_t limit) { return (next() >> 16) % limit; }

  private:
    uint64_t state_;
};

}  // namespace fvd::threads
