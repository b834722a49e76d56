/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once
/*
 * The Host of a running world. A call that may wait puts its I/O into a list and yields its fiber;
 * the world decides which I/O completes next, and whether it fails.
 */

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "fiber.h"
#include "fvd/engine/host.h"
#include "guest_memory.h"
#include "sim_disk.h"

namespace fvd::sim {

enum class CallKind : uint8_t {
    read,
    write,
    write_zeroes,
    discard,
    flush,
    length,
    resize,
    allocate,
    extent
};

/** Which calls fail, and how. */
struct FaultRule {
    uint32_t calls = 0; /* bit per CallKind; 0: no rule */
    uint32_t files = 7; /* bit per fvd_file */
    uint64_t skip = 0;  /* so many matching calls pass first */
    int error = 0;      /* positive errno */
    bool forever = false;
    bool hit = false;
};

/** A call that waits for the world. Lives on the stack of its fiber. */
struct PendingIo {
    CallKind kind = CallKind::read;
    File file = FVD_FILE_IMAGE;
    uint64_t offset = 0;
    uint64_t length = 0;
    std::span<const Slice> slices;
    bool durable = false;
    bool slow = false;  /* many others overtake it */
    uint64_t write = 0; /* SimDisk's name of it */
    uint64_t flush_moment = 0;
    int error = 0; /* how it will fail */
    Status status;
    Fiber* fiber = nullptr;
    uint64_t checksum = 0; /* of the core's memory while the write is in flight */
};

/** What the world learns as it happens. */
class HostObserver {
  public:
    virtual void write_enters(File file, uint64_t offset, ConstBytes bytes) = 0;
    virtual void write_entered() = 0;
    virtual void flush_completes(File file) = 0; /* just before things become durable */
    virtual void flush_failed(File file, Fiber* who) = 0;
    virtual void filled() = 0;
    virtual void fetch_begins(uint64_t offset, uint64_t length) = 0;
    virtual void task_started(std::function<void()> body) = 0;
    virtual void host_broken(const char* promise, const std::string& text) = 0;
    virtual void event(const std::string& text) = 0;
    virtual bool logging() const = 0;

  protected:
    ~HostObserver() = default;
};

class SimHost final : public Host {
  public:
    SimHost(HostObserver& observer, SimDisk& image, SimDisk& data, std::vector<std::byte>& base,
            bool separate_data, Rng rng)
        : observer_(observer),
          image_(image),
          data_(data),
          base_(base),
          separate_data_(separate_data),
          rng_(rng) {}
    ~SimHost();

    /* For the world. */
    std::vector<PendingIo*>& pending() { return pending_; }
    void finish(size_t index);
    void add_fault(const FaultRule& rule) { faults_.push_back(rule); }
    /** What has struck strikes no more; what is still to come, comes. */
    void lift_faults() {
        std::erase_if(faults_, [](const FaultRule& rule) { return rule.hit; });
    }
    /** No fault strikes, none is counted down. */
    void suspend_faults(bool suspended) { suspended_ = suspended; }
    bool has_faults() const { return !faults_.empty(); }
    /** Who opens a device sees how long it is. */
    void forget_lengths() { known_length_.reset(); }
    /** Every call fails from now on and changes nothing. */
    void set_power(bool on) { power_ = on; }
    uint64_t calls() const { return calls_; }
    uint64_t faults_hit() const { return faults_hit_; }
    uint64_t allocated() const { return allocated_; }
    uint64_t now_ns = 1;
    uint64_t deadline[FVD_TIMER_COUNT] = {}; /* ns; 0: not armed */
    uint32_t slow_reads = 0;                 /* percent */
    bool is_device = false;  /* of guest data: nobody but extend() makes it longer */
    bool was_full = false;   /* and somebody wanted it longer */
    uint32_t lock_waits = 0; /* percent */
    bool discards = true;
    bool zeroes = true;

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
    void* current_task() override { return Fiber::current(); }
    void park() override;
    void wake(void* task) override;
    void start_task(Task run, void* opaque) override;
    uint64_t now() override { return now_ns; }
    void arm_timer(Timer timer, uint64_t delay_ns) override;
    void cancel_timer(Timer timer) override;
    void announce(Event event) override;
    void warn(const char* sentence) override;
    void random(MutableBytes bytes) override;

  private:
    SimDisk& disk_of(File file) { return file == FVD_FILE_DATA && separate_data_ ? data_ : image_; }
    int fault_for(CallKind kind, File file);
    Status wait(PendingIo& io);
    Status store(PendingIo& io, ConstBytes bytes);
    void perform(PendingIo& io);
    void read_now(PendingIo& io);
    void check_memory(std::span<const Slice> slices);
    void check_unlocked(const char* call);

    HostObserver& observer_;
    SimDisk& image_;
    SimDisk& data_;
    std::vector<std::byte>& base_;
    std::optional<uint64_t> known_length_; /* of a device: what the process takes for its length */
    bool separate_data_;
    Rng rng_;
    std::vector<PendingIo*> pending_;
    std::vector<FaultRule> faults_;
    bool power_ = true;
    bool locked_ = false;
    bool suspended_ = false;
    bool watched_ = false; /* the world looks, and time stands still */
    uint64_t calls_ = 0;
    uint64_t faults_hit_ = 0;
    uint64_t allocated_ = 0;
    std::vector<std::byte> gathered_;
};

const char* file_name(File file);
const char* call_name(CallKind kind);

}  // namespace fvd::sim
