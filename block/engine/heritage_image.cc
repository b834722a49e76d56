/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Images of January 2011: opening, reading, describing. */
#include "fvd/engine/heritage_image.h"

#include <algorithm>
#include <cerrno>
#include <cinttypes>
#include <cstring>

#include "fvd/engine/host_memory.h"
#include "fvd/format/limits.h"

namespace fvd {

namespace {

constexpr uint64_t kPieceBytes = 1024 * 1024;

/* Memory for @p count things of @p size bytes; at least one, so that there is something to get. */
Error get_memory(Host& host, uint64_t count, uint64_t size, HostBuffer* memory) {
    const uint64_t bytes = std::max<uint64_t>(count, 1) * size;
    *memory = HostBuffer(host, bytes);
    return *memory ? Error::none()
                   : Error::make(-ENOMEM, "no memory: %" PRIu64 " bytes are needed for metadata",
                                 bytes);
}

template <size_t To, size_t From>
void copy_text(char (&to)[To], const char (&from)[From]) {
    std::memset(to, 0, To);
    std::memcpy(to, from, std::min(To - 1, std::strlen(from)));
}

}  // namespace

Error heritage_is_read_only() {
    return Error::make(-EROFS,
                       "this is an FVD image of January 2011 (version 1), which can only be opened "
                       "read-only; 'qemu-img convert' makes an image of it that can be written to");
}

bool HeritageImage::is_one(Host& host) {
    HostBuffer start(host, heritage::kSectorSize);
    const int64_t length = host.length(FVD_FILE_IMAGE);
    return start && length >= static_cast<int64_t>(start.size()) &&
           read_bytes(host, FVD_FILE_IMAGE, 0, start.bytes()).ok() &&
           heritage::has_magic(start.bytes());
}

Error HeritageImage::load() {
    const int64_t length = host_.length(FVD_FILE_IMAGE);
    if (length < 0) {
        return Error::make(static_cast<int>(length), "the length of the image cannot be read");
    }
    HostBuffer start(host_, heritage::kHeaderRegionSize);
    if (!start) {
        return Error::make(-ENOMEM, "no memory for the header");
    }
    const uint64_t there = std::min<uint64_t>(start.size(), static_cast<uint64_t>(length));
    const MutableBytes bytes = start.bytes().first(there);
    host_.announce(FVD_EVENT_OPEN_READ);
    if (Status status = read_bytes(host_, FVD_FILE_IMAGE, 0, bytes); !status.ok()) {
        return Error::make(status.value(), "the header cannot be read");
    }
    const Result<heritage::Header> decoded = heritage::decode_header(bytes);
    if (!decoded.ok()) {
        return decoded.error();
    }
    header_ = decoded.value();
    return check_layout(header_, static_cast<uint64_t>(length));
}

/* Call visit(offset within the region, piece) for all of it, in large pieces. */
template <typename Visit>
Error HeritageImage::read_region(const char* name, uint64_t offset, uint64_t size, Visit visit) {
    HostBuffer buffer;
    if (Error error = get_memory(host_, std::min(size, kPieceBytes), 1, &buffer); !error.ok()) {
        return error;
    }
    for (uint64_t at = 0; at < size; at += kPieceBytes) {
        const MutableBytes piece = buffer.bytes().first(std::min(size - at, kPieceBytes));
        host_.announce(FVD_EVENT_OPEN_READ);
        const Status status = read_bytes(host_, FVD_FILE_IMAGE, offset + at, piece);
        if (!status.ok()) {
            return Error::make(status.value(), "%s cannot be read at offset %" PRIu64, name,
                               offset + at);
        }
        if (Error error = visit(at, ConstBytes(piece)); !error.ok()) {
            return error;
        }
    }
    return Error::none();
}

Error HeritageImage::fold(heritage::JournalFacts* facts) {
    const uint64_t words = BlockBitmap::bits_to_words(header_.block_count());
    const uint64_t entries = header_.chunk_count();
    if (Error error = get_memory(host_, words, sizeof(uint64_t), &words_); !error.ok()) {
        return error;
    }
    if (Error error = get_memory(host_, entries, sizeof(uint32_t), &entries_); !error.ok()) {
        return error;
    }
    view_ = heritage::View(header_, items_of<uint64_t>(words_, words),
                           items_of<uint32_t>(entries_, entries));
    Error error = read_region("the bitmap", header_.bitmap_offset, words * sizeof(uint64_t),
                              [this](uint64_t at, ConstBytes piece) {
                                  view_.load_bitmap(at, piece);
                                  return Error::none();
                              });
    if (error.ok()) {
        error = read_region("the table", header_.table_offset, entries * sizeof(uint32_t),
                            [this](uint64_t at, ConstBytes piece) {
                                view_.load_table(at, piece);
                                return Error::none();
                            });
    }
    return error.ok() ? load_journal(facts) : error;
}

/*
 * An image that was closed in order needs no journal, and a sector of it may be anything; but what
 * its records name must have arrived in bitmap and table.
 */
Error HeritageImage::load_journal(heritage::JournalFacts* facts) {
    *facts = {};
    if (!header_.has_metadata()) {
        return Error::none();
    }
    const auto visit = [&](uint64_t at, ConstBytes piece) {
        for (uint64_t i = 0; i < piece.size(); i += heritage::kSectorSize) {
            const uint64_t number = (at + i) / heritage::kSectorSize;
            const ConstBytes sector = piece.subspan(i, heritage::kSectorSize);
            const Error error = header_.clean_shutdown ? view_.look_at(number, sector, facts)
                                                       : view_.replay(number, sector, facts);
            if (!error.ok() && !header_.clean_shutdown) {
                return error;
            }
        }
        return Error::none();
    };
    return read_region("the journal", header_.journal_offset, header_.journal_size, visit);
}

Error HeritageImage::set_storage() {
    const int64_t length = host_.length(FVD_FILE_DATA);
    if (length == -ENOMEDIUM) { /* an adapter that was told not to open the data file */
        return view_.set_storage(limits::kMaxOffset);
    }
    if (length < 0) {
        return Error::make(static_cast<int>(length),
                           "the length of the file with the guest's data "
                           "cannot be read");
    }
    return view_.set_storage(static_cast<uint64_t>(length));
}

Error HeritageImage::start(StartMode mode) {
    FVD_ASSERT(!started_);
    if (mode != StartMode::read_only) {
        return heritage_is_read_only();
    }
    if (Error error = load(); !error.ok()) {
        return error;
    }
    heritage::JournalFacts facts;
    if (Error error = fold(&facts); !error.ok()) {
        return error;
    }
    if (Error error = set_storage(); !error.ok()) {
        return error;
    }
    warn_of(facts);
    started_ = true;
    return Error::none();
}

/* What the reader of a converted image would want to have known. */
void HeritageImage::warn_of(const heritage::JournalFacts& facts) {
    if (header_.clean_shutdown && facts.unsaved != 0) {
        host_.warn(
            "marked clean, but the journal names writes that bitmap and table do not have; "
            "they were lost in 2011, when an open failed after a crash");
    }
    if (!header_.clean_shutdown && header_.has_metadata() && header_.journal_size == 0) {
        host_.warn(
            "not closed in order, and made without a journal: writes of its last use may "
            "be missing");
    }
    if (!header_.clean_shutdown && facts.outside != 0) {
        host_.warn("the journal names places beyond the end of the disk; they are passed over");
    }
}

Status HeritageImage::read(uint64_t offset, uint64_t length, GuestBuffer to, uint32_t flags) {
    while (length != 0) {
        const heritage::Placement place = where(offset, length);
        const Slice slice = guest_slice(to.handle, to.offset, place.run);
        Status status;
        switch (place.place) {
            case heritage::Place::base:
                host_.announce(FVD_EVENT_READ_BASE);
                status = host_.read(FVD_FILE_BASE, offset, {&slice, 1}, flags);
                break;
            case heritage::Place::data:
                host_.announce(FVD_EVENT_READ_IMAGE);
                status = host_.read(FVD_FILE_DATA, place.data_offset, {&slice, 1}, flags);
                break;
            case heritage::Place::zero:
                host_.fill_guest_zero(to.handle, to.offset, place.run);
                break;
        }
        if (!status.ok()) {
            return status;
        }
        offset += place.run;
        length -= place.run;
        to = to.advance(place.run);
    }
    return {};
}

bool HeritageImage::needs_base() const {
    return started_ && header_.tracked_size() != 0 &&
           (header_.compact || view_.blocks_here() < header_.block_count());
}

void HeritageImage::describe(fvd_info* info) const {
    *info = {};
    info->format_version = heritage::kVersion;
    info->never_writable = true;
    info->virtual_size = header_.virtual_size;
    info->base_size = header_.base_size;
    info->block_size = header_.block_size;
    info->bitmap_offset = header_.bitmap_offset;
    info->bitmap_size = header_.bitmap_size;
    info->table_offset = header_.table_offset;
    info->table_size = header_.chunk_count() * sizeof(uint32_t);
    info->journal_offset = header_.journal_offset;
    info->journal_size = header_.journal_size;
    info->journal_unit = heritage::kSectorSize;
    info->data_offset = header_.data_offset();
    info->clean_shutdown = header_.clean_shutdown;
    info->base_fully_prefetched = header_.base_not_needed && header_.base_img[0] != '\0';
    info->need_zero_init = header_.need_zero_init;
    info->started = started_;
    if (started_) {
        info->blocks = header_.block_count();
        info->blocks_here = view_.blocks_here();
    }
    copy_text(info->data_file, header_.data_file);
    copy_text(info->data_file_fmt, header_.data_file_fmt);
    copy_text(info->base_img, header_.base_img);
    copy_text(info->base_img_fmt, header_.base_img_fmt);
    copy_text(info->add_storage_cmd, header_.add_storage_cmd);
}

void HeritageImage::progress(fvd_progress* progress) const {
    *progress = {};
    progress->hold = FVD_HOLD_OFF;
    progress->hold_ends = progress->ends_in_s = UINT64_MAX;
}

}  // namespace fvd
