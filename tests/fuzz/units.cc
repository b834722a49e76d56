/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The pure units: header, journal unit, ring. */
#include <algorithm>
#include <cerrno>
#include <cstring>
#include <vector>

#include "fvd/format/journal_unit.h"
#include "fvd/format/layout.h"
#include "fvd/format/limits.h"
#include "fvd/format/recovery.h"
#include "program.h"

namespace fvd::fuzz {

namespace {

Header plain_header() {
    LayoutRequest request;
    request.virtual_size = 1 << 20;
    request.has_base = true;
    request.journal_unit = 512;
    request.journal_size = 64 * 512;
    Header header = plan_layout(request).value();
    std::memcpy(header.base_img, "base.raw", 8);
    std::memcpy(header.base_img_fmt, "raw", 3);
    header.image_id.fill(std::byte{0x5C});
    header.generation = 7;
    header.journal_epoch = 3;
    return header;
}

/* ------------------------------------------------------------------------------- header */

using Block = std::array<std::byte, kHeaderSize>;

/** What was decoded encodes to what decodes to the same (R7). */
void check_round_trip(ConstBytes block) {
    const Result<Header> decoded = decode_header(block);
    if (!decoded.ok()) {
        FUZZ_CHECK(decoded.error().text[0] != '\0');
        const int code = decoded.error().code;
        FUZZ_CHECK(code == -EINVAL || code == -ENOTSUP || code == -EFBIG);
        return;
    }
    static Block encoded;
    encode_header(decoded.value(), encoded);
    if (clamped_advice(block) == nullptr) {
        FUZZ_CHECK(std::memcmp(encoded.data(), block.data(), kHeaderSize) == 0);
    } else {
        const Result<Header> again = decode_header(encoded);
        FUZZ_CHECK(again.ok() && clamped_advice(encoded) == nullptr);
    }
}

void check_regions(const Header& header, uint64_t file_length) {
    if (!check_layout(header, file_length).ok()) {
        return;
    }
    const Regions r = regions_of(header);
    for (const ByteRange& region : {r.header, r.bitmap, r.table, r.journal, r.data}) {
        FUZZ_CHECK(region.begin <= region.end && region.end <= limits::kMaxOffset * 2);
    }
    FUZZ_CHECK(std::max({r.header.end, r.bitmap.end, r.table.end, r.journal.end}) <= file_length);
    FUZZ_CHECK(r.bitmap.empty() || (!r.bitmap.overlaps(r.header) && !r.bitmap.overlaps(r.journal)));
    FUZZ_CHECK(r.journal.empty() || !r.journal.overlaps(r.header));
    FUZZ_CHECK(header.block_count() <= header.bitmap_size * 8);
    if (!header.has_data_file() && !r.data.empty()) {
        for (const ByteRange& region : {r.header, r.bitmap, r.table, r.journal}) {
            /* In a compact image a region that was moved stands among the slots. */
            const bool among = header.has_table() && region.begin >= r.data.begin;
            FUZZ_CHECK(region.empty() || among || !r.data.overlaps(region));
        }
    }
}

void check_choice(ConstBytes file) {
    const Result<ChosenHeader> chosen = choose_header(file);
    FUZZ_CHECK(probe(file) == 0 || probe(file) == 100);
    if (!chosen.ok()) {
        return;
    }
    const ChosenHeader& c = chosen.value();
    FUZZ_CHECK(c.primary == CopyState::valid || c.copy == CopyState::valid);
    FUZZ_CHECK(probe(file) == 100);
    const auto primary = decode_header(file.first(kHeaderSize));
    const auto copy = decode_header(file.subspan(kHeaderSize, kHeaderSize));
    const uint64_t newest = std::max(primary.ok() ? primary.value().generation : 0,
                                     copy.ok() ? copy.value().generation : 0);
    FUZZ_CHECK(c.header.generation == newest);
}

}  // namespace

void fuzz_header(const Program& program) {
    static const Block fresh = [] {
        Block block;
        encode_header(plain_header(), block);
        return block;
    }();
    static std::array<std::byte, kHeaderRegionSize> file;
    std::memcpy(file.data(), fresh.data(), kHeaderSize);
    std::memcpy(file.data() + kHeaderSize, fresh.data(), kHeaderSize);
    const MutableBytes copies[2] = {MutableBytes(file).first(kHeaderSize),
                                    MutableBytes(file).last(kHeaderSize)};
    bool seal[2] = {true, true};
    size_t length = file.size();
    uint64_t file_length = 1 << 21;
    for (const Step& step : program) {
        const MutableBytes block = copies[step.a & 1];
        switch (step.op % 10) {
            case 0:
            case 1:
                edit_field(copies[0], step.b, step.value);
                edit_field(copies[1], step.b, step.value);
                break;
            case 2:
            case 3:
                edit_field(block, step.b, step.value);
                break;
            case 4:
                block[step.b % kHeaderSize] = static_cast<std::byte>(step.value);
                break;
            case 5:
                seal[step.a & 1] = false;
                break;
            case 6:
                std::memcpy(block.data(), copies[~step.a & 1].data(), step.b % kHeaderSize);
                break;
            case 7:
                length = step.b % (file.size() + 1);
                break;
            case 8:
                file_length = step.value;
                break;
            default:
                edit_field(block, field_index("header_generation"), step.value % 16);
                break;
        }
    }
    for (size_t i = 0; i < 2; i++) {
        if (seal[i]) {
            seal_header(copies[i]);
        }
    }
    check_choice(ConstBytes(file).first(length));
    check_round_trip(copies[0]);
    const Result<Header> decoded = decode_header(copies[0]);
    if (decoded.ok()) {
        check_regions(decoded.value(), file_length);
    }
}

/* ------------------------------------------------------------------------------- unit */

namespace {

/** The same records written anew give the same bytes. */
void check_unit(ConstBytes unit, const ImageId& id) {
    const auto view = UnitView::decode(unit, id);
    if (!view) {
        return;
    }
    static std::array<std::byte, 4096> bytes;
    const MutableBytes again = MutableBytes(bytes).first(unit.size());
    UnitWriter writer(again);
    size_t position = 0;
    for (JournalRecord record; view->next(&position, &record);) {
        if (record.kind == JournalRecord::Kind::bitmap) {
            FUZZ_CHECK(writer.add_bitmap(record.blocks));
            continue;
        }
        static std::vector<uint32_t> entries;
        entries.clear();
        for (uint64_t i = 0; i < record.entry_count(); i++) {
            entries.push_back(record.entry(i));
        }
        FUZZ_CHECK(writer.add_table(record.first_chunk, entries));
    }
    writer.finish(view->header(), id);
    FUZZ_CHECK(std::memcmp(again.data(), unit.data(), unit.size()) == 0);
}

}  // namespace

void fuzz_unit(const Program& program) {
    static std::array<std::byte, 4096> bytes;
    static const ImageId id = plain_header().image_id;
    const bool large = program.begin() != program.end() && program.begin()->a > 0xF0;
    const MutableBytes unit = MutableBytes(bytes).first(large ? 4096 : 512);
    UnitWriter writer(unit);
    bool seal = true;
    UnitHeader header;
    for (const Step& step : program) {
        const uint64_t room = limits::kMaxCounter;
        switch (step.op % 4) {
            case 0:
                writer.add_bitmap(
                    {BlockIndex(step.value % room), BlockIndex(step.value % room + 1 + step.b)});
                break;
            case 1: {
                const std::array<uint32_t, 40> entries{step.a};
                writer.add_table(ChunkIndex(step.value % (uint64_t{1} << 31)),
                                 std::span(entries).first(1 + step.b % entries.size()));
                break;
            }
            case 2:
                header.sequence = step.value % room;
                header.group_index =
                    static_cast<uint32_t>(std::min<uint64_t>(step.a, header.sequence));
                header.group_size = header.group_index + 1 + step.b;
                header.epoch = step.value >> 5;
                break;
            default:
                break;
        }
    }
    header.tail_sequence = (header.sequence - header.group_index) / 2;
    writer.finish(header, id);
    for (const Step& step : program) {
        if (step.op % 4 == 3 && step.a % 8 == 7) {
            seal = false;
        } else if (step.op % 4 == 3) {
            store_le<uint64_t>(unit, step.b % (unit.size() - 7), step.value);
        }
    }
    if (seal) {
        seal_unit(unit, id);
    }
    check_unit(unit, id);
}

/* ------------------------------------------------------------------------------- journal */

namespace {

constexpr uint64_t kRing = 64;
constexpr size_t kUnit = 512;
constexpr uint64_t kBits = 40000;
constexpr uint64_t kChunks = 2000;

struct Ring {
    std::array<std::byte, kRing * kUnit> bytes;
    std::array<bool, kRing> used;
    MutableBytes unit(uint64_t place) { return MutableBytes(bytes).subspan(place * kUnit, kUnit); }
};

void check_plan(const JournalScan& scan, const ReplayPlan& plan) {
    FUZZ_CHECK(plan.first_sequence <= plan.end_sequence && plan.units() <= kRing);
    FUZZ_CHECK(plan.torn_units <= scan.valid_units());
    for (uint64_t s = plan.first_sequence; s < plan.end_sequence; s++) {
        FUZZ_CHECK(scan.has(s));
    }
    FUZZ_CHECK(!plan.damaged || plan.end_sequence < scan.newest_sequence());
}

void replay(Ring& ring, const ReplayPlan& plan, const ImageId& id) {
    static std::array<uint64_t, BlockBitmap::bits_to_words(kBits)> words;
    words.fill(0);
    static std::array<uint32_t, kChunks> entries;
    entries.fill(kNotStored);
    uint64_t pages = 0, entry_pages = 0;
    ReplayTarget target{BlockBitmap(words, kBits), BlockBitmap({&pages, 1}, 2), ChunkTable(entries),
                        BlockBitmap({&entry_pages, 1}, 2), kChunks};
    for (uint64_t s = plan.first_sequence; s < plan.end_sequence; s++) {
        const auto view = UnitView::decode(ring.unit(s % kRing), id);
        FUZZ_CHECK(view.has_value());
        const uint64_t before = target.bitmap.count();
        const uint64_t stored = target.table.stored();
        if (!apply_unit(*view, target)) { /* all or nothing */
            FUZZ_CHECK(target.bitmap.count() == before && target.table.stored() == stored);
            return;
        }
    }
    for (uint64_t page = 0; page < 2; page++) {
        const uint64_t end = std::min(kBits, (page + 1) * kBlocksPerPage);
        FUZZ_CHECK(target.dirty_pages.test(page) ==
                   target.bitmap.any_set(page * kBlocksPerPage, end));
    }
    for (uint64_t chunk = 0; chunk < kChunks; chunk++) {
        FUZZ_CHECK(entries[chunk] == kNotStored || entries[chunk] < kChunks);
        FUZZ_CHECK(entries[chunk] == kNotStored ||
                   target.dirty_entries.test(chunk / kChunksPerPage));
    }
}

}  // namespace

void fuzz_journal(const Program& program) {
    static Ring ring;
    static const ImageId id = plain_header().image_id;
    constexpr uint64_t kEpoch = 3;
    ring.used.fill(false);
    uint64_t sequence = 0;
    for (const Step& step : program) {
        if (step.op % 8 == 7) {
            sequence = step.value % limits::kMaxCounter;
            continue;
        }
        std::array<std::byte, kUnit> unit;
        make_unit(step, unit, id, kEpoch, &sequence);
        const uint64_t place = step.op % 8 == 6 ? step.a % kRing : (sequence - 1) % kRing;
        if (step.op % 8 == 5) {
            store_le<uint64_t>(unit, step.a % 64, step.value);
            seal_unit(unit, id);
        }
        std::memcpy(ring.unit(place).data(), unit.data(), kUnit);
        ring.used[place] = true;
    }
    std::array<uint64_t, kRing> forward_words, backward_words;
    JournalScan forward(forward_words, kEpoch, id);
    JournalScan backward(backward_words, kEpoch, id);
    for (uint64_t i = 0; i < kRing; i++) {
        if (ring.used[i]) {
            forward.add(i, ring.unit(i));
        }
        if (ring.used[kRing - 1 - i]) {
            backward.add(kRing - 1 - i, ring.unit(kRing - 1 - i));
        }
    }
    const ReplayPlan plan = forward.plan();
    const ReplayPlan other = backward.plan();
    FUZZ_CHECK(plan.first_sequence == other.first_sequence && plan.damaged == other.damaged &&
               plan.end_sequence == other.end_sequence && plan.torn_units == other.torn_units);
    check_plan(forward, plan);
    replay(ring, plan, id);
}

}  // namespace fvd::fuzz
