# SPDX-License-Identifier: GPL-2.0-or-later
"""What formats cost in time. The machine may be busy: only ratios of neighbouring runs are judged."""

import dataclasses
import json
import shutil
import statistics

import contenders
import loads
from contenders import GIB, KIB, MIB, QCOW2, RAW, SCRATCH
from report import Table, interleaved, ratio, spread

IMAGE, BASE = SCRATCH / "image", SCRATCH / "base"
# The same thing once more: how far its ratio is from one is how far the others' ratios can be trusted.
RAW_AGAIN = dataclasses.replace(RAW, name="raw again")
RAW_FULL = dataclasses.replace(RAW, name="raw full", note="a copy of the base: nothing is left to allocate")


# ------------------------------------------------------------------ CPU

def cpu(plan):
    count = 50_000 if plan.quick else 100_000
    disk = 64 * MIB
    compared = [RAW, RAW_AGAIN, *(c for c in plan.main if c.format not in ("raw", "qed"))]
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
    rounds = plan.turns(7, 21)
    for label, write in (("read", False), ("overwrite", True)):
        seconds = interleaved(compared, rounds, lambda contender, _: loads.cpu_seconds(
            loads.PINNED + loads.bench(contender, images[contender.name], count, write=write, depth=16,
                                       cache=cache, aio=aio)))
        table.samples[label] = seconds
        cells = [f"{ratio(seconds, c.name, RAW.name):.3f} ({spread(seconds, c.name, RAW.name)})"
                 for c in compared if c != RAW]
        table.add(label, [f"{statistics.median(seconds[RAW.name]) / count * 1e6:.2f} us", *cells])
        for contender in plan.fvd:
            table.at_most(f"{contender.name}: CPU of {label}s / raw's, aio={aio}",
                          ratio(seconds, contender.name, RAW.name), 1.03, "{:.3f}")
    return table.end()


# ------------------------------------------------------------------ random first writes over a base

# So large that few writes share a cluster of qcow2's: that is what a day's first writes to a disk meet.
DISK, DEPTH, FLUSH = 2 * GIB, 8, 32
FULL_FVD = "preallocation=full"


def over_base(plan):
    contenders.make_base(BASE, DISK)
    kept = [Kept(RAW_FULL), *(Kept(dataclasses.replace(c, name=f"{c.name} full", options=FULL_FVD,
                                                       note="with room for all of the disk, written before"))
                              for c in plan.fvd)]
    shutil.copyfile(BASE, kept[0].path)
    contenders.settle(RAW_FULL, kept[0].path)
    for image in kept[1:]:
        image.create()
    tables = [random_writes(plan, kept), spread_writes(plan, kept)]
    for image in kept:
        contenders.remove(image.contender, image.path)
    BASE.unlink()
    return tables


class Kept:
    """An image for which the disk has room everywhere, as a raw disk has that is a copy of its base: the file
    system allocates nothing while it is measured. Made once; what FVD notes is taken back before each round."""

    def __init__(self, contender):
        self.contender = contender
        self.path = SCRATCH / f"kept-{contender.name.replace(' ', '-')}"
        self.metadata = b""

    def create(self):
        contenders.create(self.contender, self.path, DISK, BASE)
        metadata = self.path.stat().st_size if self.contender.separate_data else data_offset(self.path)
        with open(self.path, "rb") as file:
            self.metadata = file.read(metadata)

    def refresh(self):
        with open(self.path, "r+b") as file:
            file.write(self.metadata)
        contenders.settle(self.contender, self.path)
        return self.path


def data_offset(path):
    said = json.loads(loads.run([contenders.program("qemu-img"), "info", "-f", "fvd", "--output=json", str(path)]))
    return said["format-specific"]["data"]["data-offset"]


def everyone(plan, kept):
    return [RAW, *(image.contender for image in kept), *(c for c in plan.all if c != RAW)]


def fresh_images(write, kept):
    """A measure that gives everyone an image into which nothing was written yet."""
    images = {image.contender.name: image for image in kept}

    def measure(contender, turn):
        if contender.name in images:
            return write(contender, images[contender.name].refresh(), turn)
        image = contenders.create(contender, IMAGE, DISK, BASE)
        found = write(contender, image, turn)
        contenders.remove(contender, image)
        return found
    return measure


def spread_writes(plan, kept):
    """In one process, without a client that costs time of its own, but each flush waits until no write is in
    flight. qemu-img bench knows no random places; steps of the golden ratio of the disk come to each block once,
    and never near the last ones."""
    count = 1024 if plan.quick else 4096
    step = (int(DISK // (4 * KIB) * 0.6180339887) | 1) * 4 * KIB
    compared = everyone(plan, kept)
    seconds = interleaved(compared, plan.turns(1, 5), fresh_images(
        lambda contender, image, _: loads.bench_seconds(loads.bench(
            contender, image, count, write=True, step=step, depth=DEPTH, flush=FLUSH, cache="none")), kept))
    table = Table(
        f"Scattered first writes over a base, {DEPTH} in flight, flush each {FLUSH}, cache=none",
        f"`qemu-img bench -w -s 4096 -S {step} -d {DEPTH} --flush-interval={FLUSH} -t none`, {count} writes all over "
        f"the disk of {DISK // GIB} GiB; no write is in flight while a flush is.", ["", *(c.name for c in compared)])
    add_speed_rows(table, compared, seconds, count)
    return table.end()


def random_writes(plan, kept):
    """As a guest does it: places at random, and a flush is sent while writes are in flight."""
    count = 1024 if plan.quick else 4096
    compared = everyone(plan, kept)
    results = interleaved(compared, plan.turns(3, 9), fresh_images(
        lambda contender, image, turn: loads.fio_over_nbd(
            contender, image, count=count, depth=DEPTH, flush=FLUSH, cache="none", seed=turn + 1, disk=DISK), kept))
    table = Table(
        f"Random first writes over a base, {DEPTH} in flight, flush each {FLUSH}, cache=none",
        f"fio (`--ioengine=nbd --read_iolog=... --iodepth={DEPTH}`) and qemu-nbd, {count} writes of 4 KiB all over the "
        f"disk of {DISK // GIB} GiB, no place twice.", ["", *(c.name for c in compared)])
    seconds = {name: [duration for duration, _ in found] for name, found in results.items()}
    add_speed_rows(table, compared, seconds, count)
    written = {name: statistics.median(number for _, number in found) for name, found in results.items()}
    table.add("bytes to disk / guest's", [f"{written[c.name] / (count * 4 * KIB):.2f}" for c in compared])
    for contender in plan.fvd:
        full = f"{contender.name} full"
        table.at_least(f"{full}: speed / qcow2's", ratio(seconds, QCOW2.name, full), 3.49)
        table.at_most(f"{full}: time / raw full's", ratio(seconds, full, RAW_FULL.name), 1.15)
        table.at_most(f"{contender.name}: time / raw's", ratio(seconds, contender.name, RAW.name), 1.15)
    return table.end()


def add_speed_rows(table, compared, seconds, count):
    table.samples["seconds"] = seconds
    table.add("writes a second", [f"{count / statistics.median(seconds[c.name]):.0f}" for c in compared])
    for other in (RAW, RAW_FULL):
        table.add(f"time / {other.name}'s", [f"{ratio(seconds, c.name, other.name):.2f}" for c in compared])
        table.add("middle half", [spread(seconds, c.name, other.name) for c in compared])
    table.add("speed / qcow2's", [f"{ratio(seconds, QCOW2.name, c.name):.2f}" for c in compared])


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
                                                seed=turn + 1, disk=disk)
                contenders.remove(contender, image)
                return seconds
            seconds = interleaved(plan.all, plan.turns(1, 3), measure)
            label = f"cache={cache}, {depth} in flight, {f'flush each {flush}' if flush else 'no flush'}"
            add_fill_row(table, plan, label, seconds, count * 4 * KIB)
    return table.end()
