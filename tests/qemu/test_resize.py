# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks that change their size: what was there stays, what is new reads as zeros, whatever lies in the
base or was left by a larger life; by qemu-img, and with a guest that goes on writing."""

import os

from qmp import Daemon, QmpError, image_node
from support import (FORMAT, KIB, MIB, TIB, ImageTest, allocated, only_fvd, patterned, truncate,
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

    def test_a_table_without_room_says_how_far_it_goes(self):
        self.create("disk.img", SIZE, options=["compact_image=on", "chunk_size=4k"])
        ran = self.resize(TIB, expect=1)
        self.assertIn("which has room for 1024: at most 4194304 bytes", ran.err)
        self.resize(4 * MIB)
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
