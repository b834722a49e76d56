#!/usr/bin/env python3
"""A Linux guest boots from an FVD image, has its power cut while it writes, and loses nothing
that it was told is safe: with a base image on an NBD server, with a separate data file, and
with no base at all.

Runs the programs of build/bin. Arguments choose tests by a part of their names.
Prints a line a test and ends with "guest-boot: N passed, N failed"."""

import pathlib
import random
import shutil
import signal
import sys
import tempfile
import time

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "guest"))

from machine import (FORMAT, REPOSITORY, Machine, NbdServer, blockdev, cache_mode, check_image,
                     drive, qemu_img)
from make_guest import GuestError, ensure_guest
from power_cut import Promises, boot_and_verify, round_words, write_until_cut

# Kept after a failure: images and consoles are the evidence.
WORK = REPOSITORY / "build/guest-boot"
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
        self.chance = random.Random(directory.name)

    def machine(self, words):
        self.boots += 1
        return Machine(self.guest, self.disk, self.directory / f"console-{self.boots}.log", words)

    def write_and_cut_power(self, *words):
        with self.machine(round_words(self.boots + 1) + list(words)) as vm:
            boot_and_verify(vm, self.promises)
            write_until_cut(vm, self.promises, FILES_BEFORE_CUT, self.chance.random())

    def verify_and_power_off(self):
        with self.machine([]) as vm:
            boot = boot_and_verify(vm, self.promises)
            vm.wait_for_power_off(POWER_OFF_SECONDS)
        return boot


def expect(condition, words):
    if not condition:
        raise GuestError(words)


def test_base_on_nbd_server(guest, directory):
    """Two power cuts over a base image that a real NBD server serves."""
    image = directory / "disk.img"
    with tempfile.TemporaryDirectory(prefix="guest-boot-") as sockets:
        with NbdServer(guest.disk, pathlib.Path(sockets) / "base") as server:
            qemu_img("create", "-f", FORMAT, "-b", server.uri, "-F", "raw", image)
            life = Life(guest, drive(image, cache_mode(directory)), directory)
            life.write_and_cut_power()
            life.write_and_cut_power()
            boot = life.verify_and_power_off()
            expect(boot.journal_replayed, "the guest's ext4 had no journal to replay: the power "
                                          "cut came at no moment worth testing")
            check_image(image)


def test_separate_data_file(guest, directory):
    """Guest data in a file of its own, the disk given by -blockdev."""
    image, data = directory / "disk.img", directory / "disk.data"
    options = f"data_file={data}" + (",data_file_fmt=raw" if FORMAT == "fvd" else "")
    qemu_img("create", "-f", FORMAT, "-b", guest.disk, "-F", "raw", "-o", options, image)
    life = Life(guest, blockdev(image, cache_mode(directory)), directory)
    life.write_and_cut_power()
    life.verify_and_power_off()
    check_image(image)
    expect(data.stat().st_blocks > 0, f"nothing was written to the data file {data}")


def test_no_base(guest, directory):
    """The guest's disk converted into the image; the guest also discards its free space."""
    image = directory / "disk.img"
    qemu_img("convert", "-f", "raw", "-O", FORMAT, guest.disk, image)
    qemu_img("compare", "-f", "raw", "-F", FORMAT, guest.disk, image)
    life = Life(guest, drive(image, "writeback", ",discard=unmap"), directory)
    life.write_and_cut_power()
    life.write_and_cut_power("guest.trim=1")
    life.verify_and_power_off()
    check_image(image)


def test_losses_are_noticed(guest, directory):
    """The judge is not blind: an image that is put back to its past must be found out."""
    image = directory / "disk.img"
    create = ["create", "-f", FORMAT, "-b", guest.disk, "-F", "raw", image]
    qemu_img(*create)
    life = Life(guest, drive(image, cache_mode(directory)), directory)
    life.write_and_cut_power()
    image.unlink()
    qemu_img(*create)
    try:
        life.verify_and_power_off()
    except GuestError as error:
        expect("DATA LOST" in str(error), f"found out for a wrong reason: {error}")
        return
    raise GuestError("an image without any of the synced files passed for good")


TESTS = [test_base_on_nbd_server, test_separate_data_file, test_no_base, test_losses_are_noticed]


def run_one(test, guest):
    """True when it passes; its files go then."""
    directory = WORK / test.__name__
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    started = time.monotonic()
    try:
        test(guest, directory)
    except GuestError as error:
        print(f"FAIL {test.__name__} ({time.monotonic() - started:.1f} s)\n{error}\n"
              f"evidence kept in {directory}", flush=True)
        return False
    print(f"ok   {test.__name__} ({time.monotonic() - started:.1f} s)", flush=True)
    shutil.rmtree(directory)
    return True


def interrupted(*_):
    raise KeyboardInterrupt


def main(chosen):
    signal.signal(signal.SIGTERM, interrupted)
    tests = [test for test in TESTS
             if not chosen or any(word in test.__name__ for word in chosen)]
    try:
        guest = ensure_guest(lambda line: print(f"guest: {line}", flush=True))
        results = [run_one(test, guest) for test in tests]
    except GuestError as error:
        print(f"FAIL making the guest: {error}")
        results = [False] * len(tests)
    print(f"guest-boot: {results.count(True)} passed, {results.count(False)} failed")
    return 0 if results and all(results) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
