/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "sector_model.h"

#include <algorithm>
#include <cstdio>

#include "thread_host.h"

namespace fvd::threads {

namespace {

constexpr uint64_t kWords = kSector / 8;
constexpr uint64_t kLongestRun = 28;

Kind kind_of(uint64_t version) {
    return version % 8 == 7   ? Kind::zero
           : version % 8 == 6 ? Kind::discarded_then_data
                              : Kind::data;
}

/* Every word says where it belongs, so that a word out of place is seen whatever its neighbours
 * are. Never 0: sectors are counted from 1 here. */
uint64_t word_of(uint64_t sector, uint64_t version, uint64_t index) {
    return version << 32 | (sector + 1) << 6 | index;
}

}  // namespace

SectorModel::SectorModel(uint64_t sectors, uint64_t base_sectors, unsigned owners, uint64_t seed)
    : sectors_(sectors),
      base_sectors_(base_sectors),
      versions_(new Versions[sectors]),
      runs_(owners) {
    FVD_ASSERT(sectors < 1 << 25);
    Random random(seed);
    for (uint64_t at = 0; at < sectors;) {
        const uint64_t longest = random.below(3) == 0 ? 3 : kLongestRun;
        const Run run{at, std::min(sectors - at, 1 + random.below(longest))};
        runs_[random.below(owners)].push_back(run);
        at += run.count;
    }
    for (std::vector<Run>& own : runs_) {
        FVD_ASSERT(!own.empty());
    }
}

uint64_t SectorModel::begin(Run run, Kind kind) {
    uint64_t version = floor_;
    for (uint64_t s = run.begin; s < run.begin + run.count; s++) {
        version = std::max(version, versions_[s].begun.load(std::memory_order_relaxed));
    }
    do {
        version++;
    } while (kind_of(version) != kind);
    for (uint64_t s = run.begin; s < run.begin + run.count; s++) {
        versions_[s].begun.store(version, std::memory_order_seq_cst);
    }
    return version;
}

void SectorModel::end(Run run, uint64_t version) {
    for (uint64_t s = run.begin; s < run.begin + run.count; s++) {
        versions_[s].ended.store(version, std::memory_order_seq_cst);
    }
}

void SectorModel::fill(Run run, uint64_t version, std::byte* data) const {
    const bool zero = kind_of(version) == Kind::zero;
    for (uint64_t i = 0; i < run.count * kWords; i++) {
        const uint64_t word = zero ? 0 : word_of(run.begin + i / kWords, version, i % kWords);
        std::memcpy(data + i * 8, &word, sizeof(word));
    }
}

void SectorModel::fill_base(uint64_t sector, std::byte* data) {
    for (uint64_t i = 0; i < kWords; i++) {
        const uint64_t word = word_of(sector, 0, i);
        std::memcpy(data + i * 8, &word, sizeof(word));
    }
}

void SectorModel::before_read(Run run, std::vector<uint64_t>& least) const {
    least.resize(run.count);
    for (uint64_t i = 0; i < run.count; i++) {
        least[i] = versions_[run.begin + i].ended.load(std::memory_order_seq_cst);
    }
}

/* Zeros are the content of some version of the range, or a discard may have shown them meanwhile.
 */
bool SectorModel::zero_allowed(uint64_t sector, uint64_t least, uint64_t most) const {
    if (least == 0 && sector >= base_sectors_) {
        return true;
    }
    if (kind_of(least) == Kind::zero) {
        return true;
    }
    for (uint64_t v = least + 1; v <= most; v++) {
        if (kind_of(v) != Kind::data) {
            return true;
        }
    }
    return false;
}

std::string SectorModel::judge(Run run, const std::vector<uint64_t>& least,
                               const std::byte* data) const {
    for (uint64_t i = 0; i < run.count * kWords; i++) {
        const uint64_t sector = run.begin + i / kWords;
        const uint64_t low = least[i / kWords];
        const uint64_t high = versions_[sector].begun.load(std::memory_order_seq_cst);
        uint64_t word = 0;
        std::memcpy(&word, data + i * 8, sizeof(word));
        const uint64_t version = word >> 32;
        const bool base_here = version != 0 || sector < base_sectors_;
        const bool in_place = word == word_of(sector, version, i % kWords);
        const bool legal = word == 0 ? zero_allowed(sector, low, high)
                                     : in_place && base_here && version >= low && version <= high &&
                                           kind_of(version) != Kind::zero;
        if (!legal) {
            char text[200];
            std::snprintf(
                text, sizeof(text),
                "sector %llu word %llu reads as 0x%llx (version %llu); versions %llu to "
                "%llu are legal",
                static_cast<unsigned long long>(sector),
                static_cast<unsigned long long>(i % kWords), static_cast<unsigned long long>(word),
                static_cast<unsigned long long>(version), static_cast<unsigned long long>(low),
                static_cast<unsigned long long>(high));
            return text;
        }
    }
    return {};
}

/* Versions of an earlier life do not come again: what is left of it must not pass for new. */
void SectorModel::forget() {
    for (uint64_t s = 0; s < sectors_; s++) {
        floor_ = std::max(floor_, versions_[s].begun.load());
    }
    for (uint64_t s = 0; s < base_sectors_; s++) {
        versions_[s].begun.store(0);
        versions_[s].ended.store(0);
    }
}

}  // namespace fvd::threads
