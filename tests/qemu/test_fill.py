# SPDX-License-Identifier: GPL-2.0-or-later
"""Images that fill themselves from a base behind a real server: copy-on-read, prefetch, the end of both,
and everything that goes on meanwhile. What the base is asked for is counted at the server."""

import hashlib
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys
import threading
import time
import unittest
import zlib

import nbd
from qmp import Daemon, MachineWithoutSystem, QmpError, file_node, image_node
from support import (BIN, FORMAT, KIB, MIB, SANITIZED, ImageTest, digest_of, limit, only_fvd, program, read_file,
                     seed, truncate, write_file)

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "guest"))

from machine import HttpServer

SIZE = 24 * MIB
BLOCK = 64 * KIB
PATIENCE = 240 if SANITIZED else 60
# Prefetch does not pause at random, however slow the base is.
NO_MINIMUM = ("prefetch_min_read_throughput=1", "prefetch_min_write_throughput=1")


needs_machine = unittest.skipUnless((BIN / "qemu-system-x86_64").exists(), "no qemu-system-x86_64")


def base_content(size=SIZE):
    """Random bytes with holes: a quarter of it reads as zeros."""
    source = random.Random(zlib.crc32(b"base"))
    content = bytearray(source.randbytes(size))
    for at in range(0, size, 4 * MIB):
        content[at + MIB:at + 2 * MIB] = bytes(MIB)
    return bytes(content)


class NbdKit:
    """A real NBD server of a raw file, with filters that make it slow or faulty, and a log of what it is
    asked for. It dies with the test."""

    def __init__(self, test, file="base.raw", *words, filters=(), name="base"):
        self.test, self.file, self.words = test, os.path.abspath(file), list(words)
        self.filters, self.socket = list(filters), os.path.abspath(f"{name}.sock")
        self.log = os.path.abspath(f"{name}.log")
        self.process = None
        test.addCleanup(self.stop)
        self.start()

    @property
    def uri(self):
        return f"nbd+unix:///?socket={self.socket}"

    def start(self):
        pathlib.Path(self.socket).unlink(missing_ok=True)
        command = ["nbdkit", "-f", "-r", "-t", "32", "-U", self.socket, "--filter=log",
                   *[f"--filter={name}" for name in self.filters], "file", self.file,
                   f"logfile={self.log}", "logappend=true", *self.words]
        self.test.record.append("$ " + " ".join(command))
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            nbd.connect(self.socket, 20).close()  # its socket is there before it listens
        except OSError as error:
            self.test.fail(f"nbdkit does not answer: {error}; it ended with {self.process.poll()}")

    def stop(self):
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def reads(self):
        """(offset, length) of all that was asked for."""
        text = pathlib.Path(self.log).read_text(errors="replace") if os.path.exists(self.log) else ""
        return [(int(offset, 16), int(length, 16)) for offset, length in
                re.findall(r" Read id=\d+ offset=(0x[0-9a-f]+) count=(0x[0-9a-f]+) \.\.\.", text)]

    def forget(self):
        os.truncate(self.log, 0)


@only_fvd
@unittest.skipUnless(shutil.which("nbdkit"), "no nbdkit")
class FillTest(ImageTest):
    size = SIZE

    def setUp(self):
        super().setUp()
        self.content = base_content(self.size)
        write_file("base.raw", self.content)

    def image(self, server, *options, name="disk.img", **more):
        self.create(name, options=[f"block_size={BLOCK}", *options], base=server.uri, base_fmt="raw",
                    **more)

    def daemon(self, name="disk.img", daemon="daemon", options=(), **more):
        """The image in a storage daemon, and a client of it."""
        daemon = Daemon(self, *options, name=daemon)
        daemon.command("blockdev-add", **image_node(name, "disk0", FORMAT, **more))
        iothread = {"iothread": "io0"} if options else {}
        return daemon, daemon.export("disk0", socket=f"{daemon.path}.nbd", **iothread)

    def stats(self, daemon):
        for node in daemon.command("query-blockstats", query_nodes=True):
            if node.get("node-name") == "disk0":
                return node["driver-specific"]
        self.fail("no statistics of disk0")

    def until(self, what, look, true):
        """What look() gives as soon as that is true()."""
        deadline = time.monotonic() + PATIENCE
        while not true(seen := look()):
            self.assertLess(time.monotonic(), deadline, f"{what}: {seen}")
            time.sleep(0.02)
        return seen

    def wait_for(self, daemon, what, true):
        """Until true(statistics)."""
        return self.until(what, lambda: self.stats(daemon), true)

    def wait_until_complete(self, daemon):
        return self.wait_for(daemon, "not complete", lambda stats: stats["complete"])

    def reopen(self, daemon, **options):
        """As blockdev-reopen wants it: children stay what they are."""
        nodes = {node["drv"]: node["node-name"]
                 for node in daemon.command("query-named-block-nodes", flat=True)}
        daemon.command("blockdev-reopen", options=[
            {"driver": FORMAT, "node-name": "disk0", "file": nodes["file"], "backing": nodes.get("raw"), **{
                key.replace("_", "-"): value for key, value in options.items()}}])

    def nodes(self, daemon):
        return {node["drv"] for node in daemon.command("query-named-block-nodes", flat=True)}

    def wait_for_nodes(self, daemon, without):
        self.until(f"{without} is still there", lambda: self.nodes(daemon), lambda nodes: without not in nodes)

    def end(self, daemon, client, server=None):
        client.close()
        daemon.quit()
        if server:
            server.stop()


# ---------------------------------------------------------------- copy-on-read

class CopyOnRead(FillTest):
    def test_what_was_read_once_is_not_fetched_again_in_any_life(self):
        server = NbdKit(self)
        self.image(server, "copy_on_read=on")
        daemon, client = self.daemon()
        for offset, length in ((5, 1000), (3 * BLOCK, 5 * BLOCK), (3 * BLOCK + 7, BLOCK)):
            self.assertEqual(client.read(offset, length), self.content[offset:offset + length])
        stats = self.wait_for(daemon, "nothing kept", lambda stats: stats["memory"] == 0 and
                              stats["blocks-here"] >= 6)
        self.assertEqual(stats["bytes-dropped"], 0)
        server.forget()
        self.assertEqual(client.read(0, BLOCK), self.content[:BLOCK])
        self.assertEqual(client.read(3 * BLOCK, 5 * BLOCK), self.content[3 * BLOCK:8 * BLOCK])
        self.assertEqual(server.reads(), [])
        self.end(daemon, client)
        daemon, client = self.daemon(daemon="second")
        self.assertEqual(client.read(3 * BLOCK, 5 * BLOCK), self.content[3 * BLOCK:8 * BLOCK])
        self.assertEqual(server.reads(), [])
        self.end(daemon, client)

    def test_off_keeps_nothing_and_the_option_wins_over_the_image(self):
        server = NbdKit(self)
        self.image(server, "copy_on_read=on")
        daemon, client = self.daemon(**{"copy-on-read": False})
        client.read(0, BLOCK)
        client.read(0, BLOCK)
        self.assertEqual(self.stats(daemon)["bytes-copy-on-read"], 0)
        self.assertEqual(len(server.reads()), 2)
        here = self.stats(daemon)["blocks-here"]
        self.reopen(daemon, copy_on_read=True)
        client.read(0, BLOCK)
        self.wait_for(daemon, "not kept", lambda stats: stats["blocks-here"] == here + 1)
        self.end(daemon, client)

    def test_a_guests_write_beats_the_copy_of_what_it_read(self):
        server = NbdKit(self, "base.raw", "rdelay=20ms", filters=["delay"])
        self.image(server, "copy_on_read=on")
        daemon, client = self.daemon()
        content = bytearray(self.content)
        for block in range(64):
            at = block * BLOCK
            client.submit(0, at, 4096)  # a read
            content[at + 512:at + 1024] = bytes([block + 1]) * 512
            client.submit(1, at + 512, data=bytes([block + 1]) * 512)
            client.reap()
            client.reap()
        self.assertEqual(client.read_all(), bytes(content))
        self.end(daemon, client, server)

    def test_a_full_read_fetches_each_byte_at_most_once(self):
        server = NbdKit(self)
        self.image(server, "copy_on_read=on")
        daemon, client = self.daemon()
        server.forget()
        self.assertEqual(client.read_all(), self.content)
        self.assertLessEqual(sum(length for _, length in server.reads()), self.size)
        self.wait_for(daemon, "not all kept", lambda stats: stats["memory"] == 0)
        self.end(daemon, client)

    def test_the_last_block_lets_the_base_go(self):
        server = NbdKit(self)
        self.image(server, "copy_on_read=on")
        daemon, client = self.daemon()
        client.write(0, self.content[:BLOCK])
        client.flush()
        self.assertEqual(client.read(BLOCK, self.size - BLOCK), self.content[BLOCK:])
        self.wait_until_complete(daemon)
        self.wait_for_nodes(daemon, without="nbd")
        server.stop()
        self.assertEqual(client.read_all(), self.content)
        self.end(daemon, client)
        self.assertTrue(self.specific("disk.img")["base-fully-prefetched"])
        self.assert_reads("disk.img", self.content)

    def test_errors_of_the_image_do_not_reach_readers(self):
        server = NbdKit(self)
        self.image(server, "copy_on_read=on")
        daemon = Daemon(self)
        daemon.command("blockdev-add", driver=FORMAT, node_name="disk0", file={
            "driver": "blkdebug", "image": file_node("disk.img"),
            "inject-error": [{"event": "cor_write", "iotype": "write", "errno": 28}]})
        client = daemon.export("disk0")
        self.assertEqual(client.read_all(), self.content)
        stats = self.wait_for(daemon, "still storing", lambda stats: stats["memory"] == 0)
        self.assertGreater(stats["store-errors"], 0)
        self.end(daemon, client)
        self.check("disk.img")


# ---------------------------------------------------------------- prefetch

class Prefetch(FillTest):
    def fetched(self, server):
        """Bytes read at the server; none of them twice, none of them a hole."""
        seen = bytearray(self.size // 4096)
        for offset, length in server.reads():
            for page in range(offset // 4096, min(offset + length, self.size) // 4096):
                seen[page] += 1
        twice = sum(1 for count in seen if count > 1)
        self.assertEqual(twice, 0, "pages fetched more than once")
        holes = [page for page, count in enumerate(seen) if count
                 and self.content[page * 4096:page * 4096 + 4096] == bytes(4096)]
        self.assertEqual(holes, [], "holes fetched")
        return sum(seen) * 4096

    def test_it_brings_everything_once_leaves_holes_and_lets_the_base_go(self):
        server = NbdKit(self)
        self.image(server, "prefetch_start_delay=0")
        server.forget()
        daemon, client = self.daemon()
        stats = self.wait_until_complete(daemon)
        self.assertEqual(self.fetched(server), self.size * 3 // 4)
        self.assertEqual(stats["bytes-guest"], 0)
        deadline = time.monotonic() + PATIENCE
        while "nbd" in self.nodes(daemon):
            self.assertLess(time.monotonic(), deadline, "the base is still open")
            time.sleep(0.02)
        server.stop()
        self.assertEqual(client.read_all(), self.content)
        self.end(daemon, client)
        self.assertTrue(self.specific("disk.img")["base-fully-prefetched"])
        self.assertNotIn("backing-filename", self.info("disk.img"))
        self.assert_reads("disk.img", self.content)
        self.check("disk.img")

    def test_a_raw_data_file_then_is_the_disk(self):
        server = NbdKit(self)
        self.image(server, "prefetch_start_delay=0", "data_file=data.raw")
        daemon, client = self.daemon()
        self.wait_until_complete(daemon)
        client.write(MIB + 5, b"w" * 70000)
        self.end(daemon, client, server)
        content = bytearray(self.content)
        content[MIB + 5:MIB + 5 + 70000] = b"w" * 70000
        self.img("convert", "-f", FORMAT, "-O", "raw", "disk.img", "converted.raw")
        self.assertEqual(digest_of("data.raw"), digest_of("converted.raw"))
        self.assertEqual(digest_of("data.raw"), hashlib.sha256(content).hexdigest())

    def test_compact_images_store_data_only(self):
        server = NbdKit(self)
        self.image(server, "prefetch_start_delay=0", "compact_image=on", f"chunk_size={256 * KIB}")
        daemon, client = self.daemon()
        self.wait_until_complete(daemon)
        self.end(daemon, client, server)
        self.assert_reads("disk.img", self.content)
        found = self.check("disk.img", "--output=json").json()
        self.assertEqual(found["allocated-clusters"], self.size * 3 // 4 // (256 * KIB))

    def test_guest_writes_while_it_runs_are_kept(self):
        server = NbdKit(self, "base.raw", "rdelay=5ms", filters=["delay"])
        self.image(server, "prefetch_start_delay=0", "copy_on_read=on", "prefetch_max_read_throughput=8192")
        daemon, client = self.daemon()
        source = random.Random(seed() ^ zlib.crc32(b"fill"))
        content = bytearray(self.content)
        while not self.stats(daemon)["complete"]:
            for _ in range(50):
                offset = source.randrange(0, self.size - 200000, 512)
                length = source.choice((512, 4096, 5000 // 512 * 512, 200000 // 512 * 512))
                kind = source.randrange(4)
                if kind == 0:
                    data = source.randbytes(length)
                    content[offset:offset + length] = data
                    client.write(offset, data)
                elif kind == 1:
                    content[offset:offset + length] = bytes(length)
                    client.zero(offset, length)
                elif kind == 2:
                    client.flush()
                else:
                    self.assertEqual(client.read(offset, length), content[offset:offset + length])
        self.assertEqual(client.read_all(), bytes(content))
        self.end(daemon, client, server)
        self.assert_reads("disk.img", bytes(content))
        self.check("disk.img")

    def test_it_waits_goes_on_and_can_be_changed(self):
        server = NbdKit(self)
        self.image(server)
        daemon, client = self.daemon()
        time.sleep(0.3)
        self.assertEqual(self.stats(daemon)["hold"], "off")
        here = self.stats(daemon)["blocks-here"]
        self.reopen(daemon, prefetch="on", prefetch_max_read_throughput=2048)
        self.wait_for(daemon, "no progress", lambda stats: stats["blocks-here"] > here + 8)
        self.reopen(daemon, prefetch="paused", prefetch_max_read_throughput=2048)
        stats = self.wait_for(daemon, "not paused", lambda stats: stats["hold"] == "paused" and
                              stats["memory"] == 0)
        time.sleep(0.5)
        self.assertEqual(self.stats(daemon)["blocks-here"], stats["blocks-here"])
        self.assertFalse(stats["complete"])
        self.reopen(daemon, prefetch="on")
        self.wait_until_complete(daemon)
        self.end(daemon, client)

    def test_the_upper_limit_is_kept(self):
        server = NbdKit(self)
        self.image(server, "prefetch_start_delay=0", "prefetch_max_read_throughput=4096")
        begun = time.monotonic()
        daemon, client = self.daemon()
        self.wait_until_complete(daemon)
        took = time.monotonic() - begun
        self.assertGreaterEqual(took, 0.9 * self.size * 3 / 4 / (4096 * KIB))
        self.end(daemon, client)

    def test_bad_options_are_refused_by_name_value_and_range(self):
        server = NbdKit(self)
        for option, words in (("num_prefetch_slots=65", ("num_prefetch_slots", "65", "64")),
                              ("prefetch_start_delay=-2", ("prefetch_start_delay", "-2", "-1")),
                              ("bytes_per_prefetch=1G", ("bytes_per_prefetch", "1073741824")),
                              ("bytes_per_prefetch=8E", (f"bytes_per_prefetch is {2 ** 63 - 1}; ", "67108864")),
                              (f"prefetch_throttle_time={2 ** 63}", ("throttle",)),
                              (f"prefetch_throttle_time={2 - 2 ** 64}", ("throttle",)),
                              ("max_outstanding_copy_on_read_data=8E", ("1073741824",))):
            ran = self.create("bad.img", options=[option], base=server.uri, base_fmt="raw", expect=1)
            for word in words:
                self.assertIn(word, ran.err)
        self.image(server)
        ran = self.img("amend", "-f", FORMAT, "-o", "num_prefetch_slots=65", "disk.img", expect=1)
        self.assertIn("num_prefetch_slots", ran.err)
        for value in (2 ** 63, 2 - 2 ** 64):
            ran = self.img("amend", "-f", FORMAT, "-o", f"prefetch_throttle_time={value}", "disk.img",
                           expect=1)
            self.assertIn("throttle", ran.err)
        ran = self.img("amend", "-f", FORMAT, "-o", "bytes_per_prefetch=8E", "disk.img", expect=1)
        self.assertIn("67108864", ran.err)
        daemon = Daemon(self)
        with self.assertRaisesRegex(QmpError, "prefetch_guest_slowdown|prefetch-guest-slowdown"):
            daemon.command("blockdev-add", **image_node("disk.img", "disk0", FORMAT),
                           prefetch_guest_slowdown=101)
        daemon.quit()

    def test_every_documented_parameter_has_its_range(self):
        document = (pathlib.Path(__file__).resolve().parents[2] / "docs/filling.md").read_text()
        rows = re.findall(r"^\| `(\w+)` *(\(node only\))? *\| ([\w/]+) \|[^|]*\| (\S+) \|$", document, re.M)
        self.assertEqual(len(rows), 16)
        self.create("disk.img", SIZE)
        for name, node_only, unit, legal in rows:
            with self.subTest(parameter=name):
                least, most = map(int, legal.split(".."))
                said = f"{name} is {most + 1}; must be in {legal} ({unit})"
                ran = self.run_program([
                    program("qemu-io"), "-c", "quit", "--image-opts", f"driver={FORMAT},file.driver=file,"
                    f"file.filename=disk.img,{name.replace('_', '-')}={most + 1}"], expect=1)
                self.assertIn(said, ran.err)
                if not node_only:
                    self.assertIn(said, self.create("bad.img", SIZE, options=[f"{name}={most + 1}"],
                                                    expect=1).err)
                    self.img("amend", "-f", FORMAT, "-o", f"{name}={most}", "disk.img")
                    self.assertEqual(self.specific("disk.img")[name.replace("_", "-")], most)

    def test_amend_changes_what_the_image_asks_for(self):
        server = NbdKit(self)
        self.image(server)
        self.assertFalse(self.specific("disk.img")["copy-on-read"])
        self.img("amend", "-f", FORMAT, "-o",
                 "copy_on_read=on,prefetch_start_delay=0,bytes_per_prefetch=256k", "disk.img")
        known = self.specific("disk.img")
        self.assertTrue(known["copy-on-read"])
        self.assertEqual((known["prefetch-start-delay"], known["bytes-per-prefetch"]), (0, 256 * KIB))
        server.forget()
        daemon, client = self.daemon()
        self.wait_until_complete(daemon)
        self.assertLessEqual(max(length for _, length in server.reads()), 256 * KIB)
        self.end(daemon, client)


# ---------------------------------------------------------------- faults

class Faults(FillTest):
    def test_a_server_that_dies_and_comes_back(self):
        server = NbdKit(self, "base.raw", "rdelay=10ms", filters=["delay"])
        self.create("disk.img", options=[f"block_size={BLOCK}", "prefetch_start_delay=0",
                                         "prefetch_max_read_throughput=8192"],
                    base=server.uri, base_fmt="raw")
        daemon = Daemon(self)
        daemon.command("blockdev-add", driver="nbd", node_name="base0", reconnect_delay=0, read_only=True,
                       server={"type": "unix", "path": server.socket})
        daemon.command("blockdev-add", **image_node("disk.img", "disk0", FORMAT), prefetch_retry_min_time=50,
                       prefetch_retry_max_time=400,
                       backing="base0")
        client = daemon.export("disk0")
        self.wait_for(daemon, "no start", lambda stats: stats["bytes-prefetch"] > MIB)
        server.stop()
        stats = self.wait_for(daemon, "no error seen", lambda stats: stats["base-errors"] > 0)
        self.assertFalse(stats["complete"])
        here = stats["blocks-here"]
        server.start()
        self.wait_until_complete(daemon)
        self.assertGreater(self.stats(daemon)["blocks"], here)
        self.assertEqual(client.read_all(), self.content)
        self.end(daemon, client, server)

    def test_errors_of_the_base_only_delay(self):
        server = NbdKit(self, "base.raw", "error-pread=EIO", "error-pread-rate=10%", filters=["error"])
        self.image(server, "prefetch_start_delay=0")
        daemon, client = self.daemon(prefetch_retry_min_time=1, prefetch_retry_max_time=20)
        self.wait_until_complete(daemon)
        self.assertEqual(client.read_all(), self.content)
        self.end(daemon, client, server)
        self.assert_reads("disk.img", self.content)

    def test_a_server_that_tries_again_itself_is_waited_for(self):
        """nbdkit's retry filter: no error reaches us, but requests hang until the server's source is well."""
        trouble = os.path.abspath("trouble")
        server = NbdKit(self, "base.raw", "error-pread=EIO", "error-pread-rate=100%", f"error-file={trouble}",
                        "retry-delay=1", "retry-exponential=no", "retries=60", filters=["retry", "error"])
        self.image(server, "prefetch_start_delay=0", "prefetch_max_read_throughput=2048", *NO_MINIMUM)
        daemon, client = self.daemon()
        self.wait_for(daemon, "no start", lambda stats: stats["bytes-prefetch"] > MIB)
        write_file(trouble, b"")
        self.until("goes on without its source", lambda: self.progress_in(daemon, 0.5), lambda bytes: bytes == 0)
        self.assertFalse(self.stats(daemon)["complete"], "nothing was left to wait for")
        answers = []
        hung = threading.Thread(target=lambda: answers.append(client.read(SIZE - BLOCK, BLOCK)))
        hung.start()
        time.sleep(0.3)
        self.assertTrue(hung.is_alive())
        os.unlink(trouble)
        hung.join(PATIENCE)
        self.assertEqual(answers, [self.content[SIZE - BLOCK:]])
        self.assertEqual(self.wait_until_complete(daemon)["base-errors"], 0)
        self.assertEqual(client.read_all(), self.content)
        self.end(daemon, client, server)

    def test_what_a_shorter_base_has_lost_is_not_kept_as_zeros(self):
        """The wrong file behind the server, or one that is still being copied there."""
        server = NbdKit(self)
        self.image(server, "prefetch_start_delay=0", "copy_on_read=on")
        server.stop()
        for left in (0, MIB + 512):
            whole = read_file("base.raw")
            write_file("base.raw", whole[:left])
            server.start()
            daemon, client = self.daemon(daemon=f"short{left}", prefetch_retry_min_time=10,
                                         prefetch_retry_max_time=100)
            self.assertEqual(client.read(2 * MIB, BLOCK), bytes(BLOCK))
            stats = self.wait_for(daemon, "no error seen", lambda stats: stats["base-errors"] > 3)
            self.assertFalse(stats["complete"])
            self.end(daemon, client, server)
            self.assertIn(f"the base is {left} bytes long, the image was made for {self.size}", daemon.output())
            write_file("base.raw", whole)
        server.start()
        daemon, client = self.daemon()
        self.wait_until_complete(daemon)
        self.assertEqual(client.read_all(), self.content)
        self.end(daemon, client, server)

    def progress_in(self, daemon, seconds):
        before = self.stats(daemon)["bytes-prefetch"]
        time.sleep(seconds)
        return self.stats(daemon)["bytes-prefetch"] - before

    def test_a_server_with_a_rate_of_its_own(self):
        """nbdkit's rate filter: 4 MiB a second, and for a moment what was saved up. Prefetch takes what there is, and
        a guest that reads meanwhile is not kept waiting. Without its minimum, below which it pauses at random."""
        server = NbdKit(self, "base.raw", f"rate={4 * 8}M", "burstiness=0.25", filters=["rate"])
        self.image(server, "prefetch_start_delay=0", "copy_on_read=on", *NO_MINIMUM)
        data = self.size * 3 // 4
        begun = time.monotonic()
        daemon, client = self.daemon()
        at = SIZE - 4 * BLOCK
        for place in range(at, SIZE, BLOCK):
            self.assertEqual(client.read(place, BLOCK), self.content[place:place + BLOCK])
        self.assertLess(time.monotonic() - begun, data / (4 * MIB) / 2, "the guest had to wait")
        self.assertFalse(self.stats(daemon)["complete"], "nothing was left to compete with")
        self.wait_until_complete(daemon)
        self.assertLess(time.monotonic() - begun, 2 * data / (4 * MIB))
        self.assertEqual(client.read_all(), self.content)
        self.assertEqual(sum(length for _, length in server.reads()), data)
        self.end(daemon, client, server)

    def test_progress_survives_a_killed_process(self):
        server = NbdKit(self, "base.raw", "rdelay=10ms", filters=["delay"])
        self.image(server, "prefetch_start_delay=0", "prefetch_max_read_throughput=8192")
        here = 0
        for life in range(4):
            daemon, client = self.daemon(daemon=f"life{life}")
            first = self.stats(daemon)["blocks-here"]
            self.assertGreaterEqual(first, here, "durable progress was lost")
            self.wait_for(daemon, "no progress", lambda stats: stats["blocks-here"] > first + 24 or
                          stats["complete"])
            client.flush()
            here = self.stats(daemon)["blocks-here"] if self.stats(daemon)["complete"] else first
            client.write(0, self.content[:512])
            client.flush()
            here = max(here, first)
            daemon.kill()
            client.close()
        daemon, client = self.daemon(daemon="last")
        self.wait_until_complete(daemon)
        self.assertEqual(client.read_all(), self.content)
        self.end(daemon, client, server)
        self.check("disk.img")

    def test_a_quit_in_the_middle_loses_nothing(self):
        server = NbdKit(self, "base.raw", "rdelay=30ms", filters=["delay"])
        self.image(server, "prefetch_start_delay=0", "copy_on_read=on")
        for life in range(6):
            daemon, client = self.daemon(daemon=f"life{life}")
            self.assertEqual(client.read(life * MIB, 100000), self.content[life * MIB:life * MIB + 100000])
            time.sleep(0.02 * life)
            self.end(daemon, client)
            self.check("disk.img")
        self.assert_reads("disk.img", self.content)


class ManyReadsOfTheBase(FillTest):
    def test_an_answer_does_not_wait_for_those_to_later_reads(self):
        """QEMU's own NBD client makes it wait; qemu/hooks.toml has a hook for that."""
        delay, reads = 0.2, 12
        server = NbdKit(self, "base.raw", f"rdelay={int(delay * 1000)}ms", filters=["delay"])
        daemon = Daemon(self)
        daemon.command("blockdev-add", driver="raw", node_name="base0", read_only=True, file={
            "driver": "nbd", "server": {"type": "unix", "path": server.socket}})
        client = daemon.export("base0", writable=False)
        begun, took = {}, {}

        def reap():
            while len(took) < reads:
                handle = client.reap().handle
                took[handle] = time.monotonic() - begun[handle]

        reader = threading.Thread(target=reap)
        for number in range(reads):
            begun[client.next_handle] = time.monotonic()
            client.submit(nbd.READ, number * MIB, 4096)
            if number == 0:
                reader.start()
            time.sleep(delay / 8)
        reader.join(PATIENCE)
        self.assertEqual(len(took), reads)
        # One that waits for the others takes twice the delay.
        self.assertLess(max(took.values()), 1.6 * delay, took)
        self.end(daemon, client, server)


# ---------------------------------------------------------------- neighbours in the graph

class Behaves(FillTest):
    def slow_image(self):
        server = NbdKit(self, "base.raw", "rdelay=10ms", filters=["delay"])
        self.image(server, "prefetch_start_delay=0", "copy_on_read=on", "prefetch_max_read_throughput=16384")
        return server

    def test_a_snapshot_taken_while_it_runs(self):
        server = self.slow_image()
        daemon, client = self.daemon()
        self.img("create", "-q", "-f", "qcow2", "-b", os.path.abspath("disk.img"), "-F", FORMAT, "top.qcow2",
                 str(self.size))
        daemon.command("blockdev-add", driver="qcow2", node_name="top", backing=None,
                       file=file_node("top.qcow2"))
        daemon.command("blockdev-snapshot", node="disk0", overlay="top")
        content = bytearray(self.content)
        content[MIB:MIB + 4096] = b"t" * 4096
        client.write(MIB, b"t" * 4096)
        self.wait_for(daemon, "no end", lambda stats: stats["complete"] or stats["hold"] == "off")
        self.assertEqual(client.read_all(), bytes(content))
        self.end(daemon, client, server if self.specific("disk.img")["base-fully-prefetched"] else None)

    def test_moves_between_iothreads_and_the_main_loop(self):
        server = self.slow_image()
        daemon, client = self.daemon(options=["--object", "iothread,id=io0"])
        for turn in range(6):
            self.assertEqual(client.read(turn * MIB, 5000), self.content[turn * MIB:turn * MIB + 5000])
            client.close()
            daemon.command("block-export-del", id="export-disk0", mode="hard")
            daemon.monitor.wait("BLOCK_EXPORT_DELETED", id="export-disk0")
            daemon.command("nbd-server-stop")
            more = {"iothread": "io0"} if turn % 2 else {}
            client = daemon.export("disk0", socket=f"turn{turn}.sock", **more)
        self.wait_until_complete(daemon)
        self.assertEqual(client.read_all(), self.content)
        self.end(daemon, client, server)

    def test_moves_many_times_while_it_fills(self):
        """Whoever leaves changes the graph: what is about to fetch or store waits for that, and not it for them."""
        server = self.slow_image()
        daemon, client = self.daemon(options=["--object", "iothread,id=io0"])
        for turn in range(100):
            daemon.command("block-export-add", type="nbd", id="more", node_name="disk0", iothread="io0")
            daemon.command("block-export-del", id="more", mode="hard")
            daemon.monitor.wait("BLOCK_EXPORT_DELETED", id="more")
        client.close()
        for turn in range(100):
            daemon.command("block-export-del", id="export-disk0", mode="hard")
            daemon.monitor.wait("BLOCK_EXPORT_DELETED", id="export-disk0")
            daemon.command("block-export-add", type="nbd", id="export-disk0", node_name="disk0", iothread="io0")
        self.wait_until_complete(daemon)
        daemon.quit()
        server.stop()
        self.check("disk.img")

    def test_drained_sections_one_after_another(self):
        server = self.slow_image()
        daemon, client = self.daemon()
        for turn in range(30):
            self.reopen(daemon, copy_on_read=bool(turn % 2), prefetch="on")
        self.wait_until_complete(daemon)
        self.assertEqual(client.read_all(), self.content)
        self.end(daemon, client, server)

    def machine(self, *options, name):
        return MachineWithoutSystem(self, {
            "driver": FORMAT, "node-name": "disk0", "file": file_node("disk.img")}, *options, name=name)

    def target(self, name):
        """A machine that waits for another's guest."""
        return self.machine("-incoming", f"unix:{name}.migration", name=name)

    def hand_over(self, source, target, name):
        """Live migration; afterwards the target goes on."""
        source.command("migrate", uri=f"unix:{name}.migration")
        ends = ("completed", "failed", "cancelled")
        state = self.until("migration", lambda: source.command("query-migrate").get("status"),
                           lambda status: status in ends)
        self.assertEqual(state, "completed")
        target.monitor.wait("RESUME")

    def machines_in_turn(self, *options):
        """Each writes, and hands over while it fills; the last one ends it."""
        server = NbdKit(self, "base.raw", "rdelay=10ms", filters=["delay"])
        self.image(server, "prefetch_start_delay=0", "copy_on_read=on", "prefetch_max_read_throughput=4096",
                   *options)
        content = bytearray(self.content)
        machine = self.machine(name="machine0")
        here = 0
        for turn in range(1, 4):
            at = turn * 5 * MIB
            self.assertNotIn("rror", machine.io(f"write -P {turn} {at} 70000"))
            content[at:at + 70000] = bytes([turn]) * 70000
            here = self.wait_for(machine, "no progress", lambda stats: stats["blocks-here"] > here + 16)["blocks-here"]
            following = self.target(f"machine{turn}")
            self.hand_over(machine, following, f"machine{turn}")
            self.assertGreaterEqual(self.stats(following)["blocks-here"], here)
            machine.quit()
            machine = following
        self.reopen(machine, prefetch_max_read_throughput=0)
        self.wait_until_complete(machine)
        self.wait_for_nodes(machine, without="nbd")
        machine.quit()
        server.stop()
        self.assert_reads("disk.img", bytes(content))
        self.check("disk.img")

    @needs_machine
    def test_machines_that_migrate_while_it_fills(self):
        self.machines_in_turn()

    @needs_machine
    def test_machines_that_migrate_while_a_compact_image_fills(self):
        self.machines_in_turn("compact_image=on", "chunk_size=64k")

    @needs_machine
    def test_a_machine_that_takes_over_what_was_filled_meanwhile(self):
        server = NbdKit(self)
        self.image(server, "prefetch_start_delay=0")
        source = self.machine(name="source")
        target = self.target("target")
        self.wait_until_complete(source)
        self.wait_for_nodes(source, without="nbd")
        self.hand_over(source, target, "target")
        self.assertTrue(self.stats(target)["complete"])
        self.wait_for_nodes(target, without="nbd")
        source.quit()
        server.stop()
        self.assertNotIn("rror", target.io("write -P 9 0 4k"))
        target.quit()
        self.assert_reads("disk.img", b"\x09" * 4096 + self.content[4096:])
        self.check("disk.img")

    def test_a_mirror_job_of_the_node(self):
        server = self.slow_image()
        daemon, client = self.daemon()
        truncate("copy.raw", self.size)
        daemon.command("blockdev-add", driver="raw", node_name="copy", file=file_node("copy.raw"))
        daemon.command("blockdev-mirror", job_id="m", device="disk0", target="copy", sync="full")
        daemon.monitor.wait("BLOCK_JOB_READY", device="m")
        daemon.command("block-job-cancel", device="m")
        daemon.monitor.wait("BLOCK_JOB_COMPLETED", device="m")
        self.wait_until_complete(daemon)
        self.end(daemon, client, server)
        self.assertEqual(read_file("copy.raw"), self.content)


# ---------------------------------------------------------------- other servers, tools

class Http(FillTest):
    def test_a_base_behind_nginx(self):
        os.chmod(".", 0o755)
        server = HttpServer(pathlib.Path("base.raw"), os.getcwd())
        server.__enter__()
        self.addCleanup(server.__exit__)
        self.create("disk.img", options=[f"block_size={BLOCK}", "prefetch_start_delay=0", "copy_on_read=on"],
                    base=server.uri, base_fmt="raw")
        daemon, client = self.daemon()
        self.assertEqual(client.read(MIB // 2, 3 * MIB), self.content[MIB // 2:MIB // 2 + 3 * MIB])
        self.wait_until_complete(daemon)
        server.__exit__()
        self.assertEqual(client.read_all(), self.content)
        self.end(daemon, client)


class Top(FillTest):
    def test_fvd_top_shows_progress_and_ends_with_it(self):
        server = NbdKit(self)
        self.image(server)
        daemon, client = self.daemon()
        top = str(pathlib.Path(__file__).resolve().parents[2] / "tools/fvd-top")
        del daemon.monitor
        ran = self.run_program([top, "--once", daemon.path])
        self.assertRegex(ran.out, r"disk0  \[#*-+\] +\d+\.\d %  .* of 24\.0 MiB")
        self.assertIn("off", ran.out)
        client.close()
        daemon.kill()
        daemon, client = self.daemon(daemon="second", prefetch="on")
        self.wait_until_complete(daemon)
        del daemon.monitor
        ran = self.run_program([top, "--until-complete", daemon.path, "disk0"])
        self.assertIn("the base is not needed any more", ran.out)
        self.assertEqual(self.run_program([top, "nowhere.sock"], expect=1).code, 1)
        client.close()
