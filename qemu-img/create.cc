/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * qemu-img create: lay the regions out, give data storage its length, find the zero areas of the
 * base, write metadata. The header comes last, so that a create that was cut short leaves no image.
 */
#include <algorithm>
#include <cerrno>
#include <cstring>

#include "fvd/base/arith.h"
#include "fvd/base/utf8.h"
#include "fvd/engine/fill_options.h"
#include "fvd/format/block_bitmap.h"
#include "fvd/format/chunk_table.h"
#include "fvd/format/layout.h"
#include "fvd/format/limits.h"
#include "fvd/verbs.h"

namespace fvd {

namespace {

constexpr uint64_t kPieceBytes = 1024 * 1024;

Error failed(Status status, const char* what) {
    return Error::make(status.value(), "%s: %s", what, std::strerror(-status.value()));
}

/* ---------------------------------------------------------------------------- the header */

Error copy_text(const char* option, const char* from, char* to, size_t size) {
    if (from == nullptr) {
        return Error::none();
    }
    const size_t length = std::strlen(from);
    if (length >= size) {
        return Error::make(-EINVAL, "%s has %zu bytes; at most %zu are possible", option, length,
                           size - 1);
    }
    /* What open would refuse is not written. */
    if (const auto bad = first_bad_utf8({from, length})) {
        return Error::make(
            -EINVAL, "%s has byte 0x%02x at %zu; must be valid UTF-8 without control characters",
            option, static_cast<unsigned char>(from[*bad]), *bad);
    }
    std::memcpy(to, from, length);
    return Error::none();
}

Error check_names(const fvd_create_options& options) {
    const bool has_base = options.base_img != nullptr;
    if (has_base && options.base_img[0] == '\0') {
        return Error::make(-EINVAL, "backing_file is empty");
    }
    if (options.data_file != nullptr && options.data_file[0] == '\0') {
        return Error::make(-EINVAL, "data_file is empty");
    }
    if (has_base && (options.base_img_fmt == nullptr || options.base_img_fmt[0] == '\0')) {
        return Error::make(
            -EINVAL,
            "backing_fmt is missing: the format of backing_file '%s' must be stated, "
            "it is never guessed",
            options.base_img);
    }
    if (!has_base && options.detect_sparse_hole != 0) {
        return Error::make(-EINVAL, "detect_sparse_hole is %llu, but there is no backing_file",
                           print(options.detect_sparse_hole));
    }
    return Error::none();
}

Result<Header> plan_header(Host& host, const fvd_create_options& options) {
    if (Error error = check_names(options); !error.ok()) {
        return error;
    }
    Result<Header> planned = plan_layout(layout_request(options));
    if (!planned.ok()) {
        return planned;
    }
    Header& header = planned.value();
    const Error errors[] = {
        copy_text("backing_file", options.base_img, header.base_img, kNameSize),
        copy_text("backing_fmt", options.base_img_fmt, header.base_img_fmt, kFormatNameSize),
        copy_text("data_file", options.data_file, header.data_file, kNameSize),
        copy_text("data_file_fmt", options.data_file_fmt, header.data_file_fmt, kFormatNameSize),
    };
    for (const Error& error : errors) {
        if (!error.ok()) {
            return error;
        }
    }
    header.generation = 1;
    header.journal_epoch = 1;
    header.clean_shutdown = true;
    if (options.fill != nullptr) {
        if (Error error = check_fill(*options.fill, true); !error.ok()) {
            return error;
        }
        put_fill(*options.fill, &header);
    }
    host.random(std::as_writable_bytes(std::span(header.image_id)));
    return planned;
}

/* ---------------------------------------------------------------------------- storage */

/* How storage is made longer; slots that are merely mapped are as sparse as any. */
Preallocation resize_mode(Preallocation mode) {
    return mode == FVD_PREALLOC_METADATA ? FVD_PREALLOC_OFF : mode;
}

/* Storage that is there already, as a device is, gets it by zeros that may not be holes. */
bool wants_space(Preallocation mode) {
    return mode == FVD_PREALLOC_FALLOC || mode == FVD_PREALLOC_FULL;
}

/* Give a file that is shorter this length. */
Error lengthen(Host& host, File file, uint64_t size, Preallocation mode) {
    const int64_t now = host.length(file);
    if (now < 0) {
        return failed(static_cast<int>(now), "the length of the file cannot be read");
    }
    if (static_cast<uint64_t>(now) >= size) {
        return Error::none();
    }
    const Status status = host.resize(file, size, mode);
    return status.ok() ? Error::none()
                       : Error::make(status.value(),
                                     "the %s has %llu bytes and cannot be made %llu bytes long: %s",
                                     file == FVD_FILE_DATA ? "data file" : "image",
                                     print(static_cast<uint64_t>(now)), print(size),
                                     std::strerror(-status.value()));
}

/* Give a file at least @p size bytes. *reads_zero: what nobody wrote reads as zeros. */
Error provide(Host& host, File file, uint64_t size, Preallocation mode, bool* reads_zero) {
    /* Devices say that it succeeded, and stay as they are. */
    const bool emptied = host.length(file) == 0 ||
                         (host.resize(file, 0, FVD_PREALLOC_OFF).ok() && host.length(file) == 0);
    *reads_zero = emptied && host.has_zero_init(file);
    return lengthen(host, file, size, mode);
}

/* The bytes of the guest's data that have storage from the first day. */
uint64_t first_storage(const Header& header, Preallocation mode) {
    if (!header.has_table()) {
        return header.virtual_size;
    }
    return mode == FVD_PREALLOC_OFF ? 0 : header.chunk_count() * header.chunk_size;
}

/* Metadata is written now, not only given space: a journal that runs out of space helps nobody, and
 * on a file system with a journal of its own the first write to a block that was never written
 * makes the flush after it a good deal dearer. The table gets its entries later, and needs no zeros
 * before. */
Error provide_metadata(Host& host, const Header& header, Preallocation mode, bool* reads_zero) {
    const Regions regions = regions_of(header);
    const ByteRange table = header.has_table()
                                ? regions.table
                                : ByteRange{regions.metadata_end(), regions.metadata_end()};
    Error error = provide(host, FVD_FILE_IMAGE, table.begin, mode, reads_zero);
    if (error.ok()) {
        error = lengthen(host, FVD_FILE_IMAGE, table.end, FVD_PREALLOC_OFF);
    }
    return error.ok() ? lengthen(host, FVD_FILE_IMAGE, regions.metadata_end(), mode) : error;
}

Error provide_image_file(Host& host, const Header& header, const fvd_create_options& options,
                         bool* reads_zero) {
    Error error = provide_metadata(host, header, FVD_PREALLOC_FULL, reads_zero);
    if (error.code == -ENOTSUP) {
        error = provide_metadata(host, header, FVD_PREALLOC_OFF, reads_zero);
    }
    if (!error.ok() || header.has_data_file()) {
        return error;
    }
    const uint64_t end = header.data_offset + first_storage(header, options.preallocation);
    return lengthen(host, FVD_FILE_IMAGE, end, resize_mode(options.preallocation));
}

/* ---------------------------------------------------------------------------- the base's zeros */

/* Collects the zero areas of the base as blocks that are "in this image". */
class Presets {
  public:
    Presets(Host& host, const Header& header, BlockBitmap bitmap)
        : host_(host), header_(header), bitmap_(bitmap) {}

    /* A base without any data is most likely one that is still to be filled (whoever makes a chain
     * of images makes them all first), and nothing is gained by marking it: nothing is. */
    Error find(uint64_t detect_run) {
        bool has_data = false;
        uint64_t at = 0;
        while (at < header_.base_size) {
            bool zero = false;
            uint64_t run = 0;
            const Status status =
                host_.extent(FVD_FILE_BASE, at, header_.base_size - at, &zero, &run);
            if (!status.ok()) {
                return failed(status, "the block status of the backing file cannot be read");
            }
            FVD_ASSERT(run != 0);
            has_data = has_data || (!zero && holds_data(at, run));
            if (zero) {
                grow_run(at, at + run);
            } else if (detect_run != 0) {
                if (Error error = search({at, at + run}, detect_run); !error.ok()) {
                    return error;
                }
            }
            at += run;
        }
        end_run();
        if (!has_data) {
            bitmap_.clear(0, bitmap_.bits());
        }
        return Error::none();
    }

  private:
    /* QEMU writes zeros to the first block of a raw file it makes, which is no data yet. */
    bool holds_data(uint64_t at, uint64_t length) {
        constexpr uint64_t kFirstBlock = 4096;
        HostBuffer buffer(host_, kFirstBlock);
        if (at != 0 || length > kFirstBlock || !buffer) {
            return true;
        }
        const MutableBytes first = buffer.bytes().first(length);
        return !read_bytes(host_, FVD_FILE_BASE, 0, first).ok() || !is_zero(first);
    }

    /* Runs that touch are one; a run of bytes presets the blocks that lie wholly inside it. */
    void grow_run(uint64_t begin, uint64_t end) {
        if (begin != run_.end) {
            end_run();
            run_.begin = begin;
        }
        run_.end = end;
    }

    void end_run() {
        const uint64_t block = header_.block_size;
        const uint64_t begin = div_ceil(run_.begin, block);
        const uint64_t end = run_.end == header_.base_size ? bitmap_.bits() : run_.end / block;
        if (begin < end) {
            bitmap_.set(begin, end);
        }
        run_ = {};
    }

    /* Read data of the base and find runs of zeros of at least @p detect_run bytes. */
    Error search(ByteRange where, uint64_t detect_run) {
        HostBuffer buffer(host_, kPieceBytes);
        if (!buffer) {
            return failed(-ENOMEM, "no memory to search the backing file for zeros");
        }
        ByteRange zeros{where.begin, where.begin};
        for (uint64_t at = where.begin; at < where.end;) {
            const uint64_t size = std::min(kPieceBytes, where.end - at);
            const Status status = read_bytes(host_, FVD_FILE_BASE, at, buffer.bytes().first(size));
            if (!status.ok()) {
                return failed(status, "the backing file cannot be read");
            }
            for (uint64_t sector = 0; sector < size; sector += limits::kSectorSize) {
                const uint64_t length = std::min(limits::kSectorSize, size - sector);
                if (is_zero(buffer.bytes().subspan(sector, length))) {
                    zeros.end = at + sector + length;
                    continue;
                }
                take(zeros, detect_run);
                zeros.begin = zeros.end = at + sector + length;
            }
            at += size;
        }
        take(zeros, detect_run);
        return Error::none();
    }

    void take(ByteRange zeros, uint64_t detect_run) {
        if (!zeros.empty() && zeros.count() >= detect_run) {
            grow_run(zeros.begin, zeros.end);
        }
    }

    static bool is_zero(ConstBytes bytes) {
        return bytes.empty() ||
               (bytes[0] == std::byte{0} &&
                std::memcmp(bytes.data(), bytes.data() + 1, bytes.size() - 1) == 0);
    }

    Host& host_;
    const Header& header_;
    BlockBitmap bitmap_;
    ByteRange run_;
};

/* ---------------------------------------------------------------------------- metadata */

Status zero_range(Host& host, File file, uint64_t begin, uint64_t end) {
    return begin < end ? host.write_zeroes(file, begin, end - begin, FVD_REQ_MAY_UNMAP) : Status();
}

Error write_bitmap(Host& host, const Header& header, const BlockBitmap& bitmap) {
    constexpr uint64_t kPage = 4096;
    HostBuffer buffer(host, kPage);
    if (!buffer) {
        return failed(-ENOMEM, "no memory to write the bitmap");
    }
    for (uint64_t at = 0; at < header.bitmap_size; at += kPage) {
        const uint64_t first = std::min(at * 8, bitmap.bits());
        const uint64_t last = std::min((at + kPage) * 8, bitmap.bits());
        if (!bitmap.any_set(first, last)) {
            continue; /* the region reads as zeros already */
        }
        bitmap.store(at, buffer.bytes());
        const Status status =
            write_bytes(host, FVD_FILE_IMAGE, header.bitmap_offset + at, buffer.bytes());
        if (!status.ok()) {
            return failed(status, "the bitmap cannot be written");
        }
    }
    return Error::none();
}

/* Chunk n is stored in slot n, or none is stored at all. */
Error write_table(Host& host, const Header& header, bool all_stored) {
    HostBuffer buffer(host, std::min(header.table_size, kPieceBytes));
    if (!buffer) {
        return failed(-ENOMEM, "no memory to write the table");
    }
    for (uint64_t at = 0; at < header.table_size; at += buffer.size()) {
        const MutableBytes piece =
            buffer.bytes().first(std::min<uint64_t>(buffer.size(), header.table_size - at));
        for (size_t i = 0; i < piece.size(); i += sizeof(uint32_t)) {
            const uint64_t chunk = (at + i) / sizeof(uint32_t);
            const bool stored = all_stored && chunk < header.chunk_count();
            store_le<uint32_t>(piece, i, stored ? static_cast<uint32_t>(chunk) : kNotStored);
        }
        const Status status = write_bytes(host, FVD_FILE_IMAGE, header.table_offset + at, piece);
        if (!status.ok()) {
            return failed(status, "the table cannot be written");
        }
    }
    return Error::none();
}

Error zero_all_data(Host& host, const Header& header, uint64_t storage) {
    const Status status = host.write_zeroes(FVD_FILE_DATA, header.data_offset, storage, 0);
    return status.ok() ? Error::none() : failed(status, "data storage cannot be zeroed");
}

/* Storage that does not start out as zeros: where the image promises zeros, write them. Guest byte
 * n stands at place n, in a compact image because chunk n stands in slot n; what its last slot has
 * more than the disk is zero, too. */
Error zero_preset_data(Host& host, const Header& header, const BlockBitmap& bitmap,
                       uint64_t storage) {
    for (uint64_t block = 0; block < bitmap.bits();) {
        const uint64_t end = bitmap.run_end(block, bitmap.bits());
        if (bitmap.test(block)) {
            const uint64_t last = std::min(end * header.block_size, header.base_size);
            const Status status =
                zero_range(host, FVD_FILE_DATA, header.data_offset + block * header.block_size,
                           header.data_offset + last);
            if (!status.ok()) {
                return failed(status, "zero areas of the backing file cannot be written");
            }
        }
        block = end;
    }
    const uint64_t covered = header.has_bitmap() ? header.base_size : 0;
    const Status status =
        zero_range(host, FVD_FILE_DATA, header.data_offset + covered, header.data_offset + storage);
    return status.ok() ? Error::none() : failed(status, "data storage cannot be zeroed");
}

Error write_header(Host& host, const Header& header) {
    HostBuffer both(host, kHeaderRegionSize);
    if (!both) {
        return failed(-ENOMEM, "no memory for the header");
    }
    encode_header(header, both.bytes().first(kHeaderSize));
    encode_header(header, both.bytes().last(kHeaderSize));
    /* A header that a power cut leaves would be believed: what it names is durable before. */
    Status status = host.flush(FVD_FILE_IMAGE);
    if (status.ok()) {
        status = write_bytes(host, FVD_FILE_IMAGE, kHeaderPrimaryOffset, both.bytes());
    }
    if (status.ok()) {
        status = host.flush(FVD_FILE_IMAGE);
    }
    return status.ok() ? Error::none() : failed(status, "the header cannot be written");
}

/* What was here before may be an image: it stops being one before anything of it is lost. */
Status zero_metadata(Host& host, const Header& header) {
    Status status = zero_range(host, FVD_FILE_IMAGE, 0, kHeaderRegionSize);
    if (status.ok()) {
        status = host.flush(FVD_FILE_IMAGE);
    }
    return status.ok() ? zero_range(host, FVD_FILE_IMAGE, kHeaderRegionSize,
                                    regions_of(header).metadata_end())
                       : status;
}

Error write_metadata(Host& host, Header& header, const fvd_create_options& options, bool image_zero,
                     bool data_zero) {
    if (!image_zero) {
        if (Status status = zero_metadata(host, header); !status.ok()) {
            return failed(status, "metadata cannot be zeroed");
        }
    }
    HostBuffer words(host, (BlockBitmap::bits_to_words(header.block_count()) + 1) * 8);
    if (!words) {
        return failed(-ENOMEM, "no memory for the bitmap");
    }
    std::memset(words.data(), 0, words.size());
    BlockBitmap bitmap({reinterpret_cast<uint64_t*>(words.data()), words.size() / 8},
                       header.block_count());
    if (header.has_bitmap() && options.presets) {
        Presets presets(host, header, bitmap);
        if (Error error = presets.find(options.detect_sparse_hole); !error.ok()) {
            return error;
        }
    }
    const uint64_t storage = first_storage(header, options.preallocation);
    header.need_zero_init = storage != 0 && (header.virtual_size > header.base_size ||
                                             bitmap.any_set(0, bitmap.bits()));
    if (!data_zero && storage != 0) {
        const Error error = wants_space(options.preallocation)
                                ? zero_all_data(host, header, storage)
                                : zero_preset_data(host, header, bitmap, storage);
        if (!error.ok()) {
            return error;
        }
    }
    if (Error error = write_bitmap(host, header, bitmap); !error.ok()) {
        return error;
    }
    if (header.has_table()) {
        if (Error error = write_table(host, header, storage != 0); !error.ok()) {
            return error;
        }
    }
    if (header.has_data_file()) {
        if (Status status = host.flush(FVD_FILE_DATA); !status.ok()) {
            return failed(status, "the data file cannot be flushed");
        }
    }
    return write_header(host, header);
}

}  // namespace

Error create_image(Host& host, const fvd_create_options& options) {
    Result<Header> planned = plan_header(host, options);
    if (!planned.ok()) {
        return planned.error();
    }
    Header& header = planned.value();
    bool image_zero = false;
    if (Error error = provide_image_file(host, header, options, &image_zero); !error.ok()) {
        return error;
    }
    bool data_zero = image_zero;
    if (header.has_data_file()) {
        Error error = provide(host, FVD_FILE_DATA, first_storage(header, options.preallocation),
                              resize_mode(options.preallocation), &data_zero);
        if (!error.ok()) {
            return error;
        }
    }
    return write_metadata(host, header, options, image_zero, data_zero);
}

}  // namespace fvd
