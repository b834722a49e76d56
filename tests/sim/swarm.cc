/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Random histories. Each seed leaves some operations out and favours others (swarm testing): a
 * history of every kind at once reaches the deep corners of none.
 */
#include <algorithm>
#include <cerrno>

#include "world.h"

namespace fvd::sim {

namespace {

constexpr uint64_t kSector = 512;

void draw_devices(Rng& rng, Shape& shape) {
    const bool large_unit = rng.chance(25);
    shape.device_unit = large_unit ? 4096 : 512;
    shape.journal_unit = large_unit || rng.chance(20) ? 4096 : 512;
    shape.request_align = large_unit ? 4096 : 512;
    shape.separate_data = rng.chance(30);
    shape.host_discards = rng.chance(70);
    shape.host_zeroes = rng.chance(70);
    if (!large_unit && rng.chance(20)) {
        shape.cell_size = shape.request_align = 64;
    }
}

/* A compact image: chunks are whole blocks, and not small. */
void draw_chunks(Rng& rng, Shape& shape) {
    const uint64_t block = shape.has_base ? shape.block_size : kSector;
    const uint64_t least = std::max<uint64_t>(4096, shape.request_align);
    const uint64_t wanted = least * rng.between(1, 4);
    shape.chunk_size = (wanted + block - 1) / block * block;
    while (shape.chunk_size % shape.request_align != 0) {
        shape.chunk_size += block;
    }
    shape.grow_chunks = rng.between(1, 4);
    shape.used_storage = rng.chance(50);
    shape.device_chunks = shape.used_storage && rng.chance(40) ? rng.between(1, 6) : 0;
}

void draw_sizes(Rng& rng, Shape& shape) {
    const uint64_t align = std::max<uint64_t>(shape.request_align, kSector);
    const uint64_t sizes[] = {16384, 32768, 32768, 65536, 65536, 131072};
    shape.virtual_size = rng.pick(sizes);
    if (rng.chance(30)) {
        shape.virtual_size -= align * rng.below(std::min<uint64_t>(
                                          8, shape.virtual_size / align)); /* odd, but legal */
    }
    const uint64_t blocks[] = {512, 1024, 1536, 2048, 4096, 4096, 7680, 8192, 15872, 16384};
    shape.block_size = rng.pick(blocks);
    shape.has_base = rng.chance(92);
    shape.presets = rng.chance(30);
    shape.base_size = shape.virtual_size;
    const uint64_t kind = rng.below(100);
    if (kind < 20) {
        shape.base_size = kSector * rng.between(1, shape.virtual_size / kSector);
    } else if (kind < 35) {
        shape.base_size += kSector * rng.between(1, 64);
    }
    shape.base_size = shape.has_base ? shape.base_size : 0;
    if (rng.chance(40)) {
        draw_chunks(rng, shape);
    }
    if (rng.chance(30)) {
        shape.most_size =
            shape.virtual_size +
            align * rng.between(1, std::max<uint64_t>(shape.virtual_size / align / 2, 1));
    }
    shape.fill = rng.chance(40) ? static_cast<uint32_t>(rng.below(4)) : 0;
}

void draw_effort(Rng& rng, Shape& shape, size_t ops) {
    const uint32_t depths[] = {1, 1, 2, 4, 8, 16, 64};
    shape.depth = rng.pick(depths);
    shape.lock_waits = rng.chance(25) ? 10 : 0;
    /* So that a seed costs about the same however long its history is. */
    shape.explore_percent = ops < 40 ? 40 : ops < 120 ? 10 : 4;
    shape.budget = 16;
    shape.nested_percent = 15;
}

struct Weights {
    uint64_t of[static_cast<size_t>(OpKind::count)] = {};
    uint64_t total = 0;

    OpKind draw(Rng& rng) const {
        uint64_t left = rng.below(total);
        size_t kind = 0;
        while (left >= of[kind]) {
            left -= of[kind++];
        }
        return static_cast<OpKind>(kind);
    }
};

Weights draw_weights(Rng& rng, bool faults) {
    Weights weights;
    constexpr uint64_t factors[] = {0, 1, 4, 4, 4, 12};
    for (size_t k = 0; k < std::size(weights.of); k++) {
        const auto kind = static_cast<OpKind>(k);
        const bool is_fault = kind == OpKind::fault || kind == OpKind::no_memory;
        weights.of[k] = operation(kind).weight * rng.pick(factors);
        if (is_fault && !faults) {
            weights.of[k] = 0;
        }
    }
    weights.of[0] = std::max<uint64_t>(weights.of[0], 40); /* a world nobody writes to is dull */
    for (const uint64_t weight : weights.of) {
        weights.total += weight;
    }
    return weights;
}

/* Many flushes, each with a new block: the ring goes round and its tail moves. */
void make_ring_history(Rng& rng, History& history) {
    Shape& shape = history.shape;
    shape = {};
    shape.virtual_size = shape.base_size = 131072;
    shape.block_size = 512;
    shape.depth = rng.chance(50) ? 1 : 4;
    shape.explore_percent = 3;
    shape.budget = 12;
    shape.nested_percent = 10;
    shape.separate_data = rng.chance(30);
    shape.journal_unit = rng.chance(25) ? 4096 : 512;
    std::vector<uint64_t> order(shape.virtual_size / 512);
    for (size_t i = 0; i < order.size(); i++) {
        std::swap(order[i] = i, order[rng.below(i + 1)]);
    }
    const size_t flushes = rng.between(90, 220);
    size_t burst = 0; /* so many writes without a flush: a group of several units */
    for (size_t i = 0; i < flushes; i++) {
        Op op;
        op.kind = OpKind::write;
        op.offset = order[i] * 512;
        op.length = 512;
        history.ops.push_back(op);
        burst = burst != 0 ? burst - 1 : rng.chance(4) ? rng.between(30, 70) : 0;
        if (burst != 0) {
            continue;
        }
        op = {};
        op.kind = rng.chance(3) ? OpKind::fault : OpKind::flush;
        if (op.kind == OpKind::fault) {
            operation(op.kind).draw(rng, shape, op);
            op.a = 1u << static_cast<unsigned>(rng.chance(80) ? CallKind::write : CallKind::flush);
            op.b = 0;
        }
        history.ops.push_back(op);
        if (rng.below(200) == 0) {
            op = {};
            op.kind = rng.chance(50) ? OpKind::cut : OpKind::reopen;
            history.ops.push_back(op);
        }
    }
}

void add_op(History& history, OpKind kind, uint64_t offset, uint64_t length) {
    Op op;
    op.kind = kind;
    op.offset = offset;
    op.length = length;
    history.ops.push_back(op);
}

/* Scattered blocks between flushes: groups of several units, torn in every way; and the image
 * emptied, so that the ring holds records of blocks that are not here any more. */
void make_burst_history(Rng& rng, History& history) {
    Shape& shape = history.shape;
    shape = {};
    shape.virtual_size = shape.base_size = 65536;
    shape.block_size = 512;
    shape.depth = rng.chance(50) ? 1 : 8;
    shape.explore_percent = 25;
    shape.budget = 12;
    shape.nested_percent = 10;
    shape.separate_data = rng.chance(30);
    shape.journal_unit = rng.chance(50) ? 4096 : 512;
    const auto add = [&](OpKind kind, uint64_t offset, uint64_t length) {
        add_op(history, kind, offset, length);
    };
    const uint64_t rounds = rng.between(2, 4);
    for (uint64_t round = 0; round < rounds; round++) {
        const uint64_t share = rng.between(20, 60);
        for (uint64_t block = round % 2; block < 128; block += 2) {
            if (rng.chance(share)) {
                add(OpKind::write, block * 512, 512);
            }
        }
        add(OpKind::flush, 0, 0);
        const OpKind between[] = {OpKind::make_empty, OpKind::make_empty, OpKind::cut, OpKind::kill,
                                  OpKind::reopen};
        if (rng.chance(70)) {
            add(rng.pick(between), 0, 0);
        }
    }
}

/* Chunks come and go while others read them: slots pass from hand to hand. */
void make_reuse_history(Rng& rng, History& history) {
    constexpr uint64_t kChunk = 4096;
    Shape& shape = history.shape;
    shape = {};
    shape.virtual_size = kChunk * rng.between(3, 8);
    shape.has_base = rng.chance(50);
    shape.base_size = shape.has_base ? shape.virtual_size : 0;
    shape.block_size = kChunk;
    shape.chunk_size = kChunk;
    shape.used_storage = rng.chance(70);
    shape.device_chunks = shape.used_storage && rng.chance(50) ? rng.between(2, 4) : 0;
    shape.separate_data = rng.chance(30);
    shape.slow_reads = 30;
    shape.depth = rng.chance(50) ? 4 : 8;
    shape.explore_percent = 2;
    shape.budget = 8;
    shape.nested_percent = 5;
    const uint64_t chunks = shape.virtual_size / kChunk;
    const size_t count = rng.between(60, 200);
    for (size_t i = 0; i < count; i++) {
        constexpr OpKind kinds[] = {OpKind::read,  OpKind::read,    OpKind::read,    OpKind::write,
                                    OpKind::write, OpKind::discard, OpKind::discard, OpKind::flush};
        const OpKind kind = rng.below(40) == 0 ? OpKind::tick : rng.pick(kinds);
        const uint64_t first = rng.below(chunks);
        const uint64_t some = rng.between(1, std::min<uint64_t>(chunks - first, 2));
        add_op(history, kind, first * kChunk, kind == OpKind::flush ? 0 : some * kChunk);
    }
}

/* A disk whose table has no room for another chunk: it grows, and the table moves. Such a disk is
 * large, so there are few of these. */
void make_table_history(Rng& rng, History& history) {
    constexpr uint64_t kChunk = 4096;
    constexpr uint64_t kRoom = 1024;
    Shape& shape = history.shape;
    shape = {};
    shape.virtual_size = kRoom * kChunk;
    shape.most_size = shape.virtual_size + 24 * kChunk;
    shape.has_base = rng.chance(50);
    shape.base_size = shape.has_base ? 8 * kChunk : 0;
    shape.block_size = kChunk;
    shape.chunk_size = kChunk;
    shape.cell_size = shape.request_align = kChunk;
    shape.device_unit = shape.journal_unit = 4096; /* a cell is not torn */
    shape.separate_data = rng.chance(25);
    shape.depth = rng.chance(50) ? 1 : 8;
    shape.explore_percent = 15;
    shape.budget = 6;
    shape.nested_percent = 5;
    if (rng.chance(60)) { /* no room in front of the data */
        shape.journal_units = shape.has_base ? 252 : 253;
    }
    const auto touch = [&](OpKind kind) {
        const uint64_t ends[] = {0, kRoom - 8, kRoom};
        add_op(history, kind, (rng.pick(ends) + rng.below(8)) * kChunk, kChunk * rng.between(1, 3));
    };
    const size_t count = rng.between(4, 20);
    for (size_t i = 0; i < count; i++) {
        touch(rng.chance(75) ? OpKind::write : OpKind::discard);
        const uint64_t dice = rng.below(10);
        if (dice < 3) {
            add_op(history, OpKind::flush, 0, 0);
        } else if (dice < 6) {
            add_op(history, OpKind::resize, 0, shape.virtual_size + rng.between(1, 24) * kChunk);
        } else if (dice == 6) {
            const OpKind ends[] = {OpKind::cut, OpKind::kill, OpKind::reopen};
            add_op(history, rng.pick(ends), 0, 0);
        }
    }
}

/* Filling from the start, beside a guest that reads and writes the same blocks; to the end, and
 * sometimes over again. */
void make_fill_history(Rng& rng, History& history) {
    Shape& shape = history.shape;
    draw_devices(rng, shape);
    draw_sizes(rng, shape);
    if (!shape.has_base) {
        shape.has_base = true;
        shape.base_size = shape.virtual_size;
        shape.chunk_size = 0; /* it may not fit the blocks */
    }
    draw_effort(rng, shape, 40);
    constexpr uint32_t depths[] = {2, 4, 8, 16};
    shape.depth = rng.pick(depths);
    shape.lock_waits = rng.chance(50) ? 25 : 0;
    shape.fill = static_cast<uint32_t>(rng.between(1, 3));
    constexpr OpKind guest[] = {OpKind::read,  OpKind::read,  OpKind::read,        OpKind::write,
                                OpKind::write, OpKind::flush, OpKind::write_zeroes};
    constexpr OpKind other[] = {OpKind::set_fill, OpKind::pause_prefetch, OpKind::quiesce,
                                OpKind::tick,     OpKind::reopen,         OpKind::cut,
                                OpKind::kill,     OpKind::fault,          OpKind::no_memory,
                                OpKind::commit,   OpKind::discard,        OpKind::check};
    Op hot;
    const auto add = [&](OpKind kind) {
        Op op;
        op.kind = kind;
        if (kind != OpKind::cut && kind != OpKind::kill) {
            operation(kind).draw(rng, shape, op);
        }
        /* Often where somebody else is at work. */
        if (op.length != 0 && kind != OpKind::fault && hot.length != 0 && rng.chance(40)) {
            op.offset = hot.offset;
            op.length = hot.length;
        }
        if (kind == OpKind::read) {
            hot = op;
        }
        history.ops.push_back(op);
    };
    /* The next reads of the base fail, or one of them. */
    const auto add_base_fault = [&] {
        Op op;
        op.kind = OpKind::fault;
        op.a = 1u << static_cast<unsigned>(CallKind::read);
        op.flags = 1u << FVD_FILE_BASE;
        op.offset = EIO;
        op.b = rng.chance(20) ? 1 : 0;
        op.length = rng.below(3);
        history.ops.push_back(op);
    };
    const uint64_t base_faults = rng.chance(40) ? 8 : 0;
    const uint64_t rounds = rng.between(1, 3);
    for (uint64_t round = 0; round < rounds; round++) {
        const uint64_t count = rng.between(4, 30);
        const uint64_t odd = rng.below(25);
        if (base_faults != 0) {
            add_base_fault();
        }
        for (uint64_t i = 0; i < count; i++) {
            if (rng.chance(base_faults)) {
                add_base_fault();
            }
            add(rng.chance(odd) ? rng.pick(other) : rng.pick(guest));
        }
        if (rng.chance(70)) {
            add(OpKind::fill_up);
        }
        constexpr OpKind end[] = {OpKind::make_empty, OpKind::cut, OpKind::reopen, OpKind::kill};
        add(rng.pick(end));
    }
}

}  // namespace

History random_history(uint64_t seed) {
    Rng rng(mix(seed, 0x5EED));
    History history;
    history.seed = seed;
    if (seed % 8 == 3) {
        make_ring_history(rng, history);
    } else if (seed % 8 == 6) {
        make_burst_history(rng, history);
    } else if (seed % 16 == 5) {
        make_reuse_history(rng, history);
    } else if (seed % 128 == 12) {
        make_table_history(rng, history);
    } else if (seed % 8 == 1) {
        make_fill_history(rng, history);
    } else {
        draw_devices(rng, history.shape);
        draw_sizes(rng, history.shape);
        const size_t lengths[] = {8, 20, 40, 80, 150, 300};
        const size_t count = rng.between(4, rng.pick(lengths));
        draw_effort(rng, history.shape, count);
        const Weights weights = draw_weights(rng, rng.chance(40));
        for (size_t i = 0; i < count; i++) {
            Op op;
            op.kind = weights.draw(rng);
            operation(op.kind).draw(rng, history.shape, op);
            history.ops.push_back(op);
        }
    }
    for (size_t i = 0; i < history.ops.size(); i++) {
        history.ops[i].number = i;
    }
    return history;
}

}  // namespace fvd::sim
