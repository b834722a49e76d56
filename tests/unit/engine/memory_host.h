/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once
/*
 * A world for one task: files in memory, every call noted by name, the n-th call of a kind made to
 * fail. Nothing ever waits here; tests/sim has the world where things do.
 */

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "fvd/engine/host.h"

namespace fvd::testing {

/** What happened, in words: "write image 8192+4096", "flush data", "read base 0+512". */
using Log = std::vector<std::string>;

class MemoryHost final : public Host {
  public:
    std::vector<std::byte> files[3];
    bool separate_data = false; /* else the data is in the image file */
    Log log;
    std::vector<std::string> warnings;
    std::string fail_call; /* the call that fails, as the log would name it, or its first words */
    int fail_with = -EIO;
    int fail_times = 0; /* -1: for ever */
    int fail_skip = 0;  /* so many of them pass before */
    int64_t allocations = 0;
    int64_t fail_allocation = -1; /* index of the allocation that fails */
    int64_t live = 0;
    bool timer_armed = false; /* of commits */
    uint64_t clock = 1'000'000'000;
    uint64_t base_takes = 0;  /* ns that a read of the base takes */
    uint64_t prefetch_at = 0; /* when its timer fires; 0: not armed */
    int announced[FVD_EVENT_COUNT] = {};
    std::deque<std::pair<Task, void*>> tasks;
    bool zero_init = true;
    bool locked = false;
    bool woken = false;
    int locks = 0;
    std::function<void()> before_lock; /* not while it runs itself */

    std::vector<std::byte>& bytes(File file) {
        return files[file == FVD_FILE_DATA && !separate_data ? FVD_FILE_IMAGE : file];
    }

    Status read(File file, uint64_t offset, std::span<const Slice> to, uint32_t) override {
        clock += file == FVD_FILE_BASE ? base_takes : 0;
        if (Status status = note("read", file, offset, total(to)); !status.ok()) {
            return status;
        }
        for (const Slice& slice : to) {
            for (uint64_t i = 0; i < slice.length; i++, offset++) {
                const bool there = offset < bytes(file).size();
                address(slice)[i] = there ? bytes(file)[offset] : std::byte{0};
            }
        }
        return {};
    }

    Status write(File file, uint64_t offset, std::span<const Slice> from, uint32_t flags) override {
        const char* verb = (flags & FVD_REQ_FUA) != 0 ? "write-fua" : "write";
        if (Status status = note(verb, file, offset, total(from)); !status.ok()) {
            return status;
        }
        extend(file, offset + total(from));
        for (const Slice& slice : from) {
            std::memcpy(bytes(file).data() + offset, address(slice), slice.length);
            offset += slice.length;
        }
        return {};
    }

    Status write_zeroes(File file, uint64_t offset, uint64_t length, uint32_t) override {
        if (Status status = note("zero", file, offset, length); !status.ok()) {
            return status;
        }
        extend(file, offset + length);
        std::memset(bytes(file).data() + offset, 0, length);
        return {};
    }

    Status discard(File file, uint64_t offset, uint64_t length) override {
        return note("discard", file, offset, length);
    }

    Status flush(File file) override { return note_line(std::string("flush ") + name(file)); }

    int64_t length(File file) override { return static_cast<int64_t>(bytes(file).size()); }

    Status resize(File file, uint64_t length, Preallocation) override {
        if (Status status = note("resize", file, 0, length); !status.ok()) {
            return status;
        }
        bytes(file).resize(length);
        return {};
    }

    /* Zero runs of whole sectors, as a sparse file of that granularity would answer. */
    Status extent(File file, uint64_t offset, uint64_t length, bool* zero, uint64_t* run) override {
        *zero = sector_is_zero(file, offset);
        *run = 0;
        while (*run < length && sector_is_zero(file, offset + *run) == *zero) {
            *run += std::min<uint64_t>(512, length - *run);
        }
        return {};
    }

    bool has_zero_init(File) override { return zero_init; }

    void* allocate(size_t size) override {
        if (allocations++ == fail_allocation) {
            return nullptr;
        }
        live++;
        void* memory = std::malloc(size);
        std::memset(memory, 0xA5, size);
        return memory;
    }
    void release(void* memory) override {
        live--;
        std::free(memory);
    }
    void fill_guest_zero(void* guest, uint64_t offset, uint64_t length) override {
        std::memset(static_cast<std::byte*>(guest) + offset, 0, length);
    }
    void copy_to_guest(void* guest, uint64_t offset, ConstBytes from) override {
        std::memcpy(static_cast<std::byte*>(guest) + offset, from.data(), from.size());
    }

    void lock() override {
        FVD_ASSERT(!locked);
        if (const auto meanwhile = std::exchange(before_lock, nullptr)) {
            meanwhile(); /* what another thread does before we get it */
            before_lock = meanwhile;
        }
        locked = true;
        locks++;
    }
    void unlock() override {
        FVD_ASSERT(locked);
        locked = false;
    }
    void* current_task() override { return this; }
    /* Whoever waits here waits for a task that was started; they run one at a time, to the end. */
    void park() override {
        unlock();
        woken = false;
        while (!woken) {
            FVD_ASSERT(!tasks.empty() && "nobody is left to wait for");
            run_task();
        }
        lock();
    }
    void wake(void*) override { woken = true; }
    void start_task(Task run, void* opaque) override { tasks.emplace_back(run, opaque); }
    uint64_t now() override { return clock; }
    void arm_timer(Timer timer, uint64_t delay) override {
        timer == FVD_TIMER_COMMIT ? void(timer_armed = true) : void(prefetch_at = clock + delay);
    }
    void cancel_timer(Timer timer) override {
        timer == FVD_TIMER_COMMIT ? void(timer_armed = false) : void(prefetch_at = 0);
    }
    void run_task() {
        const auto [run, opaque] = tasks.front();
        tasks.pop_front();
        run(opaque);
    }
    void run_tasks() {
        while (!tasks.empty()) {
            run_task();
        }
    }
    void announce(Event event) override {
        FVD_ASSERT(!locked);
        announced[event]++;
    }
    void warn(const char* sentence) override { warnings.emplace_back(sentence); }
    void random(MutableBytes to) override { std::memset(to.data(), 0x5C, to.size()); }

    /** Log lines that begin with @p words. */
    size_t count(const std::string& words) const {
        size_t found = 0;
        for (const std::string& line : log) {
            found += line.compare(0, words.size(), words) == 0;
        }
        return found;
    }

  private:
    static const char* name(File file) {
        static const char* const names[] = {"image", "data", "base"};
        return names[file];
    }
    static uint64_t total(std::span<const Slice> slices) {
        uint64_t sum = 0;
        for (const Slice& slice : slices) {
            sum += slice.length;
        }
        return sum;
    }
    static std::byte* address(const Slice& slice) {
        return slice.memory != nullptr ? static_cast<std::byte*>(slice.memory)
                                       : static_cast<std::byte*>(slice.guest) + slice.guest_offset;
    }
    void extend(File file, uint64_t end) {
        if (bytes(file).size() < end) {
            bytes(file).resize(end);
        }
    }
    bool sector_is_zero(File file, uint64_t offset) {
        for (uint64_t i = offset; i < offset + 512 && i < bytes(file).size(); i++) {
            if (bytes(file)[i] != std::byte{0}) {
                return false;
            }
        }
        return true;
    }
    Status note(const char* verb, File file, uint64_t offset, uint64_t length) {
        FVD_ASSERT(!locked); /* no I/O under the mutex */
        return note_line(std::string(verb) + ' ' + name(file) + ' ' + std::to_string(offset) + '+' +
                         std::to_string(length));
    }
    Status note_line(const std::string& line) {
        log.push_back(line);
        if (fail_times != 0 && line.compare(0, fail_call.size(), fail_call) == 0 &&
            fail_skip-- <= 0) {
            fail_times -= fail_times > 0;
            return fail_with;
        }
        return {};
    }
};

}  // namespace fvd::testing
