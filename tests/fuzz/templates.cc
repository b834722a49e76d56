/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "templates.h"

#include <iterator>

#include "fvd/format/layout.h"

namespace fvd::fuzz {

namespace {

struct Shape {
    uint64_t disk, base, block;
    uint32_t unit;
    bool separate_data, cut;
};

constexpr uint64_t kBaseFile = 40 << 10;
constexpr Shape kShapes[] = {
    {65536, 40960, 4096, 512, false, true},  {65536, 65536, 512, 512, false, true},
    {61440, 41472, 7680, 512, false, false}, {65536, 40960, 4096, 512, true, true},
    {32768, 0, 0, 0, false, false},          {65536, 65536, 65536, 512, true, false},
    {65536, 49152, 4096, 4096, false, true}, {512, 512, 512, 512, false, true},
};

Header header_of(const Shape& shape) {
    LayoutRequest request;
    request.virtual_size = shape.disk;
    request.has_base = shape.base != 0;
    request.base_size = shape.base;
    request.separate_data_file = shape.separate_data;
    request.block_size = shape.block;
    request.journal_unit = shape.unit;
    request.journal_size = shape.unit * uint64_t{64};
    Header header = plan_layout(request).value();
    const Regions regions = regions_of(header);
    if (!shape.separate_data) {
        /* Close behind the metadata: small images are fast ones. */
        header.data_offset = std::max(regions.header.end, regions.journal.end);
    } else {
        std::memcpy(header.data_file, "data.raw", 8);
    }
    if (shape.base != 0) {
        std::memcpy(header.base_img, "base.raw", 8);
        std::memcpy(header.base_img_fmt, "raw", 3);
    }
    header.image_id.fill(std::byte{0x5C});
    header.generation = header.journal_epoch = 1;
    return header;
}

/* A few commits, so that bitmap and journal hold something. */
void live(FlatHost& host, const Shape& shape) {
    Image image(host);
    std::vector<std::byte> guest(4096, std::byte{0x11});
    const auto must = [](bool ok) { ok ? void() : broken("template", __FILE__, __LINE__); };
    must(image.load().ok() && image.start(StartMode::writable).ok());
    for (uint64_t i = 0; i < 6; i++) {
        const uint64_t offset = i * 7 * 1536 / 512 * 512 % shape.disk;
        const uint64_t length = std::min<uint64_t>(512 << (i % 4), shape.disk - offset);
        must(image.write(offset, length, {guest.data(), 0}, 0).ok());
        must(i % 2 == 0 || image.flush().ok());
        if (i == 3 && !shape.cut) {
            break;
        }
    }
    must(image.flush().ok());
    must(shape.cut || image.stop().ok());
}

Template make_template(const Shape& shape) {
    FlatHost host;
    host.separate_data = shape.separate_data;
    const Header header = header_of(shape);
    const Regions regions = regions_of(header);
    const uint64_t metadata = std::max(regions.header.end, regions.journal.end);
    host.files[FVD_FILE_IMAGE].set_length(shape.separate_data ? metadata
                                                              : header.data_offset + shape.disk);
    host.files[FVD_FILE_DATA].set_length(shape.disk);
    const MutableBytes image(host.files[FVD_FILE_IMAGE].bytes);
    encode_header(header, image.first(kHeaderSize));
    encode_header(header, image.subspan(kHeaderSize, kHeaderSize));
    auto& base = host.files[FVD_FILE_BASE];
    base.set_length(kBaseFile);
    for (uint64_t i = 0; i < kBaseFile; i++) {
        base.bytes[i] = static_cast<std::byte>(i / 512 + i % 512 + 1);
    }
    live(host, shape);
    const auto content = [&](File file) {
        const FlatHost::FlatFile& from = host.files[file];
        return std::vector<std::byte>(from.bytes.begin(),
                                      from.bytes.begin() + static_cast<ptrdiff_t>(from.length));
    };
    return {content(FVD_FILE_IMAGE), content(FVD_FILE_DATA), content(FVD_FILE_BASE),
            shape.separate_data};
}

/* What edits remember from one to the next. */
struct Editor {
    FlatHost& host;
    MutableBytes image;
    const Header header; /* of the template */
    uint64_t sequence = 0;
    bool seal[2] = {true, true};

    MutableBytes copy(unsigned which) { return image.subspan(which * kHeaderSize, kHeaderSize); }

    void apply(const Step& step) {
        switch (kind_of(step)) {
            case 0:
            case 1:
                edit_field(copy(0), step.b, step.value);
                edit_field(copy(1), step.b, step.value);
                break;
            case 2:
                edit_field(copy(step.a & 1), step.b, step.value);
                break;
            case 3: /* any byte of the metadata, without a new checksum if it is the header's */
                image[(step.b | uint64_t{step.a} << 16) % image.size()] =
                    static_cast<std::byte>(step.value);
                break;
            case 4:
                if (header.has_bitmap()) {
                    store_le<uint64_t>(image, header.bitmap_offset + step.b % 512 * 8, step.value);
                }
                break;
            case 5:
            case 6:
            case 7:
                unit(step);
                break;
            case 8:
                resize(step);
                break;
            case 9: /* an update of the header was cut */
                std::memcpy(copy(step.a & 1).data(), copy(~step.a & 1).data(),
                            step.b % kHeaderSize);
                break;
            case 10:
                seal[step.a & 1] = false;
                break;
            default:
                sequence = step.value;
                break;
        }
    }

    void unit(const Step& step) {
        if (header.journal_size == 0) {
            return;
        }
        sequence %= uint64_t{1} << 61;
        const uint64_t size = header.journal_unit;
        std::array<std::byte, 4096> bytes;
        const MutableBytes made = MutableBytes(bytes).first(size);
        /* Few blocks: most records name some that exist. */
        Step small = step;
        small.value = (step.a & 0x80) != 0 ? step.value : step.value & ~uint64_t{0x3F8FF80};
        make_unit(small, made, header.image_id, header.journal_epoch, &sequence);
        const uint64_t place = (sequence - 1) % header.journal_units();
        std::memcpy(image.data() + header.journal_offset + place * size, made.data(), size);
    }

    void resize(const Step& step) {
        const uint64_t length = step.value % (256 << 10);
        host.files[(step.a & 1) != 0 ? FVD_FILE_DATA : FVD_FILE_IMAGE].set_length(
            (step.a & 2) != 0 ? length / 512 * 512 : length);
    }
};

}  // namespace

const Template& template_of(unsigned number) {
    static const std::vector<Template> templates = [] {
        std::vector<Template> all;
        for (const Shape& shape : kShapes) {
            all.push_back(make_template(shape));
        }
        return all;
    }();
    return templates[number % templates.size()];
}

void prepare(FlatHost& host, const Program& program) {
    const unsigned number = program.begin() != program.end() ? program.begin()->op / 32 : 0;
    const Template& from = template_of(number);
    host.forget_counts();
    host.separate_data = from.separate_data;
    host.files[FVD_FILE_IMAGE].assign(from.image);
    host.files[FVD_FILE_DATA].assign(from.data);
    host.files[FVD_FILE_BASE].assign(from.base);
    const Header header =
        choose_header(ConstBytes(from.image).first(kHeaderRegionSize)).value().header;
    Editor editor{host, MutableBytes(host.files[FVD_FILE_IMAGE].bytes).first(from.image.size()),
                  header};
    for (const Step& step : program) {
        if (kind_of(step) < kEdits) {
            editor.apply(step);
        }
    }
    for (unsigned which = 0; which < 2; which++) {
        if (editor.seal[which]) {
            seal_header(editor.copy(which));
        }
    }
    auto& image = host.files[FVD_FILE_IMAGE];
    image.used = std::max<uint64_t>(image.used, from.image.size());
    if (image.length < from.image.size()) { /* edits may have written past a cut */
        std::memset(image.bytes.data() + image.length, 0, image.used - image.length);
    }
}

}  // namespace fvd::fuzz
