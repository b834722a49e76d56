/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once
/*
 * Images that the first FVD driver wrote in January 2011 (its version 1): header, bitmap, chunk
 * table and journal sectors, for reading only. Pure, and a world of its own: nothing here is shared
 * with the format of today but the idea. docs/heritage.md describes the layout.
 *
 * A reader needs neither order nor checksums, of which there are none: bits are only ever set, and
 * an entry of the table, once written, never changes. So the state after a crash is the bitmap and
 * the table with every journal record laid over them.
 */

#include <cstddef>
#include <cstdint>
#include <span>

#include "fvd/base/bytes.h"
#include "fvd/base/result.h"
#include "fvd/format/block_bitmap.h"

namespace fvd::heritage {

inline constexpr uint32_t kMagic = 0x5143F5A9; /* bytes A9 F5 43 51 */
inline constexpr uint32_t kVersion = 1;
inline constexpr size_t kHeaderSize = 4336;
inline constexpr uint64_t kHeaderRegionSize = 8192;
inline constexpr size_t kSectorSize = 512; /* of the journal, and of all counts in it */

inline constexpr size_t kNameSize = 1024; /* with the terminating NUL, as are the next two */
inline constexpr size_t kFormatNameSize = 16;
inline constexpr size_t kStorageCmdSize = 2048;

inline constexpr uint32_t kNotStored = 0xFFFFFFFF; /* entry of a chunk that was never written */
inline constexpr uint32_t kUnsaved = 0x80000000;   /* mark of entries in journal records */

/** What a reader needs of the header; sizes and offsets in bytes, texts NUL-terminated. */
struct Header {
    bool base_not_needed = false; /* all_data_in_fvd_img: made without a base, or all was fetched */
    uint64_t virtual_size = 0;
    uint64_t metadata_size = 0;
    char base_img[kNameSize] = {};
    char base_img_fmt[kFormatNameSize] = {};
    uint64_t base_size = 0;
    uint64_t bitmap_offset = 0;
    uint64_t bitmap_size = 0;
    uint64_t block_size = 0;
    char data_file[kNameSize] = {};
    char data_file_fmt[kFormatNameSize] = {};
    bool compact = false;
    uint64_t table_offset = 0;
    uint64_t chunk_size = 0;
    char add_storage_cmd[kStorageCmdSize] = {}; /* shown, never executed */
    uint64_t journal_offset = 0;
    uint64_t journal_size = 0;
    bool clean_shutdown = false;
    bool need_zero_init = false;

    bool has_data_file() const { return data_file[0] != '\0'; }
    /** Of guest byte 0 or slot 0, in the file that holds the data. */
    uint64_t data_offset() const { return has_data_file() ? 0 : metadata_size; }
    /** Bytes of the disk of which the bitmap says whether they are here. */
    uint64_t tracked_size() const;
    uint64_t block_count() const; /* bits that a reader needs */
    uint64_t chunk_count() const; /* entries that a reader needs; 0 where not compact */
    bool has_metadata() const { return tracked_size() != 0 || compact; }
};

/** True for the first bytes of a file (any number of them) that carry the magic of 2011. */
bool has_magic(ConstBytes file_start);

/** Probe score: 100 when magic, version and disk size fit together, else 0. */
int probe(ConstBytes file_start);

/**
 * Decode and judge the header at the start of a file. EINVAL malformed, ENOTSUP other version,
 * EFBIG over a limit; the sentence names field, value and legal range. What only steered copying
 * and prefetching is not looked at.
 */
Result<Header> decode_header(ConstBytes file_start);

/** Regions are inside the file of @p file_length bytes, apart from each other and large enough. */
Error check_layout(const Header& header, uint64_t file_length);

enum class Place : uint8_t { base, data, zero };

/** Where the next @p run bytes of the disk are. */
struct Placement {
    Place place = Place::zero;
    uint64_t run = 0;
    uint64_t data_offset = 0; /* in the file that holds the data; only for Place::data */
};

/** What the sectors of the journal said. */
struct JournalFacts {
    uint64_t sectors = 0; /* with at least one record */
    uint64_t unsaved = 0; /* of them: sectors that name what bitmap or table did not have */
    uint64_t outside = 0; /* records and entries beyond the end of the disk: of no meaning */
};

/** What is wrong with the table; the numbers of chunks are those of the first of their kind. */
struct TableFacts {
    uint64_t outside = 0; /* chunks in a slot that the storage does not have */
    uint64_t first_outside = 0;
    uint64_t doubles = 0; /* chunks in a slot that an earlier chunk uses */
    uint64_t first_double = 0;
    uint64_t unused_slots = 0; /* below the highest one in use */
};

/** Bitmap and table in memory, and the answer where a piece of the disk is. */
class View {
  public:
    View() = default;
    /** Memory of the caller, of BlockBitmap::bits_to_words(block_count()) words and chunk_count()
     * entries; the header outlives the view. */
    View(const Header& header, std::span<uint64_t> words, std::span<uint32_t> entries);

    /** Pieces of the regions at home; offsets are multiples of 8 within the region. */
    void load_bitmap(uint64_t offset, ConstBytes piece);
    void load_table(uint64_t offset, ConstBytes piece);

    /** Lay the records of journal sector @p number over bitmap and table. */
    Error replay(uint64_t number, ConstBytes sector, JournalFacts* facts);
    /** The same without changing anything. */
    Error look_at(uint64_t number, ConstBytes sector, JournalFacts* facts) const;

    /**
     * The file that holds the data ends at @p data_length: an error where that cuts off anything
     * that is stored. To be called once all is replayed; where() relies on it.
     */
    Error set_storage(uint64_t data_length);

    /** [offset, offset + length) is not empty and inside the disk. */
    Placement where(uint64_t offset, uint64_t length) const;

    uint64_t blocks_here() const { return bitmap_.count(); }
    /** Chunks with blocks that the bitmap has and the table has not: they read as the base. */
    uint64_t chunks_without_slot() const;
    /** One more than the highest slot that the table names; 0 without any. */
    uint64_t slot_count() const;
    /** Judge the table. @p used: a clear bit for each slot that the storage has or, where these
     * are fewer, that slot_count() counts. */
    TableFacts judge_table(BlockBitmap used) const;

  private:
    BlockRange blocks_of(uint64_t first_sector, uint64_t sectors) const;
    Placement stored(uint64_t offset, uint64_t end, Place missing) const;

    const Header* header_ = nullptr;
    BlockBitmap bitmap_;
    std::span<uint32_t> entries_;
    bool no_data_ = false; /* the first write would have made the data area */
};

}  // namespace fvd::heritage
