/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Reads, and the question where a piece of the disk is. */
#include <algorithm>

#include "fvd/base/arith.h"
#include "fvd/base/plant.h"
#include "fvd/engine/image.h"

namespace fvd {

BlockRange Image::tracked_blocks(uint64_t offset, uint64_t length) const {
    if (offset >= tracked_size_ || length == 0) {
        return {};
    }
    const uint64_t end = std::min(offset + length, tracked_size_);
    return {BlockIndex(offset / header_.block_size), BlockIndex(div_ceil(end, header_.block_size))};
}

bool Image::all_here(BlockRange blocks) const {
    return current_.all_set(blocks.begin.value, blocks.end.value);
}

/* The last block ends where the base ends. */
uint64_t Image::block_end(uint64_t block) const {
    const uint64_t end = (block + 1) * header_.block_size;
    return FVD_PLANT(copy_past_base) ? end : std::min(end, tracked_size_);
}

Placement Image::where(uint64_t offset, uint64_t length) const {
    const BlockRange blocks = tracked_blocks(offset, length);
    if (blocks.empty()) {
        return {false, length, data_at(offset)};
    }
    const uint64_t first = blocks.begin.value;
    /* Looked at once: another thread may set the bit between two looks. */
    const bool here = current_.test(first);
    const uint64_t run_end = current_.run_end(first, blocks.end.value, here);
    const uint64_t end = offset + length;
    if (!here && FVD_PLANT(run_from_first_bit)) {
        return {true, length, 0};
    }
    if (!here) {
        return {true, std::min(block_end(run_end - 1), end) - offset, 0};
    }
    /* What is here goes on past the end of the base. */
    const bool to_the_end = run_end == blocks.end.value;
    const uint64_t here_end = to_the_end ? end : run_end * header_.block_size;
    return {false, std::min(here_end, end) - offset, data_at(offset)};
}

Status Image::read(uint64_t offset, uint64_t length, GuestBuffer to, uint32_t flags) {
    while (length != 0) {
        const Placement place = where(offset, length);
        const Slice slice = guest_slice(to.handle, to.offset, place.run);
        const File file = place.in_base ? FVD_FILE_BASE : FVD_FILE_DATA;
        host_.announce(place.in_base ? FVD_EVENT_READ_BASE : FVD_EVENT_READ_IMAGE);
        const Status status =
            host_.read(file, place.in_base ? offset : place.data_offset, {&slice, 1}, flags);
        if (!status.ok()) {
            return status;
        }
        offset += place.run;
        length -= place.run;
        to = to.advance(place.run);
    }
    return {};
}

}  // namespace fvd
