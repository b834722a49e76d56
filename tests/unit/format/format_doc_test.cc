/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * docs/format.md and the code say the same: the field tables, the limits, the sentences of errors
 * and the worked dumps are read from the document and compared. Where a dump differs, the failure
 * prints the one that belongs there.
 */
#include <gtest/gtest.h>

#include <cctype>
#include <charconv>
#include <cstdlib>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "fvd/format/chunk_table.h"
#include "fvd/format/journal_unit.h"
#include "fvd/format/limits.h"
#include "samples.h"

namespace fvd {
namespace {

using test::Block;

struct Row {
    std::vector<std::string> cells;
};

std::string trim(std::string text) {
    const auto space = [](unsigned char c) { return std::isspace(c) != 0; };
    text.erase(text.begin(), std::find_if_not(text.begin(), text.end(), space));
    text.erase(std::find_if_not(text.rbegin(), text.rend(), space).base(), text.end());
    if (text.size() >= 2 && text.front() == '`' && text.back() == '`') {
        text = text.substr(1, text.size() - 2);
    }
    return text;
}

Row parse_row(const std::string& line) {
    Row row;
    size_t begin = 1;
    for (size_t end = line.find('|', begin); end != std::string::npos;
         end = line.find('|', begin)) {
        row.cells.push_back(trim(line.substr(begin, end - begin)));
        begin = end + 1;
    }
    return row;
}

uint64_t number(const std::string& text) {
    uint64_t value = 0;
    const bool hex = text.starts_with("0x");
    const char* first = text.data() + (hex ? 2 : 0);
    const auto [end, error] =
        std::from_chars(first, text.data() + text.size(), value, hex ? 16 : 10);
    EXPECT_TRUE(error == std::errc() && end == text.data() + text.size())
        << "not a number: " << text;
    return value;
}

/** The document, cut at marks `<!-- test: NAME -->` that stand before tables and dumps. */
class Document {
  public:
    Document() {
        const char* path = std::getenv("FVD_FORMAT_DOC");
        EXPECT_NE(path, nullptr) << "FVD_FORMAT_DOC names docs/format.md";
        std::ifstream file(path == nullptr ? "" : path);
        std::string line;
        std::string mark;
        while (std::getline(file, line)) {
            if (line.starts_with("<!-- test: ")) {
                mark = line.substr(11, line.find(" -->") - 11);
            } else if (line.starts_with("#")) {
                mark.clear();
            } else if (!mark.empty()) {
                sections_[mark].push_back(line);
            }
        }
    }

    /** Rows of the table after a mark, without its two lines of heading. */
    std::vector<Row> table(const std::string& mark) {
        std::vector<Row> rows;
        for (const std::string& line : sections_[mark]) {
            if (line.starts_with("|")) {
                rows.push_back(parse_row(line));
            } else if (!rows.empty()) {
                break;
            }
        }
        EXPECT_GT(rows.size(), 2u) << mark;
        rows.erase(rows.begin(), rows.begin() + std::min<std::ptrdiff_t>(2, std::ssize(rows)));
        return rows;
    }

    /** The block of code after a mark. */
    std::string code(const std::string& mark) {
        std::string text;
        bool inside = false;
        for (const std::string& line : sections_[mark]) {
            if (line.starts_with("```")) {
                if (inside) {
                    return text;
                }
                inside = true;
            } else if (inside) {
                text += line + "\n";
            }
        }
        ADD_FAILURE() << "no code after " << mark;
        return text;
    }

  private:
    std::map<std::string, std::vector<std::string>> sections_;
};

/** As `hexdump -C` prints it: lines like the one before are one asterisk. */
std::string hexdump(ConstBytes bytes) {
    std::string text;
    std::string before;
    char buffer[32];
    const auto offset_text = [&](size_t at) {
        std::snprintf(buffer, sizeof(buffer), "%08zx", at);
        return std::string(buffer);
    };
    bool repeated = false;
    for (size_t at = 0; at < bytes.size(); at += 16) {
        std::string line;
        std::string plain;
        for (size_t i = 0; i < 16; ++i) {
            const auto byte = static_cast<unsigned>(bytes[at + i]);
            std::snprintf(buffer, sizeof(buffer), i == 7 ? "%02x  " : "%02x ", byte);
            line += buffer;
            plain += byte >= 0x20 && byte < 0x7F ? static_cast<char>(byte) : '.';
        }
        if (line == before) {
            text += repeated ? "" : "*\n";
            repeated = true;
            continue;
        }
        repeated = false;
        before = line;
        text += offset_text(at) + "  " + line + " |" + plain + "|\n";
    }
    return text + offset_text(bytes.size()) + "\n";
}

std::vector<std::byte> sample_unit() {
    std::vector<std::byte> bytes(512);
    UnitWriter writer(bytes);
    EXPECT_TRUE(writer.add_bitmap({BlockIndex(3), BlockIndex(10)}));
    EXPECT_TRUE(writer.add_table(ChunkIndex(1000), std::array<uint32_t, 3>{5, 0xFFFFFFFF, 7}));
    EXPECT_TRUE(writer.add_bitmap({BlockIndex(1048576), BlockIndex(1048577)}));
    writer.finish(
        {.epoch = 7, .sequence = 42, .tail_sequence = 40, .group_index = 1, .group_size = 3},
        test::sample_id());
    return bytes;
}

/** Text between quotes; \\xNN is a byte. */
std::string unquote(const std::string& quoted) {
    std::string text;
    for (size_t at = 1; at + 1 < quoted.size(); ++at) {
        if (quoted.compare(at, 2, "\\x") == 0) {
            text += static_cast<char>(number("0x" + quoted.substr(at + 2, 2)));
            at += 3;
        } else {
            text += quoted[at];
        }
    }
    return text;
}

/** What a cell says of the bytes at a place: a number, a "text", or - for zeros. */
void expect_example(ConstBytes bytes, const std::string& example) {
    if (example.starts_with("\"")) {
        EXPECT_EQ(reinterpret_cast<const char*>(bytes.data()), unquote(example));
    } else if (example == "-") {
        for (const std::byte byte : bytes) {
            EXPECT_EQ(byte, std::byte{0});
        }
    } else if (bytes.size() == 4) {
        EXPECT_EQ(load_le<uint32_t>(bytes, 0), number(example));
    } else if (bytes.size() == 8 && example == "-1") {
        EXPECT_EQ(load_le<int64_t>(bytes, 0), -1);
    } else if (bytes.size() == 8) {
        EXPECT_EQ(load_le<uint64_t>(bytes, 0), number(example));
    } else {
        std::string hex;
        char buffer[4];
        for (const std::byte byte : bytes) {
            std::snprintf(buffer, sizeof(buffer), "%02x", static_cast<unsigned>(byte));
            hex += buffer;
        }
        EXPECT_EQ(hex, example);
    }
}

TEST(FormatDoc, FieldTableOfTheHeader) {
    const auto rows = Document().table("header-fields");
    const Block sample(test::sample_header());
    ASSERT_EQ(rows.size(), header_fields().size());
    for (size_t i = 0; i < rows.size(); ++i) {
        const HeaderField& field = header_fields()[i];
        SCOPED_TRACE(field.name);
        ASSERT_EQ(rows[i].cells.size(), 6u);
        EXPECT_EQ(number(rows[i].cells[0]), field.offset);
        EXPECT_EQ(number(rows[i].cells[1]), field.size);
        EXPECT_EQ(rows[i].cells[2], field.name);
        expect_example(sample.bytes().subspan(field.offset, field.size), rows[i].cells[3]);
    }
}

TEST(FormatDoc, FieldTableOfTheUnit) {
    const auto unit = sample_unit();
    size_t end = 0;
    for (const Row& row : Document().table("unit-fields")) {
        ASSERT_EQ(row.cells.size(), 5u);
        SCOPED_TRACE(row.cells[2]);
        EXPECT_EQ(number(row.cells[0]), end) << "fields stand one after the other";
        const uint64_t size = number(row.cells[1]);
        expect_example(ConstBytes(unit).subspan(end, size), row.cells[3]);
        end += size;
    }
    EXPECT_EQ(end, kUnitHeaderSize);
}

TEST(FormatDoc, RecordsOfTheUnit) {
    const auto unit = sample_unit();
    size_t end = kUnitHeaderSize;
    for (const Row& row : Document().table("unit-records")) {
        ASSERT_EQ(row.cells.size(), 5u);
        SCOPED_TRACE(row.cells[2]);
        EXPECT_EQ(number(row.cells[0]), end);
        const uint64_t size = number(row.cells[1]);
        expect_example(ConstBytes(unit).subspan(end, size), row.cells[3]);
        end += size;
    }
    EXPECT_EQ(end, kUnitHeaderSize + 64u);
}

TEST(FormatDoc, DumpOfTheHeader) {
    EXPECT_EQ(Document().code("header-dump"), hexdump(Block(test::sample_header()).bytes()));
}

TEST(FormatDoc, DumpOfTheUnit) {
    EXPECT_EQ(Document().code("unit-dump"), hexdump(sample_unit()));
}

TEST(FormatDoc, Limits) {
    using namespace limits;
    const std::map<std::string, uint64_t> limits = {
        {"kMaxVirtualSize", kMaxVirtualSize},
        {"kMaxOffset", kMaxOffset},
        {"kSectorSize", kSectorSize},
        {"kRegionAlignment", kRegionAlignment},
        {"kDataAlignment", kDataAlignment},
        {"kDefaultBitmapTarget", kDefaultBitmapTarget},
        {"kDefaultMinBlockSize", kDefaultMinBlockSize},
        {"kMinBlockSize", kMinBlockSize},
        {"kMaxBlockSize", kMaxBlockSize},
        {"kMaxBitmapSize", kMaxBitmapSize},
        {"kDefaultChunkSize", kDefaultChunkSize},
        {"kMinChunkSize", kMinChunkSize},
        {"kMaxChunkSize", kMaxChunkSize},
        {"kMaxTableSize", kMaxTableSize},
        {"kMinJournalUnits", kMinJournalUnits},
        {"kMinDefaultJournalSize", kMinDefaultJournalSize},
        {"kMaxDefaultJournalSize", kMaxDefaultJournalSize},
        {"kMaxJournalSize", kMaxJournalSize},
        {"kMaxCounter", kMaxCounter},
        {"kDefaultStorageGrowUnit", kDefaultStorageGrowUnit},
        {"kMaxStorageGrowUnit", kMaxStorageGrowUnit},
        {"kMaxOutstandingCopyOnRead", kMaxOutstandingCopyOnRead},
        {"kMaxPrefetchStartDelay", static_cast<uint64_t>(kMaxPrefetchStartDelay)},
        {"kMaxPrefetchSlots", kMaxPrefetchSlots},
        {"kMaxBytesPerPrefetch", kMaxBytesPerPrefetch},
        {"kMaxPrefetchThroughput", kMaxPrefetchThroughput},
        {"kMaxPrefetchTime", kMaxPrefetchTime},
    };
    std::map<std::string, uint64_t> documented;
    for (const Row& row : Document().table("limits")) {
        ASSERT_EQ(row.cells.size(), 3u);
        EXPECT_NE(row.cells[2], "") << "every limit has a reason";
        documented[row.cells[0]] = number(row.cells[1]);
    }
    EXPECT_EQ(documented, limits);
}

TEST(FormatDoc, FieldsOfACompactImage) {
    LayoutRequest request;
    request.virtual_size = limits::kGiB;
    request.compact = true;
    request.journal_size = limits::kMiB;
    const Block header(plan_layout(request).value());
    const auto rows = Document().table("compact-fields");
    EXPECT_EQ(rows.size(), 7u);
    for (const Row& row : rows) {
        ASSERT_EQ(row.cells.size(), 3u);
        EXPECT_EQ(number(row.cells[0]), Block::field(row.cells[1]).offset);
        EXPECT_EQ(number(row.cells[2]), header.get(row.cells[1])) << row.cells[1];
    }
}

TEST(FormatDoc, DumpOfATable) {
    std::vector<uint32_t> entries(1024);
    ChunkTable table(entries);
    table.clear_all();
    table.set(ChunkIndex(3), SlotIndex(0));
    table.set(ChunkIndex(1), SlotIndex(2));
    std::vector<std::byte> region(4096);
    table.store(0, region);
    EXPECT_EQ(Document().code("table-dump"), hexdump(region));
}

/** Each row spoils the header of the dump; what decoding or placing it says is the sentence. */
TEST(FormatDoc, SentencesOfErrors) {
    constexpr uint64_t kFileLength = 2 * 1024 * 1024;
    size_t count = 0;
    for (const Row& row : Document().table("errors")) {
        ASSERT_EQ(row.cells.size(), 3u);
        SCOPED_TRACE(row.cells[0]);
        const size_t equals = row.cells[0].find(" = ");
        ASSERT_NE(equals, std::string::npos);
        Block block(test::sample_header());
        const std::string value = row.cells[0].substr(equals + 3);
        if (value.starts_with("\"")) {
            block.set_bytes(row.cells[0].substr(0, equals), unquote(value));
        } else {
            block.set(row.cells[0].substr(0, equals), number(value));
        }
        const Result<Header> decoded = decode_header(block.bytes());
        const Error error =
            decoded.ok() ? check_layout(decoded.value(), kFileLength) : decoded.error();
        const std::map<int, std::string> codes = {
            {-EINVAL, "EINVAL"}, {-ENOTSUP, "ENOTSUP"}, {-EFBIG, "EFBIG"}};
        ASSERT_TRUE(codes.contains(error.code)) << error.code;
        EXPECT_EQ(row.cells[1], codes.at(error.code));
        EXPECT_EQ(row.cells[2], error.text);
        ++count;
    }
    EXPECT_GE(count, 20u);
}

}  // namespace
}  // namespace fvd
