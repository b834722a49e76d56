/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once
/*
 * A history: the shape of a world and what happens in it, as data. The same history and schedule
 * seed replay exactly; a shorter history is the same with operations left out. Histories are kept
 * in files of one line an operation.
 */

#include <cstdint>
#include <string>
#include <vector>

namespace fvd::sim {

enum class OpKind : uint8_t {
    write,
    read,
    write_zeroes,
    discard,
    flush,
    commit,
    tick,
    reopen,
    read_only,
    cut,
    kill,
    make_empty,
    set_base,
    check,
    pause,
    fault,
    no_memory,
    resize,
    extend,
    set_fill,
    pause_prefetch,
    quiesce,
    fill_up,
    count,
};

struct Op {
    OpKind kind = OpKind::flush;
    uint64_t offset = 0;
    uint64_t length = 0;
    uint32_t flags = 0; /* fvd_request_flags */
    uint64_t a = 0;     /* per kind; see operations.cc */
    uint64_t b = 0;
    uint64_t number = 0; /* place in the whole history; stays when others are left out */
};

struct Shape {
    uint64_t virtual_size = 65536;
    uint64_t most_size = 0; /* the disk may grow to this; 0: it keeps its size */
    bool has_base = true;
    uint64_t base_size = 65536;
    uint64_t block_size = 4096;
    uint32_t journal_unit = 512;
    uint64_t journal_units = 64;
    uint32_t device_unit = 512;
    uint32_t cell_size = 512;
    uint32_t request_align = 512;
    bool separate_data = false;
    bool presets = false;       /* the base has holes, found at create */
    bool host_discards = true;  /* discard makes zeros, else nothing */
    bool host_zeroes = true;    /* write_zeroes works without writing buffers */
    uint64_t chunk_size = 0;    /* 0: a linear image */
    uint64_t grow_chunks = 1;   /* storage grows by so many */
    bool used_storage = false;  /* storage is a device: full of old bytes, and of its full size */
    uint64_t device_chunks = 0; /* or of this, and longer only when somebody extends it */
    uint32_t slow_reads = 0;    /* percent of reads that nearly everything overtakes */
    uint32_t fill = 0;          /* the header asks for 1: copy-on-read, 2: prefetch */
    uint32_t lock_waits = 0;    /* percent: others run before a task gets the mutex */
    uint32_t depth = 1;         /* requests in flight */
    uint32_t explore_percent = 100; /* of moments at which the pending writes changed */
    uint32_t budget = 40;
    uint32_t nested_percent = 25;
};

struct History {
    uint64_t seed = 0; /* of schedule, devices and contents */
    Shape shape;
    std::vector<Op> ops;

    std::string to_text() const;
    /** False when a line is not understood; @p error says which. */
    static bool parse(const std::string& text, History* history, std::string* error);
};

/** The largest disk that there can be. */
inline uint64_t most_size(const Shape& shape) {
    return shape.most_size > shape.virtual_size ? shape.most_size : shape.virtual_size;
}

std::string op_text(const Op& op);

/** A random history of this seed. */
History random_history(uint64_t seed);

}  // namespace fvd::sim
