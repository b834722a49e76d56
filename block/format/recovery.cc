/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "fvd/format/recovery.h"

#include <algorithm>

#include "fvd/base/arith.h"
#include "fvd/base/plant.h"

namespace fvd {

namespace {

bool blocks_exist(const JournalRecord& record, const ReplayTarget& target) {
    return record.blocks.end.value <= target.bitmap.bits();
}

bool chunks_and_slots_exist(const JournalRecord& record, const ReplayTarget& target) {
    if (record.first_chunk.value + record.entry_count() > target.table.chunks()) {
        return false;
    }
    for (uint64_t i = 0; i < record.entry_count(); ++i) {
        if (record.entry(i) != kNotStored && record.entry(i) >= target.slots) {
            return false;
        }
    }
    return true;
}

/** What a record may touch exists. */
bool is_inside(const JournalRecord& record, const ReplayTarget& target) {
    return record.kind == JournalRecord::Kind::bitmap ? blocks_exist(record, target)
                                                      : chunks_and_slots_exist(record, target);
}

void apply_blocks(const JournalRecord& record, ReplayTarget& target) {
    const uint64_t begin = record.blocks.begin.value;
    const uint64_t end = record.blocks.end.value;
    target.bitmap.set(begin, end);
    target.dirty_pages.set(begin / kBlocksPerPage, div_ceil(end, kBlocksPerPage));
}

void apply_entries(const JournalRecord& record, ReplayTarget& target) {
    const uint64_t begin = record.first_chunk.value;
    const uint64_t end = begin + record.entry_count();
    for (uint64_t chunk = begin; chunk < end; ++chunk) {
        target.table.set_entry(ChunkIndex(chunk), record.entry(chunk - begin));
    }
    target.dirty_entries.set(begin / kChunksPerPage, div_ceil(end, kChunksPerPage));
}

}  // namespace

JournalScan::JournalScan(std::span<uint64_t> sequences, uint64_t epoch, const ImageId& image_id)
    : sequences_(sequences), epoch_(epoch), image_id_(image_id) {
    std::fill(sequences_.begin(), sequences_.end(), 0);
}

void JournalScan::add(uint64_t ring_index, ConstBytes unit) {
    const uint64_t units = sequences_.size();
    FVD_ASSERT(ring_index < units);
    const auto view = UnitView::decode(unit, image_id_);
    if (!view) {
        return;
    }
    const UnitHeader& header = view->header();
    newest_epoch_ = std::max(newest_epoch_, header.epoch);
    /* decode() proved tail <= start of the group <= sequence. A group that would reach round the
     * ring to its own tail cannot have been written: the tail is still needed. */
    const uint64_t before_group = header.sequence - header.group_index - header.tail_sequence;
    if ((header.epoch != epoch_ && !FVD_PLANT(ignore_epoch)) ||
        header.sequence % units != ring_index || before_group >= units ||
        header.group_size > units - before_group) {
        return;
    }
    if (valid_ == 0 || header.sequence > newest_.sequence) {
        newest_ = header;
    }
    valid_ += sequences_[ring_index] == 0;
    sequences_[ring_index] = header.sequence + 1;
}

bool JournalScan::has(uint64_t sequence) const {
    return sequences_[sequence % sequences_.size()] == sequence + 1;
}

ReplayPlan JournalScan::plan() const {
    ReplayPlan plan;
    if (valid_ == 0) {
        return plan;
    }
    const uint64_t group_start = newest_.sequence - newest_.group_index;
    plan.first_sequence = newest_.tail_sequence;
    plan.end_sequence = plan.first_sequence;
    /* add() proved that this walks over less than one round of the ring. */
    while (plan.end_sequence <= newest_.sequence && has(plan.end_sequence)) {
        ++plan.end_sequence;
    }
    plan.damaged = plan.end_sequence < (FVD_PLANT(ignore_gap) ? newest_.sequence : group_start);
    for (uint64_t rest = plan.end_sequence; rest <= newest_.sequence; ++rest) {
        plan.torn_units += has(rest);
    }
    return plan;
}

bool apply_unit(const UnitView& unit, ReplayTarget& target) {
    JournalRecord record;
    for (size_t position = 0; unit.next(&position, &record);) {
        if (!is_inside(record, target)) {
            return false;
        }
    }
    for (size_t position = 0; unit.next(&position, &record);) {
        record.kind == JournalRecord::Kind::bitmap ? apply_blocks(record, target)
                                                   : apply_entries(record, target);
    }
    return true;
}

}  // namespace fvd
