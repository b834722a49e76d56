/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "fvd/format/layout.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cinttypes>
#include <string_view>

#include "fvd/base/arith.h"
#include "fvd/format/limits.h"

namespace fvd {

namespace {

constexpr uint64_t kBitsPerByte = 8;

uint64_t bitmap_bytes(uint64_t base_size, uint64_t block_size) {
    return div_ceil(div_ceil(base_size, block_size), kBitsPerByte);
}

/* ------------------------------------------------------------------ what a user may ask for */

Error option_error(const char* option, uint64_t value, uint64_t multiple, uint64_t min,
                   uint64_t max) {
    return Error::make(-EINVAL,
                       "%s is %" PRIu64 " bytes; must be a multiple of %" PRIu64 " between %" PRIu64
                       " and %" PRIu64,
                       option, value, multiple, min, max);
}

bool is_multiple_within(uint64_t value, uint64_t multiple, uint64_t min, uint64_t max) {
    return value >= min && value <= max && value % multiple == 0;
}

Error check_disk_size(const LayoutRequest& request) {
    if (is_multiple_within(request.virtual_size, limits::kSectorSize, 0, limits::kMaxVirtualSize)) {
        return Error::none();
    }
    Error error =
        option_error("size", request.virtual_size, limits::kSectorSize, 0, limits::kMaxVirtualSize);
    error.code = request.virtual_size > limits::kMaxVirtualSize ? -EFBIG : -EINVAL;
    return error;
}

/** The default gives way to a chunk size that was asked for: chunks are whole blocks. */
uint64_t chosen_block_size(const LayoutRequest& request, uint64_t base_size) {
    if (request.block_size != 0) {
        return request.block_size;
    }
    uint64_t block_size = default_block_size(base_size);
    const uint64_t chunk_size = request.compact ? request.chunk_size : 0;
    while (chunk_size % block_size != 0 && block_size > limits::kMinBlockSize) {
        block_size /= 2;
    }
    return block_size;
}

Error check_block_size(const LayoutRequest& request, uint64_t base_size) {
    if (request.block_size != 0 &&
        !is_multiple_within(request.block_size, limits::kSectorSize, limits::kMinBlockSize,
                            limits::kMaxBlockSize)) {
        return option_error("block_size", request.block_size, limits::kSectorSize,
                            limits::kMinBlockSize, limits::kMaxBlockSize);
    }
    const uint64_t block_size = chosen_block_size(request, base_size);
    if (bitmap_bytes(base_size, block_size) <= limits::kMaxBitmapSize) {
        return Error::none();
    }
    const uint64_t least =
        round_up(div_ceil(base_size, limits::kMaxBitmapSize * kBitsPerByte), limits::kSectorSize);
    if (least > limits::kMaxBlockSize) {
        return Error::make(-EFBIG,
                           "a base of %" PRIu64
                           " bytes is too large; a bitmap can cover "
                           "%" PRIu64,
                           base_size,
                           limits::kMaxBitmapSize * kBitsPerByte * limits::kMaxBlockSize);
    }
    return Error::make(-EINVAL,
                       "block_size is %" PRIu64 " bytes; must be between %" PRIu64 " and %" PRIu64
                       " for a base of %" PRIu64 " bytes",
                       block_size, least, limits::kMaxBlockSize, base_size);
}

uint64_t table_bytes(uint64_t virtual_size, uint64_t chunk_size) {
    return div_ceil(virtual_size, chunk_size) * sizeof(uint32_t);
}

/** The smallest chunks with which the table of a disk stays within its limit. */
uint64_t least_chunk_size(uint64_t virtual_size) {
    constexpr uint64_t kMostEntries = limits::kMaxTableSize / sizeof(uint32_t);
    return std::max(limits::kMinChunkSize,
                    round_up(div_ceil(virtual_size, kMostEntries), limits::kSectorSize));
}

Error check_chunk_size(const LayoutRequest& request, uint64_t block_size, uint64_t chunk_size) {
    if (!is_multiple_within(chunk_size, limits::kSectorSize, limits::kMinChunkSize,
                            limits::kMaxChunkSize)) {
        return option_error("chunk_size", chunk_size, limits::kSectorSize, limits::kMinChunkSize,
                            limits::kMaxChunkSize);
    }
    if (block_size != 0 && chunk_size % block_size != 0) {
        return Error::make(
            -EINVAL, "chunk_size is %" PRIu64 " bytes; must be a multiple of block_size, %" PRIu64,
            chunk_size, block_size);
    }
    const uint64_t least = least_chunk_size(request.virtual_size);
    if (least > limits::kMaxChunkSize) {
        return Error::make(-EFBIG,
                           "a compact disk of %" PRIu64
                           " bytes is too large; a table can map "
                           "%" PRIu64,
                           request.virtual_size,
                           limits::kMaxTableSize / sizeof(uint32_t) * limits::kMaxChunkSize);
    }
    if (chunk_size < least) {
        return Error::make(-EINVAL,
                           "chunk_size is %" PRIu64 " bytes; must be between %" PRIu64
                           " and %" PRIu64 " for a disk of %" PRIu64 " bytes",
                           chunk_size, least, limits::kMaxChunkSize, request.virtual_size);
    }
    return Error::none();
}

Error check_grow_unit(const LayoutRequest& request, uint64_t chunk_size) {
    const uint64_t most = round_down(limits::kMaxStorageGrowUnit, chunk_size);
    if (request.storage_grow_unit == 0 ||
        is_multiple_within(request.storage_grow_unit, chunk_size, chunk_size, most)) {
        return Error::none();
    }
    return option_error("storage_grow_unit", request.storage_grow_unit, chunk_size, chunk_size,
                        most);
}

uint64_t chosen_grow_unit(const LayoutRequest& request, uint64_t chunk_size) {
    return request.storage_grow_unit != 0 ? request.storage_grow_unit
                                          : round_up(limits::kDefaultStorageGrowUnit, chunk_size);
}

Error check_compact(const LayoutRequest& request, uint64_t block_size, uint64_t chunk_size) {
    if (request.compact) {
        const Error error = check_chunk_size(request, block_size, chunk_size);
        return error.ok() ? check_grow_unit(request, chunk_size) : error;
    }
    const bool chunk_given = request.chunk_size != 0;
    if (chunk_given || request.storage_grow_unit != 0) {
        return Error::make(-EINVAL, "%s is %" PRIu64 " bytes, but compact_image is off",
                           chunk_given ? "chunk_size" : "storage_grow_unit",
                           chunk_given ? request.chunk_size : request.storage_grow_unit);
    }
    return Error::none();
}

Error check_journal(const LayoutRequest& request, uint32_t unit) {
    if (unit != 512 && unit != 4096) {
        return Error::make(-EINVAL, "journal_unit is %" PRIu32 " bytes; must be 512 or 4096", unit);
    }
    const uint64_t least = unit * limits::kMinJournalUnits;
    if (request.journal_size == 0 ||
        is_multiple_within(request.journal_size, unit, least, limits::kMaxJournalSize)) {
        return Error::none();
    }
    return option_error("journal_size", request.journal_size, unit, least, limits::kMaxJournalSize);
}

/** Bytes of the disk that the bitmap has to cover. */
uint64_t covered_size(const LayoutRequest& request) {
    /* A block size without a base asks for an image that can get a base later. */
    if (!request.has_base) {
        return request.block_size != 0 ? request.virtual_size : 0;
    }
    const auto rounded = checked_round_up(request.base_size, limits::kSectorSize);
    return request.base_size == 0 || !rounded ? request.virtual_size
                                              : std::min(request.virtual_size, *rounded);
}

/* ------------------------------------------------------------------ what an image may claim */

struct Named {
    const char* name;
    ByteRange range;
    bool in_image; /* false: it lies in the data file */
};

std::array<Named, 5> named_regions(const Header& header) {
    const Regions regions = regions_of(header);
    return {{{"header", regions.header, true},
             {"bitmap", regions.bitmap, true},
             {"table", regions.table, true},
             {"journal", regions.journal, true},
             {"data", regions.data, !header.has_data_file()}}};
}

Error check_inside(const std::array<Named, 5>& regions, uint64_t file_length) {
    for (const Named& region : regions) {
        const bool may_be_short = std::string_view(region.name) == "data";
        if (!may_be_short && !region.range.empty() && region.range.end > file_length) {
            return Error::make(-EINVAL,
                               "%s, bytes %" PRIu64 " to %" PRIu64
                               ", reaches past the end of the "
                               "file at %" PRIu64,
                               region.name, region.range.begin, region.range.end, file_length);
        }
    }
    return Error::none();
}

/** In a compact image a region may stand among the slots, which chunks then cannot have. */
bool may_stand_on(const Named& data, const Named& region, bool compact) {
    return compact && std::string_view(data.name) == "data" &&
           region.range.begin >= data.range.begin;
}

Error check_disjoint(const std::array<Named, 5>& regions, bool compact) {
    for (size_t i = 0; i < regions.size(); ++i) {
        for (size_t j = i + 1; j < regions.size(); ++j) {
            const Named& a = regions[i];
            const Named& b = regions[j];
            const bool both_exist = !a.range.empty() && !b.range.empty();
            if (both_exist && a.in_image && b.in_image && a.range.overlaps(b.range) &&
                !may_stand_on(b, a, compact)) {
                return Error::make(-EINVAL,
                                   "%s, bytes %" PRIu64 " to %" PRIu64 ", and %s, bytes %" PRIu64
                                   " to %" PRIu64 ", overlap",
                                   a.name, a.range.begin, a.range.end, b.name, b.range.begin,
                                   b.range.end);
            }
        }
    }
    return Error::none();
}

Error check_bitmap_fits(const Header& h) {
    const uint64_t needed = div_ceil(h.block_count(), kBitsPerByte);
    if (needed <= h.bitmap_size) {
        return Error::none();
    }
    return Error::make(-EINVAL,
                       "bitmap_size is %" PRIu64 " bytes; must be at least %" PRIu64
                       " for base_img_size %" PRIu64 " in blocks of %" PRIu64,
                       h.bitmap_size, needed, h.base_size, h.block_size);
}

Error check_table_fits(const Header& h) {
    const uint64_t needed = h.chunk_count() * sizeof(uint32_t);
    if (needed <= h.table_size) {
        return Error::none();
    }
    return Error::make(-EINVAL,
                       "table_size is %" PRIu64 " bytes; must be at least %" PRIu64
                       " for virtual_disk_size %" PRIu64 " in chunks of %" PRIu64,
                       h.table_size, needed, h.virtual_size, h.chunk_size);
}

Error check_journal_fits(const Header& h) {
    if (h.journal_size == 0 && (h.has_bitmap() || h.has_table())) {
        return Error::make(-EINVAL,
                           "journal_size is 0 bytes; must be between %" PRIu64 " and %" PRIu64
                           " in an image with a bitmap or table",
                           h.journal_unit * limits::kMinJournalUnits, limits::kMaxJournalSize);
    }
    if (h.journal_size % h.journal_unit != 0) {
        return Error::make(-EINVAL,
                           "journal_size is %" PRIu64
                           " bytes; must be a multiple of "
                           "journal_unit, %" PRIu32,
                           h.journal_size, h.journal_unit);
    }
    return Error::none();
}

/** One behind the other, in the order in which the format's document names them. */
void place_regions(Header& h, bool separate_data_file) {
    uint64_t end = kHeaderRegionSize;
    const auto place = [&end](uint64_t* offset, uint64_t size) {
        *offset = size != 0 ? end : 0;
        end += size;
    };
    place(&h.bitmap_offset, h.bitmap_size);
    place(&h.table_offset, h.table_size);
    place(&h.journal_offset, h.journal_size);
    h.data_offset = separate_data_file ? 0 : round_up(end, limits::kDataAlignment);
}

constexpr ByteRange region(uint64_t offset, uint64_t size) {
    return {offset, offset + size};
}

}  // namespace

uint64_t default_block_size(uint64_t base_size) {
    uint64_t block_size = limits::kDefaultMinBlockSize;
    while (block_size < limits::kMaxBlockSize &&
           bitmap_bytes(base_size, block_size) > limits::kDefaultBitmapTarget) {
        block_size *= 2;
    }
    return block_size;
}

uint64_t default_chunk_size(uint64_t virtual_size, uint64_t block_size) {
    uint64_t chunk_size = block_size == 0 ? limits::kDefaultChunkSize
                                          : round_up(limits::kDefaultChunkSize, block_size);
    while (chunk_size <= limits::kMaxChunkSize / 2 &&
           table_bytes(virtual_size, chunk_size) > limits::kMaxTableSize) {
        chunk_size *= 2;
    }
    return chunk_size;
}

uint64_t default_journal_size(uint64_t home_size, uint32_t journal_unit) {
    /* All of it can change between two checkpoints, and a record is small beside a page. */
    const uint64_t wanted = checked_mul(home_size, 4).value_or(UINT64_MAX);
    return round_up(
        std::clamp(wanted, limits::kMinDefaultJournalSize, limits::kMaxDefaultJournalSize),
        journal_unit);
}

Result<Header> plan_layout(const LayoutRequest& request) {
    Error error = check_disk_size(request);
    const uint64_t base_size = covered_size(request);
    const uint32_t journal_unit = request.journal_unit != 0 ? request.journal_unit : 4096;
    if (error.ok()) {
        error = check_block_size(request, base_size);
    }
    if (!error.ok()) {
        return error;
    }
    const uint64_t block_size = base_size != 0 ? chosen_block_size(request, base_size) : 0;
    const uint64_t chunk_size = request.chunk_size != 0
                                    ? request.chunk_size
                                    : default_chunk_size(request.virtual_size, block_size);
    for (const Error& found :
         {check_compact(request, block_size, chunk_size), check_journal(request, journal_unit)}) {
        if (!found.ok()) {
            return found;
        }
    }
    Header h;
    h.virtual_size = request.virtual_size;
    h.journal_unit = journal_unit;
    if (base_size != 0) {
        h.base_size = base_size;
        h.block_size = block_size;
        h.bitmap_size = round_up(bitmap_bytes(base_size, block_size), limits::kRegionAlignment);
    }
    if (request.compact) {
        h.chunk_size = chunk_size;
        h.storage_grow_unit = chosen_grow_unit(request, chunk_size);
        /* Never absent, also for a disk of no bytes: it is what makes an image compact. */
        h.table_size = round_up(std::max<uint64_t>(table_bytes(h.virtual_size, chunk_size), 1),
                                limits::kRegionAlignment);
    }
    if (const uint64_t home_size = h.bitmap_size + h.table_size; home_size != 0) {
        h.journal_size = request.journal_size != 0 ? request.journal_size
                                                   : default_journal_size(home_size, journal_unit);
    }
    place_regions(h, request.separate_data_file);
    return h;
}

Regions regions_of(const Header& h) {
    Regions regions;
    regions.header = region(0, kHeaderRegionSize);
    regions.bitmap = region(h.bitmap_offset, h.bitmap_size);
    regions.table = region(h.table_offset, h.table_size);
    regions.journal = region(h.journal_offset, h.journal_size);
    const uint64_t data_size = h.has_table() ? h.chunk_count() * h.chunk_size : h.virtual_size;
    regions.data = region(h.data_offset, data_size);
    return regions;
}

uint64_t storage_size(const Header& h, uint64_t slots) {
    const uint64_t step = std::max(h.storage_grow_unit, h.chunk_size);
    /* More than that only where the disk was larger once, or a region stands among the slots. */
    const uint64_t most = std::max(h.chunk_count(), slots) * h.chunk_size;
    return std::min(round_up(slots * h.chunk_size, step), most);
}

Result<uint64_t> larger_table_size(const Header& h, uint64_t virtual_size) {
    constexpr uint64_t kMostEntries = limits::kMaxTableSize / sizeof(uint32_t);
    const uint64_t chunks = div_ceil(virtual_size, h.chunk_size);
    if (chunks > kMostEntries) {
        return Error::make(-EFBIG,
                           "a disk of %" PRIu64 " bytes needs %" PRIu64 " chunks of %" PRIu64
                           "; a table can map %" PRIu64 ": at most %" PRIu64 " bytes",
                           virtual_size, chunks, h.chunk_size, kMostEntries,
                           kMostEntries * h.chunk_size);
    }
    /* An eighth more than is needed, so that a disk that grows step by step does not move its table
     * at each; and every slot that exists keeps its number. */
    const uint64_t entries = std::max(chunks + chunks / 8, h.slot_count());
    return std::min(round_up(entries * sizeof(uint32_t), limits::kRegionAlignment),
                    limits::kMaxTableSize);
}

uint64_t slots_for_region(const Header& h, uint64_t size) {
    /* Slots need not begin where regions may. */
    const uint64_t shift =
        h.chunk_size % limits::kRegionAlignment != 0 ? limits::kRegionAlignment : 0;
    return div_ceil(size + shift, h.chunk_size);
}

std::optional<uint64_t> find_gap(const Header& h, uint64_t size) {
    const Regions regions = regions_of(h);
    const ByteRange all[] = {regions.header, regions.bitmap, regions.table, regions.journal};
    const uint64_t end = h.has_data_file() ? limits::kMaxOffset : h.data_offset;
    std::optional<uint64_t> lowest;
    for (const ByteRange& before : all) {
        const uint64_t begin = round_up(before.end, limits::kRegionAlignment);
        const ByteRange place{begin, begin + size};
        const bool taken = std::any_of(std::begin(all), std::end(all), [&](const ByteRange& other) {
            return !other.empty() && place.overlaps(other);
        });
        if (!taken && begin >= kHeaderRegionSize && place.end <= end &&
            begin < lowest.value_or(UINT64_MAX)) {
            lowest = begin;
        }
    }
    return lowest;
}

Error check_layout(const Header& header, uint64_t file_length) {
    const auto regions = named_regions(header);
    for (const Error& error :
         {check_bitmap_fits(header), check_table_fits(header), check_journal_fits(header),
          check_inside(regions, file_length), check_disjoint(regions, header.has_table())}) {
        if (!error.ok()) {
            return error;
        }
    }
    return Error::none();
}

}  // namespace fvd
