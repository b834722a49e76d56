/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "fvd/engine/journal_group.h"

#include <algorithm>

namespace fvd {

bool JournalGroup::begin(Host& host, size_t unit_size, uint64_t most) {
    bytes_ = HostBuffer(host, kBytes);
    unit_ = unit_size;
    most_ = static_cast<size_t>(std::min({uint64_t{kMaxUnits}, most, kBytes / unit_size}));
    count_ = 0;
    return static_cast<bool>(bytes_);
}

bool JournalGroup::open_unit() {
    if (count_ == most_) {
        return false;
    }
    writers_[count_].emplace(bytes_.bytes().subspan(count_ * unit_, unit_));
    count_++;
    return true;
}

bool JournalGroup::add(BlockRange blocks) {
    if (count_ != 0 && writers_[count_ - 1]->add_bitmap(blocks)) {
        return true;
    }
    return open_unit() && writers_[count_ - 1]->add_bitmap(blocks);
}

bool JournalGroup::add(ChunkIndex first, std::span<const uint32_t> entries) {
    FVD_ASSERT(entries.size() <= kMaxEntries);
    if (count_ != 0 && writers_[count_ - 1]->add_table(first, entries)) {
        return true;
    }
    return open_unit() && writers_[count_ - 1]->add_table(first, entries);
}

void JournalGroup::finish(UnitHeader header, const ImageId& image_id) {
    header.group_size = static_cast<uint32_t>(count_);
    for (size_t i = 0; i < count_; i++) {
        header.group_index = static_cast<uint32_t>(i);
        writers_[i]->finish(header, image_id);
        header.sequence++;
    }
}

ConstBytes JournalGroup::units(size_t first, size_t count) const {
    return bytes_.bytes().subspan(first * unit_, count * unit_);
}

}  // namespace fvd
