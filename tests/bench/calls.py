# SPDX-License-Identifier: GPL-2.0-or-later
"""Counts the system calls with which a program does I/O on image files, by strace. The program has to
use aio=threads: what io_submit and io_uring do cannot be seen."""

import dataclasses
import os
import re
import subprocess
import tempfile

from contenders import SCRATCH

READS = {"pread64", "preadv", "preadv2"}
WRITES = {"pwrite64", "pwritev", "pwritev2"}
SYNCS = {"fdatasync", "fsync", "sync_file_range"}
ZEROES = {"fallocate"}
TRACED = READS | WRITES | SYNCS | ZEROES

CALL = re.compile(r"^(\d+) +(\w+)\(\d+<([^>]*)>")
RESUMED = re.compile(r"^(\d+) +<\.\.\. (\w+) resumed>")
RESULT = re.compile(r"\) += (-?\d+)")


@dataclasses.dataclass
class Counts:
    reads: int = 0
    read_bytes: int = 0
    writes: int = 0
    written: int = 0
    syncs: int = 0
    zeroes: int = 0

    def add(self, call, result):
        if call in READS:
            self.reads += 1
            self.read_bytes += result
        elif call in WRITES:
            self.writes += 1
            self.written += result
        elif call in SYNCS:
            self.syncs += 1
        elif call in ZEROES:
            self.zeroes += 1

    def minus(self, other):
        mine, theirs = dataclasses.astuple(self), dataclasses.astuple(other)
        return Counts(*(a - b for a, b in zip(mine, theirs)))

    def per(self, operations):
        return Counts(*(value / operations for value in dataclasses.astuple(self)))


def count(command, stdin=None, directory=SCRATCH):
    """Run a program under strace; what it did to files in directory."""
    with tempfile.NamedTemporaryFile("r", dir="/var/tmp", prefix="calls") as log:
        strace = ["strace", "-f", "--seccomp-bpf", "-qq", "-y", "-s", "0", "-o", log.name,
                  "-e", "trace=" + ",".join(sorted(TRACED))]
        done = subprocess.run(strace + [str(word) for word in command], input=stdin,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stdout}")
        return parse(log, str(directory) + os.sep)


def parse(lines, prefix):
    """A call that another thread interrupts stands in two lines; the second has the result."""
    counts, unfinished = Counts(), {}
    for line in lines:
        started = CALL.match(line)
        resumed = RESUMED.match(line)
        result = RESULT.search(line)
        if started:
            thread, call, path = started.groups()
            if not path.startswith(prefix):
                continue
            if result is None:
                unfinished[thread, call] = path
                continue
        elif resumed and unfinished.pop(resumed.groups(), None):
            call = resumed.group(2)
        else:
            continue
        if result and int(result.group(1)) >= 0:
            counts.add(call, int(result.group(1)))
    return counts
