/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once
/* Where the regions of an image lie: planned at create, proven at open. */

#include <algorithm>
#include <optional>

#include "fvd/format/header.h"

namespace fvd {

/** What a user asked for; all sizes in bytes, 0 = default. */
struct LayoutRequest {
    uint64_t virtual_size = 0;
    uint64_t base_size = 0; /* 0 with has_base: the whole virtual disk */
    bool has_base = false;  /* without one, block_size asks for a bitmap over the whole disk */
    bool separate_data_file = false;
    bool compact = false; /* with a table */
    uint64_t block_size = 0;
    uint64_t chunk_size = 0;        /* this and the next want compact */
    uint64_t storage_grow_unit = 0; /* a multiple of the chunk size */
    uint64_t journal_size = 0;
    uint32_t journal_unit = 0;
};

/** Default block size: the smallest power of two >= 4 KiB that keeps the bitmap <= 4 MiB. */
uint64_t default_block_size(uint64_t base_size);

/**
 * Default chunk size: 1 MiB, or as much more as it takes to be a multiple of @p block_size (0: no
 * bitmap) and to keep the table of a disk within its limit.
 */
uint64_t default_chunk_size(uint64_t virtual_size, uint64_t block_size);

/** Default journal size for a bitmap and table of @p home_size bytes together. */
uint64_t default_journal_size(uint64_t home_size, uint32_t journal_unit);

/**
 * Fill in all region fields of a header (names, ids and tunables are left at their defaults). Order
 * in the file: header, bitmap, table, journal, data. EINVAL names the option, its value and legal
 * range.
 */
Result<Header> plan_layout(const LayoutRequest& request);

/** The regions of an image; empty ranges where a region does not exist. */
struct Regions {
    ByteRange header;
    ByteRange bitmap;
    ByteRange table;
    ByteRange journal;
    ByteRange data; /* in the data file if there is one */
    /** Behind the last of all but the data. */
    uint64_t metadata_end() const {
        return std::max({header.end, bitmap.end, table.end, journal.end});
    }
};

Regions regions_of(const Header& header);

/**
 * Bytes of storage, counted from data_offset, that a compact image has when @p slots are wanted:
 * whole steps of storage_grow_unit, but never more than all slots need.
 */
uint64_t storage_size(const Header& header, uint64_t slots);

/** Bytes of the table that a compact image gets when its disk grows to @p virtual_size and its
 * table has no room for that. EFBIG when no table has. */
Result<uint64_t> larger_table_size(const Header& header, uint64_t virtual_size);

/** A region of @p size bytes finds its place in so many slots that follow each other. */
uint64_t slots_for_region(const Header& header, uint64_t size);

/** The lowest offset in front of the data (with a data file: anywhere) at which a region of @p size
 * bytes touches no other. */
std::optional<uint64_t> find_gap(const Header& header, uint64_t size);

/**
 * Prove that the regions of a decoded header fit together: inside @p file_length, aligned,
 * disjoint, bitmap large enough for its blocks, journal a whole number of units. @p file_length is
 * the length of the FVD file. The data region may reach past the end of the file (sparse images are
 * short until written), and in a compact image regions may stand among its slots. The error names
 * both regions of a collision.
 */
Error check_layout(const Header& header, uint64_t file_length);

}  // namespace fvd
