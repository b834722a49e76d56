/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once
/* A world that ends at a chosen call. */

#include "engine/memory_host.h"

namespace fvd::testing {

/** Passes everything on until call number @p fuse; that one and all later ones fail. */
class FuseHost final : public Host {
  public:
    FuseHost(MemoryHost& inner, int64_t fuse) : inner_(inner), fuse_(fuse) {}
    int64_t calls() const { return calls_; }

    Status read(File f, uint64_t o, std::span<const Slice> to, uint32_t flags) override {
        return blown() ? Status(-EIO) : inner_.read(f, o, to, flags);
    }
    Status write(File f, uint64_t o, std::span<const Slice> from, uint32_t flags) override {
        return blown() ? Status(-EIO) : inner_.write(f, o, from, flags);
    }
    Status write_zeroes(File f, uint64_t o, uint64_t length, uint32_t flags) override {
        return blown() ? Status(-EIO) : inner_.write_zeroes(f, o, length, flags);
    }
    Status discard(File f, uint64_t o, uint64_t length) override {
        return blown() ? Status(-EIO) : inner_.discard(f, o, length);
    }
    Status flush(File f) override { return blown() ? Status(-EIO) : inner_.flush(f); }
    int64_t length(File f) override { return blown() ? -EIO : inner_.length(f); }
    Status resize(File f, uint64_t length, Preallocation mode) override {
        return blown() ? Status(-EIO) : inner_.resize(f, length, mode);
    }
    Status extent(File f, uint64_t o, uint64_t length, bool* zero, uint64_t* run) override {
        return blown() ? Status(-EIO) : inner_.extent(f, o, length, zero, run);
    }
    bool has_zero_init(File f) override { return inner_.has_zero_init(f); }
    void* allocate(size_t size) override { return inner_.allocate(size); }
    void release(void* memory) override { inner_.release(memory); }
    void fill_guest_zero(void* g, uint64_t o, uint64_t length) override {
        inner_.fill_guest_zero(g, o, length);
    }
    void copy_to_guest(void* g, uint64_t o, ConstBytes from) override {
        inner_.copy_to_guest(g, o, from);
    }
    void lock() override { inner_.lock(); }
    void unlock() override { inner_.unlock(); }
    void* current_task() override { return inner_.current_task(); }
    void park() override { inner_.park(); }
    void wake(void* task) override { inner_.wake(task); }
    void start_task(Task run, void* opaque) override { inner_.start_task(run, opaque); }
    uint64_t now() override { return inner_.now(); }
    void arm_timer(Timer timer, uint64_t delay) override { inner_.arm_timer(timer, delay); }
    void cancel_timer(Timer timer) override { inner_.cancel_timer(timer); }
    void announce(Event event) override { inner_.announce(event); }
    void warn(const char* sentence) override { inner_.warn(sentence); }
    void random(MutableBytes bytes) override { inner_.random(bytes); }

  private:
    bool blown() { return calls_++ >= fuse_; }
    MemoryHost& inner_;
    int64_t fuse_;
    int64_t calls_ = 0;
};

}  // namespace fvd::testing
