/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "fvd/format/header.h"

#include <algorithm>
#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <iterator>
#include <string_view>

#include "fvd/base/arith.h"
#include "fvd/base/crc32c.h"
#include "fvd/base/utf8.h"
#include "fvd/format/limits.h"

namespace fvd {

namespace {

constexpr uint32_t kJanuaryMagic = 0x5143F5A9; /* what the 2011 code called version 1 */
constexpr size_t kMagicOffset = 0;
constexpr size_t kVersionOffset = 4;
constexpr size_t kCrcOffset = kHeaderSize - 4;

/* ------------------------------------------------------------------ the table of fields */

enum class Kind : uint8_t { magic, version, u64, i64, u32, flag, text, id, crc, zero };

/** What a number may be. Zero is legal besides where it stands for "there is none". */
struct Range {
    uint64_t min = 0;
    uint64_t max = UINT64_MAX;
    uint64_t multiple = 1;
    bool zero_is_legal = false;
    int over_max = -EINVAL;
};

struct Field {
    HeaderField place;
    Kind kind;
    Range range;
    bool advice = false; /* clamped where it is out of range, not refused */
    uint64_t Header::*u64 = nullptr;
    int64_t Header::*i64 = nullptr;
    uint32_t Header::*u32 = nullptr;
    bool Header::*flag = nullptr;
    char* (*text)(Header&) = nullptr;
};

constexpr Field fixed(const char* name, size_t offset, size_t size, Kind kind) {
    return {.place = {name, offset, size}, .kind = kind, .range = {}};
}

constexpr Field number(const char* name, size_t offset, uint64_t Header::*member, Range range) {
    return {.place = {name, offset, 8}, .kind = Kind::u64, .range = range, .u64 = member};
}

constexpr Field advice(const char* name, size_t offset, uint64_t Header::*member, uint64_t max) {
    Field field = number(name, offset, member, {.max = max});
    field.advice = true;
    return field;
}

constexpr Field delay(const char* name, size_t offset, int64_t Header::*member) {
    return {
        .place = {name, offset, 8}, .kind = Kind::i64, .range = {}, .advice = true, .i64 = member};
}

constexpr Field number32(const char* name, size_t offset, uint32_t Header::*member, Range range,
                         bool is_advice) {
    return {.place = {name, offset, 4},
            .kind = Kind::u32,
            .range = range,
            .advice = is_advice,
            .u32 = member};
}

constexpr Field flag(const char* name, size_t offset, bool Header::*member) {
    return {.place = {name, offset, 4}, .kind = Kind::flag, .range = {}, .flag = member};
}

template <auto Member>
constexpr Field text(const char* name, size_t offset) {
    return {.place = {name, offset, sizeof(Header{}.*Member)},
            .kind = Kind::text,
            .range = {},
            .text = [](Header& header) -> char* { return header.*Member; }};
}

constexpr Range kAnything{};
constexpr Range kCounter{.max = limits::kMaxCounter};
constexpr Range kZero{.max = 0};
constexpr Range kDiskSize{
    .max = limits::kMaxVirtualSize, .multiple = limits::kSectorSize, .over_max = -EFBIG};
constexpr Range kRegionOffset{.min = kHeaderRegionSize,
                              .max = limits::kMaxOffset,
                              .multiple = limits::kRegionAlignment,
                              .zero_is_legal = true,
                              .over_max = -EFBIG};
constexpr Range kBlockSize{.min = limits::kMinBlockSize,
                           .max = limits::kMaxBlockSize,
                           .multiple = limits::kSectorSize,
                           .zero_is_legal = true};
constexpr Range kChunkSize{.min = limits::kMinChunkSize,
                           .max = limits::kMaxChunkSize,
                           .multiple = limits::kSectorSize,
                           .zero_is_legal = true};
constexpr Range kGrowUnit{.max = limits::kMaxStorageGrowUnit, .multiple = limits::kSectorSize};
constexpr Range kJournalUnit{.min = 512, .max = 4096, .multiple = 512};
constexpr Range kPrefetchSlots{.max = limits::kMaxPrefetchSlots};

constexpr Range table_like(uint64_t max) {
    return {.max = max, .multiple = limits::kRegionAlignment, .over_max = -EFBIG};
}
constexpr Range kJournalSize{
    .max = limits::kMaxJournalSize, .multiple = limits::kSectorSize, .over_max = -EFBIG};

constexpr Field kFields[] = {
    fixed("magic", kMagicOffset, 4, Kind::magic),
    fixed("version", kVersionOffset, 4, Kind::version),
    number("virtual_disk_size", 8, &Header::virtual_size, kDiskSize),
    number("data_offset", 16, &Header::data_offset, kRegionOffset),
    text<&Header::data_file>("data_file", 24),
    text<&Header::data_file_fmt>("data_file_fmt", 1048),
    text<&Header::base_img>("base_img", 1064),
    text<&Header::base_img_fmt>("base_img_fmt", 2088),
    number("base_img_size", 2104, &Header::base_size, kDiskSize),
    number("bitmap_offset", 2112, &Header::bitmap_offset, kRegionOffset),
    number("bitmap_size", 2120, &Header::bitmap_size, table_like(limits::kMaxBitmapSize)),
    number("block_size", 2128, &Header::block_size, kBlockSize),
    number("table_offset", 2136, &Header::table_offset, kRegionOffset),
    number("table_size", 2144, &Header::table_size, table_like(limits::kMaxTableSize)),
    number("chunk_size", 2152, &Header::chunk_size, kChunkSize),
    number("storage_grow_unit", 2160, &Header::storage_grow_unit, kGrowUnit),
    text<&Header::add_storage_cmd>("add_storage_cmd", 2168),
    number("journal_offset", 3192, &Header::journal_offset, kRegionOffset),
    number("journal_size", 3200, &Header::journal_size, kJournalSize),
    number("stable_journal_epoch", 3208, &Header::journal_epoch, kCounter),
    flag("clean_shutdown", 3216, &Header::clean_shutdown),
    flag("copy_on_read", 3220, &Header::copy_on_read),
    advice("max_outstanding_copy_on_read_data", 3224, &Header::max_outstanding_copy_on_read_data,
           limits::kMaxOutstandingCopyOnRead),
    delay("prefetch_start_delay", 3232, &Header::prefetch_start_delay),
    flag("base_img_fully_prefetched", 3240, &Header::base_fully_prefetched),
    number32("num_prefetch_slots", 3244, &Header::num_prefetch_slots, kPrefetchSlots, true),
    advice("bytes_per_prefetch", 3248, &Header::bytes_per_prefetch, limits::kMaxBytesPerPrefetch),
    advice("prefetch_min_read_throughput", 3256, &Header::prefetch_min_read_throughput,
           limits::kMaxPrefetchThroughput),
    advice("prefetch_max_read_throughput", 3264, &Header::prefetch_max_read_throughput,
           limits::kMaxPrefetchThroughput),
    advice("prefetch_min_write_throughput", 3272, &Header::prefetch_min_write_throughput,
           limits::kMaxPrefetchThroughput),
    advice("prefetch_max_write_throughput", 3280, &Header::prefetch_max_write_throughput,
           limits::kMaxPrefetchThroughput),
    advice("prefetch_throttle_time", 3288, &Header::prefetch_throttle_time,
           limits::kMaxPrefetchTime),
    advice("prefetch_read_throughput_measure_time", 3296,
           &Header::prefetch_read_throughput_measure_time, limits::kMaxPrefetchTime),
    advice("prefetch_write_throughput_measure_time", 3304,
           &Header::prefetch_write_throughput_measure_time, limits::kMaxPrefetchTime),
    flag("need_zero_init", 3312, &Header::need_zero_init),
    fixed("reserved at 3316", 3316, 4, Kind::zero),
    number("incompatible_features", 3320, &Header::incompatible_features, kAnything),
    number("compatible_features", 3328, &Header::compatible_features, kAnything),
    number("autoclear_features", 3336, &Header::autoclear_features, kAnything),
    fixed("image_id", 3344, sizeof(ImageId), Kind::id),
    number("header_generation", 3360, &Header::generation, kCounter),
    number32("journal_unit", 3368, &Header::journal_unit, kJournalUnit, false),
    fixed("reserved at 3372", 3372, 4, Kind::zero),
    number("boot_profile_offset", 3376, &Header::boot_profile_offset, kZero),
    number("boot_profile_size", 3384, &Header::boot_profile_size, kZero),
    fixed("reserved at 3392", 3392, 700, Kind::zero),
    fixed("header_crc32c", kCrcOffset, 4, Kind::crc),
};
constexpr size_t kFieldCount = std::size(kFields);

constexpr bool fields_cover_the_block() {
    size_t end = 0;
    for (const Field& field : kFields) {
        if (field.place.offset != end) {
            return false;
        }
        end += field.place.size;
    }
    return end == kHeaderSize;
}
static_assert(fields_cover_the_block());

constexpr auto kPlaces = [] {
    std::array<HeaderField, kFieldCount> places{};
    for (size_t i = 0; i < kFieldCount; ++i) {
        places[i] = kFields[i].place;
    }
    return places;
}();

/** A wrong name does not compile. */
consteval const Field& field_named(std::string_view name) {
    const Field* found = nullptr;
    for (const Field& field : kFields) {
        found = name == field.place.name ? &field : found;
    }
    FVD_ASSERT(found != nullptr);
    return *found;
}

/* Fields that an update of the header changes, in order of offset: see CopyState::torn. */
constexpr HeaderField kMarking[] = {
    field_named("virtual_disk_size").place,
    field_named("base_img").place,
    field_named("base_img_fmt").place,
    field_named("base_img_size").place,
    field_named("table_offset").place,
    field_named("table_size").place,
    field_named("stable_journal_epoch").place,
    field_named("clean_shutdown").place,
    field_named("copy_on_read").place,
    field_named("max_outstanding_copy_on_read_data").place,
    field_named("prefetch_start_delay").place,
    field_named("base_img_fully_prefetched").place,
    field_named("num_prefetch_slots").place,
    field_named("bytes_per_prefetch").place,
    field_named("prefetch_min_read_throughput").place,
    field_named("prefetch_max_read_throughput").place,
    field_named("prefetch_min_write_throughput").place,
    field_named("prefetch_max_write_throughput").place,
    field_named("prefetch_throttle_time").place,
    field_named("prefetch_read_throughput_measure_time").place,
    field_named("prefetch_write_throughput_measure_time").place,
    field_named("autoclear_features").place,
    field_named("header_generation").place,
    field_named("header_crc32c").place,
};

/* ------------------------------------------------------------------ one field at a time */

ConstBytes bytes_of(const Field& field, ConstBytes block) {
    return block.subspan(field.place.offset, field.place.size);
}

Error range_error(const Field& field, uint64_t value) {
    const Range& range = field.range;
    const int code = value > range.max ? range.over_max : -EINVAL;
    const char* name = field.place.name;
    if (range.max == 0) {
        return Error::make(code, "%s is %" PRIu64 "; must be 0 in version %" PRIu32, name, value,
                           kFormatVersion);
    }
    if (range.multiple == 1) {
        return Error::make(code, "%s is %" PRIu64 "; must be between %" PRIu64 " and %" PRIu64,
                           name, value, range.min, range.max);
    }
    return Error::make(code,
                       "%s is %" PRIu64 " bytes; must be a multiple of %" PRIu64 " between %" PRIu64
                       " and %" PRIu64,
                       name, value, range.multiple, range.min, range.max);
}

bool in_range(const Range& range, uint64_t value) {
    if (value == 0 && range.zero_is_legal) {
        return true;
    }
    return value >= range.min && value <= range.max && value % range.multiple == 0;
}

/** The value itself, or the nearest one where an advice is out of range. */
uint64_t clamped(const Field& field, uint64_t value) {
    return field.advice ? std::min(value, field.range.max) : value;
}

int64_t clamped_delay(int64_t seconds) {
    return std::clamp<int64_t>(seconds, -1, limits::kMaxPrefetchStartDelay);
}

Error decode_number(const Field& field, uint64_t stored, Header& header) {
    const uint64_t value = clamped(field, stored);
    if (!in_range(field.range, value)) {
        return range_error(field, value);
    }
    if (field.kind == Kind::u64) {
        header.*field.u64 = value;
    } else {
        header.*field.u32 = static_cast<uint32_t>(value);
    }
    return Error::none();
}

Error decode_flag(const Field& field, uint32_t stored, Header& header) {
    if (stored > 1) {
        return Error::make(-EINVAL, "%s is %" PRIu32 "; must be 0 or 1", field.place.name, stored);
    }
    header.*field.flag = stored != 0;
    return Error::none();
}

Error decode_text(const Field& field, ConstBytes stored, Header& header) {
    const char* name = field.place.name;
    const auto end = std::find(stored.begin(), stored.end(), std::byte{0});
    if (end == stored.end()) {
        return Error::make(-EINVAL, "%s has no terminating NUL in its %zu bytes", name,
                           stored.size());
    }
    const auto length = static_cast<size_t>(end - stored.begin());
    const std::string_view view(reinterpret_cast<const char*>(stored.data()), length);
    if (const auto bad = first_bad_utf8(view)) {
        return Error::make(-EINVAL,
                           "%s has byte 0x%02x at %zu; must be valid UTF-8 without control "
                           "characters",
                           name, static_cast<unsigned>(stored[*bad]), *bad);
    }
    if (!all_zero(stored.subspan(length))) {
        return Error::make(-EINVAL, "%s has bytes other than zero after its terminating NUL", name);
    }
    std::memcpy(field.text(header), stored.data(), stored.size());
    return Error::none();
}

Error decode_field(const Field& field, ConstBytes block, Header& header) {
    const ConstBytes stored = bytes_of(field, block);
    switch (field.kind) {
        case Kind::u64:
            return decode_number(field, load_le<uint64_t>(stored, 0), header);
        case Kind::u32:
            return decode_number(field, load_le<uint32_t>(stored, 0), header);
        case Kind::flag:
            return decode_flag(field, load_le<uint32_t>(stored, 0), header);
        case Kind::i64:
            header.*field.i64 = clamped_delay(load_le<int64_t>(stored, 0));
            return Error::none();
        case Kind::text:
            return decode_text(field, stored, header);
        case Kind::id:
            std::memcpy(header.image_id.data(), stored.data(), stored.size());
            return Error::none();
        case Kind::zero:
            return all_zero(stored)
                       ? Error::none()
                       : Error::make(-EINVAL, "%s has bytes other than zero", field.place.name);
        case Kind::magic:
        case Kind::version:
        case Kind::crc:
            break; /* judged before everything else */
    }
    return Error::none();
}

void encode_text(const char* text, MutableBytes to) {
    const size_t length = strnlen(text, to.size());
    FVD_ASSERT(length < to.size());
    std::memcpy(to.data(), text, length); /* what follows stays zero */
}

void encode_field(const Field& field, const Header& header, MutableBytes block) {
    const MutableBytes to = block.subspan(field.place.offset, field.place.size);
    switch (field.kind) {
        case Kind::magic:
            return store_le<uint32_t>(to, 0, kHeaderMagic);
        case Kind::version:
            return store_le<uint32_t>(to, 0, kFormatVersion);
        case Kind::u64:
            return store_le<uint64_t>(to, 0, header.*field.u64);
        case Kind::i64:
            return store_le<int64_t>(to, 0, header.*field.i64);
        case Kind::u32:
            return store_le<uint32_t>(to, 0, header.*field.u32);
        case Kind::flag:
            return store_le<uint32_t>(to, 0, header.*field.flag ? 1 : 0);
        case Kind::text:
            return encode_text(field.text(const_cast<Header&>(header)), to);
        case Kind::id:
            std::memcpy(to.data(), header.image_id.data(), to.size());
            return;
        case Kind::zero:
        case Kind::crc: /* computed when all other bytes stand */
            return;
    }
}

/* ------------------------------------------------------------------ before the fields */

bool has_magic(ConstBytes block) {
    return load_le<uint32_t>(block, kMagicOffset) == kHeaderMagic;
}

Error check_magic_and_version(ConstBytes block) {
    const auto magic = load_le<uint32_t>(block, kMagicOffset);
    if (magic == kJanuaryMagic) {
        return Error::make(-ENOTSUP,
                           "this is an FVD image of version 1 (January 2011); only "
                           "version %" PRIu32 " can be opened",
                           kFormatVersion);
    }
    if (magic != kHeaderMagic) {
        return Error::make(-EINVAL,
                           "not an FVD image: magic is 0x%08" PRIx32 "; must be 0x%08" PRIx32
                           " (\"FVD\\0\")",
                           magic, kHeaderMagic);
    }
    const auto version = load_le<uint32_t>(block, kVersionOffset);
    if (version != kFormatVersion) {
        return Error::make(-ENOTSUP,
                           "version is %" PRIu32 "; only version %" PRIu32
                           " can be "
                           "opened (1 and 2 belong to the code of 2011)",
                           version, kFormatVersion);
    }
    return Error::none();
}

Error check_crc(ConstBytes block) {
    const auto stored = load_le<uint32_t>(block, kCrcOffset);
    const uint32_t computed = crc32c(block.first(kCrcOffset));
    if (stored != computed) {
        return Error::make(-EINVAL,
                           "header_crc32c is 0x%08" PRIx32
                           "; the header's bytes give "
                           "0x%08" PRIx32,
                           stored, computed);
    }
    return Error::none();
}

Error check_features(ConstBytes block) {
    const auto stored = load_le<uint64_t>(bytes_of(field_named("incompatible_features"), block), 0);
    const uint64_t unknown = stored & ~kKnownIncompatible;
    if (unknown == 0) {
        return Error::none();
    }
    char list[320] = {}; /* all 64 bits need 244 bytes */
    size_t used = 0;
    for (unsigned bit = 0; bit < 64; ++bit) {
        if ((unknown >> bit & 1) != 0) {
            const int wrote =
                std::snprintf(list + used, sizeof(list) - used, "%s%u", used == 0 ? "" : ", ", bit);
            used += static_cast<size_t>(wrote);
        }
    }
    return Error::make(-ENOTSUP,
                       "incompatible_features has bits set that this program does not "
                       "know: %s",
                       list);
}

/* ------------------------------------------------------------------ after the fields */

Error must_not_be_zero(const Field& field, const char* because) {
    const Range& range = field.range;
    return Error::make(-EINVAL,
                       "%s is 0 bytes; must be a multiple of %" PRIu64 " between %" PRIu64
                       " and %" PRIu64 " in an image with a %s",
                       field.place.name, range.multiple, range.min, range.max, because);
}

/** A region has both an offset and a size, or neither. */
Error check_region(const char* region, uint64_t offset, uint64_t size) {
    if (offset == 0 && size != 0) {
        return Error::make(-EINVAL,
                           "%s_offset is 0; must be at least %" PRIu64
                           " where %s_size is "
                           "%" PRIu64,
                           region, kHeaderRegionSize, region, size);
    }
    if (offset != 0 && size == 0) {
        return Error::make(-EINVAL, "%s_offset is %" PRIu64 "; must be 0 where %s_size is 0",
                           region, offset, region);
    }
    return Error::none();
}

Error check_data_offset(const Header& h) {
    if (h.has_data_file() && h.data_offset != 0) {
        return Error::make(-EINVAL,
                           "data_offset is %" PRIu64
                           "; must be 0 where the data is in a "
                           "file of its own",
                           h.data_offset);
    }
    if (!h.has_data_file() && h.data_offset == 0) {
        return Error::make(-EINVAL,
                           "data_offset is 0 bytes; must be a multiple of %" PRIu64
                           " between %" PRIu64 " and %" PRIu64,
                           limits::kRegionAlignment, kHeaderRegionSize, limits::kMaxOffset);
    }
    return Error::none();
}

Error check_journal_fields(const Header& h) {
    if (h.journal_unit != 512 && h.journal_unit != 4096) {
        return Error::make(-EINVAL, "journal_unit is %" PRIu32 " bytes; must be 512 or 4096",
                           h.journal_unit);
    }
    if (h.journal_size != 0 && h.journal_units() < limits::kMinJournalUnits) {
        return Error::make(-EINVAL,
                           "journal_size is %" PRIu64
                           " bytes; must be a multiple of "
                           "%" PRIu32 " between %" PRIu64 " and %" PRIu64,
                           h.journal_size, h.journal_unit,
                           h.journal_unit * limits::kMinJournalUnits, limits::kMaxJournalSize);
    }
    return Error::none();
}

Error check_sizes_together(const Header& h) {
    if (h.base_size > h.virtual_size) {
        return Error::make(-EINVAL,
                           "base_img_size is %" PRIu64
                           " bytes; must be at most "
                           "virtual_disk_size, %" PRIu64,
                           h.base_size, h.virtual_size);
    }
    if (h.has_bitmap() && h.block_size == 0) {
        return must_not_be_zero(field_named("block_size"), "bitmap");
    }
    if (h.has_table() && h.chunk_size == 0) {
        return must_not_be_zero(field_named("chunk_size"), "table");
    }
    if (h.has_table() && h.has_bitmap() && h.chunk_size % h.block_size != 0) {
        return Error::make(-EINVAL,
                           "chunk_size is %" PRIu64
                           " bytes; must be a multiple of "
                           "block_size, %" PRIu64,
                           h.chunk_size, h.block_size);
    }
    return Error::none();
}

/** Fields that judge each other, without knowledge of the file. */
Error check_together(const Header& h) {
    for (const Error& error :
         {check_sizes_together(h), check_data_offset(h),
          check_region("bitmap", h.bitmap_offset, h.bitmap_size),
          check_region("table", h.table_offset, h.table_size),
          check_region("journal", h.journal_offset, h.journal_size), check_journal_fields(h)}) {
        if (!error.ok()) {
            return error;
        }
    }
    return Error::none();
}

/* ------------------------------------------------------------------ two copies */

bool differs_only_in_marking(ConstBytes a, ConstBytes b) {
    size_t at = 0;
    for (const HeaderField& marking : kMarking) {
        if (std::memcmp(a.data() + at, b.data() + at, marking.offset - at) != 0) {
            return false;
        }
        at = marking.offset + marking.size;
    }
    return std::memcmp(a.data() + at, b.data() + at, kHeaderSize - at) == 0;
}

CopyState judge_invalid(ConstBytes invalid, ConstBytes valid) {
    return differs_only_in_marking(invalid, valid) ? CopyState::torn : CopyState::damaged;
}

/** Both copies are valid; they are the same unless a cut came between them. */
ChosenHeader choose_newer(const Header& primary, const Header& copy, bool same_bytes) {
    if (copy.generation > primary.generation) {
        return {copy, CopyState::stale, CopyState::valid};
    }
    if (copy.generation < primary.generation) {
        return {primary, CopyState::valid, CopyState::stale};
    }
    /* One generation is never written with two contents. */
    return {primary, CopyState::valid, same_bytes ? CopyState::valid : CopyState::damaged};
}

/** What the first bytes of a header can tell; enough for a buffer of 512 bytes. */
bool looks_like_header(ConstBytes start) {
    if (start.size() < 25 || !check_magic_and_version(start).ok()) {
        return false;
    }
    Header header;
    const bool has_data_file = start[24] != std::byte{0};
    const bool data_is_placed =
        decode_field(field_named("virtual_disk_size"), start, header).ok() &&
        decode_field(field_named("data_offset"), start, header).ok() &&
        (header.data_offset == 0) == has_data_file;
    const Field& block_size = field_named("block_size");
    if (!data_is_placed || start.size() < block_size.place.offset + block_size.place.size) {
        return data_is_placed;
    }
    return decode_field(block_size, start, header).ok();
}

}  // namespace

/* ------------------------------------------------------------------ interface */

std::span<const HeaderField> header_fields() {
    return kPlaces;
}

uint64_t Header::block_count() const {
    return has_bitmap() && block_size != 0 ? div_ceil(base_size, block_size) : 0;
}

uint64_t Header::journal_units() const {
    return journal_unit != 0 ? journal_size / journal_unit : 0;
}

uint64_t Header::chunk_count() const {
    return has_table() && chunk_size != 0 ? div_ceil(virtual_size, chunk_size) : 0;
}

ReservedSlots::Range Header::slots_under(const ByteRange& bytes) const {
    if (!has_table() || has_data_file() || chunk_size == 0 || bytes.empty() ||
        bytes.end <= data_offset) {
        return {};
    }
    const uint64_t begin = std::max(bytes.begin, data_offset) - data_offset;
    return {begin / chunk_size, div_ceil(bytes.end - data_offset, chunk_size)};
}

ReservedSlots Header::reserved_slots() const {
    return {{slots_under({bitmap_offset, bitmap_offset + bitmap_size}),
             slots_under({table_offset, table_offset + table_size}),
             slots_under({journal_offset, journal_offset + journal_size})}};
}

Result<Header> decode_header(ConstBytes block) {
    FVD_ASSERT(block.size() == kHeaderSize);
    if (Error error = check_magic_and_version(block); !error.ok()) {
        return error;
    }
    if (Error error = check_crc(block); !error.ok()) {
        return error;
    }
    if (Error error = check_features(block); !error.ok()) {
        return error;
    }
    Result<Header> result{Header{}};
    for (const Field& field : kFields) {
        if (Error error = decode_field(field, block, result.value()); !error.ok()) {
            return error;
        }
    }
    if (Error error = check_together(result.value()); !error.ok()) {
        return error;
    }
    return result;
}

void encode_header(const Header& header, MutableBytes block) {
    FVD_ASSERT(block.size() == kHeaderSize);
    std::memset(block.data(), 0, block.size());
    for (const Field& field : kFields) {
        encode_field(field, header, block);
    }
    store_le<uint32_t>(block, kCrcOffset, crc32c(block.first(kCrcOffset)));
}

const char* clamped_advice(ConstBytes block) {
    FVD_ASSERT(block.size() == kHeaderSize);
    for (const Field& field : kFields) {
        if (!field.advice) {
            continue;
        }
        Header header;
        FVD_ASSERT(decode_field(field, block, header).ok()); /* clamped, never refused */
        const ConstBytes stored = bytes_of(field, block);
        const bool kept =
            field.kind == Kind::u64   ? header.*field.u64 == load_le<uint64_t>(stored, 0)
            : field.kind == Kind::u32 ? header.*field.u32 == load_le<uint32_t>(stored, 0)
                                      : header.*field.i64 == load_le<int64_t>(stored, 0);
        if (!kept) {
            return field.place.name;
        }
    }
    return nullptr;
}

Result<ChosenHeader> choose_header(ConstBytes file_start) {
    if (file_start.size() < kHeaderRegionSize) {
        return Error::make(-EINVAL, "file too short: %zu bytes, an FVD header needs %" PRIu64,
                           file_start.size(), kHeaderRegionSize);
    }
    const ConstBytes primary_block = file_start.subspan(kHeaderPrimaryOffset, kHeaderSize);
    const ConstBytes copy_block = file_start.subspan(kHeaderCopyOffset, kHeaderSize);
    const Result<Header> primary = decode_header(primary_block);
    const Result<Header> copy = decode_header(copy_block);
    if (primary.ok() && copy.ok()) {
        const bool same = std::memcmp(primary_block.data(), copy_block.data(), kHeaderSize) == 0;
        return choose_newer(primary.value(), copy.value(), same);
    }
    if (primary.ok()) {
        return ChosenHeader{primary.value(), CopyState::valid,
                            judge_invalid(copy_block, primary_block)};
    }
    if (copy.ok()) {
        return ChosenHeader{copy.value(), judge_invalid(primary_block, copy_block),
                            CopyState::valid};
    }
    return !has_magic(primary_block) && has_magic(copy_block) ? copy.error() : primary.error();
}

int probe(ConstBytes file_start) {
    if (looks_like_header(file_start)) {
        return 100;
    }
    const bool reaches_copy = file_start.size() >= kHeaderRegionSize;
    return reaches_copy && looks_like_header(file_start.subspan(kHeaderCopyOffset)) ? 100 : 0;
}

}  // namespace fvd
