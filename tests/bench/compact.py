# SPDX-License-Identifier: GPL-2.0-or-later
"""Images that allocate their own storage: what a first write costs, a fill, and reads of a full large
image. FVD's compact images beside qcow2 and QED, which are always like that."""

import random

import calls
import contenders
import loads
from contenders import KIB, MIB, QCOW2, QCOW2_EXTENDED, QED, RAW, SCRATCH, TIB, Contender
from report import Table, interleaved, ratio, size, spread

FVD_COMPACT = Contender("fvd compact", "fvd", "compact_image=on", note="`compact_image=on`")
FVD_COMPACT_DATA = Contender("fvd compact +data", "fvd", "compact_image=on", separate_data=True,
                             note="`compact_image=on`, guest data in a `data_file`")
QCOW2_METADATA = Contender("qcow2 metadata", "qcow2", "preallocation=metadata",
                           note="`preallocation=metadata`")
COMPACT = [FVD_COMPACT, FVD_COMPACT_DATA]
OTHERS = [QCOW2, QCOW2_METADATA, QCOW2_EXTENDED, QED]
COMPARED = [RAW, *OTHERS, *COMPACT]
IMAGE = SCRATCH / "image"
STRIDE = 2 * MIB  # more than a chunk: each write allocates


def tables(plan):
    return [allocating_writes(plan), sequential_fill(plan), spread_reads(plan)]


def table_of(title, how):
    return Table(title, how, ["", *(c.name for c in COMPARED)])


def allocating_writes(plan):
    count = 50 if plan.quick else 200

    def counted(contender, writes):
        image = contenders.create(contender, IMAGE, 2 * count * STRIDE)
        counts = calls.count(loads.bench(contender, image, writes, write=True, step=STRIDE, flush=1))
        contenders.remove(contender, image)
        return counts

    steady = {c.name: counted(c, 2 * count).minus(counted(c, count)).per(count) for c in COMPARED}
    table = table_of(
        "4 KiB allocating write into an empty image without base, then flush",
        f"`qemu-img bench -w -s 4096 -S 2M -d 1 --flush-interval=1`, host calls by strace; the difference of "
        f"runs of {2 * count} and {count} writes, for one write.")
    table.add("reads", [f"{steady[c.name].reads:.2f}" for c in COMPARED])
    table.add("writes", [f"{steady[c.name].writes:.2f}" for c in COMPARED])
    table.add("bytes written", [size(steady[c.name].written) for c in COMPARED])
    table.add("syncs", [f"{steady[c.name].syncs:.2f}" for c in COMPARED])
    table.add("fallocate", [f"{steady[c.name].zeroes:.2f}" for c in COMPARED])
    for contender in COMPACT:
        counts = steady[contender.name]
        table.at_most(f"{contender.name}: host writes for one write", counts.writes, 2, "{:.1f}")
        table.at_most(f"{contender.name}: syncs for one write", counts.syncs, 2, "{:.1f}")
        table.at_most(f"{contender.name}: KiB written for one write", counts.written / KIB, 16, "{:.1f}")
    return table.end()


def sequential_fill(plan):
    volume, piece = (128 if plan.quick else 512) * MIB, 256 * KIB

    def command(contender):
        image = contenders.create(contender, IMAGE, volume)
        return loads.bench(contender, image, volume // piece, write=True, size=piece, depth=4)

    def cpu(contender, _):
        seconds = loads.cpu_seconds(loads.PINNED + command(contender))
        contenders.remove(contender, IMAGE)
        return seconds

    table = table_of("Sequential fill of an empty image: bytes and CPU",
                     f"`qemu-img bench -w -s 256k -d 4`, {volume // MIB} MiB; bytes by strace, CPU time of the "
                     "process on one processor, median of the ratios of neighbouring runs (middle half).")
    written = {c.name: calls.count(command(c)).written / volume for c in COMPARED}
    seconds = interleaved(COMPARED, plan.turns(5, 11), cpu)
    table.samples = seconds
    table.add("bytes written / guest's", [f"{written[c.name]:.3f}" for c in COMPARED])
    table.add("CPU / raw's", [f"{ratio(seconds, c.name, RAW.name):.2f}" for c in COMPARED])
    table.add("middle half", [spread(seconds, c.name, RAW.name) for c in COMPARED])
    for contender in COMPACT:
        table.at_most(f"{contender.name}: bytes written / raw's", written[contender.name] / written[RAW.name], 1.05,
                      "{:.3f}")
        table.at_most(f"{contender.name}: CPU / raw's", ratio(seconds, contender.name, RAW.name), 1.05)
    return table.end()


def spread_reads(plan):
    """Full, but sparse: every chunk has its place, and none of them data."""
    count = 2_000 if plan.quick else 20_000
    compared = [RAW, *(Contender(c.name, c.format, f"{c.options},preallocation=metadata".lstrip(","),
                                 c.separate_data) for c in (QCOW2, QCOW2_EXTENDED, *COMPACT))]
    places = random.Random(1).sample(range(TIB // (4 * KIB)), count)
    script = "".join(f"read -q {place * 4 * KIB} 4k\n" for place in places) + "quit\n"
    table = Table(f"{count} reads of 4 KiB all over a full image of 1 TiB",
                  "`qemu-io`, host calls by strace: reads of the process without those of opening, for one read of "
                  "the guest; peak of resident memory of another such process.", ["", *(c.name for c in compared)])
    reads, memory = {}, {}
    for contender in compared:
        image = contenders.create(contender, IMAGE, TIB)
        opening = calls.count(loads.qemu_io(contender, image), "quit\n").reads
        reads[contender.name] = (calls.count(loads.qemu_io(contender, image), script).reads - opening) / count
        memory[contender.name] = loads.peak_memory(loads.qemu_io(contender, image), script)
        contenders.remove(contender, image)
    more = {name: (peak - memory[RAW.name]) / MIB for name, peak in memory.items()}
    table.add("host reads for one", [f"{reads[c.name]:.3f}" for c in compared])
    table.add("MiB of memory more than raw", [f"{more[c.name]:.1f}" for c in compared])
    for contender in COMPACT:
        table.at_most(f"{contender.name}: host reads for one", reads[contender.name], 1.01, "{:.3f}")
        table.at_most(f"{contender.name}: MiB more than raw", more[contender.name], 8, "{:.1f}")
    return table.end()
