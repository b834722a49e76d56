# SPDX-License-Identifier: GPL-2.0-or-later
"""A storage daemon is killed while it writes. Whatever was flushed must be there; what was not
flushed must be an old value or a newer one, sector by sector; nothing else may ever be seen."""

import os
import random
import struct
import threading
import time
import zlib

import nbd
import qmp
from support import (FORMAT, KIB, MIB, ImageTest, digests, kill, limit, only_fvd, read_file, seed,
                     write_file)

SECTOR = 512
DEPTH = 16
KILLS = 16  # in each of the configurations below
BASE_STAMP = 0


def stamp(sector, version):
    """A sector that says where it belongs and when it was written."""
    return struct.pack("<QQ", sector, version) * (SECTOR // 16)


def base_sector(sector):
    return stamp(sector, BASE_STAMP)


class History:
    """What each sector may hold: its last durable version, or any version written since."""

    def __init__(self, sectors, base_sectors):
        self.base_sectors = base_sectors
        self.durable = [BASE_STAMP] * sectors
        self.since = {}  # sector -> versions acknowledged or begun since the last flush
        self.version = 0
        self.order = 0  # grows with each acknowledgement
        self.acknowledged = {}  # (sector, version) -> order

    def begin(self, first, count):
        self.version += 1
        for sector in range(first, first + count):
            self.since.setdefault(sector, []).append(self.version)
        return self.version

    def acknowledge(self, first, count, version, durable):
        self.order += 1
        for sector in range(first, first + count):
            self.acknowledged[sector, version] = self.order
            if durable:
                self._make_durable(sector, version)

    def _make_durable(self, sector, version):
        versions = self.since[sector]
        self.durable[sector] = version
        self.since[sector] = versions[versions.index(version) + 1:]

    def flushed(self, order):
        """A flush that began when `order` writes were acknowledged has succeeded."""
        for sector, versions in list(self.since.items()):
            done = [version for version in versions
                    if self.acknowledged.get((sector, version), order + 1) <= order]
            if not done:
                continue
            # Writes to one sector never overlap in time here, so the last done one is the value.
            self._make_durable(sector, done[-1])

    def allowed(self, sector):
        return [self.durable[sector], *self.since.get(sector, [])]

    def settle(self, sector, version):
        """What was seen after recovery is durable from now on."""
        self.durable[sector] = version

    def restart(self):
        self.since.clear()
        self.acknowledged.clear()


class Writer:
    """Random overlapping-free writes, zero blocks of them, and flushes, until the server dies."""

    def __init__(self, client, history, source, block):
        self.client, self.history, self.random, self.block = client, history, source, block
        self.in_flight = {}
        self.sectors = len(history.durable)
        self.hot = [source.randrange(self.sectors) for _ in range(6)]

    def run(self):
        try:
            while True:
                while len(self.in_flight) >= DEPTH:
                    self._reap()
                if self.random.random() < 0.04:
                    handle = self.client.submit(nbd.FLUSH)
                    self.in_flight[handle] = ("flush", self.history.order, 0, 0)
                else:
                    self._write()
        except (ConnectionError, BrokenPipeError, OSError):
            return

    def _write(self):
        first, count = self._range()
        while any(kind != "flush" and first < kind + length and kind < first + count
                  for kind, _, length, _ in self.in_flight.values()):
            self._reap()
        version = self.history.begin(first, count)
        data = b"".join(stamp(sector, version) for sector in range(first, first + count))
        flags = nbd.FUA if self.random.random() < 0.03 else 0
        handle = self.client.submit(nbd.WRITE, first * SECTOR, data=data, flags=flags)
        self.in_flight[handle] = (first, version, count, flags)

    def _range(self):
        count = self.random.choice((1, 1, 3, 8, 8, 8, 17, 128))
        if self.random.random() < 0.4:
            first = self.random.choice(self.hot) + self.random.randrange(2 * self.block // SECTOR)
        else:
            first = self.random.randrange(self.sectors)
        first = min(first, self.sectors - count)
        return first, count

    def _reap(self):
        done = self.client.reap()
        what, number, length, flags = self.in_flight.pop(done.handle)
        if done.error:
            raise AssertionError(f"request failed with error {done.error}")
        if what == "flush":
            self.history.flushed(number)
        else:
            self.history.acknowledge(what, length, number, flags)


@limit(300)
class Kill(ImageTest):
    size = 16 * MIB

    def prepare(self, block, base_sectors, options=(), **serving):
        self.random = random.Random(seed() ^ zlib.crc32(self.id().encode()))
        print(f"seed {seed():#x}")
        self.block, self.serving = block, serving
        base = {}
        if base_sectors:
            write_file("base.raw", b"".join(base_sector(n) for n in range(base_sectors)))
            base = {"base": "base.raw", "base_fmt": "raw"}
        if FORMAT == "fvd":
            options = [f"block_size={block}", *options]
        else:
            options = []
        self.create("disk.img", self.size, options=options, **base)
        self.history = History(self.size // SECTOR, base_sectors)
        self.files = [name for name in ("disk.img", "data.raw") if os.path.exists(name)]

    def life_and_death(self, number):
        daemon, client = qmp.serve(self, "disk.img", FORMAT, name=f"d{number}",
                                   socket=f"n{number}.sock", **self.serving)
        writer = Writer(client, self.history, self.random, self.block)
        killer = threading.Timer(self.random.uniform(0.02, 0.4), daemon.process.kill)
        killer.start()
        writer.run()
        killer.join()
        kill(daemon.process)
        client.socket.close()

    def seen_without_writing(self):
        """The guest's disk as a read-only opener shows it; not one byte is written."""
        before = digests(*self.files)
        self.img("convert", "-f", FORMAT, "-O", "raw", "disk.img", "seen.raw")
        self.check("disk.img")
        self.assert_unchanged(before)
        return read_file("seen.raw")

    def verify(self, seen, number):
        for sector in range(len(self.history.durable)):
            data = seen[sector * SECTOR:(sector + 1) * SECTOR]
            place, version = struct.unpack_from("<QQ", data)
            if data == bytes(SECTOR) and sector >= self.history.base_sectors:
                place, version = sector, BASE_STAMP
            elif data != stamp(place, version) or place != sector:
                self.fail(f"sector {sector} holds bytes nobody wrote there, after kill {number}")
            if version not in self.history.allowed(sector):
                self.fail(f"sector {sector} shows version {version} after kill {number}; allowed: "
                          f"{self.history.allowed(sector)}")
            self.history.settle(sector, version)
        self.history.restart()

    def run_kills(self):
        for number in range(KILLS):
            self.life_and_death(number)
            seen = self.seen_without_writing()
            self.verify(seen, number)
            # Recovery by a writer must show what the read-only opener showed.
            if number % 4 == 3:
                self.io("disk.img", "flush")
                self.check("disk.img")
                self.img("convert", "-f", FORMAT, "-O", "raw", "disk.img", "again.raw")
                self.assertEqual(seen, read_file("again.raw"))

    def test_over_a_base_with_4k_blocks(self):
        self.prepare(4096, self.size // SECTOR)
        self.run_kills()

    def test_over_a_shorter_base_with_64k_blocks_and_a_small_journal(self):
        self.prepare(65536, self.size // SECTOR // 2 + 1, ["journal_size=262144"])
        self.run_kills()

    def test_with_a_data_file_and_small_units(self):
        self.prepare(512, self.size // SECTOR, ["data_file=data.raw", "data_file_fmt=raw",
                                                "journal_unit=512", "journal_size=32768"])
        self.run_kills()

    def test_without_cache_in_an_iothread(self):
        self.prepare(7680, self.size // SECTOR, cache="none", aio="io_uring", iothread=True)
        self.run_kills()

    def test_without_base(self):
        self.prepare(4096, 0)
        self.run_kills()

    def test_compact_over_a_base(self):
        self.prepare(4096, self.size // SECTOR, ["compact_image=on", "chunk_size=64k",
                                                 "storage_grow_unit=128k"])
        self.run_kills()

    def test_compact_with_small_chunks_and_a_data_file(self):
        self.prepare(4096, 0, ["compact_image=on", "chunk_size=8k", "data_file=data.raw",
                               "journal_size=262144"])
        self.run_kills()


@only_fvd
class ReadOnlyOpen(ImageTest):
    def dirty_image(self):
        """An image whose last writes are only in the journal."""
        write_file("base.raw", os.urandom(MIB))
        self.create("disk.img", MIB, base="base.raw", base_fmt="raw")
        daemon, client = qmp.serve(self, "disk.img", FORMAT)
        content = bytearray(read_file("base.raw"))
        for place in range(0, MIB, 64 * KIB):
            client.write(place + 100, b"w" * 5000)
            content[place + 100:place + 5100] = b"w" * 5000
        client.flush()
        kill(daemon.process)
        return bytes(content)

    def test_shows_recovered_content_and_writes_no_byte(self):
        content = self.dirty_image()
        self.assertIs(self.specific("disk.img")["clean-shutdown"], False)
        before = digests("disk.img", "base.raw")
        os.chmod("disk.img", 0o444)
        self.assert_reads("disk.img", content)
        self.io("disk.img", "read -P 119 100 5000", options=["-r"])
        self.check("disk.img")
        self.map("disk.img")
        self.assert_unchanged(before)

    def test_recovery_twice_and_cut_short_gives_the_same(self):
        content = self.dirty_image()
        for _ in range(3):
            daemon, client = qmp.serve(self, "disk.img", FORMAT, name=f"d{time.time_ns()}",
                                       socket=f"s{time.time_ns()}")
            self.assertEqual(client.read_all(), content)
            kill(daemon.process)
        self.io("disk.img", "read 0 512")
        self.assertIs(self.specific("disk.img")["clean-shutdown"], True)
        self.assert_reads("disk.img", content)
        self.check("disk.img")

    def test_an_orderly_close_marks_the_image_clean(self):
        self.create("disk.img", MIB)
        self.io("disk.img", "write -P 1 0 64k")
        self.assertIs(self.specific("disk.img")["clean-shutdown"], True)
