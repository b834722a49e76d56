/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once
/*
 * The header: one 4 KiB block, stored twice. Bytes 0..3315 keep the field offsets of the FVD
 * specification published in 2011; the rest lies in what was its reserved area. docs/format.md has
 * the same table; a unit test holds the two together.
 */

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>

#include "fvd/base/bytes.h"
#include "fvd/base/result.h"
#include "fvd/base/units.h"

namespace fvd {

inline constexpr size_t kHeaderSize = 4096;
inline constexpr uint64_t kHeaderPrimaryOffset = 0;
inline constexpr uint64_t kHeaderCopyOffset = 4096;
inline constexpr uint64_t kHeaderRegionSize = 8192;
inline constexpr uint32_t kHeaderMagic = 0x00445646; /* bytes 46 56 44 00: "FVD\0" */
inline constexpr uint32_t kFormatVersion = 3;

inline constexpr size_t kNameSize = 1024; /* with the terminating NUL */
inline constexpr size_t kFormatNameSize = 16;

using ImageId = std::array<std::byte, 16>;

/** Feature bits this program understands. No bit is defined yet in any of the three words. */
inline constexpr uint64_t kKnownIncompatible = 0;
inline constexpr uint64_t kKnownAutoclear = 0;

/** One field of the header on disk; the only place where its offset is written. */
struct HeaderField {
    const char* name;
    size_t offset;
    size_t size;
};

/** All fields in order of offset, reserved areas included: they cover 0..4095 without gaps. */
std::span<const HeaderField> header_fields();

/** Slots on which a region stands, because it outgrew its place in front of the data: no chunk can
 * have them. */
struct ReservedSlots {
    struct Range {
        uint64_t begin = 0;
        uint64_t end = 0;
        bool empty() const { return end <= begin; }
    };
    std::array<Range, 3>
        ranges; /* of bitmap, table and journal; empty where one stands elsewhere */

    bool has(uint64_t slot) const {
        bool found = false;
        for (const Range& range : ranges) {
            found |= slot >= range.begin && slot < range.end;
        }
        return found;
    }
    /** At least as many as there are. */
    uint64_t count() const {
        uint64_t sum = 0;
        for (const Range& range : ranges) {
            sum += range.end - range.begin;
        }
        return sum;
    }
};

/** Decoded header; all sizes in bytes. Strings are NUL-terminated. */
struct Header {
    uint64_t virtual_size = 0;
    uint64_t data_offset =
        0; /* of guest byte 0, in the data file if there is one, else in this file */
    char data_file[kNameSize] = {};
    char data_file_fmt[kFormatNameSize] = {};
    char base_img[kNameSize] = {};
    char base_img_fmt[kFormatNameSize] = {};
    uint64_t base_size = 0; /* bytes of the virtual disk that the bitmap covers */
    uint64_t bitmap_offset = 0;
    uint64_t bitmap_size = 0; /* 0: no bitmap, everything is in this image */
    uint64_t block_size = 0;
    uint64_t table_offset = 0;
    uint64_t table_size = 0; /* 0: linear image */
    uint64_t chunk_size = 0;
    uint64_t storage_grow_unit = 0;
    char add_storage_cmd[kNameSize] = {}; /* shown, kept, never executed, never written by us */
    uint64_t journal_offset = 0;
    uint64_t journal_size = 0;
    uint64_t journal_epoch = 0; /* stable_journal_epoch: records of any other epoch are void */
    bool clean_shutdown = true;
    bool copy_on_read = false;
    uint64_t max_outstanding_copy_on_read_data = 0;
    int64_t prefetch_start_delay = -1;
    bool base_fully_prefetched = false;
    uint32_t num_prefetch_slots = 0;
    uint64_t bytes_per_prefetch = 0;
    uint64_t prefetch_min_read_throughput = 0; /* KiB/s, as are the next three */
    uint64_t prefetch_max_read_throughput = 0;
    uint64_t prefetch_min_write_throughput = 0;
    uint64_t prefetch_max_write_throughput = 0;
    uint64_t prefetch_throttle_time = 0; /* ms, as are the next two */
    uint64_t prefetch_read_throughput_measure_time = 0;
    uint64_t prefetch_write_throughput_measure_time = 0;
    bool need_zero_init = false;
    uint64_t incompatible_features = 0;
    uint64_t compatible_features = 0;
    uint64_t autoclear_features = 0;
    ImageId image_id{};
    uint64_t generation = 0;
    uint32_t journal_unit = 4096; /* 512 or 4096 */
    uint64_t boot_profile_offset = 0;
    uint64_t boot_profile_size = 0;

    bool has_base() const { return base_img[0] != '\0'; }
    bool has_bitmap() const { return bitmap_size != 0; }
    bool has_table() const { return table_size != 0; }
    bool has_data_file() const { return data_file[0] != '\0'; }
    uint64_t block_count() const;   /* blocks the bitmap must hold; 0 without bitmap */
    uint64_t journal_units() const; /* units of the ring; 0 without journal */
    uint64_t chunk_count() const;   /* chunks the table must hold; 0 without table */
    /** Slots are numbered below this: as many as the table has room for chunks, so that each can
     *  be stored once, and a disk that was made smaller keeps the slots of its chunks; and those
     *  that no chunk can have. */
    uint64_t slot_count() const { return table_size / 4 + reserved_slots().count(); }
    /** Slots that bytes of this file lie in; none in front of the data. */
    ReservedSlots::Range slots_under(const ByteRange& bytes) const;
    /** Slots on which regions stand. */
    ReservedSlots reserved_slots() const;
};

/**
 * Decode and judge one header block of exactly kHeaderSize bytes: magic, version, checksum, feature
 * words, strings and every field on its own (field by field errors; see check_layout() for how
 * regions fit together). EINVAL malformed, ENOTSUP other version or unknown incompatible feature,
 * EFBIG over a limit.
 */
Result<Header> decode_header(ConstBytes block);

/** Inverse of decode_header(); every byte of the block is written. */
void encode_header(const Header& header, MutableBytes block);

/**
 * Name of the first field of a header block whose advice is out of range, so that decode_header()
 * clamps it; nullptr when all of it is taken as it is. Worth a warning, never an error.
 */
const char* clamped_advice(ConstBytes block);

/** What stands in the place of one of the two copies. */
enum class CopyState {
    valid,
    stale,   /* valid, but an older generation than the other */
    torn,    /* differs from the other only as a cut during an update of the header can explain */
    damaged, /* anything else */
};

struct ChosenHeader {
    Header header;
    CopyState primary = CopyState::valid;
    CopyState copy = CopyState::valid;
};

/**
 * Choose between the two copies in the first kHeaderRegionSize bytes of a file (fewer bytes: an
 * error that names the length): the valid one with the highest generation. Where none is valid the
 * primary's error is returned, or the copy's if only the copy has the magic.
 */
Result<ChosenHeader> choose_header(ConstBytes file_start);

/**
 * Probe score: 100 when magic, version and three sizes agree, else 0. Looks at the primary, and
 * where that is damaged, at the copy. @p file_start may have any length.
 */
int probe(ConstBytes file_start);

}  // namespace fvd
