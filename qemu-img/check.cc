/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * qemu-img check: read all metadata, judge it (format/audit), and repair what can be repaired.
 *
 * An image that a power cut left behind is not damaged: records that wait for replay, a torn mark
 * and an older copy of the header are reported as nothing, and so are slots that no chunk has: they
 * are free. `-r leaks` clears leftovers of bitmap and table and touches nothing else. `-r all` also
 * brings the image to rest: both copies of the header alike, every record that can be believed at
 * home, the clean mark, and an epoch above all that the ring holds.
 */
#include <algorithm>
#include <cerrno>
#include <cstring>

#include "fvd/base/arith.h"
#include "fvd/base/plant.h"
#include "fvd/engine/header_store.h"
#include "fvd/engine/host_memory.h"
#include "fvd/format/audit.h"
#include "fvd/format/layout.h"
#include "fvd/format/limits.h"
#include "fvd/verbs.h"

namespace fvd {

namespace {

constexpr uint64_t kPieceBytes = 1024 * 1024;
constexpr uint64_t kPageBytes = 4096;

Error no_memory(uint64_t size, const char* what) {
    return Error::make(-ENOMEM, "no memory: %llu bytes are needed for the %s", print(size), what);
}

class Checker {
  public:
    Checker(Host& host, uint32_t fix, fvd_check_result* result)
        : host_(host), fix_(fix), result_(*result) {
        result_ = {};
    }

    Error run();

  private:
    Error settle_caches();
    Error load_header_blocks();
    uint64_t excuse_leftover(uint64_t found) const;
    Error load_bitmap();
    Error load_table();
    Error judge_journal();
    Error judge_slots();
    Error judge_metadata();
    Error scan_ring(JournalScan& scan);
    Error apply_units(const JournalScan& scan, uint64_t begin, uint64_t end);
    void count_missing(const JournalScan& scan);
    Error make_bits(uint64_t bits, HostBuffer* memory, BlockBitmap* bitmap);
    Error make_table(uint64_t entries, const char* what, HostBuffer* memory, ChunkTable* table);
    Error find_owners();
    void displace(const UnitView& unit);
    Error read_piece(uint64_t offset, MutableBytes to, const char* what);
    template <typename Visit>
    Error read_home(uint64_t offset, uint64_t size, const char* what, Visit visit);
    template <typename Visit>
    Error read_units(uint64_t first, uint64_t count, Visit visit);

    void report();
    void fail(const Error& error);
    bool wants(uint32_t what) const { return (fix_ & what) != 0; }
    Status repair();
    Status heal_headers();
    Status write_home();
    template <typename Home>
    Status write_pages(const Home& home, const BlockBitmap& pages, uint64_t offset);
    Status settle();

    Host& host_;
    const uint32_t fix_;
    fvd_check_result& result_;
    Findings findings_;
    HostBuffer header_blocks_;
    ChosenHeader chosen_;
    HostBuffer bitmap_words_, page_words_;
    HostBuffer entries_, entry_page_words_;
    HostBuffer owners_;   /* which chunk has a slot; only where the journal is damaged */
    ReplayTarget target_; /* what is recovered, and the pages of it that home does not have */
    JournalFacts journal_;
    TableFacts table_;
    uint64_t data_length_ = 0;
};

/* ---------------------------------------------------------------------------- reading */

Error Checker::read_piece(uint64_t offset, MutableBytes to, const char* what) {
    host_.announce(FVD_EVENT_OPEN_READ);
    const Status status = read_bytes(host_, FVD_FILE_IMAGE, offset, to);
    return status.ok() ? Error::none()
                       : Error::make(status.value(), "%s cannot be read at offset %llu: %s", what,
                                     print(offset), std::strerror(-status.value()));
}

Error Checker::load_header_blocks() {
    const int64_t length = host_.length(FVD_FILE_IMAGE);
    if (length < 0) {
        return Error::make(static_cast<int>(length), "the length of the image cannot be read");
    }
    header_blocks_ = HostBuffer(host_, kHeaderRegionSize);
    if (!header_blocks_) {
        return Error::make(-ENOMEM, "no memory for the header");
    }
    const uint64_t there = std::min(static_cast<uint64_t>(length), kHeaderRegionSize);
    const MutableBytes start = header_blocks_.bytes().first(there);
    if (there == kHeaderRegionSize) {
        if (Error error = read_piece(0, start, "the header"); !error.ok()) {
            return error;
        }
    }
    const Result<ChosenHeader> chosen = choose_header(start);
    if (!chosen.ok()) {
        return chosen.error();
    }
    chosen_ = chosen.value();
    return Error::none();
}

Error Checker::make_bits(uint64_t bits, HostBuffer* memory, BlockBitmap* bitmap) {
    return make_bitmap(host_, bits, memory, bitmap) ? Error::none() : no_memory(bits / 8, "bitmap");
}

Error Checker::make_table(uint64_t entries, const char* what, HostBuffer* memory,
                          ChunkTable* table) {
    *memory = memory_for<uint32_t>(host_, entries);
    if (!*memory) {
        return no_memory(entries * sizeof(uint32_t), what);
    }
    *table = ChunkTable(items_of<uint32_t>(*memory, entries));
    return Error::none();
}

/** Call visit(offset in the region, page) for all pages of a region, read in large pieces. */
template <typename Visit>
Error Checker::read_home(uint64_t offset, uint64_t size, const char* what, Visit visit) {
    HostBuffer buffer(host_, std::min(size, kPieceBytes));
    if (!buffer) {
        return Error::make(-ENOMEM, "no memory to read %s", what);
    }
    for (uint64_t at = 0; at < size; at += buffer.size()) {
        const MutableBytes piece = buffer.bytes().first(std::min(size - at, buffer.size()));
        if (Error error = read_piece(offset + at, piece, what); !error.ok()) {
            return error;
        }
        for (uint64_t page = 0; page < piece.size(); page += kPageBytes) {
            visit(at + page, ConstBytes(piece.subspan(page, kPageBytes)));
        }
    }
    return Error::none();
}

/** A disk that was made smaller clears what lay past its end after the header, or at the next open
 * if a cut came between: while the clean mark is missing that is nobody's fault. A repair clears
 * it. */
uint64_t Checker::excuse_leftover(uint64_t found) const {
    return chosen_.header.clean_shutdown ? found : 0;
}

/** The bitmap's home, and the bits in it that stand for nothing. */
Error Checker::load_bitmap() {
    const Header& header = chosen_.header;
    Error error = make_bits(header.block_count(), &bitmap_words_, &target_.bitmap);
    if (error.ok()) {
        error = make_bits(header.bitmap_size / kPageBytes, &page_words_, &target_.dirty_pages);
    }
    if (!error.ok()) {
        return error;
    }
    uint64_t leftover = 0;
    error = read_home(header.bitmap_offset, header.bitmap_size, "the bitmap",
                      [&](uint64_t at, ConstBytes page) {
                          target_.bitmap.load(at, page);
                          if (const uint64_t bits = count_leftover_bits(header, at, page)) {
                              leftover += bits;
                              target_.dirty_pages.set(at / kPageBytes, at / kPageBytes + 1);
                          }
                      });
    if (error.ok()) {
        /* Once the base is not needed nobody looks at bits, nor clears them. */
        audit_bitmap(header.base_fully_prefetched ? 0 : excuse_leftover(leftover), findings_);
    }
    return error;
}

/** The table's home, and the entries in it that stand for nothing. */
Error Checker::load_table() {
    const Header& header = chosen_.header;
    const uint64_t pages = header.table_size / kPageBytes;
    Error error = make_table(header.chunk_count(), "table", &entries_, &target_.table);
    if (error.ok()) {
        error = make_bits(pages, &entry_page_words_, &target_.dirty_entries);
    }
    if (!error.ok()) {
        return error;
    }
    target_.slots = header.slot_count();
    return read_home(header.table_offset, header.table_size, "the table",
                     [&](uint64_t at, ConstBytes page) {
                         target_.table.load(at, page);
                         if (const uint64_t left = count_leftover_entries(header, at, page)) {
                             table_.leftover += left;
                             target_.dirty_entries.set(at / kPageBytes, at / kPageBytes + 1);
                         }
                     });
}

/** Call visit(place, unit) for units of the ring, read in large pieces. */
template <typename Visit>
Error Checker::read_units(uint64_t first, uint64_t count, Visit visit) {
    const uint64_t unit = chosen_.header.journal_unit;
    HostBuffer buffer(host_, std::max(unit, std::min(count * unit, kPieceBytes)));
    if (!buffer) {
        return Error::make(-ENOMEM, "no memory to read the journal");
    }
    while (count != 0) {
        const uint64_t step = std::min(count, buffer.size() / unit);
        const MutableBytes units = buffer.bytes().first(step * unit);
        const uint64_t offset = chosen_.header.journal_offset + first * unit;
        if (Error error = read_piece(offset, units, "the journal"); !error.ok()) {
            return error;
        }
        for (uint64_t i = 0; i < step; ++i) {
            visit(first + i, ConstBytes(units.subspan(i * unit, unit)));
        }
        first += step;
        count -= step;
    }
    return Error::none();
}

Error Checker::scan_ring(JournalScan& scan) {
    const Header& header = chosen_.header;
    return read_units(0, header.journal_units(), [&](uint64_t place, ConstBytes unit) {
        scan.add(place, unit);
        if (const auto view = UnitView::decode(unit, header.image_id)) {
            journal_.newest_epoch = std::max(journal_.newest_epoch, view->header().epoch);
        }
    });
}

/** Which chunk has which slot, before any record is applied. */
Error Checker::find_owners() {
    const ChunkTable& table = target_.table;
    ChunkTable owners;
    Error error = make_table(target_.slots, "slots", &owners_, &owners);
    if (!error.ok()) {
        return error;
    }
    owners.clear_all();
    for (ChunkIndex chunk(0); chunk.value < table.chunks(); ++chunk) {
        const auto slot = table.slot(chunk);
        if (slot && slot->value < target_.slots) {
            owners.set_entry(ChunkIndex(slot->value), static_cast<uint32_t>(chunk.value));
        }
    }
    return error;
}

/**
 * A slot is handed out again only when the record that freed it is durable. So where a record gives
 * a chunk a slot that another one still has, what freed it is among the missing units.
 */
void Checker::displace(const UnitView& unit) {
    ChunkTable owners({reinterpret_cast<uint32_t*>(owners_.data()), target_.slots});
    JournalRecord record;
    for (size_t position = 0; unit.next(&position, &record);) {
        for (uint64_t i = 0; i < record.entry_count(); ++i) {
            const uint32_t slot = record.entry(i);
            const ChunkIndex chunk = record.first_chunk + i;
            if (slot == kNotStored) {
                continue;
            }
            const ChunkIndex former(owners.entry(ChunkIndex(slot)));
            if (former != chunk && former.value < target_.table.chunks() &&
                target_.table.entry(former) == slot) {
                target_.table.clear(former);
                const uint64_t page = former.value / kChunksPerPage;
                target_.dirty_entries.set(page, page + 1);
                journal_.displaced += 1;
            }
            owners.set_entry(ChunkIndex(slot), static_cast<uint32_t>(chunk.value));
        }
    }
}

/** Apply what is there of the units [begin, end) to what is in memory. */
Error Checker::apply_units(const JournalScan& scan, uint64_t begin, uint64_t end) {
    const uint64_t ring = chosen_.header.journal_units();
    while (begin < end) {
        const uint64_t place = begin % ring;
        const uint64_t count = std::min(end - begin, ring - place);
        const uint64_t first = begin;
        Error error = read_units(place, count, [&](uint64_t at, ConstBytes unit) {
            const auto view = UnitView::decode(unit, chosen_.header.image_id);
            if (!view || !scan.has(first + (at - place))) {
                return;
            }
            if (!apply_unit(*view, target_)) {
                journal_.foreign_units += 1;
            } else if (owners_) {
                displace(*view);
            }
        });
        if (!error.ok()) {
            return error;
        }
        begin += count;
    }
    return Error::none();
}

void Checker::count_missing(const JournalScan& scan) {
    for (uint64_t s = journal_.plan.end_sequence; s <= scan.newest_sequence(); ++s) {
        journal_.missing_units += !scan.has(s);
    }
}

/**
 * A record is written after the data that it names is durable, and within an epoch bits are only
 * set. So of a damaged journal every valid unit can be believed, also those after a gap; displace()
 * has what that means for slots.
 */
Error Checker::judge_journal() {
    const Header& header = chosen_.header;
    if (header.journal_size == 0) {
        return Error::none();
    }
    HostBuffer sequences = memory_for<uint64_t>(host_, header.journal_units());
    if (!sequences) {
        return Error::make(-ENOMEM, "no memory to scan the journal");
    }
    JournalScan scan(items_of<uint64_t>(sequences, header.journal_units()), header.journal_epoch,
                     header.image_id);
    if (Error error = scan_ring(scan); !error.ok()) {
        return error;
    }
    journal_.plan = scan.plan();
    journal_.valid_units = scan.valid_units();
    uint64_t end = journal_.plan.end_sequence;
    if (journal_.plan.damaged) {
        count_missing(scan);
        end = scan.newest_sequence() + 1;
        if (header.has_table()) {
            if (Error error = find_owners(); !error.ok()) {
                return error;
            }
        }
    }
    /* Open goes by the clean mark unless unit 0 is current; a repair shows no other disk. */
    if (!header.clean_shutdown || scan.has(0)) {
        if (Error error = apply_units(scan, journal_.plan.first_sequence, end); !error.ok()) {
            return error;
        }
    }
    audit_journal(header, journal_, findings_);
    result_.journal_units_pending = journal_.plan.units();
    return Error::none();
}

/** Table and records together say which slots are in use. */
Error Checker::judge_slots() {
    const Header& header = chosen_.header;
    HostBuffer memory;
    BlockBitmap taken;
    if (Error error = make_bits(header.slot_count(), &memory, &taken); !error.ok()) {
        return error;
    }
    const uint64_t leftover = excuse_leftover(table_.leftover);
    table_ = judge_table(target_.table, SlotJudge(taken, slots_inside(header, data_length_),
                                                  header.reserved_slots()));
    table_.leftover = leftover;
    audit_table(table_, findings_);
    result_.chunks = header.chunk_count();
    result_.chunks_stored = table_.stored;
    result_.chunks_fragmented = table_.fragments;
    if (!header.has_data_file()) {
        result_.image_end_offset = std::max(
            result_.image_end_offset, header.data_offset + table_.slots_end * header.chunk_size);
    }
    return Error::none();
}

Error Checker::judge_metadata() {
    const Header& header = chosen_.header;
    Error error = header.has_bitmap() ? load_bitmap() : Error::none();
    if (error.ok() && header.has_table()) {
        error = load_table();
    }
    if (error.ok()) {
        error = judge_journal();
    }
    if (error.ok() && header.has_table()) {
        error = judge_slots();
    }
    result_.blocks = target_.bitmap.bits();
    result_.blocks_here = target_.bitmap.count();
    return error;
}

/* ---------------------------------------------------------------------------- repairing */

/** Write the valid copy, byte for byte, over the other one. */
Status Checker::heal_headers() {
    const bool primary_is_bad = chosen_.primary != CopyState::valid;
    if (!primary_is_bad && chosen_.copy == CopyState::valid) {
        return {};
    }
    const uint64_t from = primary_is_bad ? kHeaderCopyOffset : kHeaderPrimaryOffset;
    const uint64_t to = primary_is_bad ? kHeaderPrimaryOffset : kHeaderCopyOffset;
    host_.announce(primary_is_bad ? FVD_EVENT_HEADER_PRIMARY : FVD_EVENT_HEADER_COPY);
    const Status status =
        write_bytes(host_, FVD_FILE_IMAGE, to, header_blocks_.bytes().subspan(from, kHeaderSize));
    if (!status.ok()) {
        return status;
    }
    host_.announce(primary_is_bad ? FVD_EVENT_HEADER_PRIMARY_FLUSH : FVD_EVENT_HEADER_COPY_FLUSH);
    return host_.flush(FVD_FILE_IMAGE);
}

/** The marked pages of bitmap or table, to their home at @p offset. */
template <typename Home>
Status Checker::write_pages(const Home& home, const BlockBitmap& pages, uint64_t offset) {
    HostBuffer page(host_, kPageBytes);
    if (!page) {
        return -ENOMEM;
    }
    for (uint64_t i = 0; i < pages.bits(); ++i) {
        if (!pages.test(i)) {
            continue;
        }
        home.store(i * kPageBytes, page.bytes());
        host_.announce(FVD_EVENT_HOME_WRITE);
        const uint64_t at = offset + i * kPageBytes;
        if (Status status = write_bytes(host_, FVD_FILE_IMAGE, at, page.bytes()); !status.ok()) {
            return status;
        }
    }
    return {};
}

/** Pages that differ from their home. */
Status Checker::write_home() {
    const BlockBitmap& of_bitmap = target_.dirty_pages;
    const BlockBitmap& of_table = target_.dirty_entries;
    const bool at_home =
        !of_bitmap.any_set(0, of_bitmap.bits()) && !of_table.any_set(0, of_table.bits());
    if (at_home || FVD_PLANT(repair_forgets_home)) {
        return {};
    }
    /* The table first: a bit that is home before its chunk has a slot makes zeros of the chunk. */
    Status status = write_pages(target_.table, of_table, chosen_.header.table_offset);
    if (status.ok()) {
        status = write_pages(target_.bitmap, of_bitmap, chosen_.header.bitmap_offset);
    }
    if (!status.ok()) {
        return status;
    }
    host_.announce(FVD_EVENT_HOME_FLUSH);
    return host_.flush(FVD_FILE_IMAGE);
}

/** Nothing in the ring will ever be replayed again. */
Status Checker::settle() {
    Header& header = chosen_.header;
    const bool at_rest = header.clean_shutdown && journal_.valid_units == 0 &&
                         journal_.newest_epoch <= header.journal_epoch;
    if (at_rest) {
        return {};
    }
    header.clean_shutdown = true;
    header.journal_epoch =
        std::min(std::max(header.journal_epoch, journal_.newest_epoch) + 1, limits::kMaxCounter);
    header.autoclear_features &= kKnownAutoclear;
    HeaderSlot first = HeaderSlot::copy; /* heal_headers() made both good */
    const auto flush = [](void* host, Event event) {
        static_cast<Host*>(host)->announce(event);
        return static_cast<Host*>(host)->flush(FVD_FILE_IMAGE);
    };
    return update_header(host_, header, &first, flush, &host_);
}

/**
 * Home before header: a cut in between leaves the journal as it was, and the next check does the
 * rest. A page written home holds only bits that were durable before, so `-r leaks` may write it
 * too.
 */
Status Checker::repair() {
    const uint64_t leaks = findings_.repairable(Severity::leak);
    if (!wants(FVD_FIX_ERRORS)) {
        const Status status = leaks != 0 ? write_home() : Status();
        result_.leaks_fixed = status.ok() ? leaks : 0;
        return status;
    }
    Status status = heal_headers();
    if (status.ok() && chosen_.header.has_table()) {
        status = repair_table(host_, chosen_.header, target_);
    }
    if (status.ok()) {
        status = write_home();
        result_.leaks_fixed = status.ok() ? leaks : 0;
    }
    if (status.ok()) {
        status = settle();
        result_.corruptions_fixed = status.ok() ? findings_.repairable(Severity::corruption) : 0;
    }
    return status;
}

/* ---------------------------------------------------------------------------- telling */

void Checker::report() {
    for (const Finding& finding : findings_.list()) {
        host_.warn(finding.text);
    }
    result_.corruptions = findings_.count(Severity::corruption);
    result_.leaks = findings_.count(Severity::leak);
}

void Checker::fail(const Error& error) {
    host_.warn(error.text);
    result_.check_errors += 1;
}

/**
 * What a killed process wrote may be in a cache only. A header that is good to read but not durable
 * must not be the reason to write over the other one.
 */
Error Checker::settle_caches() {
    const Status status = fix_ == FVD_FIX_NONE ? Status() : host_.flush(FVD_FILE_IMAGE);
    return status.ok() ? Error::none()
                       : Error::make(status.value(), "the image cannot be flushed: %s",
                                     std::strerror(-status.value()));
}

Error Checker::run() {
    Error error = settle_caches();
    if (error.ok()) {
        error = load_header_blocks();
    }
    if (!error.ok()) {
        return error;
    }
    const int64_t length = host_.length(FVD_FILE_IMAGE);
    int64_t data_length = host_.length(FVD_FILE_DATA);
    if (data_length == -ENOMEDIUM) {
        data_length = INT64_MAX; /* the adapter was told not to open it: it cannot be judged */
    }
    if (length < 0 || data_length < 0) {
        return Error::make(static_cast<int>(std::min(length, data_length)),
                           "the length of the image or its data file cannot be read");
    }
    data_length_ = static_cast<uint64_t>(data_length);
    audit_header(chosen_, header_blocks_.bytes(), findings_);
    const bool readable =
        audit_regions(chosen_.header, static_cast<uint64_t>(length), data_length_, findings_);
    const Regions regions = regions_of(chosen_.header);
    const bool all_data_is_here = !chosen_.header.has_data_file() && !chosen_.header.has_table();
    result_.image_end_offset =
        std::max(regions.metadata_end(), all_data_is_here ? regions.data.end : 0);
    error = readable ? judge_metadata() : Error::none();
    report();
    if (!error.ok()) {
        fail(error);
    } else if (readable && fix_ != FVD_FIX_NONE) {
        if (Status status = repair(); !status.ok()) {
            fail(Error::make(status.value(), "the repair failed: %s",
                             std::strerror(-status.value())));
        }
    }
    return Error::none();
}

}  // namespace

Error check_image(Host& host, uint32_t fix, fvd_check_result* result) {
    return Checker(host, fix, result).run();
}

}  // namespace fvd
