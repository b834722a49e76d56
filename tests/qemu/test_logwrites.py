# SPDX-License-Identifier: GPL-2.0-or-later
"""Power cuts under the real driver: every write below the image is recorded by QEMU's blklogwrites, and
the recording is replayed to each flush and to points between them. Each such image is opened by the
real driver in a storage daemon, and a part of them by qemu-img, too; it must be sound and show everything
that was flushed by then."""

import os
import random
import struct
import zlib

import nbd
from qmp import Daemon, quick_node
from support import MIB, ImageTest, limit, only_fvd, patterned, read_file, seed, truncate, write_file

SIZE = 2 * MIB
SECTOR = 512
PIECE = 65536
LOG_MAGIC = 0x6A736677736872
FLUSH, FUA, DISCARD, MARK = 1, 2, 4, 8
LEAST_CUTS = 334  # of a test: a run of all of them makes 1,000
BETWEEN = 600  # points between flushes
THOROUGH = 25  # of them, and all flushes, that qemu-img looks at: two processes an image


class Log:
    """The format of Linux's dm-log-writes, as QEMU writes it."""

    def __init__(self, path):
        self.data = read_file(path)
        magic, version, self.count, self.sector = struct.unpack_from("<QQQI", self.data)
        if magic != LOG_MAGIC or version != 1:
            raise ValueError("not a log of writes")

    def entries(self):
        """(offset, flags, data or a length that was discarded) of each write."""
        place = self.sector
        for _ in range(self.count):
            sector, sectors, flags, _ = struct.unpack_from("<QQQQ", self.data, place)
            place += self.sector
            offset, length = sector * self.sector, sectors * self.sector
            if flags & DISCARD:
                yield offset, flags, length
                continue
            yield offset, flags, self.data[place:place + length]
            place += length


def recorded_count(path):
    with open(path, "rb") as file:
        start = file.read(24)
    return struct.unpack("<QQQ", start)[2] if start else 0  # there is no first flush yet


class Reader:
    """Opens image after image, for reading only, in one daemon."""

    def __init__(self, test):
        self.daemon = Daemon(test, name="reader")
        self.daemon.command("nbd-server-start", max_connections=4,
                            addr={"type": "unix", "data": {"path": "reader.sock"}})

    def read(self, path):
        command = self.daemon.command
        command("blockdev-add", driver="fvd", node_name="cut", read_only=True, file=quick_node(path))
        command("block-export-add", type="nbd", id="export", node_name="cut", name="cut")
        client = nbd.Client("reader.sock", "cut")
        content = client.read_all()
        client.close()
        command("block-export-del", id="export", mode="hard")
        self.daemon.monitor.wait("BLOCK_EXPORT_DELETED", id="export")
        command("blockdev-del", node_name="cut")
        return content


@only_fvd
@limit(300)
class PowerCut(ImageTest):
    def record_workload(self, options, requests):
        self.random = random.Random(seed() ^ zlib.crc32(self.id().encode()))
        print(f"seed {seed():#x}")
        self.base = patterned([(0, SIZE // 2, 0xB1), (SIZE * 3 // 4, SIZE // 8, 0xB2)], SIZE)
        write_file("base.raw", self.base)
        self.create("disk.img", SIZE, options=options, base="base.raw", base_fmt="raw")
        write_file("start.img", read_file("disk.img"))
        write_file("log", b"")
        daemon = Daemon(self)
        daemon.command("blockdev-add", driver="fvd", node_name="disk0", file={
            "driver": "blklogwrites", "file": quick_node("disk.img"), "log": quick_node("log"),
            "log-super-update-interval": 1})
        client = daemon.export("disk0")
        self.writes = []  # (offset, length, value), None for a flush
        self.durable = []  # (entries of the log, requests so far) at each good flush
        self.begun = []  # entries of the log when each request began
        for _ in range(requests):
            self.one_request(client)
        client.close()
        daemon.quit()

    def one_request(self, client):
        self.begun.append(recorded_count("log"))
        kind = self.random.choice("wwwwwzf")
        if kind == "f":
            client.flush()
            self.writes.append(None)
            self.durable.append((recorded_count("log"), len(self.writes)))
            return
        length = self.random.choice((512, 1024, 4096, 4096, 12288))
        offset = self.random.randrange((SIZE - length) // SECTOR) * SECTOR
        value = len(self.writes) % 255 + 1 if kind == "w" else 0
        if kind == "w":
            client.write(offset, bytes([value]) * length)
        else:
            client.zero(offset, length)
        self.writes.append((offset, length, value))

    # ---------------------------------------------------------------- replay

    def points(self, log):
        """After each flush of the host, and at some places between: {number: whether thoroughly}."""
        marks = [number for number, (_, flags, _) in enumerate(log.entries(), 1)
                 if flags & (FLUSH | FUA)]
        others = self.random.sample(range(1, log.count + 1), min(BETWEEN, log.count))
        return {**{number: place < THOROUGH for place, number in enumerate(others)},
                **dict.fromkeys(marks, True)}

    def replay(self):
        log = Log("log")
        points = self.points(log)
        self.assertGreaterEqual(len(points), LEAST_CUTS)
        reader = Reader(self)
        print(f"{log.count} writes, {len(points)} cuts")
        write_file("cut.img", read_file("start.img"))
        # Growth of a file is not in the log; it comes before what is written there.
        truncate("cut.img", os.path.getsize("disk.img"))
        with open("cut.img", "r+b", buffering=0) as image:
            for number, (offset, _, data) in enumerate(log.entries(), 1):
                image.seek(offset)
                image.write(bytes(data) if isinstance(data, int) else data)
                if number in points:
                    self.judge(number, reader.read("cut.img"))
                    if points[number]:
                        self.check("cut.img")
                        self.img("convert", "-f", "fvd", "-O", "raw", "cut.img", "seen.raw")
                        self.judge(number, read_file("seen.raw"))
        reader.daemon.quit()

    def judge(self, number, seen):
        first = max((done for count, done in self.durable if count <= number), default=0)
        last = sum(count <= number for count in self.begun)
        content = bytearray(self.base)
        for offset, length, value in filter(None, self.writes[:first]):
            content[offset:offset + length] = bytes([value]) * length
        for place in range(0, SIZE, PIECE):
            if seen[place:place + PIECE] != content[place:place + PIECE]:
                self.judge_sectors(number, seen, content, place, self.writes[first:last])

    def judge_sectors(self, number, seen, content, start, since):
        """Each sector is as it was at the flush, or as one write since then left it."""
        for place in range(start, start + PIECE, SECTOR):
            sector = seen[place:place + SECTOR]
            allowed = [value for offset, length, value in filter(None, since)
                       if offset <= place < offset + length]
            if sector != content[place:place + SECTOR] and not (
                    len(set(sector)) == 1 and sector[0] in allowed):
                self.fail(f"after {number} writes sector {place // SECTOR} starts "
                          f"{sector[:2].hex()}; it was {content[place:place + 2].hex()}, and "
                          f"written since: {allowed}")

    def test_cuts_of_random_first_writes(self):
        self.record_workload([], 320)
        self.replay()

    def test_cuts_with_large_blocks(self):
        self.record_workload(["block_size=65536"], 340)
        self.replay()

    def test_cuts_while_a_small_ring_goes_round(self):
        self.record_workload(["block_size=512", "journal_unit=512", "journal_size=32768"], 320)
        self.replay()

    def test_cuts_of_a_compact_image(self):
        self.record_workload(["compact_image=on", "chunk_size=4096", "storage_grow_unit=65536",
                              "block_size=512", "journal_unit=512", "journal_size=65536"], 300)
        self.replay()
