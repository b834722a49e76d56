/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "order_oracle.h"

#include <algorithm>

#include "fvd/base/bytes.h"
#include "rng.h"

namespace fvd::sim {

void OrderOracle::follow_header(const Header& header) {
    header_ = header;
    regions_ = regions_of(header);
    table_.resize(header.table_size / sizeof(uint32_t), kNotStored);
    /* A disk that is made smaller gives up the slots behind its end without a record. */
    for (uint64_t chunk = header.chunk_count(); chunk < table_.size(); chunk++) {
        follow_entry(chunk, kNotStored);
    }
}

/* A slot that is given up has to be written anew before it can show anything. */
void OrderOracle::follow_entry(uint64_t chunk, uint32_t entry) {
    if (table_[chunk] != kNotStored && table_[chunk] != entry) {
        const ByteRange slot = slot_bytes(table_[chunk]);
        for (uint64_t u = slot.begin / data_.unit(); u * data_.unit() < slot.end; u++) {
            data_.forget_written(u);
        }
    }
    table_[chunk] = entry;
}

/* The last one that was written may have been lost. */
void OrderOracle::look_at_header() {
    std::vector<std::byte> start(kHeaderRegionSize);
    image_.read(0, start);
    if (const Result<ChosenHeader> chosen = choose_header(start); chosen.ok()) {
        follow_header(chosen.value().header);
    }
}

void OrderOracle::load_table() {
    const auto home = durable_bytes(header_.table_offset, table_.size() * sizeof(uint32_t));
    for (size_t chunk = 0; chunk < table_.size(); chunk++) {
        table_[chunk] = load_le<uint32_t>(home, chunk * sizeof(uint32_t));
    }
}

void OrderOracle::session_begins(const Header& header) {
    follow_header(header);
    load_table();
    set_resizing(false);
}

void OrderOracle::set_resizing(bool resizing) {
    resizing_ = resizing;
    moving_ = {};
}

void OrderOracle::begin_image(const Header& header, uint64_t most_size) {
    most_size_ = most_size;
    follow_header(header);
    load_table();
    image_.forget_written();
    data_.forget_written();
    /* Blocks that create said are here: their zeros are as durable as anything written. */
    for (uint64_t b = 0; b < header.block_count() && !header.has_table(); b++) {
        const uint64_t begin = header.data_offset + b * header.block_size;
        const uint64_t end = begin + header.block_size;
        for (uint64_t u = begin / data_.unit(); home_bit(b) && u * data_.unit() < end; u++) {
            data_.mark_written(u);
        }
    }
}

bool OrderOracle::condition_failed(const Image& image) {
    fvd_info info;
    image.describe(&info);
    return info.condition == FVD_CONDITION_FAILED;
}

bool OrderOracle::is_metadata(File file, uint64_t offset) const {
    const bool in_table = offset >= regions_.table.begin && offset < regions_.table.end;
    return file == FVD_FILE_IMAGE &&
           (in_table || offset < std::max(regions_.journal.end, regions_.header.end));
}

std::optional<Violation> OrderOracle::write_enters(File file, uint64_t offset, ConstBytes bytes) {
    if (read_only_) {
        return Violation{"P6", "a write at offset " + std::to_string(offset) + " while read-only"};
    }
    const ByteRange range{offset, offset + bytes.size()};
    if (file == FVD_FILE_DATA) {
        return judge_data(range);
    }
    if (range.begin < kHeaderRegionSize && range.end <= kHeaderRegionSize) {
        return judge_header(offset, bytes);
    }
    if (regions_.bitmap.contains(range)) {
        return judge_bitmap(offset, bytes);
    }
    if (regions_.journal.contains(range)) {
        return judge_journal(offset, bytes);
    }
    if (regions_.table.contains(range)) {
        return {};
    }
    return judge_elsewhere(range, bytes);
}

bool OrderOracle::touches_region(const ByteRange& range) const {
    return range.overlaps(regions_.header) || range.overlaps(regions_.bitmap) ||
           range.overlaps(regions_.table) || range.overlaps(regions_.journal);
}

ByteRange OrderOracle::slot_bytes(uint32_t slot) const {
    const uint64_t begin = header_.data_offset + slot * header_.chunk_size;
    return {begin, begin + header_.chunk_size};
}

OrderOracle::Verdict OrderOracle::judge_data(const ByteRange& range) const {
    const uint64_t end = header_.has_table() ? data_.capacity() : header_.data_offset + most_size_;
    const bool in_region =
        !header_.has_data_file() && (touches_region(range) || range.overlaps(moving_));
    if (range.begin < header_.data_offset || range.end > end || in_region) {
        return Violation{"I11", "guest data is written outside of the data region, at offset " +
                                    std::to_string(range.begin)};
    }
    return {};
}

/* A larger table, or zeros over a former one: where no region is, and no chunk. */
OrderOracle::Verdict OrderOracle::judge_elsewhere(const ByteRange& range, ConstBytes bytes) {
    bool taken = touches_region(range);
    for (const uint32_t entry : table_) {
        taken = taken || (entry != kNotStored && !header_.has_data_file() &&
                          range.overlaps(slot_bytes(entry)));
    }
    if (!resizing_ || !header_.has_table() || taken) {
        return Violation{"I11", "metadata is written outside of its region, at offset " +
                                    std::to_string(range.begin) + ", " +
                                    std::to_string(bytes.size()) + " bytes"};
    }
    moving_ = range.begin == moving_.end ? ByteRange{moving_.begin, range.end} : range;
    return {};
}

/* On the medium as it was written last. */
bool OrderOracle::is_durable(uint64_t unit) const {
    const auto found = image_.uncertain().find(unit);
    bool durable = true;
    if (found != image_.uncertain().end()) {
        for (const UnitVersion& version : found->second) {
            durable = durable && version.hash == image_.durable_hash(unit);
        }
    }
    return durable;
}

std::vector<std::byte> OrderOracle::durable_bytes(uint64_t offset, uint64_t length) const {
    std::vector<std::byte> bytes;
    const uint32_t unit = image_.unit();
    for (uint64_t u = offset / unit; u * unit < offset + length; u++) {
        bytes.insert(bytes.end(), image_.durable(u), image_.durable(u) + unit);
    }
    bytes.erase(bytes.begin(), bytes.begin() + static_cast<ptrdiff_t>(offset % unit));
    bytes.resize(length);
    return bytes;
}

/* Valid on the medium, and nothing on its way to it. */
bool OrderOracle::header_is_good(uint64_t offset) const {
    const uint32_t unit = image_.unit();
    for (uint64_t u = offset / unit; u * unit < offset + kHeaderSize; u++) {
        if (!is_durable(u)) {
            return false;
        }
    }
    return decode_header(durable_bytes(offset, kHeaderSize)).ok();
}

OrderOracle::Verdict OrderOracle::judge_header(uint64_t offset, ConstBytes bytes) {
    const bool is_primary = offset < kHeaderCopyOffset;
    if (offset % kHeaderSize != 0 || bytes.size() != kHeaderSize) {
        return Violation{"I11",
                         "a piece of the header is written, at offset " + std::to_string(offset)};
    }
    if (!header_is_good(is_primary ? kHeaderCopyOffset : kHeaderPrimaryOffset)) {
        return Violation{"R2", is_primary
                                   ? "the primary header is written before its copy is durable"
                                   : "the header copy is written while the primary is not durable"};
    }
    const Result<Header> fresh = decode_header(bytes);
    if (!fresh.ok()) {
        return Violation{"I11", "an invalid header is written"};
    }
    const Header before = header_;
    follow_header(fresh.value());
    const bool moved = header_.table_offset != before.table_offset;
    for (uint64_t u = regions_.table.begin / image_.unit();
         moved && u * image_.unit() < regions_.table.end; u++) {
        if (!is_durable(u)) {
            return Violation{"R14", "the header names a table that is not durable"};
        }
    }
    if (header_.journal_epoch != before.journal_epoch) {
        load_table(); /* all is at home, and records of a group that failed never were */
    }
    return {};
}

bool OrderOracle::home_bit(uint64_t block) const {
    const uint64_t at = regions_.bitmap.begin + block / 8;
    const std::byte* unit = image_.durable(at / image_.unit());
    return (static_cast<unsigned>(unit[at % image_.unit()]) >> (block % 8) & 1u) != 0;
}

std::optional<ByteRange> OrderOracle::place_of(uint64_t begin, uint64_t end) const {
    if (!header_.has_table()) {
        return ByteRange{header_.data_offset + begin, header_.data_offset + end};
    }
    const uint32_t slot = table_[begin / header_.chunk_size];
    if (slot == kNotStored) {
        return {}; /* zeros, as durable as the entry */
    }
    const uint64_t at = slot_bytes(slot).begin + begin % header_.chunk_size;
    return ByteRange{at, at + (end - begin)};
}

OrderOracle::Verdict OrderOracle::judge_exposed(BlockRange blocks, const char* what) {
    const uint64_t end_of_blocks = std::min(header_.base_size, header_.virtual_size);
    for (uint64_t b = blocks.begin.value; b < blocks.end.value; b++) {
        const uint64_t begin = b * header_.block_size;
        const auto place = place_of(begin, std::min(begin + header_.block_size, end_of_blocks));
        for (uint64_t u = place ? place->begin / data_.unit() : 0;
             place && u * data_.unit() < place->end; u++) {
            /* A slot is zeros before it is anything else; those need not have been written, and a
             * block may be here because it is zeros. */
            const std::byte* bytes = data_.durable(u);
            const bool zeros = header_.has_table() &&
                               std::all_of(bytes, bytes + data_.unit(),
                                           [](std::byte one) { return one == std::byte{0}; });
            if (!data_.written(u) && !zeros) {
                return Violation{"R1", std::string(what) + " exposes block " + std::to_string(b) +
                                           " before its data is durable"};
            }
        }
    }
    return {};
}

OrderOracle::Verdict OrderOracle::judge_entries(const JournalRecord& record) {
    for (uint64_t i = 0; i < record.entry_count(); i++) {
        const uint64_t chunk = record.first_chunk.value + i;
        if (chunk >= table_.size()) {
            return Violation{"I2", "a record names chunk " + std::to_string(chunk)};
        }
        follow_entry(chunk, record.entry(i));
    }
    return {};
}

OrderOracle::Verdict OrderOracle::judge_bitmap(uint64_t offset, ConstBytes bytes) {
    const uint64_t first = (offset - regions_.bitmap.begin) * 8;
    for (uint64_t i = 0; i < bytes.size() * 8 && first + i < header_.block_count(); i++) {
        const bool set = (static_cast<unsigned>(bytes[i / 8]) >> (i % 8) & 1u) != 0;
        if (set && !home_bit(first + i)) {
            const BlockIndex block(first + i);
            if (auto broken = judge_exposed({block, block + 1}, "the bitmap at home")) {
                return broken;
            }
        }
    }
    return {};
}

OrderOracle::Verdict OrderOracle::judge_journal(uint64_t offset, ConstBytes bytes) {
    const uint64_t unit = header_.journal_unit;
    if ((offset - regions_.journal.begin) % unit != 0 || bytes.size() % unit != 0) {
        return Violation{"R10", "a part of a journal unit is written"};
    }
    for (uint64_t at = 0; at < bytes.size(); at += unit) {
        const uint64_t place = (offset - regions_.journal.begin + at) / unit;
        if (auto broken = judge_unit(place, bytes.subspan(at, unit))) {
            return broken;
        }
    }
    return {};
}

OrderOracle::Verdict OrderOracle::judge_unit(uint64_t place, ConstBytes bytes) {
    const auto fresh = UnitView::decode(bytes, header_.image_id);
    if (!fresh) {
        return Violation{"R6", "an invalid journal unit is written"};
    }
    if (fresh->header().sequence % header_.journal_units() != place) {
        return Violation{"R12", "a journal unit is written at a place that is not its own"};
    }
    size_t position = 0;
    JournalRecord record;
    const UnitHeader& unit = fresh->header();
    const uint64_t group = mix(unit.epoch, unit.sequence - unit.group_index) | 1;
    while (fresh->next(&position, &record)) {
        const bool is_bits = record.kind == JournalRecord::Kind::bitmap;
        if (!is_bits && bits_in_group_ == group) {
            return Violation{"R1", "in a group a bit stands before an entry of the table"};
        }
        bits_in_group_ = is_bits ? group : bits_in_group_;
        auto broken =
            is_bits ? judge_exposed(record.blocks, "a journal record") : judge_entries(record);
        if (broken) {
            return broken;
        }
    }
    return judge_overwritten(place, *fresh);
}

/* What the old unit recorded must be at home, durably, and the durable ring must say so. */
OrderOracle::Verdict OrderOracle::judge_overwritten(uint64_t place, const UnitView& fresh) {
    const uint64_t unit = header_.journal_unit;
    const auto old_bytes = durable_bytes(regions_.journal.begin + place * unit, unit);
    const auto old = UnitView::decode(old_bytes, header_.image_id);
    if (!old || old->header().epoch != fresh.header().epoch) {
        return {};
    }
    if (old->header().sequence == fresh.header().sequence) {
        return Violation{"R10", "a journal unit is written twice"};
    }
    size_t position = 0;
    JournalRecord record;
    while (old->next(&position, &record)) {
        for (uint64_t b = record.blocks.begin.value; b < record.blocks.end.value; b++) {
            if (!home_bit(b)) {
                return Violation{"I7", "the ring overwrites the record of block " +
                                           std::to_string(b) + ", which is not durable at home"};
            }
        }
    }
    uint64_t newest = 0;
    uint64_t tail = 0;
    for (uint64_t i = 0; i < header_.journal_units(); i++) {
        const auto bytes = durable_bytes(regions_.journal.begin + i * unit, unit);
        const auto view = UnitView::decode(bytes, header_.image_id);
        if (view && view->header().epoch == fresh.header().epoch &&
            view->header().sequence >= newest) {
            newest = view->header().sequence;
            tail = view->header().tail_sequence;
        }
    }
    if (tail <= old->header().sequence) {
        return Violation{"R2", "unit " + std::to_string(old->header().sequence) +
                                   " is overwritten while the durable tail is " +
                                   std::to_string(tail)};
    }
    return {};
}

}  // namespace fvd::sim
