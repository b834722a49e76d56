/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "medium.h"

#include <algorithm>
#include <cstring>

namespace fvd::sim {

void Medium::load(const SimDisk& image, const SimDisk& data) {
    const SimDisk* from[kDisks] = {&image, &data};
    unit_ = image.unit();
    hash_ = 0;
    for (unsigned d = 0; d < kDisks; d++) {
        Disk& disk = disks_[d];
        disk.bytes.assign(from[d]->durable(0), from[d]->durable(0) + from[d]->capacity());
        disk.hashes.resize(from[d]->units());
        disk.length = from[d]->length();
        for (uint64_t u = 0; u < disk.hashes.size(); u++) {
            disk.hashes[u] = from[d]->durable_hash(u);
            hash_ += unit_share(d, u, disk.hashes[u]);
        }
    }
}

void Medium::follow(unsigned number, SimDisk& disk) {
    for (const uint64_t unit : disk.take_changed()) {
        put_unit(number, unit, disk.durable(unit), disk.durable_hash(unit));
    }
    disks_[number].length = disk.length();
}

void Medium::read(unsigned number, uint64_t offset, MutableBytes to) const {
    const auto& bytes = disks_[number].bytes;
    const uint64_t end = std::min<uint64_t>(bytes.size(), offset + to.size());
    const size_t there = end > offset ? end - offset : 0;
    if (there != 0) {
        std::memcpy(to.data(), &bytes[offset], there);
    }
    std::fill(to.begin() + static_cast<ptrdiff_t>(there), to.end(), std::byte{0});
}

void Medium::put_unit(unsigned number, uint64_t unit, const std::byte* content, uint64_t hash) {
    Disk& disk = disks_[number];
    hash_ -= unit_share(number, unit, disk.hashes[unit]);
    hash_ += unit_share(number, unit, hash);
    disk.hashes[unit] = hash;
    std::memcpy(&disk.bytes[unit * unit_], content, unit_);
}

bool Medium::write(unsigned number, uint64_t offset, ConstBytes from, WriteLog& log) {
    Disk& disk = disks_[number];
    if (offset > disk.bytes.size() || from.size() > disk.bytes.size() - offset) {
        return false;
    }
    LogStep step;
    step.disk = number;
    step.first = log.units.size();
    step.old_length = disk.length;
    const uint64_t end = offset + from.size();
    for (uint64_t u = offset / unit_; u * unit_ < end; u++) {
        LoggedUnit logged;
        logged.unit = u;
        logged.old_hash = disk.hashes[u];
        logged.old_at = log.arena.size();
        logged.new_at = logged.old_at + unit_;
        log.arena.resize(log.arena.size() + size_t{2} * unit_);
        std::byte* fresh = &log.arena[logged.new_at];
        std::memcpy(&log.arena[logged.old_at], &disk.bytes[u * unit_], unit_);
        std::memcpy(fresh, &disk.bytes[u * unit_], unit_);
        const uint64_t begin = std::max(offset, u * unit_);
        const uint64_t stop = std::min(end, (u + 1) * unit_);
        std::memcpy(fresh + (begin - u * unit_), &from[begin - offset], stop - begin);
        logged.new_hash = content_hash(fresh, unit_);
        if (logged.new_hash == logged.old_hash) {
            log.arena.resize(logged.old_at); /* no change, no uncertainty */
            continue;
        }
        put_unit(number, u, fresh, logged.new_hash);
        log.units.push_back(logged);
    }
    disk.length = std::max(disk.length, end);
    step.end = log.units.size();
    log.steps.push_back(step);
    log.writes = true;
    return true;
}

void Medium::undo(const WriteLog& log) {
    for (auto step = log.steps.rbegin(); step != log.steps.rend(); ++step) {
        if (step->is_flush) {
            continue;
        }
        for (size_t i = step->end; i-- > step->first;) {
            const LoggedUnit& logged = log.units[i];
            put_unit(step->disk, logged.unit, &log.arena[logged.old_at], logged.old_hash);
        }
        disks_[step->disk].length = step->old_length;
    }
}

}  // namespace fvd::sim
