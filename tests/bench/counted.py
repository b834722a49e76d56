# SPDX-License-Identifier: GPL-2.0-or-later
"""What formats do to their files: counts and bytes, which do not depend on how busy the machine is."""

import calls
import contenders
import loads
from contenders import GIB, KIB, MIB, RAW, SCRATCH, TIB
from report import Table, size

STRIDE = 2 * MIB
CLEAN_MARK = 2 * 4 * KIB  # the header and its copy


def columns(plan):
    return ["", *(contender.name for contender in plan.all)]


def whole(path):
    """One file of each name, fresh for each count."""
    return SCRATCH / path


# ------------------------------------------------------------------ first writes

def first_write(plan):
    count = 50 if plan.quick else 200
    base = contenders.make_base(whole("base"), 2 * count * STRIDE, STRIDE, 128 * KIB)

    def counted(contender, writes):
        image = contenders.create(contender, whole("image"), 2 * count * STRIDE, base)
        counts = calls.count(loads.bench(contender, image, writes, write=True, step=STRIDE, flush=1))
        contenders.remove(contender, image)
        return counts

    table = Table(
        "4 KiB write to a fresh block over a base, then flush",
        f"`qemu-img bench -w -s 4096 -S 2M -d 1 --flush-interval=1` over a raw base with data, host calls by "
        f"strace. *steady*: the difference of runs of {2 * count} and {count} writes, for one write; "
        f"*process*: all of the shorter run, open and close included.", columns(plan))
    short = {c.name: counted(c, count) for c in plan.all}
    long = {c.name: counted(c, 2 * count) for c in plan.all}
    steady = {name: long[name].minus(short[name]).per(count) for name in short}
    add_counts(table, plan, "steady", steady)
    add_counts(table, plan, "process", short)
    for contender in plan.fvd:
        counts = steady[contender.name]
        table.at_most(f"{contender.name}: host writes for one write", counts.writes, 2, "{:.1f}")
        table.at_most(f"{contender.name}: syncs for one write", counts.syncs, 2, "{:.1f}")
        table.at_most(f"{contender.name}: KiB written for one write", counts.written / KIB, 20, "{:.1f}")
    base.unlink()
    return [table.end()]


def add_counts(table, plan, label, counts):
    def row(what, show):
        table.add(f"{label}: {what}", [show(counts[c.name]) for c in plan.all])
    number = "{:.2f}" if label == "steady" else "{:.0f}"
    row("reads", lambda c: number.format(c.reads))
    row("bytes read", lambda c: size(c.read_bytes))
    row("writes", lambda c: number.format(c.writes))
    row("bytes written", lambda c: size(c.written))
    row("syncs", lambda c: number.format(c.syncs))
    row("fallocate", lambda c: number.format(c.zeroes))


def random_first_writes(plan):
    writes, interval, disk = 512, 16, 256 * MIB
    base = contenders.make_base(whole("base"), disk)
    script = loads.random_writes(1, writes, interval, disk)

    def counted(contender):
        image = contenders.create(contender, whole("image"), disk, base)
        counts = calls.count(loads.qemu_io(contender, image), script)
        contenders.remove(contender, image)
        return counts

    table = Table(
        "512 random 4 KiB first writes over a base, flush after each 16",
        "qemu-io, 16 `aio_write` in flight, then `flush`; all of the process: open, 32 flushes, close.",
        columns(plan))
    counts = {c.name: counted(c) for c in plan.all}
    flushes = writes // interval
    table.add("bytes written / guest's", [f"{counts[c.name].written / (writes * 4 * KIB):.2f}" for c in plan.all])
    table.add("host writes", [counts[c.name].writes for c in plan.all])
    table.add("host reads", [counts[c.name].reads for c in plan.all])
    table.add("syncs a flush", [f"{counts[c.name].syncs / flushes:.2f}" for c in plan.all])
    for contender in plan.fvd:
        mine = counts[contender.name]
        table.at_most(f"{contender.name}: bytes written / guest's", mine.written / (writes * 4 * KIB), 1.15)
        # Its session begins and ends with header updates, which raw formats do not have.
        opening = syncs_of_session(contender, base, disk)
        table.at_most(f"{contender.name}: syncs a flush, without the {opening} of open and close",
                      (mine.syncs - opening) / flushes, 2)
    base.unlink()
    return [table.end()]


def syncs_of_session(contender, base, disk):
    """Syncs of open, one write, one flush and close, without the flush's own two."""
    image = contenders.create(contender, whole("image"), disk, base)
    counts = calls.count(loads.qemu_io(contender, image), loads.random_writes(1, 1, 1, disk))
    contenders.remove(contender, image)
    return counts.syncs - 2


# ------------------------------------------------------------------ idle

def idle(plan):
    table = Table("Open for writing, and close",
                  "`qemu-io` opens an image with a sparse base of the same size and quits.", columns(plan))
    found = {}
    for disk, label in ((GIB, "1 GiB"), (TIB, "1 TiB")):
        base = contenders.make_base(whole("base"), disk, disk, 64 * KIB)
        for contender in plan.all:
            image = contenders.create(contender, whole("image"), disk, base)
            found[contender.name, disk] = calls.count(loads.qemu_io(contender, image), "quit\n")
            contenders.remove(contender, image)
        counts = [found[c.name, disk] for c in plan.all]
        table.add(f"{label}: writes", [c.writes for c in counts])
        table.add(f"{label}: bytes written", [c.written for c in counts])
        table.add(f"{label}: syncs", [c.syncs for c in counts])
        table.add(f"{label}: bytes read", [size(c.read_bytes) for c in counts])
        base.unlink()
    for contender in plan.fvd:
        small, large = found[contender.name, GIB], found[contender.name, TIB]
        table.at_most(f"{contender.name}: bytes written, 1 TiB", large.written, CLEAN_MARK, "{:.0f}")
        table.equal(f"{contender.name}: bytes written, 1 TiB as 1 GiB", large.written, small.written)
        table.equal(f"{contender.name}: writes, 1 TiB as 1 GiB", large.writes, small.writes)
    return [table.end()]


# ------------------------------------------------------------------ what raw does

def same_as_raw(plan):
    """Data that is here: what one I/O of the guest costs at the host, by the difference of two runs."""
    count, disk = 500 if plan.quick else 2000, 64 * MIB
    cases = [(f"{'overwrite' if write else 'read'}, {depth} in flight{flush and ', flush each 32' or ''}",
              dict(write=write, depth=depth, flush=flush))
             for write in (False, True) for depth in (1, 16) for flush in ((0, 32) if write else (0,))]
    table = Table(
        "Reads and overwrites of data that is here: host calls",
        f"`qemu-img bench`, 4 KiB; the difference of runs of {2 * count} and {count} requests: "
        "reads / writes / syncs, bytes. FVD and the others over a base that has been written over.",
        columns(plan))
    base = contenders.make_base(whole("base"), disk)
    found = {contender.name: steady_counts(contender, base, disk, cases, count) for contender in plan.all}
    base.unlink()
    for label, _ in cases:
        table.add(label, [f"{c.reads}/{c.writes}/{c.syncs} {size(c.read_bytes + c.written)}"
                          for c in (found[contender.name][label] for contender in plan.all)])
    for contender in plan.fvd:
        same = sum(found[contender.name][label] == found[RAW.name][label] for label, _ in cases)
        table.equal(f"{contender.name}: cases with raw's calls and bytes", f"{same} of {len(cases)}",
                    f"{len(cases)} of {len(cases)}")
    return [table.end()]


def steady_counts(contender, base, disk, cases, count):
    image = contenders.create(contender, whole("image"), disk, base)
    loads.fill(contender, image, disk)
    counts = {}
    for label, how in cases:
        short, long = (calls.count(loads.bench(contender, image, n, **how)) for n in (count, 2 * count))
        counts[label] = long.minus(short)
    contenders.remove(contender, image)
    return counts
