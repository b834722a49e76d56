/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once
/*
 * A disk with a volatile cache. Reads see the cache. A write is on the medium for certain only when
 * a flush that was issued after the write completed has completed (the dm-log-writes rule), or the
 * write carried FUA. Until then every write unit it covers is, after a power cut, what it was, or
 * any of the contents written since, independently of every other unit: reordered, dropped and torn
 * writes in one.
 */

#include <map>
#include <memory>
#include <vector>

#include "fvd/base/bytes.h"
#include "rng.h"
#include "unit_hash.h"

namespace fvd::sim {

/** One content that a unit may have after a power cut. */
struct UnitVersion {
    uint64_t write = 0;
    uint64_t completed = 0; /* moment; 0 = still in flight */
    uint64_t hash = 0;
    std::shared_ptr<std::byte[]> bytes;
};

class SimDisk {
  public:
    SimDisk(uint32_t unit, uint64_t capacity);

    uint32_t unit() const { return unit_; }
    uint64_t length() const { return length_; }
    /** At once, and durably. What a shorter file loses is gone for ever. */
    void set_length(uint64_t length);
    void read(uint64_t offset, MutableBytes to) const;

    /** A write enters the device; what it carries is copied now. Returns its name. */
    uint64_t submit(uint64_t offset, ConstBytes from);
    void complete(uint64_t write, bool durable);
    /** The write fails; each of its units may have been written all the same. */
    void fail(uint64_t write, Rng& rng);
    /** The moment a flush is issued, to be given to flush_done(). */
    uint64_t flush_issued() { return ++clock_; }
    void flush_done(uint64_t issued);
    /** The flush failed and the cache forgot what was dirty: reads still see it, the medium never
     * will. */
    void drop_cache();
    /** The process died: what was in flight arrives in the cache, whole, in part, or not at all. */
    void end_in_flight(Rng& rng);
    /** Reads see the medium again, as after a reboot or eviction. Nothing may be in flight. */
    void evict_cache();

    /** Setup of a world: past every cache. */
    void write_through(uint64_t offset, ConstBytes from);

    /** What a power cut may leave; empty vectors never occur. */
    const std::map<uint64_t, std::vector<UnitVersion>>& uncertain() const { return uncertain_; }
    const std::byte* durable(uint64_t unit) const { return &medium_[unit * unit_]; }
    uint64_t durable_hash(uint64_t unit) const { return medium_hash_[unit]; }
    uint64_t units() const { return medium_hash_.size(); }
    uint64_t capacity() const { return medium_.size(); }
    bool in_flight() const { return !writes_.empty(); }

    /** Was this unit written, durably, since forget_written()? For the order oracle. */
    bool written(uint64_t unit) const { return written_[unit]; }
    void mark_written(uint64_t unit) { written_[unit] = true; }
    void forget_written() { written_.assign(written_.size(), false); }
    void forget_written(uint64_t unit) { written_[unit] = false; }

    /** Units whose durable content changed since the last call. */
    std::vector<uint64_t> take_changed();
    /** The power cut happened and this unit came out so; ends all uncertainty about it. */
    void settle(uint64_t unit, ConstBytes content);
    /** After settle() of the uncertain units: forget the cache. */
    void after_cut();

  private:
    struct Write {
        uint64_t offset = 0;
        std::vector<std::byte> bytes;
    };

    void forget_end(uint64_t unit, uint64_t kept);
    void set_durable(uint64_t unit, const std::byte* bytes, uint64_t hash);
    void apply(const Write& write, uint64_t unit, std::byte* content) const;
    void rebase_in_flight(uint64_t unit);
    std::vector<UnitVersion>::iterator version_of(uint64_t unit, uint64_t write);
    void check_range(uint64_t offset, uint64_t length) const;

    uint32_t unit_;
    uint64_t length_ = 0;
    uint64_t clock_ = 0;
    uint64_t next_write_ = 0;
    std::vector<std::byte> medium_;
    std::vector<std::byte> cache_;
    std::vector<uint64_t> medium_hash_;
    std::map<uint64_t, std::vector<UnitVersion>> uncertain_;
    std::map<uint64_t, Write> writes_; /* in flight */
    std::vector<uint64_t> changed_;
    std::vector<bool> written_;
};

}  // namespace fvd::sim
