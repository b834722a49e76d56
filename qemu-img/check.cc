/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * qemu-img check: read all metadata, judge it (format/audit), and repair what can be repaired.
 *
 * An image that a power cut left behind is not damaged: records that wait for replay, a torn mark
 * and an older copy of the header are reported as nothing. `-r leaks` clears leftovers of the
 * bitmap and touches nothing else. `-r all` also brings the image to rest: both copies of the
 * header alike, every record that can be believed at home, the clean mark, and an epoch above all
 * that the ring holds.
 */
#include <algorithm>
#include <cerrno>
#include <cstring>

#include "fvd/base/arith.h"
#include "fvd/engine/header_store.h"
#include "fvd/format/audit.h"
#include "fvd/format/layout.h"
#include "fvd/format/limits.h"
#include "fvd/verbs.h"

namespace fvd {

namespace {

constexpr uint64_t kPieceBytes = 1024 * 1024;
constexpr uint64_t kPageBytes = 4096;

unsigned long long print(uint64_t value) {
    return value;
}

std::span<uint64_t> words_of(const HostBuffer& buffer) {
    return {reinterpret_cast<uint64_t*>(buffer.data()), buffer.size() / sizeof(uint64_t)};
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
    Error load_bitmap();
    Error judge_journal();
    Error judge_metadata();
    Error scan_ring(JournalScan& scan);
    Error apply_units(const JournalScan& scan, uint64_t begin, uint64_t end);
    void count_missing(const JournalScan& scan);
    Error make_bits(uint64_t bits, HostBuffer* memory, BlockBitmap* bitmap);
    Error read_piece(uint64_t offset, MutableBytes to, const char* what);
    template <typename Visit>
    Error read_units(uint64_t first, uint64_t count, Visit visit);

    void report();
    void fail(const Error& error);
    bool wants(uint32_t what) const { return (fix_ & what) != 0; }
    Status repair();
    Status heal_headers();
    Status write_home();
    Status settle();

    Host& host_;
    const uint32_t fix_;
    fvd_check_result& result_;
    Findings findings_;
    HostBuffer header_blocks_;
    ChosenHeader chosen_;
    HostBuffer bitmap_words_;
    HostBuffer page_words_;
    ReplayTarget target_; /* the recovered bitmap, and the pages of it that home does not have */
    JournalFacts journal_;
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
    if (chosen_.header.has_table()) {
        return Error::make(-ENOTSUP, "table_size is %llu: compact images are not supported yet",
                           print(chosen_.header.table_size));
    }
    return Error::none();
}

Error Checker::make_bits(uint64_t bits, HostBuffer* memory, BlockBitmap* bitmap) {
    const uint64_t size = std::max<uint64_t>(BlockBitmap::bits_to_words(bits), 1) * 8;
    *memory = HostBuffer(host_, size);
    if (!*memory) {
        return Error::make(-ENOMEM, "no memory: %llu bytes are needed for the bitmap", print(size));
    }
    std::memset(memory->data(), 0, size);
    *bitmap = BlockBitmap(words_of(*memory), bits);
    return Error::none();
}

/** The bitmap's home, and the bits in it that stand for nothing. */
Error Checker::load_bitmap() {
    const Header& header = chosen_.header;
    Error error = make_bits(header.block_count(), &bitmap_words_, &target_.bitmap);
    if (error.ok()) {
        error = make_bits(header.bitmap_size / kPageBytes, &page_words_, &target_.dirty_pages);
    }
    HostBuffer piece(host_, std::min(std::max(header.bitmap_size, kPageBytes), kPieceBytes));
    if (!error.ok() || !piece) {
        return !error.ok() ? error : Error::make(-ENOMEM, "no memory to read the bitmap");
    }
    uint64_t leftover = 0;
    for (uint64_t at = 0; at < header.bitmap_size; at += kPageBytes) {
        const uint64_t in_piece = at % piece.size();
        if (in_piece == 0) {
            const uint64_t size = std::min<uint64_t>(piece.size(), header.bitmap_size - at);
            error = read_piece(header.bitmap_offset + at, piece.bytes().first(size), "the bitmap");
            if (!error.ok()) {
                return error;
            }
        }
        const ConstBytes page = piece.bytes().subspan(in_piece, kPageBytes);
        target_.bitmap.load(at, page);
        if (const uint64_t bits = count_leftover_bits(header, at, page); bits != 0) {
            leftover += bits;
            target_.dirty_pages.set(at / kPageBytes, at / kPageBytes + 1);
        }
    }
    audit_bitmap(leftover, findings_);
    return Error::none();
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

/** Apply what is there of the units [begin, end) to the bitmap in memory. */
Error Checker::apply_units(const JournalScan& scan, uint64_t begin, uint64_t end) {
    const uint64_t ring = chosen_.header.journal_units();
    while (begin < end) {
        const uint64_t place = begin % ring;
        const uint64_t count = std::min(end - begin, ring - place);
        const uint64_t first = begin;
        Error error = read_units(place, count, [&](uint64_t at, ConstBytes unit) {
            const auto view = UnitView::decode(unit, chosen_.header.image_id);
            if (view && scan.has(first + (at - place)) && !apply_unit(*view, target_)) {
                journal_.foreign_units += 1;
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
 * set. So of a damaged journal every valid unit can be believed, also those after a gap.
 */
Error Checker::judge_journal() {
    const Header& header = chosen_.header;
    if (header.journal_size == 0) {
        return Error::none();
    }
    HostBuffer sequences(host_, header.journal_units() * sizeof(uint64_t));
    if (!sequences) {
        return Error::make(-ENOMEM, "no memory to scan the journal");
    }
    JournalScan scan(words_of(sequences), header.journal_epoch, header.image_id);
    if (Error error = scan_ring(scan); !error.ok()) {
        return error;
    }
    journal_.plan = scan.plan();
    journal_.valid_units = scan.valid_units();
    uint64_t end = journal_.plan.end_sequence;
    if (journal_.plan.damaged) {
        count_missing(scan);
        end = scan.newest_sequence() + 1;
    }
    if (Error error = apply_units(scan, journal_.plan.first_sequence, end); !error.ok()) {
        return error;
    }
    audit_journal(header, journal_, findings_);
    result_.journal_units_pending = journal_.plan.units();
    return Error::none();
}

Error Checker::judge_metadata() {
    if (chosen_.header.has_bitmap()) {
        if (Error error = load_bitmap(); !error.ok()) {
            return error;
        }
    }
    if (Error error = judge_journal(); !error.ok()) {
        return error;
    }
    result_.blocks = target_.bitmap.bits();
    result_.blocks_here = target_.bitmap.count();
    return Error::none();
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

/** Pages of the bitmap that differ from their home. */
Status Checker::write_home() {
    const BlockBitmap& pages = target_.dirty_pages;
    if (!pages.any_set(0, pages.bits())) {
        return {};
    }
    HostBuffer page(host_, kPageBytes);
    if (!page) {
        return -ENOMEM;
    }
    for (uint64_t i = 0; i < pages.bits(); ++i) {
        if (!pages.test(i)) {
            continue;
        }
        target_.bitmap.store(i * kPageBytes, page.bytes());
        host_.announce(FVD_EVENT_HOME_WRITE);
        const uint64_t offset = chosen_.header.bitmap_offset + i * kPageBytes;
        if (Status status = write_bytes(host_, FVD_FILE_IMAGE, offset, page.bytes());
            !status.ok()) {
            return status;
        }
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
    bool flush_failed = false;
    return update_header(host_, header, &first, &flush_failed);
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
    audit_header(chosen_, header_blocks_.bytes(), findings_);
    const bool readable = audit_regions(chosen_.header, static_cast<uint64_t>(length),
                                        static_cast<uint64_t>(data_length), findings_);
    const Regions regions = regions_of(chosen_.header);
    result_.image_end_offset =
        std::max({regions.header.end, regions.bitmap.end, regions.journal.end,
                  chosen_.header.has_data_file() ? 0 : regions.data.end});
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
