/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Reads, and the question where a piece of the disk is. */
#include <algorithm>
#include <cerrno>

#include "fvd/base/arith.h"
#include "fvd/base/plant.h"
#include "fvd/engine/image.h"

namespace fvd {

BlockRange Image::tracked_blocks(uint64_t offset, uint64_t length) const {
    const uint64_t tracked = tracked_size_;
    if (offset >= tracked || length == 0) {
        return {};
    }
    const uint64_t end = std::min(offset + length, tracked);
    return {BlockIndex(offset / header_.block_size), BlockIndex(div_ceil(end, header_.block_size))};
}

bool Image::all_here(BlockRange blocks) const {
    return current_.all_set(blocks.begin.value, blocks.end.value);
}

/* A slot of a compact image is held only while its request counts as using it. */
bool Image::is_here(uint64_t offset, uint64_t length, uint64_t* data_offset) const {
    if (header_.has_table() || !all_here(tracked_blocks(offset, length))) {
        return false;
    }
    *data_offset = header_.data_offset + offset;
    return true;
}

/* The last block ends where the base ends. */
uint64_t Image::block_end(uint64_t block) const {
    const uint64_t end = (block + 1) * header_.block_size;
    return FVD_PLANT(copy_past_base) ? end : std::min(end, tracked_size_.load());
}

ByteRange Image::bytes_of(BlockRange blocks) const {
    return {blocks.begin.value * header_.block_size, blocks.end.value * header_.block_size};
}

ChunkIndex Image::chunk_end(uint64_t end) const {
    return ChunkIndex(div_ceil(end, header_.chunk_size));
}

/* Of what is in this image: where it is stored. */
Placement Image::stored_at(uint64_t offset, uint64_t length) const {
    if (!header_.has_table()) {
        return {Place::data, length, header_.data_offset + offset};
    }
    const ChunkRun run = table().run(chunk_at(offset), chunk_end(offset + length));
    const uint64_t end = std::min(run.end.value * header_.chunk_size, offset + length);
    if (!run.slot) {
        return {Place::zero, end - offset, 0};
    }
    const uint64_t slot_offset = header_.data_offset + run.slot->value * header_.chunk_size;
    return {Place::data, end - offset, slot_offset + offset % header_.chunk_size};
}

Placement Image::place_of(uint64_t offset, uint64_t length) const {
    const BlockRange blocks = tracked_blocks(offset, length);
    if (blocks.empty()) {
        return stored_at(offset, length);
    }
    const uint64_t first = blocks.begin.value;
    /* Looked at once: another thread may set the bit between two looks. */
    const bool here = current_.test(first);
    const uint64_t run_end = current_.run_end(first, blocks.end.value, here);
    const uint64_t end = offset + length;
    if (!here && FVD_PLANT(run_from_first_bit)) {
        return {Place::base, length, 0};
    }
    if (!here) {
        return {Place::base, std::min(block_end(run_end - 1), end) - offset, 0};
    }
    /* What is here goes on past the end of the base. */
    const bool to_the_end = run_end == blocks.end.value;
    const uint64_t here_end = to_the_end ? end : run_end * header_.block_size;
    return stored_at(offset, std::min(here_end, end) - offset);
}

Placement Image::where(uint64_t offset, uint64_t length) {
    const ChunkAllocator::Use use(slots_in_use());
    return place_of(offset, length);
}

/* The piece lies in storage, and not in a region that stands among the slots. */
bool Image::is_guest_data(const Placement& piece) const {
    const ByteRange range{piece.data_offset, piece.data_offset + piece.run};
    const Regions regions = regions_of(header_);
    const bool in_region = !header_.has_data_file() &&
                           (range.overlaps(regions.bitmap) || range.overlaps(regions.table) ||
                            range.overlaps(regions.journal));
    return range.end <= data_end_ && !in_region;
}

/* The piece becomes shorter where only its beginning can be read at once, or none. */
Status Image::read_piece(Placement* piece, uint64_t offset, GuestBuffer to, uint32_t flags) {
    if (piece->place == Place::base) {
        return fills() ? read_missing(piece, offset, to, flags)
                       : read_alone({offset, offset + piece->run}, to, flags);
    }
    if (piece->place == Place::zero) {
        host_.fill_guest_zero(to.handle, to.offset, piece->run);
        return {};
    }
    if (data_end_ != UINT64_MAX && !is_guest_data(*piece)) {
        return -EIO; /* a damaged table; the image is open for reading only */
    }
    const Slice slice = guest_slice(to.handle, to.offset, piece->run);
    host_.announce(FVD_EVENT_READ_IMAGE);
    return host_.read(FVD_FILE_DATA, piece->data_offset, {&slice, 1}, flags);
}

Status Image::read(uint64_t offset, uint64_t length, GuestBuffer to, uint32_t flags) {
    const ChunkAllocator::Use use(slots_in_use());
    while (length != 0) {
        Placement piece = place_of(offset, length);
        const Status status = read_piece(&piece, offset, to, flags);
        if (!status.ok()) {
            return status;
        }
        offset += piece.run;
        length -= piece.run;
        to = to.advance(piece.run);
    }
    return {};
}

}  // namespace fvd
