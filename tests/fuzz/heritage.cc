/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Images of January 2011: opened, read and checked, whatever their bytes are. */
#include <cerrno>
#include <cstring>

#include "flat_host.h"
#include "fvd/engine/heritage_image.h"
#include "fvd/verbs.h"

namespace fvd::fuzz {

namespace {

constexpr uint64_t kBitmap = 8192;
constexpr uint64_t kTable = 12288;
constexpr uint64_t kJournal = 16384;
constexpr uint64_t kJournalSize = 4096;
constexpr uint64_t kData = kJournal + kJournalSize;
constexpr uint64_t kChunk = 4096;
constexpr uint64_t kDisk = 32 * kChunk;
constexpr uint64_t kBase = 16 * kChunk;

struct Field {
    uint16_t offset;
    uint16_t size;
    uint64_t value; /* in the image that is edited */
};
constexpr Field kFields[] = {
    {0, 4, heritage::kMagic},
    {4, 4, 1},
    {8, 4, 0},
    {12, 8, kDisk},
    {20, 8, kData},
    {1068, 8, kBase},
    {1076, 8, kBitmap},
    {1084, 8, 4096},
    {1092, 4, 1024},
    {2208, 4, 1},
    {2212, 8, kTable},
    {2220, 8, kChunk},
    {4284, 8, kJournal},
    {4292, 8, kJournalSize},
    {4300, 4, 0},
    {4304, 4, 0},
};

void set_field(MutableBytes bytes, const Field& field, uint64_t value) {
    if (field.size == 4) {
        store_le<uint32_t>(bytes, field.offset, static_cast<uint32_t>(value));
    } else {
        store_le<uint64_t>(bytes, field.offset, value);
    }
}

/* A compact image over a base, marked dirty; every record in its journal is the work of a step. */
void make_image(FlatHost& host) {
    static const std::vector<std::byte> fresh = [] {
        std::vector<std::byte> bytes(kData + 8 * kChunk, std::byte{0xDA});
        std::memset(bytes.data(), 0, kData);
        std::memset(bytes.data() + kTable, 0xFF, 4096);
        for (const Field& field : kFields) {
            set_field(bytes, field, field.value);
        }
        std::memcpy(bytes.data() + 28, "base", 4);
        return bytes;
    }();
    static const std::vector<std::byte> base(kBase, std::byte{0xBA});
    host.forget_counts();
    host.separate_data = false;
    host.files[FVD_FILE_IMAGE].assign(fresh);
    host.files[FVD_FILE_BASE].assign(base);
}

/* A record of either kind, at the start of a sector or after another. */
void put_record(MutableBytes bytes, const Step& step) {
    const uint64_t at = kJournal + (step.a % 8) * 512 + (step.op / 8 % 4) * 16;
    if ((step.op & 128) != 0) {
        store_le<uint32_t>(bytes, at, 0x3F2AB8ED);
        store_le<uint32_t>(bytes, at + 4, step.b);
        store_le<uint64_t>(bytes, at + 8, step.value);
        return;
    }
    store_le<uint32_t>(bytes, at, 0xB4E6F7AC);
    store_le<uint32_t>(bytes, at + 4, static_cast<uint32_t>(step.value >> 32) % 40);
    store_le<uint32_t>(bytes, at + 8, step.b % 128);
    for (uint64_t i = 0; i < step.b % 128 && i < 16; i++) {
        store_le<uint32_t>(bytes, at + 12 + 4 * i,
                           0x80000000u | (static_cast<uint32_t>(step.value + i) % 10));
    }
}

void edit(FlatHost& host, const Program& program) {
    FlatHost::FlatFile& file = host.files[FVD_FILE_IMAGE];
    const MutableBytes bytes(file.bytes.data(), file.length);
    uint64_t length = file.length;
    for (const Step& step : program) {
        switch (step.op % 8) {
            case 0:
                set_field(bytes, kFields[step.a % std::size(kFields)], step.value);
                break;
            case 1: /* near what it was */
                set_field(bytes, kFields[step.a % std::size(kFields)],
                          kFields[step.a % std::size(kFields)].value + (step.b % 9 - 4) * 512);
                break;
            case 2:
                store_le<uint32_t>(
                    bytes, kTable + 4 * (step.a % 32),
                    static_cast<uint32_t>(step.value) % (step.b % 8 == 0 ? 4096 : 9));
                break;
            case 3:
                store_le<uint64_t>(bytes, kBitmap, step.value);
                break;
            case 4:
                put_record(bytes, step);
                break;
            case 5:
                bytes[step.b % kData] = static_cast<std::byte>(step.value);
                break;
            case 6:
                length = step.b % 4 != 0 ? step.value % (length + 1) : step.value % 8192;
                break;
            default:
                host.fail_call = step.a % 64 == 0 ? step.b % 16 : host.fail_call;
                break;
        }
    }
    file.set_length(length);
}

/* Every piece of the disk is somewhere that exists. */
void read_all(FlatHost& host, HeritageImage& image) {
    static std::vector<std::byte> guest(64 << 10);
    const uint64_t disk = image.header().virtual_size;
    const uint64_t stored = host.file(FVD_FILE_DATA).length;
    uint64_t pieces = 0;
    for (uint64_t at = 0; at < disk && pieces < 256; pieces++) {
        const heritage::Placement place = image.where(at, disk - at);
        FUZZ_CHECK(place.run != 0 && place.run <= disk - at);
        FUZZ_CHECK(place.place != heritage::Place::data ||
                   (place.data_offset <= stored && place.run <= stored - place.data_offset));
        FUZZ_CHECK(place.place != heritage::Place::base ||
                   at + place.run <= image.header().base_size);
        const uint64_t length = std::min<uint64_t>(guest.size(), disk - at);
        const bool read = image.read(at, length, {guest.data(), 0}, 0).ok();
        FUZZ_CHECK(read || host.failures != 0);
        if (read && place.place == heritage::Place::zero) {
            FUZZ_CHECK(guest[0] == std::byte{0});
        }
        at += place.run;
    }
}

}  // namespace

void fuzz_heritage(const Program& program) {
    static FlatHost host;
    make_image(host);
    edit(host, program);
    host.read_only = true;
    const bool is_one = HeritageImage::is_one(host);
    HeritageImage image(host);
    const Error loaded = image.load();
    const Error started = loaded.ok() ? image.start(StartMode::read_only) : loaded;
    FUZZ_CHECK(loaded.ok() || (loaded.text[0] != '\0' && loaded.code < 0));
    FUZZ_CHECK(is_one || !loaded.ok() || host.failures != 0);
    FUZZ_CHECK(started.ok() || started.text[0] != '\0');
    if (started.ok()) {
        read_all(host, image);
        fvd_info info;
        image.describe(&info);
        FUZZ_CHECK(info.never_writable && info.blocks_here <= info.blocks);
    }
    const bool undisturbed = host.failures == 0;
    host.fail_call = -1;
    fvd_check_result result{};
    const Error checked = check_heritage(host, FVD_FIX_NONE, &result);
    FUZZ_CHECK(!undisturbed || checked.ok() == loaded.ok());
    if (checked.ok() && undisturbed) {
        /* What check takes for sound opens; what does not open is not sound. */
        FUZZ_CHECK(started.ok() || result.corruptions + result.check_errors != 0);
    }
}

}  // namespace fvd::fuzz
