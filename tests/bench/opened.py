# SPDX-License-Identifier: GPL-2.0-or-later
"""Time and memory of opening a large image."""

import statistics

import contenders
import loads
from contenders import GIB, KIB, MIB, RAW, SCRATCH, TIB
from report import Table, interleaved


def large_image(plan):
    """Of the base every GiB begins with data, so that not all of it can be marked as zero at create."""
    base = contenders.make_base(SCRATCH / "base", TIB, GIB, 64 * KIB)
    images = {c.name: contenders.create(c, SCRATCH / f"open-{place}", TIB, base)
              for place, c in enumerate(plan.all)}
    found = interleaved(plan.all, plan.turns(5, 15), lambda c, _: measure(c, images[c.name]))
    milliseconds = {name: statistics.median(m for m, _ in results) for name, results in found.items()}
    memory = {name: statistics.median(m for _, m in results) for name, results in found.items()}
    table = Table("Opening a 1 TiB image over a 1 TiB sparse base",
                  "`qemu-io`, from its start to its prompt, and its peak of resident memory then.",
                  ["", *(c.name for c in plan.all)])
    table.samples = found
    table.add("milliseconds", [f"{milliseconds[c.name]:.1f}" for c in plan.all])
    table.add("MiB of memory more than raw", [f"{(memory[c.name] - memory[RAW.name]) / MIB:.1f}" for c in plan.all])
    for contender in plan.fvd:
        table.at_most(f"{contender.name}: milliseconds to open", milliseconds[contender.name], 100, "{:.1f}")
        table.at_most(f"{contender.name}: MiB more than raw", (memory[contender.name] - memory[RAW.name]) / MIB, 16,
                      "{:.1f}")
    for contender in plan.all:
        contenders.remove(contender, images[contender.name])
    base.unlink()
    return [table.end()]


def measure(contender, image):
    opened = loads.Opened(contender, image)
    opened.close()
    return opened.milliseconds, opened.peak_memory
