/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once
/* Images of January 2011, made byte by byte from the published layout, to be spoiled by tests. */

#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "fvd/base/bytes.h"

namespace fvd::test {

inline constexpr uint64_t kOldSector = 512;
inline constexpr uint64_t kOldChunk = 65536;
inline constexpr uint64_t kOldBlock = 4096;
inline constexpr uint64_t kOldDisk = 16 * kOldChunk;
inline constexpr uint64_t kOldBase = 8 * kOldChunk;

/** A journal sector: records one after another, then garbage, as a process of 2011 left it. */
class OldSector {
  public:
    OldSector& bitmap(uint64_t first_sector, uint32_t sectors) {
        put<uint32_t>(0x3F2AB8ED);
        put<uint32_t>(sectors);
        put<uint64_t>(first_sector);
        return *this;
    }
    OldSector& table(uint32_t first_chunk, const std::vector<uint32_t>& entries) {
        put<uint32_t>(0xB4E6F7AC);
        put<uint32_t>(first_chunk);
        put<uint32_t>(static_cast<uint32_t>(entries.size()));
        for (const uint32_t entry : entries) {
            put<uint32_t>(entry);
        }
        return *this;
    }
    template <typename T>
    OldSector& put(T value) {
        bytes_.resize(used_ + sizeof(T));
        store_le<T>(bytes_, used_, value);
        used_ += sizeof(T);
        return *this;
    }
    std::vector<std::byte> bytes() const {
        std::vector<std::byte> all = bytes_;
        if (all.size() + sizeof(uint32_t) <= kOldSector) {
            all.resize(all.size() + sizeof(uint32_t));
        }
        all.resize(kOldSector, std::byte{0xA5});
        return all;
    }

  private:
    std::vector<std::byte> bytes_;
    size_t used_ = 0;
};

class OldImage {
  public:
    /** Region order and rounding as at create: header, bitmap, table, journal, data. */
    OldImage(bool with_base, bool compact) {
        uint64_t end = 8192;
        bytes_.resize(end);
        set("magic", 0x5143F5A9);
        set("version", 1);
        set("all_data_in_fvd_img", !with_base);
        set("virtual_disk_size", kOldDisk);
        set("clean_shutdown", 1);
        if (with_base) {
            set_text("base_img", "base.raw");
            set("base_img_size", kOldBase);
            set("block_size", kOldBlock);
            set("bitmap_offset", end);
            set("bitmap_size", 4096);
            end += 4096;
        }
        if (compact) {
            set("compact_image", 1);
            set("chunk_size", kOldChunk);
            set("table_offset", end);
            end += 4096;
        }
        if (with_base || compact) {
            set("journal_offset", end);
            set("journal_size", 4096);
            end += 4096;
        }
        bytes_.resize(end);
        set("metadata_size", end);
        if (compact) {
            std::memset(bytes_.data() + get("table_offset"), 0xFF, 4096);
        }
    }

    void set(std::string_view name, uint64_t value) {
        const Field field = place(name);
        if (field.size == 4) {
            store_le<uint32_t>(bytes_, field.offset, static_cast<uint32_t>(value));
        } else {
            store_le<uint64_t>(bytes_, field.offset, value);
        }
    }
    uint64_t get(std::string_view name) const {
        const Field field = place(name);
        return field.size == 4 ? load_le<uint32_t>(bytes_, field.offset)
                               : load_le<uint64_t>(bytes_, field.offset);
    }
    void set_text(std::string_view name, std::string_view text) {
        const Field field = place(name);
        std::memset(bytes_.data() + field.offset, 0, field.size);
        std::memcpy(bytes_.data() + field.offset, text.data(), text.size());
    }
    void set_bit(uint64_t block) {
        bytes_[get("bitmap_offset") + block / 8] |= std::byte{1} << (block % 8);
    }
    void set_entry(uint64_t chunk, uint32_t entry) {
        store_le<uint32_t>(bytes_, get("table_offset") + 4 * chunk, entry);
    }
    void set_journal(uint64_t number, const OldSector& sector) {
        const std::vector<std::byte> content = sector.bytes();
        std::memcpy(bytes_.data() + get("journal_offset") + number * kOldSector, content.data(),
                    kOldSector);
    }
    /** Storage for guest data: byte i of it is @p pattern + i / 512. */
    void grow(uint64_t size, uint8_t pattern) {
        const size_t begin = bytes_.size();
        bytes_.resize(begin + size);
        for (uint64_t i = 0; i < size; i++) {
            bytes_[begin + i] = static_cast<std::byte>(pattern + i / kOldSector);
        }
    }
    std::vector<std::byte>& bytes() { return bytes_; }
    ConstBytes header() const { return bytes_; }

  private:
    struct Field {
        size_t offset;
        size_t size;
    };
    /* Counted by hand from the list of fields; the decoder has its own table. */
    static Field place(std::string_view name) {
        static const std::map<std::string_view, Field> kFields = {
            {"magic", {0, 4}},
            {"version", {4, 4}},
            {"all_data_in_fvd_img", {8, 4}},
            {"virtual_disk_size", {12, 8}},
            {"metadata_size", {20, 8}},
            {"base_img", {28, 1024}},
            {"base_img_fmt", {1052, 16}},
            {"base_img_size", {1068, 8}},
            {"bitmap_offset", {1076, 8}},
            {"bitmap_size", {1084, 8}},
            {"block_size", {1092, 4}},
            {"data_file", {1108, 1024}},
            {"data_file_fmt", {2132, 16}},
            {"compact_image", {2208, 4}},
            {"table_offset", {2212, 8}},
            {"chunk_size", {2220, 8}},
            {"add_storage_cmd", {2236, 2048}},
            {"journal_offset", {4284, 8}},
            {"journal_size", {4292, 8}},
            {"clean_shutdown", {4300, 4}},
            {"need_zero_init", {4304, 4}},
        };
        return kFields.at(name);
    }
    std::vector<std::byte> bytes_;
};

}  // namespace fvd::test
