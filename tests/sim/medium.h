/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once
/*
 * The bytes of all files as a power cut left them, with a hash, and a log that takes changes back.
 * One medium serves millions of crash states: building one costs the units that differ, not a copy.
 */

#include <vector>

#include "fvd/base/bytes.h"
#include "sim_disk.h"
#include "unit_hash.h"

namespace fvd::sim {

/** One unit that a write changed, with what to put back. */
struct LoggedUnit {
    uint64_t unit = 0;
    uint64_t old_hash = 0;
    uint64_t new_hash = 0;
    size_t old_at = 0; /* in the log's arena */
    size_t new_at = 0;
};

/** A write or a flush that a recovery performed. */
struct LogStep {
    bool is_flush = false;
    unsigned disk = 0;
    size_t first = 0; /* units [first, end) of the log */
    size_t end = 0;
    uint64_t old_length = 0;
};

struct WriteLog {
    std::vector<std::byte> arena;
    std::vector<LoggedUnit> units;
    std::vector<LogStep> steps;
    bool writes = false; /* anything but flushes */
    void clear() {
        arena.clear();
        units.clear();
        steps.clear();
        writes = false;
    }
};

class Medium {
  public:
    static constexpr unsigned kDisks = 2; /* image, data */

    /** Take the shape of these disks and their durable content. */
    void load(const SimDisk& image, const SimDisk& data);
    /** Follow what became durable since. */
    void follow(unsigned number, SimDisk& disk);

    uint32_t unit() const { return unit_; }
    uint64_t hash() const { return hash_; }
    uint64_t length(unsigned disk) const { return disks_[disk].length; }
    void set_length(unsigned disk, uint64_t length) { disks_[disk].length = length; }
    const std::vector<std::byte>& bytes(unsigned disk) const { return disks_[disk].bytes; }
    /** What one unit adds to hash() now, and would add with another content. */
    uint64_t unit_hash(unsigned disk, uint64_t unit) const { return disks_[disk].hashes[unit]; }

    void read(unsigned disk, uint64_t offset, MutableBytes to) const;
    void put_unit(unsigned disk, uint64_t unit, const std::byte* content, uint64_t hash);
    const std::byte* unit_bytes(unsigned disk, uint64_t unit) const {
        return &disks_[disk].bytes[unit * unit_];
    }
    /** False when the range is not on the disk. */
    bool write(unsigned disk, uint64_t offset, ConstBytes from, WriteLog& log);
    void undo(const WriteLog& log);

  private:
    struct Disk {
        std::vector<std::byte> bytes;
        std::vector<uint64_t> hashes;
        uint64_t length = 0;
    };
    Disk disks_[kDisks];
    uint32_t unit_ = 512;
    uint64_t hash_ = 0;
};

}  // namespace fvd::sim
