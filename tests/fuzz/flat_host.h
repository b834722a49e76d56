/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once
/*
 * A world for one task whose files are small flat buffers that outlive an execution. It holds the
 * core to what every adapter relies on: no I/O under the mutex, nothing written outside a file, no
 * write to a base, bounded memory and a bounded number of calls.
 */

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <utility>
#include <vector>

#include <sanitizer/asan_interface.h>

#include "fvd/engine/host.h"
#include "program.h"

namespace fvd::fuzz {

class FlatHost final : public Host {
  public:
    static constexpr uint64_t kCapacity = 2 << 20;
    /* Files are at most kCapacity long, so whatever an image says, no more than this is justified.
     */
    static constexpr uint64_t kMostMemory = 16 << 20;
    static constexpr uint64_t kMostCalls = 200000;

    struct FlatFile {
        std::vector<std::byte> bytes = std::vector<std::byte>(kCapacity);
        uint64_t length = 0;
        uint64_t used = 0; /* beyond this all is zero */

        void assign(ConstBytes content) {
            clear();
            std::memcpy(bytes.data(), content.data(), content.size());
            length = used = content.size();
        }
        void clear() {
            std::memset(bytes.data(), 0, used);
            length = used = 0;
        }
        void set_length(uint64_t now) {
            if (now < length) {
                std::memset(bytes.data() + now, 0, length - now);
            }
            length = now;
            used = std::max(used, now);
        }
    };

    FlatFile files[3];
    bool separate_data = false;
    bool read_only = false;    /* a write is a bug */
    int64_t fail_call = -1;    /* calls until one fails; -1: none does */
    bool fail_on = false;      /* and all later ones too */
    bool zero_in_place = true; /* a zero write that must not fall back is possible */
    bool zero_init = true;
    uint64_t calls = 0;
    uint64_t writes = 0;
    uint64_t warnings = 0;
    uint64_t failures = 0;
    bool timer_armed = false; /* of commits */
    bool prefetch_armed = false;
    uint64_t clock = 1'000'000'000;
    std::deque<std::pair<Task, void*>> tasks;

    FlatFile& file(File which) {
        return files[which == FVD_FILE_DATA && !separate_data ? FVD_FILE_IMAGE : which];
    }
    void forget_counts() {
        fail_call = -1;
        fail_on = false;
        calls = writes = warnings = failures = 0;
        read_only = timer_armed = prefetch_armed = locked_ = false;
        FUZZ_CHECK(tasks.empty());
        zero_in_place = zero_init = true;
        FUZZ_CHECK(memory_ == 0); /* nothing leaked */
    }
    uint64_t memory() const { return memory_; }

    Status read(File which, uint64_t offset, std::span<const Slice> to, uint32_t) override {
        if (fails()) {
            return -EIO;
        }
        const FlatFile& from = file(which);
        for (const Slice& slice : to) {
            const uint64_t end = offset < from.length ? from.length - offset : 0;
            const uint64_t there = std::min(slice.length, end);
            if (there != 0) {
                std::memcpy(address(slice), from.bytes.data() + offset, there);
            }
            std::memset(address(slice) + there, 0, slice.length - there);
            FUZZ_CHECK(offset + slice.length >= offset);
            offset += slice.length;
        }
        return {};
    }

    Status write(File which, uint64_t offset, std::span<const Slice> from, uint32_t) override {
        if (begin_write(which)) {
            return -EIO;
        }
        for (const Slice& slice : from) {
            FUZZ_CHECK(slice.length != 0);
            std::memcpy(place(which, offset, slice.length), address(slice), slice.length);
            offset += slice.length;
        }
        return {};
    }

    Status write_zeroes(File which, uint64_t offset, uint64_t length, uint32_t flags) override {
        if (begin_write(which)) {
            return -EIO;
        }
        if ((flags & FVD_REQ_NO_FALLBACK) != 0 && !zero_in_place) {
            return -ENOTSUP;
        }
        std::memset(place(which, offset, length), 0, length);
        return {};
    }

    Status discard(File which, uint64_t offset, uint64_t length) override {
        if (begin_write(which)) {
            return -EIO;
        }
        std::byte* const at = place(which, offset, length);
        if (zero_in_place) {
            std::memset(at, 0, length);
        }
        return {};
    }

    Status flush(File) override { return fails() ? Status(-EIO) : Status(); }
    int64_t length(File which) override {
        return fails() ? -EIO : static_cast<int64_t>(file(which).length);
    }
    Status resize(File which, uint64_t length, Preallocation) override {
        if (begin_write(which)) {
            return -EIO;
        }
        if (length > kCapacity) {
            return -ENOSPC;
        }
        file(which).set_length(length);
        return {};
    }
    Status extent(File which, uint64_t offset, uint64_t length, bool* zero,
                  uint64_t* run) override {
        if (fails()) {
            return -EIO;
        }
        *zero = sector_is_zero(file(which), offset);
        *run = 0;
        while (*run < length && sector_is_zero(file(which), offset + *run) == *zero) {
            *run += std::min<uint64_t>(512, length - *run);
        }
        return {};
    }
    bool has_zero_init(File) override { return zero_init; }

    void* allocate(size_t size) override {
        if (fails()) {
            return nullptr;
        }
        FUZZ_CHECK(size <= kMostMemory && memory_ + size <= kMostMemory);
        auto* const memory = take(size);
        memory_ += size;
        memory[0] = size;
        return memory + kPrefix / 8;
    }
    void release(void* memory) override {
        auto* const start = static_cast<uint64_t*>(memory) - kPrefix / 8;
        memory_ -= start[0];
        if (start[0] >= kLarge && pooled_ == nullptr) {
            pooled_ = start;
            ASAN_POISON_MEMORY_REGION(memory, start[0]);
        } else {
            std::free(start);
        }
    }
    void fill_guest_zero(void* guest, uint64_t offset, uint64_t length) override {
        std::memset(static_cast<std::byte*>(guest) + offset, 0, length);
    }
    void copy_to_guest(void* guest, uint64_t offset, ConstBytes from) override {
        std::memcpy(static_cast<std::byte*>(guest) + offset, from.data(), from.size());
    }

    void lock() override {
        FUZZ_CHECK(!locked_);
        locked_ = true;
    }
    void unlock() override {
        FUZZ_CHECK(locked_);
        locked_ = false;
    }
    void* current_task() override { return this; }
    /* Whoever waits here waits for a task that was started; they run one at a time, to the end. */
    void park() override {
        unlock();
        woken_ = false;
        while (!woken_) {
            FUZZ_CHECK(!tasks.empty());
            run_task();
        }
        lock();
    }
    void wake(void*) override { woken_ = true; }
    void start_task(Task run, void* opaque) override { tasks.emplace_back(run, opaque); }
    uint64_t now() override { return clock += 1000; }
    void arm_timer(Timer timer, uint64_t) override {
        timer == FVD_TIMER_COMMIT ? timer_armed = true : prefetch_armed = true;
    }
    void cancel_timer(Timer timer) override {
        timer == FVD_TIMER_COMMIT ? timer_armed = false : prefetch_armed = false;
    }
    void run_tasks() {
        while (!tasks.empty()) {
            run_task();
        }
    }
    /** The process is gone, and its tasks with it. */
    void forget_tasks() {
        tasks.clear();
        prefetch_armed = false;
    }
    void run_task() {
        const auto [run, opaque] = tasks.front();
        tasks.pop_front();
        run(opaque);
    }
    void announce(Event) override {}
    void warn(const char* sentence) override {
        FUZZ_CHECK(sentence[0] != '\0');
        warnings++;
    }
    void random(MutableBytes to) override { std::memset(to.data(), 0x5C, to.size()); }

  private:
    static constexpr size_t kPrefix = 16;
    static constexpr size_t kLarge = 128 << 10;

    /* A large piece costs a system call each time, and every open wants one: the last is kept. */
    uint64_t* take(size_t size) {
        if (pooled_ == nullptr || pooled_[0] != size) {
            return static_cast<uint64_t*>(std::malloc(size + kPrefix));
        }
        ASAN_UNPOISON_MEMORY_REGION(pooled_ + kPrefix / 8, size);
        return std::exchange(pooled_, nullptr);
    }

    static std::byte* address(const Slice& slice) {
        return slice.memory != nullptr ? static_cast<std::byte*>(slice.memory)
                                       : static_cast<std::byte*>(slice.guest) + slice.guest_offset;
    }
    static bool sector_is_zero(const FlatFile& file, uint64_t offset) {
        const uint64_t end = std::min(file.length, offset + 512);
        return std::all_of(file.bytes.data() + std::min(offset, end), file.bytes.data() + end,
                           [](std::byte b) { return b == std::byte{0}; });
    }
    bool fails() {
        FUZZ_CHECK(++calls <= kMostCalls);
        if (fail_call < 0) {
            return false;
        }
        if (fail_call != 0) {
            fail_call--;
            return false;
        }
        fail_call = fail_on ? 0 : -1;
        failures++;
        return true;
    }
    bool begin_write(File which) {
        FUZZ_CHECK(!locked_ && !read_only && which != FVD_FILE_BASE);
        writes++;
        return fails();
    }
    /* Create gives files their length; nothing later makes them longer. */
    std::byte* place(File which, uint64_t offset, uint64_t length) {
        FlatFile& to = file(which);
        FUZZ_CHECK(offset <= to.length && length <= to.length - offset);
        return to.bytes.data() + offset;
    }

    uint64_t memory_ = 0;
    uint64_t* pooled_ = nullptr;
    bool locked_ = false;
    bool woken_ = false;
};

}  // namespace fvd::fuzz
