/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "small_worlds.h"

#include <iterator>

#include "world.h"

namespace fvd::sim {

namespace {

constexpr uint64_t kBlock = 1024;

/* Kind, offset, length, flags, a. */
constexpr Op kAlphabet[] = {
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
constexpr uint64_t kOps = std::size(kAlphabet);

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
static_assert(std::size(kCompactAlphabet) == kOps);
/* Histories of up to three operations of one alphabet. */
constexpr uint64_t kOneAlphabet = kOps + kOps * kOps + kOps * kOps * kOps;

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

History make(uint64_t code, size_t length, bool compact) {
    History history;
    history.seed = 1; /* one image id for all: worlds that begin alike share their states */
    history.shape = compact ? small_compact_shape() : small_shape();
    for (size_t i = 0; i < length; i++) {
        Op op = compact ? kCompactAlphabet[code % kOps] : kAlphabet[code % kOps];
        op.number = i;
        history.ops.push_back(op);
        code /= kOps;
    }
    return history;
}

}  // namespace

uint64_t small_world_count() {
    return 2 * kOneAlphabet;
}

History small_world(uint64_t index) {
    const bool compact = index >= kOneAlphabet;
    index -= compact ? kOneAlphabet : 0;
    uint64_t histories = kOps;
    for (size_t length = 1;; length++) {
        if (index < histories) {
            return make(index, length, compact);
        }
        index -= histories;
        histories *= kOps;
    }
}

History small_world_of_four(uint64_t seed) {
    History history = make(mix(seed, 4) % (kOps * kOps * kOps * kOps), 4, seed % 4 >= 2);
    history.shape.depth = seed % 2 == 0 ? 1 : 4; /* one after the other, or all at once */
    history.seed = history.shape.depth == 1 ? 1 : seed;
    return history;
}

}  // namespace fvd::sim
