/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The header of January 2011: packed, little endian, written without any checksum. */
#include <algorithm>
#include <cerrno>
#include <cinttypes>
#include <cstring>
#include <string_view>

#include "fvd/base/arith.h"
#include "fvd/base/units.h"
#include "fvd/base/utf8.h"
#include "fvd/format/heritage.h"
#include "fvd/format/limits.h"

namespace fvd::heritage {

namespace {

constexpr size_t kVersionOffset = 4;
constexpr size_t kDiskSizeOffset = 12;

/** What a number may be; 0 besides, where it means that there is none. */
struct Range {
    uint64_t min = 0;
    uint64_t max = 0;
    uint64_t multiple = 1;
    bool zero_is_legal = true;
    bool holds(uint64_t value) const {
        return (value == 0 && zero_is_legal) ||
               (value >= min && value <= max && value % multiple == 0);
    }
};

constexpr Range kDiskSize{.max = limits::kMaxVirtualSize, .multiple = limits::kSectorSize};
constexpr Range kRegionOffset{
    .min = kHeaderRegionSize, .max = limits::kMaxOffset, .multiple = limits::kRegionAlignment};
constexpr Range kMetadataSize{.min = kHeaderRegionSize,
                              .max = limits::kMaxOffset,
                              .multiple = limits::kRegionAlignment,
                              .zero_is_legal = false};
constexpr Range kBitmapSize{.max = limits::kMaxBitmapSize, .multiple = limits::kRegionAlignment};
/* Nothing but the width of its field bounded it. */
constexpr Range kBlockSize{
    .min = limits::kMinBlockSize, .max = INT32_MAX, .multiple = limits::kSectorSize};
constexpr Range kChunkSize{.min = limits::kMinChunkSize,
                           .max = limits::kMaxVirtualSize,
                           .multiple = limits::kRegionAlignment};
constexpr Range kJournalSize{.max = limits::kMaxJournalSize, .multiple = kSectorSize};

/** Takes fields out of the header, and keeps the first thing that is wrong with one. */
class Reader {
  public:
    explicit Reader(ConstBytes header) : header_(header) {}
    const Error& error() const { return error_; }

    uint64_t number(const char* name, size_t offset, const Range& range) {
        return judged(name, load_le<uint64_t>(header_, offset), range);
    }
    uint64_t number32(const char* name, size_t offset, const Range& range) {
        return judged(name, load_le<uint32_t>(header_, offset), range);
    }
    bool flag(const char* name, size_t offset) {
        const auto value = load_le<uint32_t>(header_, offset);
        if (value > 1) {
            complain(Error::make(-EINVAL, "%s is %" PRIu32 "; must be 0 or 1", name, value));
        }
        return value != 0;
    }
    void text(const char* name, size_t offset, std::span<char> to);
    /** Nothing depends on it, so nothing can be wrong with it; but it will be shown. */
    void unused_text(size_t offset, std::span<char> to);

  private:
    uint64_t judged(const char* name, uint64_t value, const Range& range);
    void complain(const Error& error) {
        if (error_.ok()) {
            error_ = error;
        }
    }
    ConstBytes header_;
    Error error_;
};

uint64_t Reader::judged(const char* name, uint64_t value, const Range& range) {
    if (!range.holds(value)) {
        complain(Error::make(value > range.max ? -EFBIG : -EINVAL,
                             "%s is %" PRIu64 " bytes; must be %sa multiple of %" PRIu64
                             " between %" PRIu64 " and %" PRIu64,
                             name, value, range.zero_is_legal && range.min != 0 ? "0 or " : "",
                             range.multiple, range.min, range.max));
    }
    return value;
}

/* What follows the NUL is whatever was in the memory of the writer, and never looked at. */
void Reader::text(const char* name, size_t offset, std::span<char> to) {
    const ConstBytes stored = header_.subspan(offset, to.size());
    const auto end = std::find(stored.begin(), stored.end(), std::byte{0});
    if (end == stored.end()) {
        complain(Error::make(-EINVAL, "%s has no terminating NUL in its %zu bytes", name,
                             stored.size()));
        return;
    }
    std::memcpy(to.data(), stored.data(), static_cast<size_t>(end - stored.begin()));
    if (const auto bad = first_bad_utf8(to.data())) {
        complain(Error::make(-EINVAL,
                             "%s has byte 0x%02x at %zu; must be valid UTF-8 without control "
                             "characters",
                             name, static_cast<unsigned>(stored[*bad]), *bad));
    }
}

void Reader::unused_text(size_t offset, std::span<char> to) {
    std::memcpy(to.data(), header_.data() + offset, to.size() - 1);
    if (first_bad_utf8(to.data())) {
        constexpr std::string_view kStandIn = "(not printable)";
        std::fill(to.begin(), to.end(), '\0');
        std::copy(kStandIn.begin(), kStandIn.end(), to.begin());
    }
}

Error too_small(const char* region, uint64_t has, uint64_t needs, const char* what,
                uint64_t count) {
    return Error::make(
        -EINVAL, "%s is %" PRIu64 " bytes; at least %" PRIu64 " are needed for %" PRIu64 " %s",
        region, has, needs, count, what);
}

/** Fields that need each other. */
Error check_together(const Header& header) {
    const uint64_t blocks = header.block_count();
    if (header.tracked_size() != 0 && header.base_img[0] == '\0') {
        return Error::make(-EINVAL, "base_img is empty, but base_img_size is %" PRIu64,
                           header.base_size);
    }
    if (header.tracked_size() != 0 && header.block_size == 0) {
        return Error::make(-EINVAL, "block_size is 0, but base_img_size is %" PRIu64,
                           header.base_size);
    }
    if (header.bitmap_size < div_ceil(blocks, 8)) {
        return too_small("bitmap_size", header.bitmap_size, div_ceil(blocks, 8), "blocks", blocks);
    }
    if (header.compact && header.chunk_size == 0) {
        return Error::make(-EINVAL, "chunk_size is 0, but compact_image is 1");
    }
    if (header.chunk_count() > limits::kMaxTableSize / sizeof(uint32_t)) {
        return Error::make(-EFBIG,
                           "a disk of %" PRIu64 " bytes in chunks of %" PRIu64
                           " needs a table of more than %" PRIu64 " bytes",
                           header.virtual_size, header.chunk_size, limits::kMaxTableSize);
    }
    return Error::none();
}

}  // namespace

/* A disk that was made shorter than its base keeps the base's bitmap. */
uint64_t Header::tracked_size() const {
    return base_not_needed ? 0 : std::min(base_size, virtual_size);
}

uint64_t Header::block_count() const {
    return block_size == 0 ? 0 : div_ceil(tracked_size(), block_size);
}

uint64_t Header::chunk_count() const {
    return compact && chunk_size != 0 ? div_ceil(virtual_size, chunk_size) : 0;
}

bool has_magic(ConstBytes file_start) {
    return file_start.size() >= sizeof(uint32_t) && load_le<uint32_t>(file_start, 0) == kMagic;
}

int probe(ConstBytes file_start) {
    if (!has_magic(file_start) || file_start.size() < kDiskSizeOffset + 8) {
        return 0;
    }
    const bool fits = load_le<uint32_t>(file_start, kVersionOffset) == kVersion &&
                      kDiskSize.holds(load_le<uint64_t>(file_start, kDiskSizeOffset));
    return fits ? 100 : 0;
}

Result<Header> decode_header(ConstBytes file_start) {
    if (file_start.size() < kHeaderSize) {
        return Error::make(-EINVAL,
                           "the file is %zu bytes long; the header of an FVD image of January 2011 "
                           "alone takes %zu",
                           file_start.size(), kHeaderSize);
    }
    if (!has_magic(file_start)) {
        return Error::make(-EINVAL, "not an FVD image of January 2011");
    }
    const auto version = load_le<uint32_t>(file_start, kVersionOffset);
    if (version != kVersion) {
        return Error::make(-ENOTSUP,
                           "version is %" PRIu32
                           "; an FVD image with the magic of January 2011 has version %" PRIu32,
                           version, kVersion);
    }
    Reader read(file_start.first(kHeaderSize));
    Header header;
    header.base_not_needed = read.flag("all_data_in_fvd_img", 8);
    header.virtual_size = read.number("virtual_disk_size", kDiskSizeOffset, kDiskSize);
    header.metadata_size = read.number("metadata_size", 20, kMetadataSize);
    read.text("base_img", 28, header.base_img);
    read.text("base_img_fmt", 1052, header.base_img_fmt);
    header.base_size = read.number("base_img_size", 1068, kDiskSize);
    header.bitmap_offset = read.number("bitmap_offset", 1076, kRegionOffset);
    header.bitmap_size = read.number("bitmap_size", 1084, kBitmapSize);
    header.block_size = read.number32("block_size", 1092, kBlockSize);
    read.text("data_file", 1108, header.data_file);
    read.text("data_file_fmt", 2132, header.data_file_fmt);
    header.compact = read.flag("compact_image", 2208);
    header.table_offset = read.number("table_offset", 2212, kRegionOffset);
    header.chunk_size = read.number("chunk_size", 2220, kChunkSize);
    read.unused_text(2236, header.add_storage_cmd);
    header.journal_offset = read.number("journal_offset", 4284, kRegionOffset);
    header.journal_size = read.number("journal_size", 4292, kJournalSize);
    header.clean_shutdown = read.flag("clean_shutdown", 4300);
    header.need_zero_init = read.flag("need_zero_init", 4304);
    if (!read.error().ok()) {
        return read.error();
    }
    if (Error error = check_together(header); !error.ok()) {
        return error;
    }
    return header;
}

Error check_layout(const Header& header, uint64_t file_length) {
    if (header.metadata_size > file_length) {
        return Error::make(-EINVAL,
                           "metadata_size is %" PRIu64
                           "; must not be above the file's length of %" PRIu64,
                           header.metadata_size, file_length);
    }
    const struct {
        const char* name;
        uint64_t offset;
        uint64_t size;
    } regions[] = {
        {"bitmap", header.bitmap_offset, header.tracked_size() != 0 ? header.bitmap_size : 0},
        {"table", header.table_offset, header.chunk_count() * sizeof(uint32_t)},
        {"journal", header.journal_offset, header.journal_size},
    };
    for (size_t i = 0; i < std::size(regions); i++) {
        const ByteRange here{regions[i].offset, regions[i].offset + regions[i].size};
        if (here.empty()) {
            continue;
        }
        if (here.begin < kHeaderRegionSize || here.end > header.metadata_size) {
            return Error::make(
                -EINVAL,
                "%s at %" PRIu64 "..%" PRIu64 " is not between the header's end at %" PRIu64
                " and metadata_size %" PRIu64,
                regions[i].name, here.begin, here.end, kHeaderRegionSize, header.metadata_size);
        }
        for (size_t j = 0; j < i; j++) {
            const ByteRange other{regions[j].offset, regions[j].offset + regions[j].size};
            if (here.overlaps(other)) {
                return Error::make(
                    -EINVAL, "%s at %" PRIu64 "..%" PRIu64 " overlaps %s at %" PRIu64 "..%" PRIu64,
                    regions[i].name, here.begin, here.end, regions[j].name, other.begin, other.end);
            }
        }
    }
    return Error::none();
}

}  // namespace fvd::heritage
