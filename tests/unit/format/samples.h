/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once
/* Headers and blocks that tests start from and then spoil. */

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "fvd/base/crc32c.h"
#include "fvd/format/header.h"
#include "fvd/format/layout.h"

namespace fvd::test {

inline void set_text(char* field, std::string_view text) {
    std::copy(text.begin(), text.end(), field);
}

inline ImageId sample_id() {
    ImageId id;
    for (size_t i = 0; i < id.size(); ++i) {
        id[i] = static_cast<std::byte>(0xA0 + i);
    }
    return id;
}

/** A disk of 1 GiB over a base of the same size; all defaults but for a journal of 1 MiB. */
inline Header sample_header() {
    LayoutRequest request;
    request.virtual_size = uint64_t{1} << 30;
    request.has_base = true;
    request.journal_size = uint64_t{1} << 20;
    Header header = plan_layout(request).value();
    set_text(header.base_img, "base.raw");
    set_text(header.base_img_fmt, "raw");
    header.image_id = sample_id();
    header.generation = 1;
    header.journal_epoch = 1;
    return header;
}

/** Bytes of a header block that can be spoiled field by field. */
class Block {
  public:
    Block() = default;
    explicit Block(const Header& header) { encode_header(header, bytes_); }

    static HeaderField field(std::string_view name) {
        for (const HeaderField& candidate : header_fields()) {
            if (name == candidate.name) {
                return candidate;
            }
        }
        ADD_FAILURE() << "no field " << name;
        return {};
    }

    /** Little endian, in as many bytes as the field has. */
    void set(std::string_view name, uint64_t value) {
        const HeaderField place = field(name);
        for (size_t i = 0; i < place.size; ++i) {
            bytes_[place.offset + i] =
                i < 8 ? static_cast<std::byte>(value >> (8 * i)) : std::byte{0};
        }
        seal();
    }
    void set_bytes(std::string_view name, std::string_view value) {
        const HeaderField place = field(name);
        ASSERT_LE(value.size(), place.size);
        std::memset(bytes_.data() + place.offset, 0, place.size);
        std::memcpy(bytes_.data() + place.offset, value.data(), value.size());
        seal();
    }
    uint64_t get(std::string_view name) const {
        const HeaderField place = field(name);
        return place.size == 4 ? load_le<uint32_t>(bytes_, place.offset)
                               : load_le<uint64_t>(bytes_, place.offset);
    }
    /** Give the block the checksum that its bytes ask for. */
    void seal() { store_le<uint32_t>(bytes_, 4092, crc32c(ConstBytes(bytes_).first(4092))); }

    std::byte& operator[](size_t at) { return bytes_[at]; }
    ConstBytes bytes() const { return bytes_; }
    friend bool operator==(const Block& a, const Block& b) { return a.bytes_ == b.bytes_; }

  private:
    std::vector<std::byte> bytes_ = std::vector<std::byte>(kHeaderSize);
};

/** The first bytes of a file with these two blocks in the places of the copies. */
inline std::vector<std::byte> file_of(const Block& primary, const Block& copy) {
    std::vector<std::byte> file(primary.bytes().begin(), primary.bytes().end());
    file.insert(file.end(), copy.bytes().begin(), copy.bytes().end());
    return file;
}

/** Names a parameterised test after its case. */
struct CaseName {
    template <typename Case>
    std::string operator()(const ::testing::TestParamInfo<Case>& of) const {
        return of.param.name;
    }
};

inline std::string text_of(const Error& error) {
    return error.text;
}

}  // namespace fvd::test
