/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "fvd/format/journal_unit.h"

#include "fvd/base/arith.h"
#include "fvd/base/crc32c.h"
#include "fvd/base/plant.h"
#include "fvd/format/limits.h"

namespace fvd {

namespace {

/* Offsets in a unit. */
constexpr size_t kMagicAt = 0;
constexpr size_t kCrcAt = 4;
constexpr size_t kEpochAt = 8;
constexpr size_t kSequenceAt = 16;
constexpr size_t kTailAt = 24;
constexpr size_t kGroupIndexAt = 32;
constexpr size_t kGroupSizeAt = 36;
constexpr size_t kRecordBytesAt = 40;
constexpr size_t kReservedAt = 44;

/* Records start on multiples of this, so that no field of theirs is misaligned. */
constexpr size_t kRecordAlignment = 8;

/** crc32c over image id and unit, the checksum's own four bytes taken as zeros. */
uint32_t unit_crc(ConstBytes unit, const ImageId& image_id) {
    constexpr std::array<std::byte, 4> zeros{};
    uint32_t crc = crc32c(image_id);
    crc = crc32c(unit.first(kCrcAt), crc);
    crc = crc32c(zeros, crc);
    return crc32c(unit.subspan(kCrcAt + zeros.size()), crc);
}

bool is_unit_size(size_t size) {
    return size == 512 || size == 4096;
}

UnitHeader load_header(ConstBytes unit) {
    return {
        .epoch = load_le<uint64_t>(unit, kEpochAt),
        .sequence = load_le<uint64_t>(unit, kSequenceAt),
        .tail_sequence = load_le<uint64_t>(unit, kTailAt),
        .group_index = load_le<uint32_t>(unit, kGroupIndexAt),
        .group_size = load_le<uint32_t>(unit, kGroupSizeAt),
        .record_bytes = load_le<uint32_t>(unit, kRecordBytesAt),
    };
}

/** The numbers of one header agree with each other; see JournalScan for how units agree. */
bool is_consistent(const UnitHeader& h, size_t room) {
    return h.group_index < h.group_size && h.group_index <= h.sequence &&
           h.tail_sequence <= h.sequence - h.group_index && h.record_bytes <= room;
}

/** Size of the bitmap record at the start of @p records; 0 when it is malformed. */
size_t parse_bitmap(ConstBytes records, JournalRecord* record) {
    const auto count = load_le<uint32_t>(records, 4);
    const auto first = load_le<uint64_t>(records, 8);
    const auto end = checked_add(first, count);
    if (count == 0 || !end) {
        return 0;
    }
    *record = {};
    record->kind = JournalRecord::Kind::bitmap;
    record->blocks = {BlockIndex(first), BlockIndex(*end)};
    return kBitmapRecordSize;
}

/** Size of the table record at the start of @p records; 0 when it is malformed. */
size_t parse_table(ConstBytes records, JournalRecord* record) {
    const auto count = load_le<uint32_t>(records, 4);
    const auto first = load_le<uint32_t>(records, 8);
    const uint64_t room = (records.size() - kTableRecordHeaderSize) / sizeof(uint32_t);
    const bool wraps = uint64_t{first} + count > uint64_t{UINT32_MAX} + 1;
    if (count == 0 || count > room || wraps || load_le<uint32_t>(records, 12) != 0) {
        return 0;
    }
    *record = {};
    record->kind = JournalRecord::Kind::table;
    record->first_chunk = ChunkIndex(first);
    record->entries = records.subspan(kTableRecordHeaderSize, size_t{count} * sizeof(uint32_t));
    const size_t used = kTableRecordHeaderSize + record->entries.size();
    const size_t padded = round_up(used, kRecordAlignment);
    const bool padding_is_zero =
        padded <= records.size() && all_zero(records.subspan(used, padded - used));
    return padding_is_zero ? padded : 0;
}

/** Parse the record at the start of @p records, not empty; its size, or 0 when it is malformed. */
size_t parse_record(ConstBytes records, JournalRecord* record) {
    static_assert(kBitmapRecordSize == kTableRecordHeaderSize);
    if (records.size() < kBitmapRecordSize) {
        return 0;
    }
    switch (load_le<uint32_t>(records, 0)) {
        case kBitmapRecord:
            return parse_bitmap(records, record);
        case kTableRecord:
            return parse_table(records, record);
        default:
            return 0;
    }
}

bool all_records_parse(ConstBytes records) {
    JournalRecord record;
    while (!records.empty()) {
        const size_t size = parse_record(records, &record);
        if (size == 0) {
            return false;
        }
        records = records.subspan(size);
    }
    return true;
}

}  // namespace

UnitWriter::UnitWriter(MutableBytes unit) : unit_(unit) {
    FVD_ASSERT(is_unit_size(unit.size()));
    if (!FVD_PLANT(heap_bytes)) {
        std::memset(unit.data(), 0, unit.size());
    }
}

bool UnitWriter::add_bitmap(BlockRange range) {
    FVD_ASSERT(!range.empty() && range.count() <= UINT32_MAX);
    const size_t at = kUnitHeaderSize + used_;
    if (unit_.size() - at < kBitmapRecordSize) {
        return false;
    }
    store_le<uint32_t>(unit_, at, kBitmapRecord);
    store_le<uint32_t>(unit_, at + 4, static_cast<uint32_t>(range.count()));
    store_le<uint64_t>(unit_, at + 8, range.begin.value);
    used_ += kBitmapRecordSize;
    return true;
}

bool UnitWriter::add_table(ChunkIndex first, std::span<const uint32_t> entries) {
    FVD_ASSERT(!entries.empty() && first.value <= UINT32_MAX);
    FVD_ASSERT(entries.size() <= uint64_t{UINT32_MAX} + 1 - first.value);
    const size_t at = kUnitHeaderSize + used_;
    const size_t room = unit_.size() - at;
    if (room < kTableRecordHeaderSize ||
        entries.size() > (room - kTableRecordHeaderSize) / sizeof(uint32_t)) {
        return false;
    }
    store_le<uint32_t>(unit_, at, kTableRecord);
    store_le<uint32_t>(unit_, at + 4, static_cast<uint32_t>(entries.size()));
    store_le<uint32_t>(unit_, at + 8, static_cast<uint32_t>(first.value));
    size_t entry_at = at + kTableRecordHeaderSize;
    for (const uint32_t entry : entries) {
        store_le<uint32_t>(unit_, entry_at, entry);
        entry_at += sizeof(uint32_t);
    }
    used_ += round_up(entry_at - at, kRecordAlignment);
    return true;
}

void UnitWriter::finish(UnitHeader header, const ImageId& image_id) {
    header.record_bytes = static_cast<uint32_t>(used_);
    FVD_ASSERT(is_consistent(header, unit_.size() - kUnitHeaderSize));
    store_le<uint32_t>(unit_, kMagicAt, kUnitMagic);
    store_le<uint64_t>(unit_, kEpochAt, header.epoch);
    store_le<uint64_t>(unit_, kSequenceAt, header.sequence);
    store_le<uint64_t>(unit_, kTailAt, header.tail_sequence);
    store_le<uint32_t>(unit_, kGroupIndexAt, header.group_index);
    store_le<uint32_t>(unit_, kGroupSizeAt, header.group_size);
    store_le<uint32_t>(unit_, kRecordBytesAt, header.record_bytes);
    store_le<uint32_t>(unit_, kCrcAt, unit_crc(unit_, image_id));
}

std::optional<UnitView> UnitView::decode(ConstBytes unit, const ImageId& image_id) {
    if (!is_unit_size(unit.size()) || load_le<uint32_t>(unit, kMagicAt) != kUnitMagic ||
        (load_le<uint32_t>(unit, kCrcAt) != unit_crc(unit, image_id) && !FVD_PLANT(ignore_crc))) {
        return std::nullopt;
    }
    const UnitHeader header = load_header(unit);
    if (header.sequence > limits::kMaxCounter || header.epoch > 2 * limits::kMaxCounter ||
        !is_consistent(header, unit.size() - kUnitHeaderSize)) {
        return std::nullopt;
    }
    const size_t end = kUnitHeaderSize + header.record_bytes;
    const ConstBytes reserved = unit.subspan(kReservedAt, kUnitHeaderSize - kReservedAt);
    const ConstBytes records = unit.subspan(kUnitHeaderSize, header.record_bytes);
    if (!all_zero(reserved) || !all_zero(unit.subspan(end)) || !all_records_parse(records)) {
        return std::nullopt;
    }
    UnitView view;
    view.header_ = header;
    view.records_ = records;
    return view;
}

bool UnitView::next(size_t* position, JournalRecord* record) const {
    FVD_ASSERT(*position <= records_.size());
    if (*position == records_.size()) {
        return false;
    }
    const size_t size = parse_record(records_.subspan(*position), record);
    FVD_ASSERT(size != 0); /* decode() parsed it */
    *position += size;
    return true;
}

}  // namespace fvd
