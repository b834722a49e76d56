/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What guests and managers do, as a table. A new capability is a new line here, and what it may do
 * to contents is said to the reference disk in its run function; nothing else changes.
 */
#include <algorithm>
#include <cerrno>

#include "world.h"

namespace fvd::sim {

namespace {

/* ------------------------------------------------------------------ drawing */

void draw_range(Rng& rng, const Shape& shape, Op& op) {
    const uint64_t align = shape.request_align;
    const uint64_t disk = most_size(shape);
    const uint64_t slots = disk / align;
    const uint64_t block = std::max<uint64_t>(shape.block_size, align);
    uint64_t length = align * rng.between(1, std::min<uint64_t>(slots, 8));
    if (rng.chance(30)) {
        length = block * rng.between(1, 4); /* whole blocks */
    } else if (rng.chance(5)) {
        length = disk / 2;
    }
    length = std::min(std::max(length / align, uint64_t{1}), slots) * align;
    uint64_t offset = rng.below(slots - length / align + 1) * align;
    if (rng.chance(40)) {
        offset = std::min(offset / block * block / align * align, disk - length);
    }
    op.offset = offset;
    op.length = length;
}

void draw_write(Rng& rng, const Shape& shape, Op& op) {
    draw_range(rng, shape, op);
    op.flags = rng.chance(12) ? uint32_t{FVD_REQ_FUA} : 0;
}

void draw_zeroes(Rng& rng, const Shape& shape, Op& op) {
    draw_write(rng, shape, op);
    op.flags |= rng.chance(50) ? uint32_t{FVD_REQ_MAY_UNMAP} : 0;
    op.flags |= rng.chance(20) ? uint32_t{FVD_REQ_NO_FALLBACK} : 0;
}

void draw_nothing(Rng&, const Shape&, Op&) {
}

/* Often by little, across the end of a chunk or not at all. */
void draw_resize(Rng& rng, const Shape& shape, Op& op) {
    const uint64_t align = std::max<uint64_t>(shape.request_align, 512);
    const uint64_t most = most_size(shape) / align;
    const uint64_t least = shape.virtual_size / align / 2;
    op.length = rng.between(std::min(least, most), most) * align;
    op.a = rng.chance(70) ? 0 : rng.below(4);
}

void draw_extend(Rng& rng, const Shape&, Op& op) {
    op.a = rng.between(1, 3);
}

void draw_tick(Rng& rng, const Shape&, Op& op) {
    op.a = rng.between(1, 9000);
}

void draw_reopen(Rng& rng, const Shape&, Op& op) {
    op.a = rng.below(2);
}

void draw_check(Rng& rng, const Shape&, Op& op) {
    op.a = rng.below(2);
}

void draw_fault(Rng& rng, const Shape&, Op& op) {
    constexpr uint32_t everything = 0x1FF & ~(1u << static_cast<unsigned>(CallKind::allocate));
    const auto bit = [](CallKind kind) { return 1u << static_cast<unsigned>(kind); };
    const uint32_t choices[] = {bit(CallKind::write),
                                bit(CallKind::flush),
                                bit(CallKind::read),
                                bit(CallKind::write_zeroes) | bit(CallKind::discard),
                                bit(CallKind::resize) | bit(CallKind::length),
                                everything};
    op.a = rng.pick(choices);
    op.b = rng.chance(25) ? 1 : 0;             /* for ever */
    op.offset = rng.chance(30) ? ENOSPC : EIO; /* errno */
    op.length = rng.below(6);                  /* skip */
    const uint32_t files[] = {7, 1, 2, 4, 3};
    op.flags = rng.pick(files);
}

void draw_set_fill(Rng& rng, const Shape&, Op& op) {
    op.a = rng.below(4) | (rng.chance(20) ? 4 : 0);
    op.b = rng.next();
}

void draw_pause_prefetch(Rng& rng, const Shape&, Op& op) {
    op.a = rng.below(2);
}

void draw_quiesce(Rng& rng, const Shape&, Op& op) {
    op.a = rng.between(1, 40);
}

/* ------------------------------------------------------------------ running */

/** The part of a request that lies on the disk, while it is in flight. */
class Request {
  public:
    Request(World& world, const Op& whole) : op(world.begin_request(whole)), world_(world) {}
    ~Request() {
        if (op.length != 0) {
            world_.end_request(op);
        }
    }
    Request(const Request&) = delete;
    Request& operator=(const Request&) = delete;
    const Op op;

  private:
    World& world_;
};

Value value_of(const Op& op) {
    return static_cast<Value>(op.number + 1);
}

void fill(const World& world, const Op& op, Value value, GuestMemory& memory) {
    const uint32_t cell = world.shape().cell_size;
    memory.bytes.resize(op.length);
    for (uint64_t at = 0; at < op.length; at += cell) {
        stamp::fill(&memory.bytes[at], cell, value, (op.offset + at) / cell);
    }
}

void end_write(World& world, const Op& op, uint64_t ticket, Status status) {
    using Result = ReferenceDisk::Result;
    const bool durable = (op.flags & FVD_REQ_FUA) != 0;
    const Result result = !status.ok() || !world.powered() ? Result::uncertain
                          : durable                        ? Result::done_durably
                                                           : Result::done;
    world.reference().write_ends(ticket, op.offset, op.length, result);
    world.judge_status(op, status);
    if (result == Result::done_durably) {
        world.look_soon();
    }
}

/* As QEMU does: what is here passes without the core. */
Status pass_or(World& world, const Op& op, bool write, GuestMemory& memory) {
    uint64_t at = 0;
    if ((op.flags & FVD_REQ_FUA) == 0 && world.image().is_here(op.offset, op.length, &at)) {
        const Slice slice = guest_slice(&memory, 0, op.length);
        return write ? world.host().write(FVD_FILE_DATA, at, {&slice, 1}, 0)
                     : world.host().read(FVD_FILE_DATA, at, {&slice, 1}, 0);
    }
    return write ? world.image().write(op.offset, op.length, {&memory, 0}, op.flags)
                 : world.image().read(op.offset, op.length, {&memory, 0}, op.flags);
}

void run_write(World& world, const Op& whole) {
    const Request request(world, whole);
    const Op& op = request.op;
    if (op.length == 0) {
        return;
    }
    GuestMemory memory;
    fill(world, op, value_of(op), memory);
    const uint64_t ticket = world.reference().write_begins(op.offset, op.length, value_of(op));
    const Status status = pass_or(world, op, true, memory);
    end_write(world, op, ticket, status);
}

void run_read(World& world, const Op& whole) {
    const Request request(world, whole);
    const Op& op = request.op;
    if (op.length == 0) {
        return;
    }
    GuestMemory memory;
    memory.bytes.assign(op.length, std::byte{0xEE});
    world.reference().read_begins();
    const uint64_t begun = world.reference().now();
    const Status status = pass_or(world, op, false, memory);
    if (status.ok() && world.powered()) {
        world.judge_read(memory, op.offset, begun);
    }
    world.reference().read_ends();
    world.judge_status(op, status);
}

/* As QEMU does: where zeros cannot be written cheaply, a buffer of zeros is. */
void run_zeroes(World& world, const Op& whole) {
    const Request request(world, whole);
    const Op& op = request.op;
    if (op.length == 0) {
        return;
    }
    const uint64_t ticket = world.reference().write_begins(op.offset, op.length, kZero);
    Status status = world.image().write_zeroes(op.offset, op.length, op.flags);
    if (status.value() == -ENOTSUP) {
        GuestMemory memory;
        memory.bytes.assign(op.length, std::byte{0});
        status = world.image().write(op.offset, op.length, {&memory, 0}, op.flags & FVD_REQ_FUA);
    }
    end_write(world, op, ticket, status);
}

/* Only advice: afterwards there are zeros, or what was there. */
void run_discard(World& world, const Op& whole) {
    const Request request(world, whole);
    const Op& op = request.op;
    if (op.length == 0) {
        return;
    }
    const uint64_t ticket = world.reference().write_begins(op.offset, op.length, kZero);
    const Status status = world.image().discard(op.offset, op.length);
    world.reference().write_ends(ticket, op.offset, op.length, ReferenceDisk::Result::uncertain);
    world.judge_status(op, status);
}

void run_flush(World& world, const Op& op) {
    const uint64_t moment = world.reference().now();
    const uint64_t failures = world.flush_failures();
    const Status status = world.image().flush();
    if (status.ok() && world.powered()) {
        world.flushed(moment, failures);
    }
    world.judge_status(op, status);
}

void run_commit(World& world, const Op& op) {
    world.judge_status(op, world.image().commit());
}

void run_tick(World& world, const Op& op) {
    world.advance_clock(op.a);
    world.finished(op, "ok");
}

void run_reopen(World& world, const Op& op) {
    world.close_and_open(op.a != 0, false);
    world.finished(op, "ok");
}

void run_read_only(World& world, const Op& op) {
    world.close_and_open(true, true);
    world.finished(op, "ok");
}

void run_make_empty(World& world, const Op& op) {
    world.commit_to_base();
    world.finished(op, "ok");
}

void run_set_base(World& world, const Op& op) {
    if (world.shape().has_base) {
        const std::string name = "base-" + std::to_string(op.number) + ".img";
        const Error error = world.image().set_base(name.c_str(), "raw");
        world.judge_status(op, error.code);
    }
}

void run_check(World& world, const Op& op) {
    world.check_image_file(op.a != 0);
    world.finished(op, "ok");
}

/* Everything before it has ended when it runs. */
void run_pause(World& world, const Op& op) {
    world.finished(op, "ok");
}

void run_fault(World& world, const Op& op) {
    FaultRule rule;
    rule.calls = static_cast<uint32_t>(op.a);
    rule.files = op.flags;
    rule.skip = op.length;
    rule.error = static_cast<int>(op.offset);
    rule.forever = op.b != 0;
    world.host().add_fault(rule);
    world.finished(op, "ok");
}

void run_no_memory(World& world, const Op& op) {
    FaultRule rule;
    rule.calls = 1u << static_cast<unsigned>(CallKind::allocate);
    rule.error = ENOMEM;
    world.host().add_fault(rule);
    world.finished(op, "ok");
}

void run_resize(World& world, const Op& op) {
    world.resize(op);
}

void run_extend(World& world, const Op& op) {
    if (world.shape().device_chunks != 0) {
        world.extend(op.a);
    }
    world.finished(op, "ok");
}

/* a: 1 copy-on-read, 2 prefetch, 4 both also into the header; b: limits. */
void run_set_fill(World& world, const Op& op) {
    fvd_fill fill = empty_fill();
    fill.copy_on_read = (op.a & 1) != 0 ? FVD_ON : FVD_OFF;
    fill.prefetch = (op.a & 2) != 0 ? FVD_ON : FVD_OFF;
    if ((op.a & 4) != 0) {
        world.judge_status(op, world.image().amend(fill).code);
        return;
    }
    constexpr int64_t memory[] = {0, 512, 8192, 65536};
    constexpr int64_t speeds[] = {0, 0, 64, 1000000};
    fill.max_outstanding_copy_on_read_data = memory[op.b % 4];
    fill.prefetch_max_write_throughput = speeds[op.b / 4 % 4];
    fill.prefetch_max_read_throughput = speeds[op.b / 16 % 4];
    fill.num_prefetch_slots = static_cast<int64_t>(op.b / 64 % 4);
    fill.bytes_per_prefetch = op.b / 256 % 2 == 0 ? 0 : 4096;
    world.judge_status(op, world.image().set_fill(fill).code);
}

void run_pause_prefetch(World& world, const Op& op) {
    world.image().pause_prefetch(op.a != 0);
    world.finished(op, "ok");
}

void run_quiesce(World& world, const Op& op) {
    world.quiesce_for(op.a);
    world.finished(op, "ok");
}

void run_fill_up(World& world, const Op& op) {
    world.fill_up(op.a != 0);
    world.finished(op, "ok");
}

/* In the order of OpKind. A cut of the power and a kill of the process are no requests: the
 * scheduler does them. */
constexpr Operation kOperations[] = {
    {"write", false, 40, draw_write, run_write},
    {"read", false, 15, draw_range, run_read},
    {"zeroes", false, 8, draw_zeroes, run_zeroes},
    {"discard", false, 5, draw_range, run_discard},
    {"flush", false, 12, draw_nothing, run_flush},
    {"commit", false, 3, draw_nothing, run_commit},
    {"tick", false, 4, draw_tick, run_tick},
    {"reopen", true, 2, draw_reopen, run_reopen},
    {"read_only", true, 1, draw_nothing, run_read_only},
    {"cut", false, 1, draw_nothing, nullptr},
    {"kill", false, 1, draw_nothing, nullptr},
    {"make_empty", true, 1, draw_nothing, run_make_empty},
    {"set_base", false, 1, draw_nothing, run_set_base},
    {"check", true, 1, draw_check, run_check},
    {"pause", true, 1, draw_nothing, run_pause},
    {"fault", false, 1, draw_fault, run_fault},
    {"no_memory", false, 1, draw_nothing, run_no_memory},
    {"resize", false, 2, draw_resize, run_resize},
    {"extend", false, 3, draw_extend, run_extend},
    {"set_fill", false, 2, draw_set_fill, run_set_fill},
    {"pause_prefetch", false, 1, draw_pause_prefetch, run_pause_prefetch},
    {"quiesce", false, 1, draw_quiesce, run_quiesce},
    {"fill_up", true, 1, draw_pause_prefetch, run_fill_up},
};
static_assert(std::size(kOperations) == static_cast<size_t>(OpKind::count));

}  // namespace

const Operation& operation(OpKind kind) {
    return kOperations[static_cast<size_t>(kind)];
}

}  // namespace fvd::sim
