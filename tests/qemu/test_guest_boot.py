#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""A Linux guest boots from an FVD image, has its power cut while it writes, and loses nothing
that it was told is safe: with a base image on an NBD server, with a separate data file, and
with no base at all.

Run by tests/qemu/run like its neighbours, or by itself: then arguments choose tests by a part of
their names, and the last line is "guest-boot: N passed, N failed"."""

import os
import pathlib
import random
import shutil
import signal
import sys
import tempfile
import time
import unittest

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "guest"))

from machine import (BIN, FORMAT, REPOSITORY, FarNbdServer, HttpServer, Machine, NbdServer,
                     blockdev, cache_mode, check_image, drive, qemu_img)
from make_guest import GuestError, ensure_guest
from qmp import Monitor
from power_cut import Promises, boot_and_verify, round_words, write_until_cut

# Evidence of failures when this file is run by itself.
KEPT = REPOSITORY / "build/guest-boot"
POWER_OFF_SECONDS = 120
FILES_BEFORE_CUT = 15


class Life:
    """A guest's disk through several boots."""

    def __init__(self, guest, disk, directory):
        self.guest = guest
        self.disk = disk
        self.directory = directory
        self.promises = Promises()
        self.boots = 0
        self.chance = random.Random(os.environ.get("FVD_SEED", "guest-boot"))

    def machine(self, words):
        self.boots += 1
        log = self.directory / f"console-{self.boots}.log"
        return Machine(self.guest, self.disk, log, words)

    def write_and_cut_power(self, *words):
        with self.machine(round_words(self.boots + 1) + list(words)) as vm:
            boot_and_verify(vm, self.promises)
            write_until_cut(vm, self.promises, FILES_BEFORE_CUT, self.chance.random())

    def write_until_complete(self, socket):
        """The power goes when the image says that it needs its base no more."""
        disk, self.disk = self.disk, self.disk + ["-qmp", f"unix:{socket},server=on,wait=off"]
        with self.machine(round_words(self.boots + 2)) as vm:
            boot_and_verify(vm, self.promises)
            monitor = Monitor(str(socket), [])
            write_until_cut(vm, self.promises, 1, self.chance.random(), lambda: any(
                node.get("driver-specific", {}).get("complete")
                for node in monitor.command("query-blockstats", query_nodes=True)))
        self.disk = disk

    def verify_and_power_off(self):
        with self.machine([]) as vm:
            boot = boot_and_verify(vm, self.promises)
            vm.wait_for_power_off(POWER_OFF_SECONDS)
        return boot


# FVD_BIN may hold the tools alone.
@unittest.skipIf("FVD_BIN" in os.environ and not (BIN / "qemu-system-x86_64").exists(),
                 f"{BIN} has no qemu-system-x86_64")
class GuestBoot(unittest.TestCase):
    limit = 900

    def setUp(self):
        self.guest = ensure_guest(lambda line: print(f"guest: {line}", flush=True))
        scratch = os.environ.get("FVD_SCRATCH")
        self.directory = pathlib.Path(scratch) if scratch else KEPT / self._testMethodName
        self.directory.mkdir(parents=True, exist_ok=True)
        self.image = self.directory / "disk.img"
        self.cache = cache_mode(self.directory)

    def create(self, base, *options):
        qemu_img("create", "-f", FORMAT, "-b", base, "-F", "raw", *options, self.image)

    def life(self, disk):
        return Life(self.guest, disk, self.directory)

    def test_base_on_nbd_server(self):
        """Two power cuts over a base image that a real NBD server serves."""
        # A unix socket's path is short by law of the kernel; a scratch directory's need not be.
        with tempfile.TemporaryDirectory(prefix="guest-boot-", dir="/tmp") as sockets:
            with NbdServer(self.guest.disk, pathlib.Path(sockets) / "base") as server:
                self.create(server.uri)
                life = self.life(drive(self.image, self.cache))
                life.write_and_cut_power()
                life.write_and_cut_power()
                boot = life.verify_and_power_off()
                check_image(self.image)
        self.assertTrue(boot.journal_replayed, "the guest's ext4 had no journal to replay: the "
                                               "power cut came at no moment worth testing")

    def fill_and_live_alone(self, server, sockets, *options):
        """The guest starts from a base that is far away, and in the end needs it no more."""
        with server:
            self.create(server.uri, "-o", ",".join(["copy_on_read=on", "prefetch_start_delay=0",
                                                    *options]))
            life = self.life(drive(self.image, self.cache))
            life.write_and_cut_power()
            life.write_until_complete(pathlib.Path(sockets) / "qmp")
        life.verify_and_power_off()
        check_image(self.image)
        self.assertNotIn("backing file", qemu_img("info", "-f", FORMAT, self.image))

    @unittest.skipUnless(FORMAT == "fvd", "about FVD itself")
    def test_fills_itself_over_a_slow_link(self):
        with tempfile.TemporaryDirectory(prefix="guest-boot-", dir="/tmp") as sockets:
            far = FarNbdServer(self.guest.disk, pathlib.Path(sockets) / "base", 10, 200_000_000)
            self.fill_and_live_alone(far, sockets)

    @unittest.skipUnless(FORMAT == "fvd", "about FVD itself")
    def test_a_compact_image_fills_itself_from_qemu_nbd(self):
        with tempfile.TemporaryDirectory(prefix="guest-boot-", dir="/tmp") as sockets:
            near = NbdServer(self.guest.disk, pathlib.Path(sockets) / "base")
            self.fill_and_live_alone(near, sockets, "compact_image=on")

    @unittest.skipUnless(FORMAT == "fvd", "about FVD itself")
    def test_fills_itself_over_http(self):
        with tempfile.TemporaryDirectory(prefix="guest-boot-", dir="/tmp") as sockets:
            self.fill_and_live_alone(HttpServer(self.guest.disk, sockets), sockets)

    def test_separate_data_file(self):
        """Guest data in a file of its own, the disk given by -blockdev."""
        data = self.directory / "disk.data"
        options = f"data_file={data}" + (",data_file_fmt=raw" if FORMAT == "fvd" else "")
        self.create(self.guest.disk, "-o", options)
        life = self.life(blockdev(self.image, self.cache))
        life.write_and_cut_power()
        life.verify_and_power_off()
        check_image(self.image)
        self.assertGreater(data.stat().st_blocks, 0, f"nothing was written to {data}")

    def test_no_base(self):
        """The guest's disk converted into the image; the guest also discards free space."""
        qemu_img("convert", "-f", "raw", "-O", FORMAT, self.guest.disk, self.image)
        qemu_img("compare", "-f", "raw", "-F", FORMAT, self.guest.disk, self.image)
        life = self.life(drive(self.image, "writeback", ",discard=unmap"))
        life.write_and_cut_power()
        life.write_and_cut_power("guest.trim=1")
        life.verify_and_power_off()
        check_image(self.image)

    def test_losses_are_noticed(self):
        """The judge is not blind: an image put back to its past must be found out."""
        self.create(self.guest.disk)
        life = self.life(drive(self.image, self.cache))
        life.write_and_cut_power()
        self.image.unlink()
        self.create(self.guest.disk)
        with self.assertRaisesRegex(GuestError, "DATA LOST"):
            life.verify_and_power_off()


class Lines(unittest.TestResult):
    """A line a test, for a person who runs this file by itself."""

    def startTest(self, test):
        super().startTest(test)
        self.started = time.monotonic()

    def tell(self, verdict, test):
        print(f"{verdict} {test._testMethodName} ({time.monotonic() - self.started:.1f} s)",
              flush=True)

    def addSuccess(self, test):
        super().addSuccess(test)
        self.tell("ok  ", test)
        shutil.rmtree(KEPT / test._testMethodName, ignore_errors=True)

    def addFailure(self, test, error):
        super().addFailure(test, error)
        self.tell("FAIL", test)
        print(f"{error[1]}\nevidence kept in {KEPT / test._testMethodName}", flush=True)

    addError = addFailure


def interrupted(*_):
    raise KeyboardInterrupt


def main(chosen):
    signal.signal(signal.SIGTERM, interrupted)
    names = [name for name in unittest.defaultTestLoader.getTestCaseNames(GuestBoot)
             if not chosen or any(word in name for word in chosen)]
    result = Lines()
    unittest.TestSuite(map(GuestBoot, names)).run(result)
    failed = len(result.failures) + len(result.errors)
    passed = result.testsRun - failed
    print(f"guest-boot: {passed} passed, {failed} failed")
    return 0 if passed and not failed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
