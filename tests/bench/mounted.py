# SPDX-License-Identifier: GPL-2.0-or-later
"""PostMark on ext4 on a loop device on a FUSE export: files made, read, grown and removed by a real file
system, with so few dirty pages allowed that it reaches the disk."""

import contextlib
import pathlib
import signal
import statistics
import subprocess
import time

import contenders
import loads
from contenders import GIB, MIB, RAW, SCRATCH
from report import Table, interleaved, ratio, spread

VM = pathlib.Path("/proc/sys/vm")
DIRTY = ("dirty_bytes", "dirty_background_bytes")
RATIOS = {"dirty_bytes": "dirty_ratio", "dirty_background_bytes": "dirty_background_ratio"}
DISK = 2 * GIB


def postmark(plan):
    transactions = 2000 if plan.quick else 10000
    base = make_file_system(SCRATCH / "base")
    with few_dirty_pages():
        results = interleaved(plan.main, plan.turns(1, 5), lambda c, _: measure(c, base, transactions))
    seconds = {name: list(found) for name, found in results.items()}
    table = Table(
        "PostMark on ext4 over FUSE and a loop device",
        f"Image over a base with an empty ext4 (raw: a sparse copy of the base); {transactions} transactions on "
        "1000 files of 4 to 64 KiB, then sync; cache.direct=on, at most 16 MiB of dirty pages.",
        ["", *(c.name for c in plan.main)])
    table.samples["seconds"] = seconds
    table.add("seconds", [f"{statistics.median(seconds[c.name]):.2f}" for c in plan.main])
    table.add("time / raw's", [f"{ratio(seconds, c.name, RAW.name):.2f}" for c in plan.main])
    table.add("middle half", [spread(seconds, c.name, RAW.name) for c in plan.main])
    for contender in plan.fvd:
        table.at_most(f"{contender.name}: PostMark's time / raw's", ratio(seconds, contender.name, RAW.name), 1.03)
    base.unlink()
    return [table.end()]


def make_file_system(path):
    with open(path, "wb") as file:
        file.truncate(DISK)
    loads.run(["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", str(path)])
    return path


def measure(contender, base, transactions):
    image = contenders.create(contender, SCRATCH / "image", DISK, base)
    if contender == RAW:
        loads.run(["cp", "--sparse=always", str(base), str(image)])
        contenders.settle(contender, image)
    with exported(contender, image) as export, mounted(export) as directory:
        started = time.monotonic()
        run_postmark(directory, transactions)
        loads.run(["sync", "-f", str(directory)])
        seconds = time.monotonic() - started
    contenders.remove(contender, image)
    return seconds


def run_postmark(directory, transactions):
    commands = ["set size 4096 65536", "set number 1000", f"set transactions {transactions}", "set seed 42",
                f"set location {directory}", "set report terse", "run", "quit"]
    loads.run(["postmark"], "\n".join(commands) + "\n")


@contextlib.contextmanager
def exported(contender, image):
    """The image as a file that the kernel can mount."""
    export, pid_file = SCRATCH / "export", SCRATCH / "daemon.pid"
    export.touch()
    pid_file.unlink(missing_ok=True)
    daemon = subprocess.Popen([
        contenders.program("qemu-storage-daemon"), "--pidfile", str(pid_file),
        "--blockdev", f"file,node-name=file,filename={image},cache.direct=on,aio=threads,discard=unmap",
        "--blockdev", f"{contender.format},node-name=disk,file=file,cache.direct=on,discard=unmap",
        "--export", f"fuse,id=export,node-name=disk,mountpoint={export},writable=on,allow-other=off"])
    try:
        loads.wait_for(pid_file.exists, daemon)
        yield export
    finally:
        daemon.send_signal(signal.SIGTERM)
        daemon.wait()
        export.unlink(missing_ok=True)


@contextlib.contextmanager
def mounted(export):
    directory = SCRATCH / "mounted"
    directory.mkdir(exist_ok=True)
    loop = loads.run(["losetup", "--find", "--show", "--direct-io=on", str(export)]).strip()
    try:
        loads.run(["mount", loop, str(directory)])
        try:
            yield directory
        finally:
            loads.run(["umount", str(directory)])
    finally:
        loads.run(["losetup", "-d", loop])


@contextlib.contextmanager
def few_dirty_pages():
    """The kernel's limits are the machine's: as they were, whatever happens. Setting bytes clears the ratio."""
    before = {name: int((VM / name).read_text()) for name in [*DIRTY, *RATIOS.values()]}
    try:
        (VM / "dirty_background_bytes").write_text(str(8 * MIB))
        (VM / "dirty_bytes").write_text(str(16 * MIB))
        yield
    finally:
        for name in DIRTY:
            kept = name if before[name] else RATIOS[name]
            (VM / kept).write_text(str(before[kept]))
