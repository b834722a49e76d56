# SPDX-License-Identifier: GPL-2.0-or-later
"""What is done to images, and the measuring of it: by qemu-img bench (one process, no client), qemu-io
(scripts), and fio over NBD (random writes with a depth)."""

import contextlib
import json
import os
import random
import re
import subprocess
import tempfile
import time

from contenders import KIB, SCRATCH, program

START_SECONDS = 20
# Every thread of a program on one processor: its time then does not depend on who wakes up where.
PINNED = ["taskset", "-c", str(max(os.sched_getaffinity(0)))]


def bench(contender, path, count, *, write=False, size=4 * KIB, step=None, depth=1, flush=0,
          cache="writeback", aio="threads"):
    """The words of a qemu-img bench."""
    command = [program("qemu-img"), "bench", "-f", contender.format, "-c", count, "-d", depth,
               "-s", size, "-S", step or size, "-t", cache, "-i", aio]
    if write:
        command.append("-w")
    if flush:
        command.append(f"--flush-interval={flush}")
    return [str(word) for word in command + [path]]


def fill(contender, path, size):
    """Write all of an image."""
    run(bench(contender, path, size // (256 * KIB), write=True, size=256 * KIB, depth=4))


def run(command, stdin=None):
    done = subprocess.run(command, input=stdin, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}")
    return done.stdout


def bench_seconds(command):
    """The time that qemu-img bench itself says: without start, open and close."""
    return float(re.search(r"completed in ([0-9.]+) seconds", run(command)).group(1))


def cpu_seconds(command):
    """User and system time of a program, all threads."""
    with tempfile.TemporaryFile() as output:
        child = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode != 0:
            output.seek(0)
            raise RuntimeError(f"{' '.join(command)}\n{output.read().decode()}")
    return usage.ru_utime + usage.ru_stime


def peak_memory(command, stdin):
    """Bytes of memory that a program held at most."""
    with tempfile.TemporaryFile("w+") as script, tempfile.TemporaryFile() as output:
        script.write(stdin)
        script.seek(0)
        child = subprocess.Popen(command, stdin=script, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {child.returncode}")
    return usage.ru_maxrss * KIB


def random_writes(seed, count, flush, disk, size=4 * KIB):
    """qemu-io's commands for so many writes, no place twice, a flush after each so many."""
    places = random.Random(seed).sample(range(disk // size), count)
    lines = []
    for number, place in enumerate(places, 1):
        lines.append(f"aio_write -q -P {number % 255 + 1} {place * size} {size}")
        if number % flush == 0:
            lines += ["aio_flush", "flush"]
    return "\n".join(lines) + "\nquit\n"


def qemu_io(contender, path):
    return [program("qemu-io"), "-t", "writeback", "-i", "threads", "-f", contender.format,
            str(path)]


# ------------------------------------------------------------------ open, and stay open

class Opened:
    """qemu-io with an image open: how long that took, and the memory it took."""

    def __init__(self, contender, path):
        started = time.monotonic()
        self.process = subprocess.Popen(qemu_io(contender, path), stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        said = os.read(self.process.stdout.fileno(), 4096)
        self.milliseconds = (time.monotonic() - started) * 1000
        if b"qemu-io>" not in said:
            raise RuntimeError(f"{path}: {said.decode()}")
        self.peak_memory = status_bytes(self.process.pid, "VmHWM")

    def close(self):
        self.process.communicate(b"quit\n")


def status_bytes(process, field):
    with open(f"/proc/{process}/status") as status:
        text = status.read()
    return int(re.search(rf"^{field}:\s+(\d+) kB", text, re.M).group(1)) * KIB


# ------------------------------------------------------------------ NBD

@contextlib.contextmanager
def nbd_server(contender, path, cache):
    """Serve an image; yields the process and its socket."""
    socket = SCRATCH / "nbd.sock"
    socket.unlink(missing_ok=True)
    command = [program("qemu-nbd"), "-t", "-k", str(socket), "-f", contender.format,
               f"--cache={cache}", "--aio=threads", str(path)]
    log = SCRATCH / "nbd.log"  # of each client that leaves before its last answers, too
    with open(log, "wb") as output:
        server = subprocess.Popen(command, cwd=SCRATCH, stderr=output)
    try:
        wait_for(socket.exists, server, log)
        yield server, socket
    finally:
        server.terminate()
        server.wait()


def wait_for(condition, process, log=None):
    deadline = time.monotonic() + START_SECONDS
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            said = f": {log.read_text()}" if log else ""
            raise RuntimeError(f"{process.args[0]} did not start{said}")
        time.sleep(0.01)


def fio_over_nbd(contender, path, *, count, depth, flush, cache, seed, disk):
    """Seconds of so many random writes with so many in flight, and bytes that the server wrote to files."""
    log = SCRATCH / "fio.log"
    log.write_text("\n".join(fio_log(seed, count, flush, disk)) + "\n")
    with nbd_server(contender, path, cache) as (server, socket):
        before = written_bytes(server.pid)
        result = run(["fio", "--name=load", "--ioengine=nbd", f"--uri=nbd+unix:///?socket={socket}",
                      f"--read_iolog={log}", f"--iodepth={depth}", "--output-format=json"])
        job = json.loads(result[result.index("{"):])["jobs"][0]
        # The end of a log is not waited for.
        done = job["write"]["total_ios"], job["sync"]["total_ios"]
        if job["error"] or done != (count, flush and count // flush) or job["write"]["clat_ns"]["N"] < count - depth:
            raise RuntimeError(f"fio on {contender.name} stopped: {result}")
        return job["job_runtime"] / 1000, written_bytes(server.pid) - before


def fio_log(seed, count, flush, disk, size=4 * KIB):
    """What fio is to do, in its own words. Its --fsync will not do: until a sync has come back it sends one more
    for each free place of its depth, six where one was asked for."""
    yield "fio version 2 iolog"
    yield "disk add"
    yield "disk open"
    for number, place in enumerate(random.Random(seed).sample(range(disk // size), count), 1):
        yield f"disk write {place * size} {size}"
        if flush and number % flush == 0:
            yield "disk sync 0 0"


def written_bytes(process):
    with open(f"/proc/{process}/io") as counters:
        return int(re.search(r"^write_bytes: (\d+)", counters.read(), re.M).group(1))
