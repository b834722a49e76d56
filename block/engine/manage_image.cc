/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What management does to an open, quiet image, and what it is told about it. */
#include <cerrno>
#include <cstring>

#include "fvd/base/plant.h"
#include "fvd/base/utf8.h"
#include "fvd/engine/header_store.h"
#include "fvd/engine/image.h"

namespace fvd {

bool Image::needs_base() const {
    return uses_bitmap_ && !current_.all_set(0, header_.block_count());
}

bool Image::is_clean() const {
    HostLock lock(host_);
    return header_.clean_shutdown;
}

/* The base has all that is forgotten (a commit has just written it), so a crash half-way only
 * leaves blocks here that need not be. The data goes only after the bits are durably clear. */
Status Image::make_empty() {
    FVD_ASSERT(started_ && writable_);
    if (tracked_size_ == 0) {
        return header_.has_base() ? Status(-ENOTSUP) : Status();
    }
    wait_for_fetches();
    const Status status = empty_now();
    begin_filling(); /* from the start */
    quiesce(false);
    return status;
}

Status Image::empty_now() {
    FVD_ASSERT(locks_.empty());
    if (header_.base_fully_prefetched && !FVD_PLANT(keep_filled_flag)) {
        if (Status status = committer_.set_filled(false); !status.ok()) {
            return status;
        }
    }
    if (FVD_PLANT(empty_before_base)) {
        (void)host_.discard(FVD_FILE_DATA, header_.data_offset, tracked_size_).ok();
    }
    const Status status = committer_.forget_all();
    if (!status.ok()) {
        return status;
    }
    if (header_.has_table()) {
        /* A chunk that reaches past the base keeps its slot for the rest of it. */
        const ByteRange chunks = whole_chunks(0, tracked_size_);
        free_slots(chunk_at(0), chunks.empty() ? chunk_at(0) : chunk_end(chunks.end));
        return committer_.commit();
    }
    const Status discarded = host_.discard(FVD_FILE_DATA, header_.data_offset, tracked_size_);
    return discarded.value() == -ENOTSUP ? Status() : discarded;
}

Error Image::set_base(const char* name, const char* format) {
    FVD_ASSERT(started_ && writable_);
    const size_t name_length = std::strlen(name);
    const size_t format_length = std::strlen(format);
    if (name_length >= kNameSize || format_length >= kFormatNameSize) {
        return Error::make(
            -EINVAL,
            "backing file name (%zu bytes) or format (%zu bytes) is too long; at most "
            "%zu and %zu bytes",
            name_length, format_length, kNameSize - 1, kFormatNameSize - 1);
    }
    /* What open would refuse is not written. */
    if (first_bad_utf8({name, name_length}) || first_bad_utf8({format, format_length})) {
        return Error::make(-EINVAL,
                           "backing file name and format must be valid UTF-8 without control "
                           "characters");
    }
    char old_name[kNameSize];
    char old_format[kFormatNameSize];
    const auto change = [&](Header& header) {
        std::memcpy(old_name, header.base_img, sizeof(old_name));
        std::memcpy(old_format, header.base_img_fmt, sizeof(old_format));
        std::memset(header.base_img, 0, sizeof(header.base_img));
        std::memset(header.base_img_fmt, 0, sizeof(header.base_img_fmt));
        std::memcpy(header.base_img, name, name_length);
        std::memcpy(header.base_img_fmt, format, format_length);
    };
    const auto undo = [&](Header& header) {
        std::memcpy(header.base_img, old_name, sizeof(old_name));
        std::memcpy(header.base_img_fmt, old_format, sizeof(old_format));
    };
    const Status status = committer_.change_header(change, undo);
    return status.ok() ? Error::none()
                       : Error::make(status.value(), "the header cannot be written");
}

void Image::describe(fvd_info* info) const {
    HostLock lock(host_);
    *info = {};
    info->format_version = kFormatVersion;
    info->virtual_size = header_.virtual_size;
    info->base_size = header_.base_size;
    info->block_size = header_.block_size;
    info->bitmap_offset = header_.bitmap_offset;
    info->bitmap_size = header_.bitmap_size;
    info->table_offset = header_.table_offset;
    info->table_size = header_.table_size;
    info->journal_offset = header_.journal_offset;
    info->journal_size = header_.journal_size;
    info->journal_unit = header_.journal_unit;
    info->journal_epoch = header_.journal_epoch;
    info->data_offset = header_.data_offset;
    info->header_generation = header_.generation;
    info->incompatible_features = header_.incompatible_features;
    info->compatible_features = header_.compatible_features;
    info->autoclear_features = header_.autoclear_features;
    std::memcpy(info->image_id, header_.image_id.data(), sizeof(info->image_id));
    info->clean_shutdown = header_.clean_shutdown;
    info->base_fully_prefetched = header_.base_fully_prefetched;
    info->need_zero_init = header_.need_zero_init;
    info->started = started_;
    info->condition = committer_.failed() ? FVD_CONDITION_FAILED : FVD_CONDITION_HEALTHY;
    info->chunk_size = header_.chunk_size;
    info->storage_grow_unit = header_.storage_grow_unit;
    if (started_ && is_tracked()) {
        info->blocks = uses_bitmap_ ? header_.block_count() : 0;
        info->blocks_here = current_.count();
        info->chunks = header_.chunk_count();
        info->chunks_stored = table().stored();
        info->pending_pages = committer_.pending_pages();
    }
    std::memcpy(info->data_file, header_.data_file, sizeof(info->data_file));
    std::memcpy(info->data_file_fmt, header_.data_file_fmt, sizeof(info->data_file_fmt));
    std::memcpy(info->base_img, header_.base_img, sizeof(info->base_img));
    std::memcpy(info->base_img_fmt, header_.base_img_fmt, sizeof(info->base_img_fmt));
    std::memcpy(info->add_storage_cmd, header_.add_storage_cmd, sizeof(info->add_storage_cmd));
}

}  // namespace fvd
