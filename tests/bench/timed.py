# SPDX-License-Identifier: GPL-2.0-or-later
"""What formats cost in time. The machine may be busy: only ratios of neighbouring runs are judged."""

import dataclasses
import shutil
import statistics

import contenders
import loads
from contenders import FVD, KIB, MIB, QCOW2, RAW, SCRATCH
from report import Table, interleaved, ratio, spread

IMAGE, BASE = SCRATCH / "image", SCRATCH / "base"
RAW_FULL = dataclasses.replace(RAW, name="raw full", note="a copy of the base: nothing is left to allocate")


# ------------------------------------------------------------------ CPU

def cpu(plan):
    count = 100_000 if plan.quick else 200_000
    disk = 64 * MIB
    compared = [c for c in plan.main if c.format != "qed"]
    images = {c.name: SCRATCH / f"here-{place}" for place, c in enumerate(compared)}
    contenders.make_base(BASE, disk)
    for contender in compared:
        contenders.create(contender, images[contender.name], disk, BASE)
        loads.fill(contender, images[contender.name], disk)
    tables = [cpu_table(plan, compared, images, count, *mode)
              for mode in (("threads", "writeback"), ("native", "none"))]
    for contender in compared:
        contenders.remove(contender, images[contender.name])
    BASE.unlink()
    return tables


def cpu_table(plan, compared, images, count, aio, cache):
    table = Table(
        f"Reads and overwrites of data that is here: CPU time, aio={aio}, cache={cache}",
        f"`qemu-img bench`, {count} requests of 4 KiB, 16 in flight, user and system time of the process, on "
        "one processor. Median of the ratios of neighbouring runs to raw (their middle half); for raw, "
        "microseconds a request.", ["", *(c.name for c in compared)])
    rounds = plan.turns(3, 9)
    for label, write in (("read", False), ("overwrite", True)):
        seconds = interleaved(compared, rounds, lambda contender, _: loads.cpu_seconds(
            loads.PINNED + loads.bench(contender, images[contender.name], count, write=write, depth=16,
                                       cache=cache, aio=aio)))
        table.samples[label] = seconds
        cells = [f"{ratio(seconds, c.name, RAW.name):.3f} ({spread(seconds, c.name, RAW.name)})"
                 for c in compared if c != RAW]
        table.add(label, [f"{statistics.median(seconds[RAW.name]) / count * 1e6:.2f} us", *cells])
        for contender in plan.fvd:
            table.at_most(f"{contender.name}: CPU of a {label} / raw's, aio={aio}",
                          ratio(seconds, contender.name, RAW.name), 1.03, "{:.3f}")
    return table.end()


# ------------------------------------------------------------------ random first writes over a base

def random_over_base(plan):
    disk, count, flush = 256 * MIB, 1024 if plan.quick else 4096, 32
    contenders.make_base(BASE, disk)
    compared = [plan.all[0], RAW_FULL, *plan.all[1:]]
    full = SCRATCH / "full"
    shutil.copyfile(BASE, full)
    contenders.settle(RAW_FULL, full)

    def measure(contender, turn):
        image = full if contender == RAW_FULL else contenders.create(contender, IMAGE, disk, BASE)
        found = loads.fio_over_nbd(contender, image, count=count, depth=8, flush=flush, cache="none",
                                   seed=turn + 1)
        if contender != RAW_FULL:
            contenders.remove(contender, image)
        return found

    results = interleaved(compared, plan.turns(3, 7), measure)
    table = Table(
        f"Random first writes over a base, 8 in flight, flush each {flush}, cache=none",
        f"fio over NBD (`--rw=randwrite --bs=4k --iodepth=8 --fsync={flush}`), {count} writes, no place "
        "twice, fresh images. *raw* is a sparse file without base, *raw full* a whole copy of the base.",
        ["", *(c.name for c in compared)])
    fill_in_base_rows(table, compared, results, count)
    for contender in plan.fvd:
        seconds = seconds_of(results)
        table.at_least(f"{contender.name}: speed / qcow2's", ratio(seconds, QCOW2.name, contender.name), 3.49)
        table.at_most(f"{contender.name}: time / raw's", ratio(seconds, contender.name, RAW.name), 1.15)
    full.unlink()
    BASE.unlink()
    return [table.end()]


def seconds_of(results):
    return {name: [seconds for seconds, _ in found] for name, found in results.items()}


def fill_in_base_rows(table, compared, results, count):
    seconds = table.samples["seconds"] = seconds_of(results)
    written = {name: statistics.median(number for _, number in found) for name, found in results.items()}
    table.add("writes a second", [f"{count / statistics.median(seconds[c.name]):.0f}" for c in compared])
    table.add("time / raw's", [f"{ratio(seconds, c.name, RAW.name):.2f}" for c in compared])
    table.add("middle half", [spread(seconds, c.name, RAW.name) for c in compared])
    table.add("speed / qcow2's", [f"{ratio(seconds, QCOW2.name, c.name):.2f}" for c in compared])
    table.add("bytes to disk / guest's", [f"{written[c.name] / (count * 4 * KIB):.2f}" for c in compared])


# ------------------------------------------------------------------ fills without a base

def fill(plan):
    return [sequential_fill(plan), random_fill(plan)]


def fill_table(plan, title, how):
    return Table(title, how + " Fresh images without base. For raw, MiB a second; for the others, median of the "
                 "ratios of their time to raw's in the same round.", ["", *(c.name for c in plan.all)])


def add_fill_row(table, plan, label, seconds, volume):
    table.samples[label] = seconds
    speed = volume / MIB / statistics.median(seconds[RAW.name])
    table.add(label, [f"{speed:.1f} MiB/s", *(f"{ratio(seconds, c.name, RAW.name):.2f}" for c in plan.all[1:])])


def sequential_fill(plan):
    volume, piece = (32 if plan.quick else 64) * MIB, 64 * KIB
    table = fill_table(plan, "Sequential fill", f"`qemu-img bench -w`, {volume // MIB} MiB in requests of 64 KiB, "
                       "flush after each 16.")
    for cache in ("none", "writeback"):
        for depth in (1, 4, 16):
            def measure(contender, _):
                image = contenders.create(contender, IMAGE, volume)
                seconds = loads.bench_seconds(loads.bench(contender, image, volume // piece, write=True, size=piece,
                                                          depth=depth, flush=16, cache=cache))
                contenders.remove(contender, image)
                return seconds
            seconds = interleaved(plan.all, plan.turns(1, 3), measure)
            add_fill_row(table, plan, f"cache={cache}, {depth} in flight", seconds, volume)
    return table.end()


def random_fill(plan):
    disk = 256 * MIB
    table = fill_table(plan, "Random fill", "fio over NBD, 4 KiB writes, no place twice.")
    for cache in ("none", "writeback"):
        for depth, flush, writes in ((1, 1, 64), (4, 8, 512), (16, 32, 1024), (16, 0, 4096)):
            count = writes // 2 if plan.quick else writes

            def measure(contender, turn):
                image = contenders.create(contender, IMAGE, disk)
                seconds, _ = loads.fio_over_nbd(contender, image, count=count, depth=depth, flush=flush, cache=cache,
                                                seed=turn + 1)
                contenders.remove(contender, image)
                return seconds
            seconds = interleaved(plan.all, plan.turns(1, 3), measure)
            label = f"cache={cache}, {depth} in flight, {f'flush each {flush}' if flush else 'no flush'}"
            add_fill_row(table, plan, label, seconds, count * 4 * KIB)
    return table.end()
