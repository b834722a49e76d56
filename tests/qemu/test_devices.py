# SPDX-License-Identifier: GPL-2.0-or-later
"""Compact images on block devices that are shorter than the disk: loop devices stand for logical
volumes. A device starts full of old bytes, is made longer by somebody else, and is full until then."""

import os
import pathlib
import random
import subprocess
import sys
import threading
import time
import unittest
import zlib

import fvdformat
from nbd import NbdError
from qmp import Daemon, Monitor, QmpError, file_node, serve
from support import (BIN, FORMAT, KIB, MIB, ImageTest, allocated, limit, only_fvd, read_file, seed,
                     write_file)

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "guest"))

from machine import Machine
from make_guest import ensure_guest
from power_cut import Promises, boot_and_verify, round_words, write_until_cut

CHUNK = 64 * KIB
DISK = 64 * MIB
STEP = MIB  # storage_grow_unit: how early the warning comes


def compact(step=STEP):
    return ("compact_image=on", f"chunk_size={CHUNK}", f"storage_grow_unit={step}")


class Volume:
    """A loop device over a file of old bytes, detached with the test."""

    def __init__(self, test, length, name="volume"):
        self.test, self.path = test, os.path.abspath(name)
        open(self.path, "wb").close()
        self._lengthen(length)
        self.device = test.run_program(["losetup", "-f", "--show", self.path]).out.strip()
        test.addCleanup(self.detach)

    def _lengthen(self, length):
        """What a volume gets was used by others before."""
        with open(self.path, "ab") as file:
            file.write(b"\xAA" * (length - file.tell()))

    @property
    def length(self):
        return os.path.getsize(self.path)

    def grow(self, by):
        self._lengthen(self.length + by)
        subprocess.run(["losetup", "-c", self.device], check=True)

    def write(self, offset, data):
        with open(self.device, "r+b", buffering=0) as device:
            device.seek(offset)
            device.write(data)
            os.fsync(device.fileno())

    def detach(self):
        """Only while it is ours."""
        try:
            backing = read_file(f"/sys/block/{os.path.basename(self.device)}/loop/backing_file")
        except OSError:
            return
        if backing.decode().rstrip("\n") == self.path:
            subprocess.run(["losetup", "-d", self.device], stderr=subprocess.DEVNULL)


@only_fvd
@unittest.skipUnless(os.geteuid() == 0, "loop devices need root")
class DeviceTest(ImageTest):
    def thin(self, room, size=DISK, options=compact(), **how):
        """An image of DISK bytes on a volume with room for @room bytes of data."""
        self.create("probe.img", size, options=options, **how)
        volume = Volume(self, self.specific("probe.img")["data-offset"] + room)
        self.create(volume.device, size, options=options, **how)
        return volume

    def daemon(self, volume, name="daemon", **more):
        daemon = Daemon(self, name=name)
        daemon.command("blockdev-add", driver="host_device", node_name="volume",
                       filename=volume.device, **more)
        daemon.command("blockdev-add", driver=FORMAT, node_name="disk0", file="volume",
                       discard="unmap")
        return daemon


class OneDevice(DeviceTest):
    def test_old_bytes_of_the_device_never_show(self):
        volume = self.thin(8 * MIB)
        self.io(volume.device, *[f"write -P {n + 1} {n * MIB + 512} 512" for n in range(40)])
        for n in range(40):
            self.io(volume.device, f"read -P 0 {n * MIB} 512", f"read -P {n + 1} {n * MIB + 512} 512",
                    f"read -P 0 {n * MIB + 1024} {MIB - 1024}")
        self.check(volume.device)

    def test_a_full_device_loses_nothing_and_freed_slots_are_used_again(self):
        room = 2 * MIB
        volume = self.thin(room)
        slots = room // CHUNK
        self.io(volume.device, f"write -P 7 0 {room}")
        ran = self.io(volume.device, "write -P 8 32M 4k", expect=1)
        self.assertIn("No space left", ran.text)
        self.check(volume.device)
        self.io(volume.device, f"read -P 7 0 {room}", "read -P 0 32M 1M")
        self.io(volume.device, "discard 0 1M", "write -P 8 32M 1M", options=["-d", "unmap"])
        self.io(volume.device, "read -P 0 0 1M", "read -P 7 1M 1M", "read -P 8 32M 1M")
        self.assertIn("No space left", self.io(volume.device, "write 40M 4k", expect=1).text)
        ran = self.check(volume.device, "--output=json").json()
        self.assertEqual(ran["allocated-clusters"], slots)

    def test_a_longer_device_is_noticed_without_a_restart(self):
        volume = self.thin(MIB)
        daemon = self.daemon(volume)
        client = daemon.export("disk0")
        client.write(0, b"\1" * MIB)
        with self.assertRaises(NbdError):
            client.write(8 * MIB, b"\2" * 512)
        volume.grow(STEP)
        client.write(8 * MIB + 512, b"\2" * 512)
        self.assertEqual(client.read(8 * MIB, 2048), bytes(512) + b"\2" * 512 + bytes(1024))
        client.flush()
        client.close()
        daemon.quit()
        self.check(volume.device)
        self.io(volume.device, "read -P 1 0 1M", f"read -P 0 {8 * MIB + 1024} 62k")


    def test_a_linear_image_grows_with_its_device_at_once(self):
        volume = self.thin(4 * MIB, size=4 * MIB, options=())
        daemon = self.daemon(volume)
        with self.assertRaises(QmpError):
            daemon.command("block_resize", node_name="disk0", size=5 * MIB)
        volume.grow(MIB)
        daemon.command("block_resize", node_name="disk0", size=5 * MIB)
        client = daemon.export("disk0")
        self.assertEqual(client.read_all(), bytes(5 * MIB))
        client.write(5 * MIB - 512, b"\1" * 512)
        client.close()
        daemon.quit()
        self.check(volume.device)
        self.io(volume.device, f"read -P 0 0 {5 * MIB - 512}", f"read -P 1 {5 * MIB - 512} 512")


class DataOnADevice(DeviceTest):
    """The FVD file is a file; the guest's data is on the device."""

    def make(self, volume, *options, size=8 * MIB, **how):
        return self.create("disk.img", size, options=[f"data_file={volume.device}", *options], **how)

    def opened(self, volume):
        return (f"driver={FORMAT},file.driver=file,file.filename=disk.img,discard=unmap,"
                f"data-file.driver=host_device,data-file.filename={volume.device}")

    def on(self, volume, *commands):
        ran = self.io(self.opened(volume), *commands, fmt=None, options=["--image-opts"])
        self.assert_no_complaint(ran)

    def forms(self):
        for mode in ("off", "metadata", "falloc", "full"):
            for form in ((), compact()):
                with self.subTest(mode=mode, form=form):
                    yield mode, [f"preallocation={mode}", *form]

    def test_every_preallocation_on_a_device_that_is_long_enough(self):
        volume = Volume(self, 8 * MIB)
        for mode, options in self.forms():
            subprocess.run(["fallocate", "-p", "-o", "0", "-l", str(8 * MIB), volume.path], check=True)
            volume.write(0, b"\xAA" * MIB)
            ran = self.make(volume, *options)
            self.assertIn("'data-file'", ran.err, "an image opens no device by itself")
            if mode in ("falloc", "full"):
                self.assertGreaterEqual(allocated(volume.path), 8 * MIB)
            self.on(volume, f"read -P 0 0 {8 * MIB}", "write -P 5 1M 100k", "read -P 5 1M 100k", "read -P 0 0 1M")
            self.img("check", "--image-opts", self.opened(volume))

    def test_a_device_that_is_too_short_is_named_with_both_lengths(self):
        volume = Volume(self, 4 * MIB)
        for mode, options in self.forms():
            if mode == "off" and len(options) > 1:
                continue  # storage comes later
            ran = self.make(volume, *options, expect=1)
            self.assertIn(f"has {4 * MIB} bytes and cannot be made {8 * MIB} bytes long", ran.err)
            self.assertFalse(os.path.exists("disk.img"))

    def test_a_resize_that_cannot_have_its_storage_changes_nothing(self):
        volume = Volume(self, 8 * MIB)
        self.make(volume, *compact())
        self.on(volume, f"write -P 5 0 {6 * MIB}")
        for mode in ("metadata", "falloc", "full"):
            ran = self.img("resize", "--image-opts", f"--preallocation={mode}", self.opened(volume), str(12 * MIB),
                           expect=1)
            self.assertIn(f"a disk of {12 * MIB} bytes cannot be allocated in advance: No space left", ran.err)
            self.assertEqual(self.img("info", "--output=json", "--image-opts", self.opened(volume)).json()
                             ["virtual-size"], 8 * MIB)
            self.on(volume, f"read -P 5 0 {6 * MIB}", f"read -P 0 {6 * MIB} {2 * MIB}")
            self.img("check", "--image-opts", self.opened(volume))
        volume.grow(8 * MIB)
        self.img("resize", "--image-opts", "--preallocation=full", self.opened(volume), str(12 * MIB))
        self.on(volume, f"read -P 5 0 {6 * MIB}", f"read -P 0 {6 * MIB} {6 * MIB}")

    def test_past_the_table_and_a_repair(self):
        """The table moves within the FVD file; what a check -r all takes back is free on the device."""
        volume = Volume(self, 24 * MIB)
        self.make(volume, "compact_image=on", "chunk_size=4k", "journal_size=1M", size=4 * MIB)
        self.on(volume, f"write -P 5 0 {4 * MIB}")
        table = fvdformat.field_of("disk.img", "table_offset")
        self.img("resize", "--image-opts", self.opened(volume), str(16 * MIB))
        self.assertNotEqual(fvdformat.field_of("disk.img", "table_offset"), table)
        self.on(volume, f"read -P 5 0 {4 * MIB}", f"write -P 6 4M {12 * MIB}")
        fvdformat.Table("disk.img").put(1, 1 << 20)  # past the device
        ran = self.img("check", "--image-opts", self.opened(volume), expect=2)
        self.assertIn("chunk 1", ran.out + ran.err)
        self.img("check", "-r", "all", "--image-opts", self.opened(volume))
        self.img("check", "--image-opts", self.opened(volume))
        self.on(volume, "read -P 5 0 4k", "read -P 0 4k 4k", f"read -P 5 8k {4 * MIB - 8192}",
                f"read -P 6 4M {12 * MIB}", "write -P 7 4k 4k", "read -P 7 4k 4k")


class Warnings(DeviceTest):
    def crossed(self, daemon):
        daemon.command("query-named-block-nodes")
        return [event["data"] for event in daemon.monitor.events
                if event["event"] == "BLOCK_WRITE_THRESHOLD"]

    def test_the_event_comes_one_step_before_the_end(self):
        volume = self.thin(4 * MIB)
        daemon = self.daemon(volume)
        client = daemon.export("disk0")
        client.write(0, b"\1" * (3 * MIB))
        self.assertEqual(self.crossed(daemon), [])
        client.write(3 * MIB, b"\1" * CHUNK)
        warning, = self.crossed(daemon)
        self.assertEqual(warning["node-name"], "volume")
        self.assertEqual(warning["write-threshold"], volume.length - STEP)
        client.close()
        daemon.quit()

    def test_the_event_comes_for_a_data_file_as_well(self):
        volume = Volume(self, 4 * MIB)
        self.create("disk.img", DISK, options=[f"data_file={volume.device}", *compact()])
        daemon = Daemon(self)
        daemon.command("blockdev-add", driver="host_device", node_name="volume", filename=volume.device)
        daemon.command("blockdev-add", driver=FORMAT, node_name="disk0", file=file_node("disk.img"),
                       data_file="volume")
        client = daemon.export("disk0")
        client.write(0, b"\1" * (3 * MIB))
        self.assertEqual(self.crossed(daemon), [])
        client.write(3 * MIB, b"\1" * CHUNK)
        warning, = self.crossed(daemon)
        self.assertEqual((warning["node-name"], warning["write-threshold"]), ("volume", volume.length - STEP))
        client.close()
        daemon.quit()

    def test_a_threshold_of_the_user_stays(self):
        volume = self.thin(4 * MIB)
        daemon = Daemon(self)
        daemon.command("blockdev-add", driver="host_device", node_name="volume",
                       filename=volume.device)
        mine = volume.length - 2 * MIB
        daemon.command("block-set-write-threshold", node_name="volume", write_threshold=mine)
        daemon.command("blockdev-add", driver=FORMAT, node_name="disk0", file="volume")
        client = daemon.export("disk0")
        client.write(0, b"\1" * (4 * MIB))
        self.assertEqual([warning["write-threshold"] for warning in self.crossed(daemon)], [mine])
        client.close()
        daemon.quit()

    def test_no_warning_where_every_chunk_has_room_or_the_file_grows(self):
        volume = self.thin(DISK)
        daemon = self.daemon(volume)
        client = daemon.export("disk0")
        for place in range(0, DISK, 8 * MIB):
            client.write(place, b"\1" * (8 * MIB))
        self.assertEqual(self.crossed(daemon), [])
        client.close()
        daemon.quit()

    @limit(240)
    def test_writes_do_not_pause_while_the_extender_answers_in_time(self):
        """It has the time in which the guest writes storage_grow_unit bytes."""
        step = 8 * MIB
        volume = self.thin(2 * step, options=compact(step))
        daemon = self.daemon(volume)
        client = daemon.export("disk0")
        content = bytearray(DISK)
        writer = threading.Thread(target=self.write_a_piece_of_each_chunk, args=(client, content))
        writer.start()
        warnings = 0
        while writer.is_alive():
            for _ in self.crossed(daemon):
                warnings += 1
                volume.grow(2 * step)
            daemon.monitor.events.clear()
            time.sleep(0.01)
        self.assertEqual(client.read_all(), bytes(content), "a write failed, or content is wrong")
        self.assertGreaterEqual(warnings, 3)
        client.close()
        daemon.quit()
        self.check(volume.device)

    def write_a_piece_of_each_chunk(self, client, content):
        source = random.Random(seed() ^ zlib.crc32(b"extender"))
        chunks = list(range(DISK // CHUNK))
        source.shuffle(chunks)
        for chunk in chunks:
            place = chunk * CHUNK + source.randrange(0, CHUNK - 4096, 512)
            data = bytes([1 + chunk % 250]) * 4096
            content[place:place + 4096] = data
            client.write(place, data)
            time.sleep(0.003)
        client.flush()


class FullFileSystem(DeviceTest):
    SIZE = 24 * MIB
    SHAPES = {"linear": (), "compact": compact(), "with a data file": ("data_file=data.raw",),
              "compact with a data file": ("data_file=data.raw", *compact())}

    def mount(self, size):
        os.makedirs("small", exist_ok=True)
        self.run_program(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", "small"])
        self.addCleanup(subprocess.run, ["umount", os.path.abspath("small")], stderr=subprocess.DEVNULL)

    def test_it_is_an_error_of_the_one_write_and_goes_away_with_more_room(self):
        write_file("base.raw", b"\xbb" * (2 * MIB))
        for name, options in self.SHAPES.items():
            with self.subTest(shape=name):
                self.mount(12 * MIB)
                self.create("small/disk.img", self.SIZE, options=["journal_size=1M", *options],
                            base=os.path.abspath("base.raw"), base_fmt="raw")
                content = bytearray(b"\xbb" * (2 * MIB) + bytes(self.SIZE - 2 * MIB))
                daemon, client = serve(self, "small/disk.img", FORMAT, name=name.replace(" ", "-"))
                full = self.write_until_full(client, content)
                self.assertGreater(full, 6 * MIB)
                self.run_program(["mount", "-o", f"remount,size={128 * MIB}", "small"])
                self.write_until_full(client, content, begin=full)
                client.flush()
                self.assertEqual(client.read_all(), bytes(content))
                client.close()
                daemon.quit()
                self.check("small/disk.img")
                self.assert_reads("small/disk.img", bytes(content))
                self.run_program(["umount", "small"])

    def write_until_full(self, client, content, begin=0):
        """Where a write failed; that one may have written a part."""
        piece = 300 * KIB
        for at in range(begin, self.SIZE - piece, piece):
            data = bytes([1 + at // piece % 250]) * piece
            try:
                client.write(at, data)
            except NbdError as error:
                self.assertIn("error 28", str(error))  # ENOSPC
                return at
            content[at:at + piece] = data
        return self.SIZE


class Extender(threading.Thread):
    """Makes the device longer whenever the guest was stopped for want of space, and lets it go on."""

    def __init__(self, monitor, volume):
        super().__init__(daemon=True)
        self.monitor, self.volume, self.stops = monitor, volume, 0

    def run(self):
        try:
            while True:
                event = self.monitor.wait("BLOCK_IO_ERROR", action="stop")
                assert event["nospace"], event
                self.monitor.wait("STOP")
                self.stops += 1
                self.volume.grow(4 * STEP)
                self.monitor.command("cont")
        except (OSError, TimeoutError, QmpError):
            pass  # the machine has ended


@unittest.skipUnless((BIN / "qemu-system-x86_64").exists(), "no qemu-system-x86_64")
class WithAGuest(DeviceTest):
    @limit(900)
    def test_werror_enospc_stops_the_guest_and_it_goes_on(self):
        guest = ensure_guest(lambda line: None)
        base = str(guest.disk)
        volume = self.thin(MIB, size=None, base=base, base_fmt="raw")
        disk = ["-drive", f"file={volume.device},format={FORMAT},if=virtio,cache=none,werror=enospc",
                "-qmp", "unix:vm.qmp,server=on,wait=off"]
        promises = Promises()
        with Machine(guest, disk, "console-1.log", round_words(2)) as vm:
            extender = Extender(Monitor("vm.qmp", self.record, 600), volume)
            extender.start()
            boot_and_verify(vm, promises)
            write_until_cut(vm, promises, 60, 0.3)
        self.assertGreaterEqual(extender.stops, 1, "the device never was full")
        with Machine(guest, disk, "console-2.log", []) as vm:
            Extender(Monitor("vm.qmp", self.record, 600), volume).start()
            boot_and_verify(vm, promises)
            vm.wait_for_power_off(120)
        self.check(volume.device)
