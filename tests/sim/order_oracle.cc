/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "order_oracle.h"

#include <algorithm>

namespace fvd::sim {

void OrderOracle::begin_image(const Header& header) {
    header_ = header;
    regions_ = regions_of(header);
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
    return file == FVD_FILE_IMAGE && offset < std::max(regions_.journal.end, regions_.header.end);
}

std::optional<Violation> OrderOracle::write_enters(File file, uint64_t offset, ConstBytes bytes) {
    if (read_only_) {
        return Violation{"P6", "a write at offset " + std::to_string(offset) + " while read-only"};
    }
    const ByteRange range{offset, offset + bytes.size()};
    if (file == FVD_FILE_DATA) {
        if (!regions_.data.contains(range)) {
            return Violation{"I11", "guest data is written outside of the data region, at offset " +
                                        std::to_string(offset)};
        }
        return {};
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
    return Violation{"I11", "metadata is written outside of its region, at offset " +
                                std::to_string(offset) + ", " + std::to_string(bytes.size()) +
                                " bytes"};
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
        const auto found = image_.uncertain().find(u);
        if (found != image_.uncertain().end()) {
            for (const UnitVersion& version : found->second) {
                if (version.hash != image_.durable_hash(u)) {
                    return false;
                }
            }
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
    return {};
}

bool OrderOracle::home_bit(uint64_t block) const {
    const uint64_t at = regions_.bitmap.begin + block / 8;
    const std::byte* unit = image_.durable(at / image_.unit());
    return (static_cast<unsigned>(unit[at % image_.unit()]) >> (block % 8) & 1u) != 0;
}

OrderOracle::Verdict OrderOracle::judge_exposed(BlockRange blocks, const char* what) {
    if (header_.has_table()) {
        return {}; /* where its data is only the table of that moment knows; cuts show it */
    }
    const uint64_t end_of_blocks = std::min(header_.base_size, header_.virtual_size);
    for (uint64_t b = blocks.begin.value; b < blocks.end.value; b++) {
        const uint64_t begin = header_.data_offset + b * header_.block_size;
        const uint64_t end =
            header_.data_offset + std::min((b + 1) * header_.block_size, end_of_blocks);
        for (uint64_t u = begin / data_.unit(); u * data_.unit() < end; u++) {
            if (!data_.written(u)) {
                return Violation{"R1", std::string(what) + " exposes block " + std::to_string(b) +
                                           " before its data is durable"};
            }
        }
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
    while (fresh->next(&position, &record)) {
        if (auto broken = judge_exposed(record.blocks, "a journal record")) {
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
