# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks that change their size: what was there stays, what is new reads as zeros, whatever lies in the
base or was left by a larger life; by qemu-img, and with a guest that goes on writing."""

import os
import random
import struct
import zlib

from qmp import Daemon, MachineWithoutSystem, QmpError, image_node, quick_node
from support import (FORMAT, KIB, MIB, TIB, ImageTest, allocated, only_fvd, patterned, seed, truncate,
                     write_file)

SIZE = 2 * MIB
RUNS = [(0, 70000, 1), (MIB + 5, 300000, 2), (SIZE - 100, 100, 3)]

SHAPES = {
    "linear": [],
    "with a data file": ["data_file=data.raw"],
    "compact": ["compact_image=on", "chunk_size=64k", "storage_grow_unit=128k"],
    "compact with a data file": ["compact_image=on", "chunk_size=64k", "data_file=data.raw"],
}


@only_fvd
class Resize(ImageTest):
    """qemu-img resize, each of the shapes."""

    def each(self, base=None):
        for name, options in SHAPES.items():
            with self.subTest(shape=name):
                for file in ("disk.img", "data.raw"):
                    if os.path.exists(file):
                        os.unlink(file)
                more = {"base": base, "base_fmt": "raw"} if base else {}
                self.create("disk.img", SIZE, options=options, **more)
                yield name

    def resize(self, size, *words, expect=0):
        return self.img("resize", *words, "-f", FORMAT, "disk.img", str(size), expect=expect)

    def fill(self):
        for offset, length, value in RUNS:
            self.io("disk.img", f"write -P {value} {offset} {length}")
        return patterned(RUNS, SIZE)

    def test_larger_and_larger(self):
        for _ in self.each():
            content = self.fill()
            for size in (SIZE + 512, SIZE + 3 * MIB, 40 * MIB):
                self.resize(size)
                self.assertEqual(self.info("disk.img")["virtual-size"], size)
                content += bytes(size - len(content))
                self.assert_reads("disk.img", content)
                self.check("disk.img")
            self.io("disk.img", f"write -P 9 {39 * MIB} 64k", f"read -P 9 {39 * MIB} 64k")
            self.check("disk.img")

    def test_smaller_and_larger_again(self):
        for _ in self.each():
            content = self.fill()
            for size in (MIB + 40000 // 512 * 512, 512):
                self.resize(size, "--shrink")
                self.assert_reads("disk.img", content[:size])
                self.check("disk.img")
            self.resize(SIZE)
            self.assert_reads("disk.img", content[:512] + bytes(SIZE - 512))
            self.check("disk.img")

    def test_behind_a_longer_base_there_are_zeros(self):
        write_file("base.raw", b"\xbb" * (2 * SIZE))
        for _ in self.each(base="base.raw"):
            self.resize(2 * SIZE)
            self.assert_reads("disk.img", b"\xbb" * SIZE + bytes(SIZE))
            self.resize(SIZE // 2, "--shrink")
            self.resize(SIZE)
            self.assert_reads("disk.img", b"\xbb" * (SIZE // 2) + bytes(SIZE // 2))
            self.check("disk.img")

    def test_a_smaller_disk_gives_its_space_back(self):
        for name in self.each():
            self.io("disk.img", f"write -P 1 0 {SIZE}")
            files = [file for file in ("disk.img", "data.raw") if os.path.exists(file)]
            before = sum(map(allocated, files))
            self.resize(128 * KIB, "--shrink")
            self.assertLessEqual(sum(map(allocated, files)), before - SIZE + 256 * KIB, name)

    def test_preallocation(self):
        for name in self.each():
            for step, mode in enumerate(("metadata", "falloc", "full"), 1):
                size = SIZE + step * MIB
                self.resize(size, f"--preallocation={mode}")
                self.assert_reads("disk.img", bytes(size))
                self.check("disk.img")
            storage = "data.raw" if os.path.exists("data.raw") else "disk.img"
            self.assertGreaterEqual(allocated(storage), 2 * MIB, name)

    def test_sizes_that_cannot_be(self):
        for name in self.each():
            content = self.fill()
            ran = self.resize(1 << 61, expect=1)
            self.assertRegex(ran.err, "at most|too (big|large)", name)
            self.assert_reads("disk.img", content)
            self.check("disk.img")

    def test_no_table_is_that_large(self):
        self.create("disk.img", SIZE, options=["compact_image=on", "chunk_size=4k"])
        ran = self.resize(2 * TIB, expect=1)
        self.assertIn("a table can map 268435456: at most 1099511627776 bytes", ran.err)
        self.resize(4 * MIB)
        self.check("disk.img")


# The smallest table has room for 1024 chunks.
FULL = 4 * MIB
SMALL_TABLES = {
    "with room in front of the data": ["journal_size=256k"],
    "without": [f"journal_size={MIB - 12 * KIB}"],
    "with a data file": ["data_file=data.raw", "journal_size=256k"],
    "in odd chunks": ["chunk_size=7680", f"journal_size={MIB - 12 * KIB}"],
}


@only_fvd
class PastTheTable(ImageTest):
    """A disk that needs a larger table than create gave it."""

    def each(self, **more):
        for name, options in SMALL_TABLES.items():
            with self.subTest(table=name):
                for file in ("disk.img", "data.raw"):
                    if os.path.exists(file):
                        os.unlink(file)
                chunk = [] if any("chunk_size" in option for option in options) else ["chunk_size=4k"]
                size = FULL if chunk else 1024 * 7680
                self.create("disk.img", size, options=["compact_image=on", *chunk, *options], **more)
                yield name, size

    def resize(self, size, *words):
        return self.img("resize", *words, "-f", FORMAT, "disk.img", str(size))

    def table(self):
        """Offset and size of the table in the header."""
        with open("disk.img", "rb") as image:
            header = image.read(4096)
        return struct.unpack_from("<QQ", header, 2136)

    def test_content_stays_and_zeros_follow(self):
        for _, size in self.each():
            before = self.table()
            self.io("disk.img", f"write -P 1 0 {size}")
            self.resize(size + 512)
            self.assertNotEqual(self.table()[0], before[0])
            self.assert_reads("disk.img", b"\1" * size + bytes(512))
            self.check("disk.img")
            self.resize(8 * size)
            self.io("disk.img", f"write -P 2 {size} {3 * size}")
            content = b"\1" * size + b"\2" * (3 * size) + bytes(4 * size)
            self.assert_reads("disk.img", content)
            self.check("disk.img")
            self.resize(2 * size, "--shrink")
            self.resize(20 * size)
            self.assert_reads("disk.img", content[:2 * size] + bytes(18 * size))
            self.check("disk.img")

    def test_every_chunk_of_the_larger_disk_gets_a_slot(self):
        for _, size in self.each():
            self.resize(size + 100 * KIB)
            self.io("disk.img", f"write -P 7 0 {size + 100 * KIB}")
            self.assert_reads("disk.img", b"\7" * (size + 100 * KIB))
            self.check("disk.img")

    def test_preallocation(self):
        for name, size in self.each():
            for step, mode in enumerate(("metadata", "falloc", "full"), 2):
                self.resize(step * size, f"--preallocation={mode}")
                self.assert_reads("disk.img", bytes(step * size))
                self.check("disk.img")
            storage = "data.raw" if os.path.exists("data.raw") else "disk.img"
            self.assertGreaterEqual(allocated(storage), 2 * size, name)

    def test_behind_a_longer_base_there_are_zeros(self):
        write_file("base.raw", b"\xbb" * (16 * MIB))
        for name, size in self.each(base="base.raw", base_fmt="raw"):
            self.resize(16 * MIB)
            self.assert_reads("disk.img", b"\xbb" * size + bytes(16 * MIB - size))
            self.io("disk.img", f"write -P 3 {size - 1000} 2000")
            content = bytearray(b"\xbb" * size + bytes(16 * MIB - size))
            content[size - 1000:size + 1000] = b"\3" * 2000
            self.assert_reads("disk.img", bytes(content))
            self.check("disk.img")
            self.assertTrue(name)

    def test_a_full_bitmap_is_in_nobodys_way(self):
        """Bits stand for blocks of the base, and what a disk grows by lies behind it."""
        size = 4096 * 8 * 512
        write_file("base.raw", b"\xbb" * (2 * size))
        for options in ([], ["data_file=data.raw"], ["compact_image=on", "chunk_size=64k"]):
            self.create("full.img", size, options=["block_size=512", "journal_size=256k", *options],
                        base="base.raw", base_fmt="raw")
            self.img("resize", "-f", FORMAT, "full.img", str(2 * size))
            self.assert_reads("full.img", b"\xbb" * size + bytes(size))
            self.check("full.img")

    def test_while_a_guest_writes(self):
        for name, size in self.each():
            content = bytearray(4 * size)
            daemon = Daemon(self, name=name.replace(" ", "-"))
            daemon.command("blockdev-add", **image_node("disk.img", "disk0", FORMAT))
            step = 0
            for factor in (1, 1.2, 2, 3.9, 4):
                step += 1
                new = int(size * factor) // 512 * 512
                daemon.command("block_resize", node_name="disk0", size=new)
                client = daemon.export("disk0", socket=f"{name[:8].replace(' ', '-')}{step}.sock")
                for place in (step * 70000, new - 5000):
                    client.write(place, bytes([step]) * 5000)
                    content[place:place + 5000] = bytes([step]) * 5000
                client.flush()
                self.assertEqual(client.read_all(), bytes(content[:new]))
                client.close()
                daemon.command("block-export-del", id="export-disk0", mode="hard")
                daemon.monitor.wait("BLOCK_EXPORT_DELETED", id="export-disk0")
                daemon.command("nbd-server-stop")
            daemon.quit()
            self.assert_reads("disk.img", bytes(content))
            self.check("disk.img")


@only_fvd
class ResizeInUse(ImageTest):
    def test_a_node_changes_its_size_between_writers(self):
        for name, options in SHAPES.items():
            with self.subTest(shape=name):
                self.grow_step_by_step(name.replace(" ", "-"), options)

    def grow_step_by_step(self, name, options):
        base, disk = f"{name}.base", f"{name}.img"
        write_file(base, b"\xbb" * MIB)
        options = [option.replace("data.raw", f"{name}.raw") for option in options]
        self.create(disk, SIZE, options=options, base=base, base_fmt="raw")
        daemon = Daemon(self, name=name)
        daemon.command("blockdev-add", **image_node(disk, "disk0", FORMAT))
        content = bytearray(b"\xbb" * MIB + bytes(SIZE - MIB))
        for step in range(1, 7):
            size = SIZE + step * 65536
            daemon.command("block_resize", node_name="disk0", size=size)
            content += bytes(size - len(content))
            client = daemon.export("disk0", socket=f"{name}{step}.sock")
            for place in (step * 70000, size - 5000):
                client.write(place, bytes([step]) * 5000)
                content[place:place + 5000] = bytes([step]) * 5000
            client.flush()
            self.assertEqual(client.read_all(), bytes(content))
            client.close()
            daemon.command("block-export-del", id="export-disk0", mode="hard")
            daemon.monitor.wait("BLOCK_EXPORT_DELETED", id="export-disk0")
            daemon.command("nbd-server-stop")
        daemon.quit()
        self.assert_reads(disk, bytes(content))
        self.check(disk)

    def test_requests_in_flight(self):
        """A slow file keeps them there until QEMU drains them for the resize; more follow at once."""
        for name, options in {**SHAPES, "past the table": ["compact_image=on", "chunk_size=4k"]}.items():
            with self.subTest(shape=name):
                self.resize_between_requests(name.replace(" ", "-"), options)

    def resize_between_requests(self, name, options):
        write_file("base.raw", b"\xbb" * MIB)
        self.create("disk.img", SIZE, options=options, base="base.raw", base_fmt="raw")
        machine = MachineWithoutSystem(self, {
            "driver": FORMAT, "node-name": "disk0", "file": {
                "driver": "throttle", "throttle-group": "slow", "file": quick_node("disk.img")}},
            "-object", "throttle-group,id=slow,x-iops-total=400", name=name)
        content = bytearray(b"\xbb" * MIB + bytes(SIZE - MIB))
        source = random.Random(seed() ^ zlib.crc32(name.encode()))
        for size in (3 * MIB, 3 * MIB + 512, 6 * MIB, 1500 * KIB, 5 * MIB, 512 * KIB, 8 * MIB):
            self.send_writes(machine, source, content, min(size, len(content)))
            machine.command("block_resize", node_name="disk0", size=size)
            content[size:] = bytes(max(size - len(content), 0))
            self.send_writes(machine, source, content, size)
            machine.io("aio_flush")
        machine.quit()
        self.assert_reads("disk.img", bytes(content))
        self.check("disk.img")

    def send_writes(self, machine, source, content, end):
        """None overlaps another, as nobody knows which of two in flight is the later one."""
        for place in source.sample(range(0, end - 32 * KIB, 32 * KIB), min(16, end // (32 * KIB) - 1)):
            value = source.randrange(1, 250)
            length = source.randrange(1, 40) * 512
            at = place + source.randrange(24) * 512
            machine.io(f"aio_write -P {value} {at} {length}")
            content[at:at + length] = bytes([value]) * length

    def test_a_resize_of_what_is_read_only_is_refused(self):
        self.create("disk.img", SIZE)
        daemon = Daemon(self)
        daemon.command("blockdev-add", read_only=True, **image_node("disk.img", "disk0", FORMAT))
        with self.assertRaises(QmpError):
            daemon.command("block_resize", node_name="disk0", size=2 * SIZE)
        daemon.quit()


class OnALinearDataFile(ImageTest):
    @only_fvd
    def test_the_data_file_stays_the_raw_disk(self):
        self.create("disk.img", SIZE, options=["data_file=data.raw"])
        self.io("disk.img", "write -P 5 1M 64k")
        self.img("resize", "-f", FORMAT, "disk.img", str(3 * SIZE))
        self.assertEqual(os.path.getsize("data.raw"), 3 * SIZE)
        self.assert_same("disk.img", FORMAT, "data.raw", "raw")
        truncate("data.raw", SIZE)
        ran = self.io("disk.img", "read 0 512", expect=1)
        self.assertIn("its guest data ends at", ran.err)
