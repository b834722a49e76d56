/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "sim_disk.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace fvd::sim {

SimDisk::SimDisk(uint32_t unit, uint64_t capacity)
    : unit_(unit),
      medium_(capacity),
      cache_(capacity),
      medium_hash_(capacity / unit, 0),
      written_(capacity / unit, false) {
    FVD_ASSERT(capacity % unit == 0);
}

void SimDisk::check_range(uint64_t offset, uint64_t length) const {
    FVD_ASSERT(offset <= medium_.size() && length <= medium_.size() - offset);
}

void SimDisk::set_length(uint64_t length) {
    for (uint64_t at = length; at < length_; at = (at / unit_ + 1) * unit_) {
        forget_end(at / unit_, at % unit_);
    }
    length_ = length;
}

/* Of a unit that a shorter file ends in, or before: only so many bytes are kept. */
void SimDisk::forget_end(uint64_t unit, uint64_t kept) {
    std::memset(&cache_[unit * unit_ + kept], 0, unit_ - kept);
    std::memset(&medium_[unit * unit_ + kept], 0, unit_ - kept);
    medium_hash_[unit] = content_hash(&medium_[unit * unit_], unit_);
    changed_.push_back(unit);
    const auto found = uncertain_.find(unit);
    if (found == uncertain_.end()) {
        return;
    }
    for (UnitVersion& version : found->second) {
        std::memset(version.bytes.get() + kept, 0, unit_ - kept);
        version.hash = content_hash(version.bytes.get(), unit_);
    }
}

void SimDisk::read(uint64_t offset, MutableBytes to) const {
    const uint64_t end = std::min<uint64_t>(cache_.size(), offset + to.size());
    const size_t there = end > offset ? end - offset : 0;
    if (there != 0) {
        std::memcpy(to.data(), &cache_[offset], there);
    }
    std::fill(to.begin() + static_cast<ptrdiff_t>(there), to.end(), std::byte{0});
}

/* Put the write's share of a unit over what the unit holds. */
void SimDisk::apply(const Write& write, uint64_t unit, std::byte* content) const {
    const uint64_t start = unit * unit_;
    const uint64_t begin = std::max(start, write.offset);
    const uint64_t end = std::min<uint64_t>(start + unit_, write.offset + write.bytes.size());
    std::memcpy(content + (begin - start), &write.bytes[begin - write.offset], end - begin);
}

std::vector<UnitVersion>::iterator SimDisk::version_of(uint64_t unit, uint64_t write) {
    auto& versions = uncertain_[unit];
    return std::find_if(versions.begin(), versions.end(),
                        [write](const UnitVersion& v) { return v.write == write; });
}

uint64_t SimDisk::submit(uint64_t offset, ConstBytes from) {
    check_range(offset, from.size());
    const uint64_t id = ++next_write_;
    Write& write = writes_[id];
    write.offset = offset;
    write.bytes.assign(from.begin(), from.end());
    for (uint64_t u = offset / unit_; u * unit_ < offset + from.size(); u++) {
        UnitVersion version;
        version.write = id;
        version.bytes.reset(new std::byte[unit_]);
        std::memcpy(version.bytes.get(), &cache_[u * unit_], unit_);
        apply(write, u, version.bytes.get());
        version.hash = content_hash(version.bytes.get(), unit_);
        uncertain_[u].push_back(std::move(version));
    }
    return id;
}

/* A write that covers a part of a unit is put over what the cache holds when it arrives, so what it
 * may leave changes with the cache. */
void SimDisk::rebase_in_flight(uint64_t unit) {
    const auto found = uncertain_.find(unit);
    if (found == uncertain_.end()) {
        return;
    }
    for (UnitVersion& version : found->second) {
        if (version.completed == 0) {
            const Write& write = writes_.at(version.write);
            std::memcpy(version.bytes.get(), &cache_[unit * unit_], unit_);
            apply(write, unit, version.bytes.get());
            version.hash = content_hash(version.bytes.get(), unit_);
        }
    }
}

void SimDisk::complete(uint64_t id, bool durable) {
    const auto found = writes_.find(id);
    FVD_ASSERT(found != writes_.end());
    const Write write = std::move(found->second);
    writes_.erase(found);
    const uint64_t end = write.offset + write.bytes.size();
    length_ = std::max(length_, end);
    clock_++;
    for (uint64_t u = write.offset / unit_; u * unit_ < end; u++) {
        std::byte* cached = &cache_[u * unit_];
        apply(write, u, cached);
        /* Another write to this unit may have completed meanwhile, so the version is made anew; and
         * versions stand in the order of completion. */
        auto& versions = uncertain_[u];
        auto it = version_of(u, id);
        UnitVersion version = std::move(*it);
        versions.erase(it);
        std::memcpy(version.bytes.get(), cached, unit_);
        version.hash = content_hash(cached, unit_);
        version.completed = clock_;
        const auto flying = std::find_if(versions.begin(), versions.end(),
                                         [](const UnitVersion& v) { return v.completed == 0; });
        if (durable) {
            set_durable(u, version.bytes.get(), version.hash);
            versions.erase(versions.begin(), flying);
        } else {
            versions.insert(flying, std::move(version));
        }
        if (versions.empty()) {
            uncertain_.erase(u);
        }
        rebase_in_flight(u);
    }
}

void SimDisk::fail(uint64_t id, Rng& rng) {
    const auto found = writes_.find(id);
    FVD_ASSERT(found != writes_.end());
    const Write write = found->second;
    const bool none = rng.chance(50);
    for (uint64_t u = write.offset / unit_; u * unit_ < write.offset + write.bytes.size(); u++) {
        auto it = version_of(u, id);
        if (!none && rng.chance(50)) {
            std::byte* cached = &cache_[u * unit_];
            apply(write, u, cached);
            std::memcpy(it->bytes.get(), cached, unit_);
            it->hash = content_hash(cached, unit_);
            it->completed = ++clock_;
            auto& versions = uncertain_[u];
            std::stable_partition(versions.begin(), versions.end(),
                                  [](const UnitVersion& v) { return v.completed != 0; });
            rebase_in_flight(u);
        } else {
            uncertain_[u].erase(it);
            if (uncertain_[u].empty()) {
                uncertain_.erase(u);
            }
        }
    }
    writes_.erase(id);
}

void SimDisk::set_durable(uint64_t unit, const std::byte* bytes, uint64_t hash) {
    std::memcpy(&medium_[unit * unit_], bytes, unit_);
    medium_hash_[unit] = hash;
    changed_.push_back(unit);
    written_[unit] = true;
}

void SimDisk::flush_done(uint64_t issued) {
    for (auto it = uncertain_.begin(); it != uncertain_.end();) {
        auto& versions = it->second;
        auto last = versions.end();
        for (auto v = versions.begin(); v != versions.end(); ++v) {
            if (v->completed != 0 && v->completed < issued) {
                last = v;
            }
        }
        if (last != versions.end()) {
            set_durable(it->first, last->bytes.get(), last->hash);
            versions.erase(versions.begin(), last + 1);
        }
        it = versions.empty() ? uncertain_.erase(it) : std::next(it);
    }
}

void SimDisk::drop_cache() {
    for (auto it = uncertain_.begin(); it != uncertain_.end();) {
        auto& versions = it->second;
        std::erase_if(versions, [](const UnitVersion& v) { return v.completed != 0; });
        it = versions.empty() ? uncertain_.erase(it) : std::next(it);
    }
}

void SimDisk::evict_cache() {
    FVD_ASSERT(writes_.empty());
    cache_ = medium_;
    for (const auto& [unit, versions] : uncertain_) {
        std::memcpy(&cache_[unit * unit_], versions.back().bytes.get(), unit_);
    }
}

void SimDisk::end_in_flight(Rng& rng) {
    while (!writes_.empty()) {
        const uint64_t id = writes_.begin()->first;
        if (rng.chance(40)) {
            complete(id, false);
        } else {
            fail(id, rng);
        }
    }
}

void SimDisk::write_through(uint64_t offset, ConstBytes from) {
    const uint64_t id = submit(offset, from);
    complete(id, true);
}

std::vector<uint64_t> SimDisk::take_changed() {
    return std::exchange(changed_, {});
}

void SimDisk::settle(uint64_t unit, ConstBytes content) {
    set_durable(unit, content.data(), content_hash(content.data(), unit_));
}

void SimDisk::after_cut() {
    uncertain_.clear();
    writes_.clear();
    cache_ = medium_;
}

}  // namespace fvd::sim
