# SPDX-License-Identifier: GPL-2.0-or-later
"""How fast an image fills itself from a base that is far away, and what the guest notices of it. The
base is behind nbdkit, whose filter makes distance, and where bandwidth matters behind a link of the
kernel's, too."""

import contextlib
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time

import contenders
import loads
from contenders import KIB, MIB, REPOSITORY, SCRATCH, program
from report import Table

sys.path.insert(0, str(REPOSITORY / "tests/qemu"))

import nbd
import qmp

ROUND_TRIPS = (0, 2, 10, 50, 200)  # ms
PATIENCE = 600
READ = 16 * KIB
TURN = 2  # s
PIECE = 128 * KIB
LINK = 200_000_000  # bits a second
FAST_LINK = 1_000_000_000
# The kernel hands 64 KiB of TCP to the link at once. A burst that has no room for that is cut into packets by the
# processor: a whole one at FAST_LINK, with which prefetch then competes. A slow link gets less, since what it lets
# through at once is no link.
BURSTS = {LINK: "64kb", FAST_LINK: "96kb"}
# QEMU's NBD server takes memory for each request and gives it back. From 128 KiB on glibc maps and unmaps it, and
# unmapping interrupts every processor on which another thread of the process runs: no guest's memory does that.
KEEP_MEMORY = {"GLIBC_TUNABLES": f"glibc.malloc.mmap_threshold={4 * MIB}"}
HERE, THERE, PORT = "198.51.100.1", "198.51.100.2", 10809  # the ends of the link; nobody else's addresses
NETWORK = "198.51.100.0/30"


def tables(plan):
    return [speed(plan), speed(plan, FAST_LINK), whole_read(plan), manners(plan)]


# ------------------------------------------------------------------ programs

@contextlib.contextmanager
def process(*words):
    """It runs as long as the block."""
    running = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    try:
        yield running
    finally:
        running.kill()
        running.wait()


@contextlib.contextmanager
def link(bits):
    """A pair of interfaces, the far one in a name space of its own, which sends @bits a second, whatever way to
    send is this machine's standard. Yields what a command there begins with."""
    name = f"fvd{os.getpid()}"
    try:
        for command in (f"ip netns add {name}", f"ip link add {name}a type veth peer name {name}b netns {name}",
                        f"ip address add {HERE}/30 dev {name}a", f"ip -n {name} address add {THERE}/30 dev {name}b",
                        f"ip link set {name}a up", f"ip -n {name} link set {name}b up",
                        f"ip -n {name} route change {NETWORK} dev {name}b congctl cubic",
                        f"tc -n {name} qdisc add dev {name}b root tbf rate {bits}bit burst {BURSTS[bits]} limit 64mb"):
            loads.run(command.split())
        yield ["ip", "netns", "exec", name]
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=False, stderr=subprocess.DEVNULL)
        subprocess.run(["ip", "link", "delete", f"{name}a"], check=False, stderr=subprocess.DEVNULL)


def listens():
    try:
        socket.create_connection((THERE, PORT), 1).close()
        return True
    except OSError:
        return False


@contextlib.contextmanager
def server(source, milliseconds, bits=0):
    """nbdkit with what its words say: late answers, and with @bits at the end of a link. Yields a URI."""
    words = ["nbdkit", "-f", "-r", "-t", "64"]
    what = [*(["--filter=delay"] if milliseconds else []), *source,
            *([f"rdelay={milliseconds}ms"] if milliseconds else [])]
    with contextlib.ExitStack() as stack:
        if bits:
            where = stack.enter_context(link(bits))
            started = stack.enter_context(process(*where, *words, "-i", THERE, "-p", str(PORT), *what))
            loads.wait_for(listens, started)
            yield f"nbd://{THERE}:{PORT}"
        else:
            place = stack.enter_context(tempfile.TemporaryDirectory(prefix="fvd-bench-"))
            path = f"{place}/base"
            started = stack.enter_context(process(*words, "-U", path, *what))
            loads.wait_for(lambda: os.path.exists(path), started)
            yield f"nbd+unix:///?socket={path}"


def in_file(image):
    return {"driver": "file", "filename": str(image)}


class Daemon:
    """qemu-storage-daemon with one node, and its monitor."""

    def __init__(self, driver, environment=None, **options):
        self.place = tempfile.TemporaryDirectory(prefix="fvd-bench-")
        path = f"{self.place.name}/qmp"
        self.process = subprocess.Popen([
            program("qemu-storage-daemon"), "--chardev", f"socket,id=m,path={path},server=on,wait=off",
            "--monitor", "chardev=m"], env={**os.environ, **(environment or {})})
        loads.wait_for(lambda: os.path.exists(path), self.process)
        self.command = qmp.Monitor(path, [], PATIENCE).command
        self.command("blockdev-add", **{"driver": driver, "node-name": "disk", **options})

    def stats(self):
        return next(node["driver-specific"] for node in self.command("query-blockstats", query_nodes=True)
                    if node.get("node-name") == "disk")

    def wait(self, ended):
        """Seconds until ended() is true."""
        begun = time.monotonic()
        while not ended():
            if time.monotonic() > begun + PATIENCE:
                raise RuntimeError("no end")
            time.sleep(0.01)
        return time.monotonic() - begun

    def export(self):
        path = f"{self.place.name}/nbd"
        self.command("nbd-server-start", addr={"type": "unix", "data": {"path": path}})
        self.command("block-export-add", type="nbd", id="e", node_name="disk", **{"name": "disk"})
        return nbd.Client(path, "disk", patience=PATIENCE)

    def close(self):
        self.process.kill()
        self.process.wait()
        self.place.cleanup()


# ------------------------------------------------------------------ speed

def image_over(uri, form="fvd", options=()):
    image = SCRATCH / "image"
    loads.run([program("qemu-img"), "create", "-q", "-f", form, *options, "-b", uri, "-F", "raw", str(image)])
    return image


def convert(uri):
    target = SCRATCH / "converted"
    begun = time.monotonic()
    loads.run([program("qemu-img"), "convert", "-m", "16", "-W", "-f", "raw", "-O", "raw", uri, str(target)])
    took = time.monotonic() - begun
    target.unlink()
    return took


def prefetch(uri):
    """As convert, it is done when all is here; that it is durable, and the header says so, comes after."""
    image = image_over(uri)
    daemon = Daemon("fvd", file=in_file(image), prefetch="on")
    took = daemon.wait(lambda: all_here(daemon.stats()))
    daemon.close()
    image.unlink()
    return took


def all_here(stats):
    return stats["blocks-here"] == stats["blocks"]


def stream(uri):
    image = image_over(uri, "qcow2")
    daemon = Daemon("qcow2", file=in_file(image))
    daemon.command("block-stream", device="disk", **{"job-id": "s"})
    took = daemon.wait(lambda: not daemon.command("query-block-jobs"))
    daemon.close()
    image.unlink()
    return took


def speed(plan, bits=0):
    """Where nothing but the processors sets an end, and over a link with a rate."""
    volume = (64 if plan.quick else 1024) * MIB
    little = 64 * MIB  # block-stream would take seven minutes for all at 200 ms
    ways = {"qemu-img convert -m 16 -W": (convert, volume), "fvd, prefetch": (prefetch, volume),
            "qcow2, block-stream of 64 MiB": (stream, little)}
    where = f"at the end of a link of {bits // 1_000_000} Mbit/s" if bits else "behind nbdkit's delay filter"
    table = Table(f"Filling an image from a base {where}",
                  f"{volume // MIB} MiB, MiB a second from the opening of the image until all is here; median of the "
                  "rounds.", ["round trip", *ways])
    for milliseconds in ROUND_TRIPS:
        rates = {}
        for name, (way, size) in ways.items():
            with server(["pattern", str(size)], milliseconds, bits) as uri:
                rates[name] = size / MIB / statistics.median(way(uri) for _ in range(plan.turns(1, 3)))
            print(".", end="", file=sys.stderr, flush=True)
        table.add(f"{milliseconds} ms", [f"{rate:.0f}" for rate in rates.values()])
        table.at_least(f"{milliseconds} ms: prefetch / convert", rates["fvd, prefetch"] /
                       rates["qemu-img convert -m 16 -W"], 0.9)
        if milliseconds == 50:
            table.at_least("50 ms: prefetch, MiB a second", rates["fvd, prefetch"], 90, "{:.0f}")
    return table.end()


# ------------------------------------------------------------------ a guest that reads all of it

def read_through(daemon, depth):
    """Seconds in which an NBD client reads all, in requests of PIECE."""
    client = daemon.export()
    begun, asked = time.monotonic(), 0
    while asked < client.size or client.in_flight:
        while client.in_flight < depth and asked < client.size:
            client.submit(nbd.READ, asked, min(PIECE, client.size - asked))
            asked += PIECE
        client.reap()
    took = time.monotonic() - begun
    daemon.close()
    return took


def base_itself():
    node = {"driver": "nbd", "server": {"type": "inet", "host": THERE, "port": str(PORT)}, "read-only": True}
    return Daemon("raw", KEEP_MEMORY, file=node)


def copy_while_reading(uri):
    return Daemon("fvd", KEEP_MEMORY, file=in_file(image_over(uri, options=["-o", "copy_on_read=on"])))


def whole_read(plan):
    volume = (64 if plan.quick else 512) * MIB
    table = Table("A guest that reads all of a base that is far away, once",
                  f"{volume // MIB} MiB in order over a link of {FAST_LINK // 1_000_000} Mbit/s, requests of "
                  f"{PIECE // KIB} KiB; median of the rounds' ratios to reading the base itself.",
                  ["round trip, in flight", "base, MiB/s", "fvd, copy-on-read / base"])
    for milliseconds in (2, 10):
        for depth in (1, 8):
            ratios, rates = [], []
            with server(["pattern", str(volume)], milliseconds, FAST_LINK) as uri:
                for _ in range(plan.turns(1, 5)):
                    direct = read_through(base_itself(), depth)
                    ratios.append(read_through(copy_while_reading(uri), depth) / direct)
                    rates.append(volume / MIB / direct)
            print(".", end="", file=sys.stderr, flush=True)
            name = f"{milliseconds} ms, {depth}"
            table.add(name, [f"{statistics.median(rates):.0f}", f"{statistics.median(ratios):.3f}"])
            table.at_most(f"{name}: time / that of reading the base itself", statistics.median(ratios), 1.05, "{:.3f}")
    return table.end()


# ------------------------------------------------------------------ manners

def guest_reads(client, places, seconds):
    """[ms of each read], one in flight, of places (in units of READ) that are in the base."""
    took = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        place = next(places)
        begun = time.monotonic()
        client.read(place * READ, READ)
        took.append((time.monotonic() - begun) * 1000)
    return took


def percentile(values, percent):
    return sorted(values)[min(int(len(values) * percent / 100), len(values) - 1)]


def set_prefetch(daemon, state):
    daemon.command("blockdev-reopen", options=[{
        "driver": "fvd", "node-name": "disk", "prefetch": state, "file": node_of(daemon, "file"),
        "backing": node_of(daemon, "raw")}])


def turns_alone_and_beside(daemon, places, turns):
    """(ms of reads alone, of reads beside prefetch, bytes that it fetched meanwhile). In turns, since what the
    machine does otherwise changes from second to second."""
    client = daemon.export()
    alone, beside, fetched = [], [], 0
    set_prefetch(daemon, "on")
    guest_reads(client, places, 2)
    for _ in range(turns):
        set_prefetch(daemon, "paused")
        guest_reads(client, places, 0.2)
        alone += guest_reads(client, places, TURN)
        set_prefetch(daemon, "on")
        guest_reads(client, places, 0.5)
        before = daemon.stats()["bytes-prefetch"]
        beside += guest_reads(client, places, TURN)
        fetched += daemon.stats()["bytes-prefetch"] - before
    return alone, beside, fetched


def manners(plan):
    """The guest reads from the back, prefetch comes from the front; they do not meet."""
    volume, turns = 1536 * MIB, 3 if plan.quick else 8
    base = contenders.make_base(SCRATCH / "base", volume, 64 * MIB, 64 * MIB)
    half = volume // 2 // READ
    rounds = []
    with server(["file", str(base)], 2, LINK) as uri:
        for number in range(plan.turns(1, 5)):
            places = iter(random.Random(number).sample(range(half, 2 * half), half))
            daemon = Daemon("fvd", file=in_file(image_over(uri)))
            alone, beside, fetched = turns_alone_and_beside(daemon, places, turns)
            daemon.close()
            rate = [len(times) * READ / turns / TURN / MIB for times in (alone, beside)]
            tail = [percentile(times, 99) for times in (alone, beside)]
            mine, left = fetched / turns / TURN / MIB, LINK / 8 / MIB - rate[1]
            rounds.append((*rate, rate[1] / rate[0], *tail, tail[1] / tail[0], mine, mine / left))
            print(".", end="", file=sys.stderr, flush=True)
    base.unlink()
    table = Table("A guest that reads from the base while prefetch runs",
                  f"One read of {READ // KIB} KiB at a time over a link of {LINK // 1_000_000} Mbit/s and 2 ms; "
                  f"{turns} turns of {TURN} s without and with prefetch; medians of the rounds.",
                  ["", "alone", "beside prefetch", "ratio"])
    alone, beside, kept, tail_alone, tail_beside, longer, mine, part = map(statistics.median, zip(*rounds))
    table.add("guest, MiB/s", [f"{alone:.2f}", f"{beside:.2f}", f"{kept:.3f}"])
    table.add("99th percentile, ms", [f"{tail_alone:.2f}", f"{tail_beside:.2f}", f"{longer:.3f}"])
    table.add("prefetch, MiB/s, of what is left", ["", f"{mine:.2f}", f"{part:.3f}"])
    table.at_least("guest's throughput beside prefetch", kept, 0.95, "{:.3f}")
    table.at_most("guest's 99th percentile beside prefetch", longer, 1.15, "{:.3f}")
    table.at_least("prefetch's part of what is left", part, 0.8, "{:.3f}")
    return table.end()


def node_of(daemon, driver):
    return next(node["node-name"] for node in daemon.command("query-named-block-nodes", flat=True)
                if node["drv"] == driver)
