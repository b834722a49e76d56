/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "small_worlds.h"

#include <iterator>
#include <span>

#include "world.h"

namespace fvd::sim {

namespace {

constexpr uint64_t kBlock = 1024;

/* Kind, offset, length, flags, a. */
constexpr Op kLinearAlphabet[] = {
    {OpKind::write, 0, kBlock, 0, 0, 0, 0},                        /* a whole block */
    {OpKind::write, 512, 512, 0, 0, 0, 0},                         /* the end of a block */
    {OpKind::write, kBlock, 512, FVD_REQ_FUA, 0, 0, 0},            /* the start of one, durably */
    {OpKind::write, 512, 2 * kBlock, 0, 0, 0, 0},                  /* two edges */
    {OpKind::write, 0, 4 * kBlock, 0, 0, 0, 0},                    /* everything */
    {OpKind::write, 3 * kBlock + 512, 512, 0, 0, 0, 0},            /* the end of the disk */
    {OpKind::write_zeroes, kBlock, 2 * kBlock, 0, 0, 0, 0},        /* whole blocks */
    {OpKind::write_zeroes, 2 * kBlock, 512, FVD_REQ_FUA, 0, 0, 0}, /* a part of one */
    {OpKind::discard, 0, 2 * kBlock, 0, 0, 0, 0},
    {OpKind::flush, 0, 0, 0, 0, 0, 0},
    {OpKind::commit, 0, 0, 0, 0, 0, 0},
    {OpKind::reopen, 0, 0, 0, 1, 0, 0},
    {OpKind::cut, 0, 0, 0, 0, 0, 0},
    {OpKind::kill, 0, 0, 0, 0, 0, 0},
    {OpKind::make_empty, 0, 0, 0, 0, 0, 0},
    {OpKind::set_base, 0, 0, 0, 0, 0, 0},
};
constexpr uint64_t kChunk = 4 * kBlock;

/* The same for a compact image of two chunks, which can get a third. */
constexpr Op kCompactAlphabet[] = {
    {OpKind::write, 0, kChunk, 0, 0, 0, 0},                        /* a whole chunk */
    {OpKind::write, 512, 512, 0, 0, 0, 0},                         /* the end of a block */
    {OpKind::write, kChunk + 512, 512, FVD_REQ_FUA, 0, 0, 0},      /* in the other, durably */
    {OpKind::write, 3 * kBlock, 2 * kBlock, 0, 0, 0, 0},           /* in both */
    {OpKind::write, 2 * kChunk - 512, 1024, 0, 0, 0, 0},           /* the end of the disk */
    {OpKind::write_zeroes, 0, kChunk, FVD_REQ_MAY_UNMAP, 0, 0, 0}, /* a whole chunk */
    {OpKind::write_zeroes, kBlock, 4 * kBlock, 0, 0, 0, 0},        /* parts of both */
    {OpKind::discard, 0, kChunk, 0, 0, 0, 0},
    {OpKind::discard, kChunk - kBlock, kChunk + kBlock, 0, 0, 0, 0}, /* a chunk and a block */
    {OpKind::flush, 0, 0, 0, 0, 0, 0},
    {OpKind::reopen, 0, 0, 0, 1, 0, 0},
    {OpKind::cut, 0, 0, 0, 0, 0, 0},
    {OpKind::kill, 0, 0, 0, 0, 0, 0},
    {OpKind::make_empty, 0, 0, 0, 0, 0, 0},
    {OpKind::resize, 0, 3 * kChunk, 0, 0, 0, 0},   /* a chunk more */
    {OpKind::resize, 0, kChunk + 512, 0, 0, 0, 0}, /* or nearly one less */
};

/* And for one whose storage is a device that others make longer, with room for one chunk. */
constexpr Op kDeviceAlphabet[] = {
    {OpKind::write, 0, kChunk, 0, 0, 0, 0},                   /* a whole chunk */
    {OpKind::write, kChunk + 512, 512, FVD_REQ_FUA, 0, 0, 0}, /* a part of the other, durably */
    {OpKind::write, 3 * kBlock, 2 * kBlock, 0, 0, 0, 0},      /* in both */
    {OpKind::write_zeroes, 0, kChunk, FVD_REQ_MAY_UNMAP, 0, 0, 0},
    {OpKind::discard, 0, kChunk, 0, 0, 0, 0},
    {OpKind::flush, 0, 0, 0, 0, 0, 0},
    {OpKind::extend, 0, 0, 0, 1, 0, 0},
    {OpKind::check, 0, 0, 0, 1, 0, 0}, /* with repair */
    {OpKind::reopen, 0, 0, 0, 1, 0, 0},
    {OpKind::cut, 0, 0, 0, 0, 0, 0},
    {OpKind::kill, 0, 0, 0, 0, 0, 0},
    {OpKind::resize, 0, 3 * kChunk, 0, FVD_PREALLOC_FALLOC, 0, 0}, /* with storage, or not */
    {OpKind::resize, 0, kChunk + 512, 0, 0, 0, 0},
};

Shape small_compact_shape() {
    Shape shape;
    shape.virtual_size = 2 * kChunk;
    shape.most_size = 3 * kChunk;
    shape.base_size = 2 * kChunk - 512;
    shape.block_size = kBlock;
    shape.chunk_size = kChunk;
    shape.used_storage = true; /* what stands in a slot is never zeros by chance */
    shape.depth = 1;
    shape.explore_percent = 100;
    shape.nested_percent = 100;
    return shape;
}

Shape small_shape() {
    Shape shape;
    shape.virtual_size = 4 * kBlock;
    shape.base_size = 4 * kBlock - 512; /* the last block is cut by the end of the base */
    shape.block_size = kBlock;
    shape.depth = 1;
    shape.explore_percent = 100;
    shape.nested_percent = 100;
    return shape;
}

Shape small_device_shape() {
    Shape shape = small_compact_shape();
    shape.device_chunks = 1;
    return shape;
}

struct Alphabet {
    std::span<const Op> ops;
    Shape (*shape)();

    /* Of so many operations. */
    uint64_t histories(size_t length) const {
        return length == 0 ? 1 : ops.size() * histories(length - 1);
    }
};

constexpr Alphabet kAlphabets[] = {
    {kLinearAlphabet, small_shape},
    {kCompactAlphabet, small_compact_shape},
    {kDeviceAlphabet, small_device_shape},
};
constexpr size_t kLongest = 3;

History make(const Alphabet& alphabet, uint64_t code, size_t length) {
    History history;
    history.seed = 1; /* one image id for all: worlds that begin alike share their states */
    history.shape = alphabet.shape();
    for (size_t i = 0; i < length; i++) {
        Op op = alphabet.ops[code % alphabet.ops.size()];
        op.number = i;
        history.ops.push_back(op);
        code /= alphabet.ops.size();
    }
    return history;
}

}  // namespace

uint64_t small_world_count() {
    uint64_t count = 0;
    for (const Alphabet& alphabet : kAlphabets) {
        for (size_t length = 1; length <= kLongest; length++) {
            count += alphabet.histories(length);
        }
    }
    return count;
}

History small_world(uint64_t index) {
    for (const Alphabet& alphabet : kAlphabets) {
        for (size_t length = 1; length <= kLongest; length++) {
            const uint64_t histories = alphabet.histories(length);
            if (index < histories) {
                return make(alphabet, index, length);
            }
            index -= histories;
        }
    }
    FVD_ASSERT(false && "there are not so many small worlds");
    return {};
}

History small_world_of_four(uint64_t seed) {
    const Alphabet& alphabet = kAlphabets[seed / 2 % std::size(kAlphabets)];
    History history = make(alphabet, mix(seed, 4) % alphabet.histories(4), 4);
    history.shape.depth = seed % 2 == 0 ? 1 : 4; /* one after the other, or all at once */
    history.seed = history.shape.depth == 1 ? 1 : seed;
    return history;
}

}  // namespace fvd::sim
