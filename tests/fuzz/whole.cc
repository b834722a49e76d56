/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What users ask for (options, create), and check over any image. */
#include <cerrno>
#include <cstring>

#include "fvd/format/layout.h"
#include "fvd/verbs.h"
#include "templates.h"

namespace fvd::fuzz {

namespace {

constexpr uint32_t kFixAll = FVD_FIX_LEAKS | FVD_FIX_ERRORS;

struct Text {
    char bytes[1100];
    const char* spell(uint64_t value) {
        const size_t length = value % 64 < 60 ? value % 16 : 1000 + value / 64 % 90;
        for (size_t i = 0; i < length; i++) {
            bytes[i] = static_cast<char>('a' + (value >> (i % 13)) % 26);
        }
        if (value >> 60 != 0 && length != 0) { /* maybe no text that can be shown */
            bytes[value >> 20 & 3 ? 0 : length - 1] = static_cast<char>(value >> 52);
        }
        bytes[length] = '\0';
        return bytes;
    }
};

Text texts[4];

fvd_create_options options_of(const Program& program) {
    fvd_create_options options{};
    for (const Step& step : program) {
        const uint64_t value = (step.a & 1) != 0 ? step.value / 512 * 512 : step.value;
        switch (step.op % 15) {
            case 0:
            case 1:
                options.virtual_size = value;
                break;
            case 2:
                options.base_img = texts[0].spell(value);
                break;
            case 3:
                options.base_img_fmt = texts[1].spell(value);
                break;
            case 4:
                options.base_size = value;
                break;
            case 5:
                options.presets = (value & 1) != 0;
                options.detect_sparse_hole = value / 2;
                break;
            case 6:
                options.data_file = texts[2].spell(value);
                break;
            case 7:
                options.data_file_fmt = texts[3].spell(value);
                break;
            case 8:
                options.block_size = value;
                break;
            case 9:
                options.journal_size = value;
                break;
            case 10:
                options.journal_unit = step.a % 4 == 0 ? step.b : step.a % 4 == 1 ? 512 : 4096;
                break;
            case 11:
                options.compact_image = (value & 1) != 0;
                break;
            case 12:
                options.chunk_size = value;
                break;
            case 13:
                options.storage_grow_unit = value;
                break;
            default:
                options.preallocation = static_cast<fvd_preallocation>(value % 4);
                break;
        }
    }
    return options;
}

}  // namespace

/* Whatever is accepted can be written, and opened again. */
void fuzz_options(const Program& program) {
    const fvd_create_options options = options_of(program);
    fvd_measure_result result{};
    const Error error = measure_image(options, options.virtual_size, &result);
    const Result<Header> planned = plan_layout(layout_request(options));
    FUZZ_CHECK(planned.ok() == error.ok());
    if (!error.ok()) {
        FUZZ_CHECK(error.text[0] != '\0' && error.code < 0);
        return;
    }
    FUZZ_CHECK(result.required <= result.fully_allocated);
    FUZZ_CHECK(options.data_file != nullptr || result.required >= options.virtual_size);
    FUZZ_CHECK(!options.compact_image || result.required == result.fully_allocated);
    Header header = planned.value();
    if (options.data_file != nullptr) {
        header.data_file[0] = 'd';
    }
    FUZZ_CHECK(check_layout(header, result.required).ok());
    if ((options.virtual_size & 0x600) != 0) {
        return; /* the header takes more time than all of the rest */
    }
    static std::array<std::byte, kHeaderSize> block;
    encode_header(header, block);
    FUZZ_CHECK(decode_header(block).ok());
}

/* ------------------------------------------------------------------------------- create */

namespace {

void check_fresh(FlatHost& host, const fvd_create_options& options) {
    fvd_check_result result;
    host.warnings = 0;
    FUZZ_CHECK(check_image(host, FVD_FIX_NONE, &result).ok());
    FUZZ_CHECK(result.corruptions + result.leaks + result.check_errors == 0);
    Image image(host);
    FUZZ_CHECK(image.load().ok() && image.start(StartMode::writable).ok());
    const uint64_t disk = options.virtual_size;
    static std::vector<std::byte> guest(FlatHost::kCapacity);
    FUZZ_CHECK(disk <= guest.size());
    FUZZ_CHECK(disk == 0 || image.read(0, disk, {guest.data(), 0}, 0).ok());
    const FlatHost::FlatFile& base = host.files[FVD_FILE_BASE];
    const uint64_t of_base = std::min({disk, base.length, image.header().base_size});
    FUZZ_CHECK(std::memcmp(guest.data(), base.bytes.data(), of_base) == 0);
    FUZZ_CHECK(std::all_of(guest.begin() + static_cast<ptrdiff_t>(of_base),
                           guest.begin() + static_cast<ptrdiff_t>(disk),
                           [](std::byte b) { return b == std::byte{0}; }));
    FUZZ_CHECK(image.stop().ok());
}

}  // namespace

void fuzz_create(const Program& program) {
    static FlatHost host;
    host.forget_counts();
    fvd_create_options options = options_of(program);
    /* Most of what is asked for is small enough to be made. */
    if (options.virtual_size > FlatHost::kCapacity) {
        options.virtual_size %= 256 << 10;
    }
    if (options.journal_size == 0) {
        options.journal_size = 256 << 10; /* the default is larger than all that fits here */
    }
    host.separate_data = options.data_file != nullptr;
    host.files[FVD_FILE_IMAGE].clear();
    host.files[FVD_FILE_DATA].clear();
    auto& base = host.files[FVD_FILE_BASE];
    base.assign(template_of(0).base);
    for (const Step& step : program) {
        const uint64_t at = step.b % base.length;
        if (step.op / 32 == 1) { /* a hole in the base */
            std::memset(base.bytes.data() + at, 0,
                        std::min<uint64_t>(step.value % 16384, base.length - at));
        } else if (step.op / 32 == 2) {
            host.zero_init = false;
            host.files[FVD_FILE_DATA].assign(template_of(3).data);
        } else if (step.op / 32 == 3) {
            host.fail_call = step.a;
        }
    }
    if (options.base_img != nullptr && options.base_size != 0) {
        /* What the base holds is read, past its end it is zero: the adapter gives its true length.
         */
        options.base_size = std::min<uint64_t>(options.base_size, base.length);
    }
    const Error error = create_image(host, options);
    if (!error.ok()) {
        FUZZ_CHECK(error.text[0] != '\0');
        return;
    }
    host.fail_call = -1;
    check_fresh(host, options);
}

/* ------------------------------------------------------------------------------- check */

namespace {

bool opens(FlatHost& host, StartMode mode) {
    Image image(host);
    if (!image.load().ok() || !image.start(mode).ok()) {
        return false;
    }
    FUZZ_CHECK(image.stop().ok());
    return true;
}

uint64_t complaints(const fvd_check_result& r) {
    return r.corruptions + r.leaks + r.check_errors;
}

/* After a repair nothing is left that could have been repaired, and a third look says the same. */
void check_after_repair(FlatHost& host, const fvd_check_result& first) {
    fvd_check_result fixed, second;
    FUZZ_CHECK(check_image(host, kFixAll, &fixed).ok());
    FUZZ_CHECK(fixed.corruptions == first.corruptions && fixed.leaks == first.leaks);
    FUZZ_CHECK(fixed.corruptions_fixed <= fixed.corruptions && fixed.leaks_fixed <= fixed.leaks);
    host.read_only = true;
    FUZZ_CHECK(check_image(host, FVD_FIX_NONE, &second).ok());
    host.read_only = false;
    /* A repair that failed may have made room for a slot that was cut. */
    const uint64_t left = fixed.corruptions - fixed.corruptions_fixed;
    FUZZ_CHECK(fixed.check_errors != 0 ? second.corruptions <= left : second.corruptions == left);
    FUZZ_CHECK(second.leaks == fixed.leaks - fixed.leaks_fixed);
    FUZZ_CHECK(second.check_errors != 0 || second.blocks_here == fixed.blocks_here);
    if (complaints(second) == 0) {
        FUZZ_CHECK(opens(host, StartMode::writable));
    }
}

}  // namespace

void fuzz_check(const Program& program) {
    static FlatHost host;
    prepare(host, program);
    fvd_check_result first;
    host.read_only = true;
    const Error error = check_image(host, FVD_FIX_NONE, &first);
    if (!error.ok()) {
        FUZZ_CHECK(error.text[0] != '\0' && error.code < 0);
        FUZZ_CHECK(!opens(host, StartMode::read_only));
        return;
    }
    FUZZ_CHECK((host.warnings != 0) >= (complaints(first) != 0));
    if (complaints(first) == 0) {
        FUZZ_CHECK(opens(host, StartMode::read_only));
    }
    host.read_only = false;
    check_after_repair(host, first);
}

}  // namespace fvd::fuzz
