/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once
/*
 * The world as the core sees it, and the only place where the core can wait. QEMU, the simulator
 * and the thread pool each implement it; fvd/fvd.h has the contract of every call. Calls marked
 * "may suspend" may let other tasks run; the core never makes one while it holds the lock.
 */

#include <span>

#include "fvd/base/bytes.h"
#include "fvd/base/result.h"
#include "fvd/fvd.h"

namespace fvd {

using File = fvd_file;
using Slice = fvd_slice;
using Event = fvd_event;
using Timer = fvd_timer;
using Preallocation = fvd_preallocation;

/** A slice of the core's own memory. */
inline Slice memory_slice(void* memory, uint64_t length) {
    return {memory, nullptr, 0, length};
}
/** A window of a guest buffer. */
inline Slice guest_slice(void* guest, uint64_t offset, uint64_t length) {
    return {nullptr, guest, offset, length};
}

class Host {
  public:
    virtual Status read(File file, uint64_t offset, std::span<const Slice> to, uint32_t flags) = 0;
    virtual Status write(File file, uint64_t offset, std::span<const Slice> from,
                         uint32_t flags) = 0;
    virtual Status write_zeroes(File file, uint64_t offset, uint64_t length, uint32_t flags) = 0;
    virtual Status discard(File file, uint64_t offset, uint64_t length) = 0;
    virtual Status flush(File file) = 0;
    /** Length in bytes, or a negative errno. */
    virtual int64_t length(File file) = 0;
    virtual Status resize(File file, uint64_t length, Preallocation mode) = 0;
    virtual Status extent(File file, uint64_t offset, uint64_t length, bool* zero,
                          uint64_t* run) = 0;
    virtual bool has_zero_init(File file) = 0;

    virtual void* allocate(size_t size) = 0;
    virtual void release(void* memory) = 0;
    virtual void fill_guest_zero(void* guest, uint64_t guest_offset, uint64_t length) = 0;
    virtual void copy_to_guest(void* guest, uint64_t guest_offset, ConstBytes from) = 0;

    virtual void lock() = 0;
    virtual void unlock() = 0;
    virtual void* current_task() = 0;
    virtual void park() = 0;
    virtual void wake(void* task) = 0;

    using Task = void (*)(void* opaque);
    virtual void start_task(Task run, void* opaque) = 0;

    virtual uint64_t now() = 0;
    virtual void arm_timer(Timer timer, uint64_t delay_ns) = 0;
    virtual void cancel_timer(Timer timer) = 0;

    virtual void announce(Event event) = 0;
    virtual void warn(const char* sentence) = 0;
    virtual void random(MutableBytes bytes) = 0;

  protected:
    ~Host() = default; /* never owned through this interface */
};

/** Holds the host's mutex for a scope. */
class HostLock {
  public:
    explicit HostLock(Host& host) : host_(host) { host_.lock(); }
    ~HostLock() { host_.unlock(); }
    HostLock(const HostLock&) = delete;
    HostLock& operator=(const HostLock&) = delete;

  private:
    Host& host_;
};

/** Memory from the host, released with the scope. */
class HostBuffer {
  public:
    HostBuffer() = default;
    HostBuffer(Host& host, size_t size)
        : host_(&host), data_(static_cast<std::byte*>(host.allocate(size))), size_(size) {}
    ~HostBuffer() { reset(); }
    HostBuffer(HostBuffer&& other) noexcept { swap(other); }
    HostBuffer& operator=(HostBuffer&& other) noexcept {
        swap(other);
        return *this;
    }
    explicit operator bool() const { return data_ != nullptr; }
    std::byte* data() const { return data_; }
    size_t size() const { return size_; }
    MutableBytes bytes() const { return {data_, size_}; }
    void reset() {
        if (data_ != nullptr) {
            host_->release(data_);
            data_ = nullptr;
        }
        size_ = 0;
    }

  private:
    void swap(HostBuffer& other) noexcept {
        std::swap(host_, other.host_);
        std::swap(data_, other.data_);
        std::swap(size_, other.size_);
    }
    Host* host_ = nullptr;
    std::byte* data_ = nullptr;
    size_t size_ = 0;
};

/** Read or write one piece of the core's own memory. */
inline Status read_bytes(Host& host, File file, uint64_t offset, MutableBytes to) {
    const Slice slice = memory_slice(to.data(), to.size());
    return host.read(file, offset, {&slice, 1}, 0);
}
inline Status write_bytes(Host& host, File file, uint64_t offset, ConstBytes from) {
    const Slice slice = memory_slice(const_cast<std::byte*>(from.data()), from.size());
    return host.write(file, offset, {&slice, 1}, 0);
}

}  // namespace fvd
