/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "sim_host.h"

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <utility>

#include <malloc.h>

namespace fvd::sim {

namespace {

constexpr uint64_t kPoison = 0xA5A5A5A5A5A5A5A5;

uint64_t checksum_of(std::span<const Slice> slices) {
    uint64_t sum = 0;
    for (const Slice& slice : slices) {
        const MutableBytes bytes = slice_bytes(slice);
        const size_t even = bytes.size() / 32 * 32;
        sum = mix(sum, content_hash(bytes.data(), even));
        for (const std::byte b : bytes.subspan(even)) {
            sum = sum * 31 + static_cast<uint64_t>(b);
        }
    }
    return sum;
}

}  // namespace

const char* call_name(CallKind kind) {
    constexpr const char* names[] = {"read",   "write",  "zeroes",   "discard", "flush",
                                     "length", "resize", "allocate", "extent"};
    return names[static_cast<size_t>(kind)];
}

const char* file_name(File file) {
    constexpr const char* names[] = {"image", "data", "base"};
    return names[file];
}

SimHost::~SimHost() = default;

void SimHost::check_unlocked(const char* call) {
    if (locked_) {
        observer_.host_broken("I9", std::string(call) + " while the host's mutex is held");
    }
}

int SimHost::fault_for(CallKind kind, File file) {
    calls_++;
    if (suspended_) {
        return 0;
    }
    for (auto rule = faults_.begin(); rule != faults_.end(); ++rule) {
        const bool matches = (rule->calls >> static_cast<unsigned>(kind) & 1) != 0 &&
                             (rule->files >> static_cast<unsigned>(file) & 1) != 0;
        if (!matches) {
            continue;
        }
        if (rule->skip != 0) {
            rule->skip--;
            continue;
        }
        const int error = rule->error;
        rule->hit = true;
        if (!rule->forever) {
            faults_.erase(rule);
        }
        faults_hit_++;
        if (observer_.logging()) {
            observer_.event(std::string("fault: ") + call_name(kind) + " of " + file_name(file) +
                            " will fail with " + std::to_string(error));
        }
        return error;
    }
    return 0;
}

Status SimHost::wait(PendingIo& io) {
    io.fiber = Fiber::current();
    FVD_ASSERT(io.fiber != nullptr);
    pending_.push_back(&io);
    io.fiber->ready = false;
    Fiber::yield();
    return io.status;
}

void SimHost::finish(size_t index) {
    PendingIo& io = *pending_[index];
    pending_[index] = pending_.back();
    pending_.pop_back();
    if (!power_) {
        io.status = -EIO;
    } else {
        perform(io);
    }
    io.fiber->make_ready();
}

void SimHost::perform(PendingIo& io) {
    SimDisk& disk = disk_of(io.file);
    io.status = io.error == 0 ? Status() : Status(-io.error);
    if (io.error != 0) {
        (io.kind == CallKind::flush ? io.fiber->saw_flush_error
         : io.file == FVD_FILE_BASE ? io.fiber->saw_base_error
                                    : io.fiber->saw_data_error) = true;
    }
    switch (io.kind) {
        case CallKind::read:
            if (io.error == 0) {
                read_now(io);
            }
            break;
        case CallKind::write:
        case CallKind::write_zeroes:
        case CallKind::discard:
            if (io.write == 0) {
                break;
            }
            if (!io.slices.empty() && checksum_of(io.slices) != io.checksum) {
                observer_.host_broken("I14", "a buffer changed while its write was in flight");
            }
            if (io.error != 0) {
                disk.fail(io.write, rng_);
            } else {
                disk.complete(io.write, io.durable);
            }
            break;
        case CallKind::flush:
            observer_.flush_completes(io.file);
            if (io.error == 0) {
                disk.flush_done(io.flush_moment);
            } else {
                disk.drop_cache();
                observer_.flush_failed(io.file, io.fiber);
            }
            break;
        default:
            break;
    }
}

void SimHost::read_now(PendingIo& io) {
    uint64_t at = io.offset;
    for (const Slice& slice : io.slices) {
        const MutableBytes bytes = slice_bytes(slice);
        if (io.file == FVD_FILE_BASE) {
            const uint64_t end = std::min<uint64_t>(base_.size(), at + bytes.size());
            const size_t there = end > at ? end - at : 0;
            std::copy_n(base_.begin() + static_cast<ptrdiff_t>(there != 0 ? at : 0), there,
                        bytes.begin());
            std::fill(bytes.begin() + static_cast<ptrdiff_t>(there), bytes.end(), std::byte{0});
        } else {
            disk_of(io.file).read(at, bytes);
        }
        at += slice.length;
    }
}

Status SimHost::read(File file, uint64_t offset, std::span<const Slice> to, uint32_t) {
    check_unlocked("read");
    if (!power_) {
        return -EIO;
    }
    if (file == FVD_FILE_BASE && std::exchange(Fiber::current()->fetches, false)) {
        observer_.fetch_begins(offset, total_length(to));
    }
    PendingIo io;
    io.kind = CallKind::read;
    io.file = file;
    io.offset = offset;
    io.length = total_length(to);
    io.slices = to;
    io.error = fault_for(io.kind, file);
    io.slow = slow_reads != 0 && rng_.chance(slow_reads);
    return wait(io);
}

/* Heap bytes in a file are a leak of the process's secrets (I14). */
void SimHost::check_memory(std::span<const Slice> slices) {
    for (const Slice& slice : slices) {
        if (slice.memory == nullptr) {
            continue;
        }
        const MutableBytes bytes = slice_bytes(slice);
        for (size_t i = 0; i + 8 <= bytes.size(); i += 8) {
            uint64_t word;
            std::memcpy(&word, bytes.data() + i, 8);
            if (word == kPoison) {
                observer_.host_broken("I14", "uninitialised memory is written to the image");
                return;
            }
        }
    }
}

Status SimHost::store(PendingIo& io, ConstBytes bytes) {
    SimDisk& disk = disk_of(io.file);
    const uint64_t end = io.offset + bytes.size();
    if (io.file == FVD_FILE_BASE || end > disk.capacity()) {
        observer_.host_broken("I11", "a write to the base or far outside of its file");
        return -EIO;
    }
    io.length = bytes.size();
    if (bytes.empty()) {
        return wait(io);
    }
    watched_ = true;
    observer_.write_enters(io.file, io.offset, bytes);
    io.write = disk.submit(io.offset, bytes);
    observer_.write_entered();
    watched_ = false;
    return wait(io);
}

Status SimHost::write(File file, uint64_t offset, std::span<const Slice> from, uint32_t flags) {
    check_unlocked("write");
    if (!power_) {
        return -EIO;
    }
    check_memory(from);
    PendingIo io;
    io.kind = CallKind::write;
    io.file = file;
    io.offset = offset;
    io.slices = from;
    io.durable = (flags & FVD_REQ_FUA) != 0;
    io.error = fault_for(io.kind, file);
    io.checksum = checksum_of(from);
    std::vector<std::byte> bytes;
    gather(from, bytes);
    return store(io, bytes);
}

Status SimHost::write_zeroes(File file, uint64_t offset, uint64_t length, uint32_t flags) {
    check_unlocked("write_zeroes");
    if (!power_) {
        return -EIO;
    }
    if (!zeroes && (flags & FVD_REQ_NO_FALLBACK) != 0) {
        return -ENOTSUP;
    }
    PendingIo io;
    io.kind = CallKind::write_zeroes;
    io.file = file;
    io.offset = offset;
    io.durable = (flags & FVD_REQ_FUA) != 0;
    io.error = fault_for(io.kind, file);
    return store(io, std::vector<std::byte>(length));
}

Status SimHost::discard(File file, uint64_t offset, uint64_t length) {
    check_unlocked("discard");
    if (!power_) {
        return -EIO;
    }
    PendingIo io;
    io.kind = CallKind::discard;
    io.file = file;
    io.offset = offset;
    io.error = fault_for(io.kind, file);
    return store(io, std::vector<std::byte>(discards ? length : 0));
}

Status SimHost::flush(File file) {
    check_unlocked("flush");
    if (!power_) {
        return -EIO;
    }
    PendingIo io;
    io.kind = CallKind::flush;
    io.file = file;
    io.error = fault_for(io.kind, file);
    io.flush_moment = disk_of(file).flush_issued();
    return wait(io);
}

int64_t SimHost::length(File file) {
    check_unlocked("length");
    if (!power_) {
        return -EIO;
    }
    if (const int error = fault_for(CallKind::length, file); error != 0) {
        return -error;
    }
    if (is_device && file == FVD_FILE_DATA) {
        known_length_ = known_length_.value_or(disk_of(file).length());
        return static_cast<int64_t>(*known_length_);
    }
    return static_cast<int64_t>(file == FVD_FILE_BASE ? base_.size() : disk_of(file).length());
}

Status SimHost::resize(File file, uint64_t length, Preallocation) {
    check_unlocked("resize");
    if (!power_) {
        return -EIO;
    }
    if (const int error = fault_for(CallKind::resize, file); error != 0) {
        return -error;
    }
    SimDisk& disk = disk_of(file);
    if (is_device && file == FVD_FILE_DATA) {
        /* As QEMU, which looks at the length of a device when it could not make it longer. */
        const uint64_t known = known_length_.value_or(disk.length());
        known_length_ = disk.length();
        was_full = was_full || length > disk.length();
        return length > known ? Status(-ENOTSUP) : Status();
    }
    disk.set_length(length);
    return {};
}

/* The base tells of its holes sector by sector; other files tell nothing. */
Status SimHost::extent(File file, uint64_t offset, uint64_t length, bool* zero, uint64_t* run) {
    check_unlocked("extent");
    *zero = false;
    *run = length;
    if (file != FVD_FILE_BASE) {
        return {};
    }
    if (!power_) {
        return -EIO;
    }
    PendingIo io;
    io.kind = CallKind::extent;
    io.file = file;
    io.offset = offset;
    io.length = length;
    io.error = fault_for(io.kind, file);
    if (const Status status = wait(io); !status.ok()) {
        return status;
    }
    constexpr uint64_t kSector = 512;
    const auto is_zero = [this](uint64_t at) {
        const uint64_t end = std::min<uint64_t>(base_.size(), (at / kSector + 1) * kSector);
        return at >= end || std::all_of(base_.begin() + static_cast<ptrdiff_t>(at),
                                        base_.begin() + static_cast<ptrdiff_t>(end),
                                        [](std::byte b) { return b == std::byte{0}; });
    };
    *zero = is_zero(offset);
    uint64_t at = (offset / kSector + 1) * kSector;
    while (at < offset + length && is_zero(at) == *zero) {
        at += kSector;
    }
    *run = std::min(at, offset + length) - offset;
    return {};
}

void SimHost::announce(Event event) {
    check_unlocked("announce");
    if (event == FVD_EVENT_FETCH_READ) {
        Fiber::current()->fetches = true;
    }
    if (event == FVD_EVENT_FILLED && power_) {
        observer_.filled();
    }
}

void* SimHost::allocate(size_t size) {
    if (fault_for(CallKind::allocate, FVD_FILE_IMAGE) != 0) {
        return nullptr;
    }
    allocated_++;
    const size_t rounded = (std::max<size_t>(size, 1) + 63) / 64 * 64;
    void* memory = std::aligned_alloc(64, rounded);
    std::memset(memory, 0xA5, rounded);
    return memory;
}

void SimHost::release(void* memory) {
    if (memory != nullptr) {
        allocated_--;
        std::memset(memory, 0xDD, std::min<size_t>(malloc_usable_size(memory), 4096));
        std::free(memory);
    }
}

void SimHost::fill_guest_zero(void* guest, uint64_t guest_offset, uint64_t length) {
    const MutableBytes bytes = slice_bytes(guest_slice(guest, guest_offset, length));
    std::fill(bytes.begin(), bytes.end(), std::byte{0});
}

void SimHost::copy_to_guest(void* guest, uint64_t guest_offset, ConstBytes from) {
    const MutableBytes bytes = slice_bytes(guest_slice(guest, guest_offset, from.size()));
    std::copy(from.begin(), from.end(), bytes.begin());
}

void SimHost::lock() {
    FVD_ASSERT(!locked_);
    if (lock_waits != 0 && !watched_ && Fiber::current() != nullptr && rng_.chance(lock_waits)) {
        do {
            Fiber::yield();
        } while (rng_.chance(90));
    }
    locked_ = true;
}

void SimHost::unlock() {
    FVD_ASSERT(locked_);
    locked_ = false;
}

void SimHost::park() {
    FVD_ASSERT(locked_);
    locked_ = false;
    Fiber* self = Fiber::current();
    while (!self->woken) {
        self->ready = false;
        Fiber::yield();
    }
    self->woken = false;
    FVD_ASSERT(!locked_);
    locked_ = true;
}

void SimHost::wake(void* task) {
    FVD_ASSERT(locked_);
    auto* fiber = static_cast<Fiber*>(task);
    fiber->woken = true;
    fiber->make_ready();
}

void SimHost::start_task(Task run, void* opaque) {
    FVD_ASSERT(locked_);
    observer_.task_started([run, opaque] { run(opaque); });
}

void SimHost::arm_timer(Timer timer, uint64_t delay_ns) {
    FVD_ASSERT(locked_);
    deadline[timer] = delay_ns > UINT64_MAX - now_ns ? UINT64_MAX : now_ns + delay_ns;
}

void SimHost::cancel_timer(Timer timer) {
    deadline[timer] = 0;
}

void SimHost::warn(const char* sentence) {
    if (observer_.logging()) {
        observer_.event(std::string("warning: ") + sentence);
    }
}

void SimHost::random(MutableBytes bytes) {
    for (std::byte& b : bytes) {
        b = static_cast<std::byte>(rng_.next());
    }
}

}  // namespace fvd::sim
