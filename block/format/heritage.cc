/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Bitmap, table and journal of January 2011 in memory. */
#include "fvd/format/heritage.h"

#include <algorithm>
#include <cerrno>
#include <cinttypes>

#include "fvd/base/arith.h"

namespace fvd::heritage {

namespace {

constexpr uint32_t kEndOfRecords = 0;
constexpr uint32_t kBitmapRecord = 0x3F2AB8ED;
constexpr uint32_t kTableRecord = 0xB4E6F7AC;
constexpr size_t kBitmapRecordSize = 16;
constexpr size_t kTableRecordSize = 12; /* and the entries */

struct BitmapRecord {
    uint64_t first_sector = 0; /* of the disk */
    uint64_t sectors = 0;
};

struct TableRecord {
    uint64_t first_chunk = 0;
    ConstBytes entries; /* little endian */
    uint64_t count() const { return entries.size() / sizeof(uint32_t); }
    uint32_t entry(uint64_t i) const { return load_le<uint32_t>(entries, i * sizeof(uint32_t)); }
};

/**
 * Call on_bitmap and on_table for the records of a sector, which end at a type of zero or where
 * there is no room for another; the rest is memory of the process that wrote. An error where they
 * are not what the driver of 2011 could have written.
 */
template <typename OnBitmap, typename OnTable>
Error parse(uint64_t number, ConstBytes sector, OnBitmap on_bitmap, OnTable on_table) {
    FVD_ASSERT(sector.size() == kSectorSize);
    size_t at = 0;
    while (sector.size() - at >= sizeof(uint32_t)) {
        const auto type = load_le<uint32_t>(sector, at);
        if (type == kEndOfRecords) {
            break;
        }
        const size_t head = type == kBitmapRecord ? kBitmapRecordSize : kTableRecordSize;
        const size_t room = sector.size() - at;
        if (type != kBitmapRecord && type != kTableRecord) {
            return Error::make(-EINVAL,
                               "journal sector %" PRIu64 ": record type 0x%08" PRIx32
                               " at byte %zu; must be 0x%08" PRIx32 ", 0x%08" PRIx32 " or 0",
                               number, type, at, kBitmapRecord, kTableRecord);
        }
        const size_t most = (room - std::min(head, room)) / sizeof(uint32_t);
        const bool whole = room >= head;
        const uint64_t entries =
            whole && type == kTableRecord ? load_le<uint32_t>(sector, at + 8) : 0;
        if (!whole || entries > most) {
            return Error::make(-EINVAL,
                               "journal sector %" PRIu64 ": the record at byte %zu (%" PRIu64
                               " entries) goes past the end of the sector",
                               number, at, entries);
        }
        if (type == kBitmapRecord) {
            on_bitmap(
                BitmapRecord{load_le<uint64_t>(sector, at + 8), load_le<uint32_t>(sector, at + 4)});
        } else {
            on_table(TableRecord{load_le<uint32_t>(sector, at + 4),
                                 sector.subspan(at + head, entries * sizeof(uint32_t))});
        }
        at += head + entries * sizeof(uint32_t);
    }
    return Error::none();
}

/** Slot of an entry: the mark says only where the entry was taken from. */
uint32_t without_mark(uint32_t entry) {
    return entry == kNotStored ? entry : entry & ~kUnsaved;
}

}  // namespace

View::View(const Header& header, std::span<uint64_t> words, std::span<uint32_t> entries)
    : header_(&header), bitmap_(words, header.block_count()), entries_(entries) {
    FVD_ASSERT(entries_.size() == header.chunk_count());
    std::fill(words.begin(), words.end(), 0);
    std::fill(entries_.begin(), entries_.end(), kNotStored);
}

void View::load_bitmap(uint64_t offset, ConstBytes piece) {
    bitmap_.load(offset, piece);
}

void View::load_table(uint64_t offset, ConstBytes piece) {
    const uint64_t first = offset / sizeof(uint32_t);
    for (uint64_t i = 0; i < piece.size() / sizeof(uint32_t); i++) {
        entries_[first + i] = without_mark(load_le<uint32_t>(piece, i * sizeof(uint32_t)));
    }
}

/* Blocks that a record marks: also those that it touches in part, as their rest was copied before
 * it was written. */
BlockRange View::blocks_of(uint64_t first_sector, uint64_t sectors) const {
    const uint64_t tracked = header_->tracked_size() / kSectorSize;
    if (first_sector >= tracked || sectors == 0) {
        return {};
    }
    const uint64_t end = std::min(first_sector + sectors, tracked);
    const uint64_t block = header_->block_size;
    return {BlockIndex(first_sector * kSectorSize / block),
            BlockIndex(div_ceil(end * kSectorSize, block))};
}

Error View::look_at(uint64_t number, ConstBytes sector, JournalFacts* facts) const {
    const uint64_t disk = header_->virtual_size / kSectorSize;
    const uint64_t chunks = entries_.size();
    uint64_t records = 0;
    uint64_t outside = 0;
    bool unsaved = false;
    Error bad = Error::none();
    const auto on_bitmap = [&](const BitmapRecord& record) {
        const BlockRange blocks = blocks_of(record.first_sector, record.sectors);
        unsaved = unsaved || !bitmap_.all_set(blocks.begin.value, blocks.end.value);
        outside += record.first_sector > disk || record.sectors > disk - record.first_sector;
        records++;
    };
    const auto on_table = [&](const TableRecord& record) {
        for (uint64_t i = 0; i < record.count(); i++) {
            const uint64_t chunk = record.first_chunk + i;
            if (record.entry(i) == kNotStored) {
                bad = Error::make(-EINVAL,
                                  "journal sector %" PRIu64 ": entry of chunk %" PRIu64
                                  " is 0x%08" PRIx32 "; must name a slot",
                                  number, chunk, kNotStored);
            }
            outside += chunk >= chunks;
            unsaved =
                unsaved || (chunk < chunks && entries_[chunk] != without_mark(record.entry(i)));
        }
        records++;
    };
    const Error error = parse(number, sector, on_bitmap, on_table);
    if (!error.ok() || !bad.ok()) {
        return error.ok() ? bad : error;
    }
    facts->sectors += records != 0;
    facts->unsaved += unsaved;
    facts->outside += outside;
    return Error::none();
}

/* What lies outside is passed over: a disk can have been made shorter, and old sectors are never
 * erased. */
Error View::replay(uint64_t number, ConstBytes sector, JournalFacts* facts) {
    if (Error error = look_at(number, sector, facts); !error.ok()) {
        return error;
    }
    const auto on_bitmap = [&](const BitmapRecord& record) {
        const BlockRange blocks = blocks_of(record.first_sector, record.sectors);
        bitmap_.set(blocks.begin.value, blocks.end.value);
    };
    const auto on_table = [&](const TableRecord& record) {
        for (uint64_t i = 0; i < record.count(); i++) {
            const uint64_t chunk = record.first_chunk + i;
            if (chunk < entries_.size()) {
                entries_[chunk] = without_mark(record.entry(i));
            }
        }
    };
    return parse(number, sector, on_bitmap, on_table);
}

Error View::set_storage(uint64_t data_length) {
    const uint64_t begin = header_->data_offset();
    const uint64_t there = data_length > begin ? data_length - begin : 0;
    if (!header_->compact) {
        no_data_ = there == 0;
        if (there != 0 && there < header_->virtual_size) {
            return Error::make(-EINVAL,
                               "the file with the guest's data is %" PRIu64
                               " bytes long; the data ends at %" PRIu64,
                               data_length, begin + header_->virtual_size);
        }
        return Error::none();
    }
    const uint64_t slots = there / header_->chunk_size;
    for (uint64_t chunk = 0; chunk < entries_.size(); chunk++) {
        if (entries_[chunk] != kNotStored && entries_[chunk] >= slots) {
            return Error::make(-EINVAL,
                               "chunk %" PRIu64 " is in slot %" PRIu32
                               "; the file with the guest's data is %" PRIu64
                               " bytes long, so slots must be below %" PRIu64,
                               chunk, entries_[chunk], data_length, slots);
        }
    }
    return Error::none();
}

Placement View::where(uint64_t offset, uint64_t length) const {
    const uint64_t end = offset + length;
    const uint64_t tracked = header_->tracked_size();
    FVD_ASSERT(length != 0 && end <= header_->virtual_size);
    if (offset >= tracked) {
        return stored(offset, end, Place::zero);
    }
    const uint64_t block_size = header_->block_size;
    const uint64_t first = offset / block_size;
    const uint64_t tracked_end = std::min(end, tracked);
    const uint64_t run_end = bitmap_.run_end(first, div_ceil(tracked_end, block_size));
    const uint64_t piece_end = std::min(run_end * block_size, tracked_end);
    if (!bitmap_.test(first)) {
        return {Place::base, piece_end - offset, 0};
    }
    /* A bit without an entry is what a crash could leave: the chunk was a copy of the base, and
     * nobody wrote down where. Never can it be the only place of what a guest wrote. */
    return stored(offset, piece_end, Place::base);
}

/* [offset, end) is in this image, as far as the bitmap knows. */
Placement View::stored(uint64_t offset, uint64_t end, Place missing) const {
    const uint64_t begin = header_->data_offset();
    if (!header_->compact) {
        return {no_data_ ? Place::zero : Place::data, end - offset, begin + offset};
    }
    const uint64_t size = header_->chunk_size;
    const uint64_t first = offset / size;
    const uint64_t last = (end - 1) / size;
    const uint32_t slot = entries_[first];
    const bool has_slot = slot != kNotStored;
    uint64_t chunk = first;
    while (chunk < last &&
           entries_[chunk + 1] == (has_slot ? slot + (chunk + 1 - first) : kNotStored)) {
        chunk++;
    }
    const uint64_t run = std::min(end, (chunk + 1) * size) - offset;
    return has_slot ? Placement{Place::data, run, begin + slot * size + offset % size}
                    : Placement{missing, run, 0};
}

uint64_t View::chunks_without_slot() const {
    const uint64_t tracked = header_->tracked_size();
    const uint64_t size = header_->chunk_size;
    uint64_t count = 0;
    for (uint64_t chunk = 0; chunk * size < tracked; chunk++) {
        const uint64_t end = std::min((chunk + 1) * size, tracked);
        count +=
            entries_[chunk] == kNotStored &&
            bitmap_.any_set(chunk * size / header_->block_size, div_ceil(end, header_->block_size));
    }
    return count;
}

uint64_t View::slot_count() const {
    uint64_t count = 0;
    for (const uint32_t slot : entries_) {
        count = slot == kNotStored ? count : std::max<uint64_t>(count, uint64_t{slot} + 1);
    }
    return count;
}

TableFacts View::judge_table(BlockBitmap used) const {
    TableFacts facts;
    uint64_t highest = 0;
    for (uint64_t chunk = 0; chunk < entries_.size(); chunk++) {
        const uint32_t slot = entries_[chunk];
        if (slot == kNotStored) {
            continue;
        }
        if (slot >= used.bits()) {
            facts.first_outside = facts.outside++ == 0 ? chunk : facts.first_outside;
        } else if (used.test(slot)) {
            facts.first_double = facts.doubles++ == 0 ? chunk : facts.first_double;
        } else {
            used.set(slot, slot + 1);
            highest = std::max<uint64_t>(highest, uint64_t{slot} + 1);
        }
    }
    facts.unused_slots = highest - used.count();
    return facts;
}

}  // namespace fvd::heritage
