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

History make(uint64_t code, size_t length) {
    History history;
    history.seed = 1; /* one image id for all: worlds that begin alike share their states */
    history.shape = small_shape();
    for (size_t i = 0; i < length; i++) {
        Op op = kAlphabet[code % kOps];
        op.number = i;
        history.ops.push_back(op);
        code /= kOps;
    }
    return history;
}

}  // namespace

uint64_t small_world_count() {
    return kOps + kOps * kOps + kOps * kOps * kOps;
}

History small_world(uint64_t index) {
    uint64_t histories = kOps;
    for (size_t length = 1;; length++) {
        if (index < histories) {
            return make(index, length);
        }
        index -= histories;
        histories *= kOps;
    }
}

History small_world_of_four(uint64_t seed) {
    History history = make(mix(seed, 4) % (kOps * kOps * kOps * kOps), 4);
    history.shape.depth = seed % 2 == 0 ? 1 : 4; /* one after the other, or all at once */
    history.seed = history.shape.depth == 1 ? 1 : seed;
    return history;
}

}  // namespace fvd::sim
