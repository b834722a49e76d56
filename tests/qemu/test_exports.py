# SPDX-License-Identifier: GPL-2.0-or-later
"""An image served to programs that are not QEMU: libnbd's tools, and Linux itself, with a file system
on a loop device over FUSE that lives through the death of the daemon."""

import glob
import os
import shutil
import subprocess
import time
import unittest

import nbd
from qmp import Daemon, image_node
from support import (FORMAT, KIB, MIB, ImageTest, limit, patterned, program, read_file, truncate,
                     write_file)

needs_libnbd = unittest.skipUnless(shutil.which("nbdinfo") and shutil.which("nbdcopy"),
                                   "libnbd-bin is not installed")
needs_fuse = unittest.skipUnless(
    os.path.exists("/dev/fuse") and glob.glob("/dev/loop*") and os.geteuid() == 0 and
    shutil.which("mkfs.ext4"), "needs root, /dev/fuse, loop devices and e2fsprogs")


@needs_libnbd
class StockNbdClients(ImageTest):
    uri = "nbd+unix:///disk?socket=nbd.sock"

    def setUp(self):
        super().setUp()
        self.content = patterned([(0, 70000, 1), (3 * MIB + 5, 500000, 2)], 8 * MIB)
        write_file("base.raw", self.content)
        self.create("disk.img", base="base.raw", base_fmt="raw")
        self.io("disk.img", "write -P 9 1M 64k")
        self.content = self.content[:MIB] + b"\x09" * 65536 + self.content[MIB + 65536:]

    def serve(self):
        daemon = Daemon(self)
        daemon.command("blockdev-add", **image_node("disk.img", "disk0", FORMAT))
        daemon.export("disk0").close()
        return daemon

    def test_nbdinfo_describes_the_export(self):
        daemon = self.serve()
        export = self.run_program(["nbdinfo", "--json", self.uri]).json()["exports"][0]
        self.assertEqual(export["export-size"], 8 * MIB)
        for can in ("can_flush", "can_fua", "can_trim", "can_zero", "can_multi_conn"):
            self.assertTrue(export.get(can), can)
        daemon.quit()

    def test_nbdinfo_map_shows_data_and_holes(self):
        daemon = self.serve()
        extents = self.run_program(["nbdinfo", "--map", "--json", self.uri]).json()
        places = {extent["offset"]: extent for extent in extents}
        self.assertEqual(sum(extent["length"] for extent in extents), 8 * MIB)
        kinds = [extent["type"] for extent in sorted(extents, key=lambda e: e["offset"])
                 if extent["offset"] <= MIB < extent["offset"] + extent["length"]]
        self.assertEqual(kinds, [0], "data at 1 MiB")
        last = places[max(places)]
        self.assertTrue(last["type"] & 2, "the end of the disk reads as zeros")
        daemon.quit()

    def test_nbdcopy_reads_the_disk(self):
        daemon = self.serve()
        self.run_program(["nbdcopy", self.uri, "copy.raw"])
        daemon.quit()
        self.assertEqual(read_file("copy.raw"), self.content)

    def test_nbdcopy_writes_the_disk(self):
        daemon = self.serve()
        other = patterned([(0, 1, 3), (MIB - 7, 2 * MIB, 4), (8 * MIB - 1, 1, 5)], 8 * MIB)
        write_file("other.raw", other)
        self.run_program(["nbdcopy", "--flush", "other.raw", self.uri])
        daemon.quit()
        self.check("disk.img")
        self.assert_reads("disk.img", other)

    def test_qemu_nbd_serves_it(self):
        server = subprocess.Popen([program("qemu-nbd"), "-f", FORMAT, "-k",
                                   os.path.abspath("nbd.sock"), "-x", "disk", "-t", "disk.img"])
        self.addCleanup(server.wait)
        self.addCleanup(server.kill)
        client = nbd.Client("nbd.sock", "disk")
        client.write(5, b"five")
        client.flush()
        self.assertEqual(client.read(4, 6), b"\1five\1")
        client.close()
        server.terminate()
        self.assertEqual(server.wait(20), 0)
        self.check("disk.img")
        self.io("disk.img", "read -P 102 5 1")


@needs_fuse
@limit(300)
class FileSystem(ImageTest):
    """ext4 on a loop device on a FUSE export of an image over a base that holds the file system."""

    size = 64 * MIB

    def setUp(self):
        super().setUp()
        truncate("base.raw", self.size)
        self.run_program(["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0", "base.raw"])
        os.mkdir("mnt")
        self.files = {}

    def attach(self, number):
        """Daemon, loop device and mount."""
        disk = f"disk{number}"
        write_file(disk, b"")
        daemon = Daemon(self, name=f"d{number}")
        daemon.command("blockdev-add", **image_node("disk.img", "disk0", FORMAT))
        daemon.command("block-export-add", type="fuse", id="fuse0", node_name="disk0",
                       mountpoint=os.path.abspath(disk), writable=True)
        self.addCleanup(subprocess.run, ["umount", "-l", os.path.abspath(disk)],
                        stderr=subprocess.DEVNULL)
        loop = self.run_program(["losetup", "-f", "--show", disk]).out.strip()
        self.addCleanup(self.detach_loop, loop)
        return daemon, loop

    def detach_loop(self, loop):
        """Only while it is ours: the number may have been given to somebody else since."""
        subprocess.run(["umount", "-l", os.path.abspath("mnt")], stderr=subprocess.DEVNULL)
        try:
            backing = read_file(f"/sys/block/{os.path.basename(loop)}/loop/backing_file").decode()
        except OSError:
            return
        if backing.startswith(os.getcwd() + "/"):
            subprocess.run(["losetup", "-d", loop], stderr=subprocess.DEVNULL)

    def mount(self, loop):
        self.run_program(["mount", loop, "mnt"])

    def unmount(self, loop, expect=0):
        self.run_program(["umount", "mnt"], expect=expect)
        self.detach_loop(loop)

    def write_synced(self, name, length):
        content = os.urandom(length)
        with open(f"mnt/{name}", "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        self.files[name] = content

    def verify_files(self):
        for name, content in self.files.items():
            self.assertEqual(read_file(f"mnt/{name}"), content, name)

    def make_image(self):
        options = ["block_size=4096"] if FORMAT == "fvd" else []
        self.create("disk.img", base="base.raw", base_fmt="raw", options=options)

    def life(self, number):
        """Write and sync files, leave others half written, and lose the daemon."""
        daemon, loop = self.attach(number)
        self.run_program(["e2fsck", "-fy", loop], expect=(0, 1))
        self.run_program(["e2fsck", "-fn", loop])
        self.mount(loop)
        self.verify_files()
        for name in range(8):
            self.write_synced(f"life{number}-{name}", 1 + name * 50000)
        for name in range(4):
            with open(f"mnt/lost{number}-{name}", "wb") as file:
                file.write(os.urandom(300000))
        daemon.kill()
        self.unmount(loop, expect=None)

    def test_synced_files_live_through_the_death_of_the_daemon(self):
        self.make_image()
        for number in range(4):
            self.life(number)
            self.check("disk.img")
        daemon, loop = self.attach(9)
        self.run_program(["e2fsck", "-fy", loop], expect=(0, 1))
        self.run_program(["e2fsck", "-fn", loop])
        self.mount(loop)
        self.verify_files()
        self.unmount(loop)
        daemon.quit()
        self.check("disk.img")

    def test_an_orderly_life_leaves_a_clean_file_system(self):
        self.make_image()
        daemon, loop = self.attach(0)
        self.mount(loop)
        self.write_synced("one", 3 * MIB)
        os.unlink("mnt/one")
        del self.files["one"]
        self.write_synced("two", 100 * KIB)
        self.run_program(["fstrim", "mnt"], expect=None)
        self.unmount(loop)
        # The kernel lets go of the loop device, and so of the export, a moment later.
        time.sleep(0.3)
        daemon.quit()
        self.check("disk.img")
        self.img("convert", "-f", FORMAT, "-O", "raw", "disk.img", "flat.raw")
        self.run_program(["e2fsck", "-fn", "flat.raw"])
