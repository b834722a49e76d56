/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once
/*
 * The Host for looking at one crash state: a medium, no time, no other tasks, everything happens at
 * once. Writes go to a log, so that they can be taken back and cut in turn.
 */

#include <string>

#include "fvd/base/units.h"
#include "fvd/engine/host.h"
#include "guest_memory.h"
#include "medium.h"
#include "rng.h"

namespace fvd::sim {

class DirectHost : public Host {
  public:
    DirectHost(Medium& medium, const std::vector<std::byte>& base, bool separate_data,
               WriteLog& log)
        : medium_(medium), base_(base), separate_data_(separate_data), log_(log) {}
    ~DirectHost();

    bool wrote() const { return log_.writes; }
    const std::string& warnings() const { return warnings_; }
    uint64_t warning_count() const { return warning_count_; }
    /** Memory the core did not give back. */
    uint64_t leaked() const { return allocated_; }
    /** The core waited for something that cannot come, or left the medium. */
    const std::string& misbehaviour() const { return misbehaviour_; }
    void set_random(Rng rng) { random_ = rng; }
    bool base_is_sparse = true; /* extent() tells where the base is zero */
    ByteRange unreadable;       /* reads of this part of the image file fail */

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
    void lock() override {}
    void unlock() override {}
    void* current_task() override { return this; }
    void park() override;
    void wake(void*) override { woken_ = true; }
    void start_task(Task, void*) override;
    uint64_t now() override { return 1; }
    void arm_timer(Timer, uint64_t) override {}
    void cancel_timer(Timer) override {}
    void announce(Event) override {}
    void warn(const char* sentence) override;
    void random(MutableBytes bytes) override;

  private:
    unsigned disk_of(File file) const { return file == FVD_FILE_DATA && separate_data_ ? 1 : 0; }
    Status store(File file, uint64_t offset, ConstBytes bytes);

    Medium& medium_;
    const std::vector<std::byte>& base_;
    bool separate_data_;
    WriteLog& log_;
    Rng random_{1};
    std::string warnings_;
    uint64_t warning_count_ = 0;
    std::string misbehaviour_;
    bool woken_ = false;
    uint64_t allocated_ = 0;
    std::vector<std::byte> gathered_;
};

}  // namespace fvd::sim
