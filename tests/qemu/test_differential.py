# SPDX-License-Identifier: GPL-2.0-or-later
"""Ten thousand random requests to an image and to a raw twin: they must stay the same disk. Each
configuration runs in rounds; between two rounds the image is closed, checked, and compared with the
twin (by qemu-img) and with the model (byte by byte)."""

import pathlib
import random
import zlib

import nbd
import qmp
from model import Disk, Generator, base_content, disk_over
from support import FORMAT, MIB, ImageTest, limit, read_file, seed, write_file

REQUESTS = 10_000
ROUNDS = 5
IN_FLIGHT = 24
SIZE = 12 * MIB + 7 * 512
LARGE = 24 * MIB + 512  # for large blocks, so that first writes do not run out


def image_options(name, options=()):
    """With the default cache the host's flush is left out: the driver works the same, and the test is
    four times as fast."""
    quick = "" if "-t" in options else ",file.cache.no-flush=on"
    return f"driver={FORMAT},file.driver=file,file.filename={name}{quick}"


def overlap(one, other):
    return one.offset < other.offset + other.length and other.offset < one.offset + one.length


def batches(generator, count):
    """Cut the sequence into batches whose requests do not overlap, so that their order is free."""
    source, batch, most = generator.random, [], 1
    for _ in range(count):
        request = generator.next()
        if len(batch) >= most or any(overlap(request, other) for other in batch):
            yield batch
            batch, most = [], source.choice((1, 4, IN_FLIGHT))
        batch.append(request)
    yield batch


def write_words(request):
    words = {"write": f"-P {request.value}", "fua": f"-f -P {request.value}", "zero": "-z",
             "unmap": "-z -u"}[request.kind]
    return f"{words} {request.offset} {request.length}"


def read_lines(request, disk):
    """Look at the longest stretch that one pattern describes."""
    start, run, value = disk.uniform_run(request.offset, request.offset + request.length)
    if run == 0:
        return [f"aio_read -q {request.offset} {request.length}"]
    if start + run == request.offset + request.length and start == request.offset:
        return [f"aio_read -q -P {value} {start} {run}"]
    return [f"read -q -P {value} -s {start - request.offset} -l {run} {request.offset} "
            f"{request.length}"]


def script_of(batch, disk):
    """The batch as commands of qemu-io; the disk follows."""
    lines = []
    for request in batch:
        if request.kind == "read":
            lines += read_lines(request, disk)
        elif request.kind == "flush":
            lines.append("flush")
        elif request.kind == "discard":
            lines.append(f"discard -q {request.offset} {request.length}")
        else:
            lines.append("aio_write -q " + write_words(request))
        disk.apply(request)
    return [*lines, "aio_flush"]


class Differential(ImageTest):
    weights = None
    size = SIZE

    def set_up_pair(self, block, base=None, base_fmt="raw", options=()):
        """base: length of the base image, or None."""
        self.seed = seed() ^ zlib.crc32(self.id().encode())
        print(f"seed {seed():#x}")
        content = base_content(random.Random(self.seed), base) if base else b""
        self.block = block
        self.set_up_image(content, base_fmt, options)
        self.disk = Disk(disk_over(content, self.size))
        write_file("twin.raw", bytes(self.disk.content))
        edges = [edge for edge in (len(content), block, 8 * block) if edge]
        self.generator = Generator(self.seed, self.size, block, edges, weights=self.weights)

    def set_up_image(self, content, base_fmt, options):
        if not content:
            self.create("disk.img", self.size, options=options)
            return
        write_file("base.raw", content)
        if base_fmt != "raw":
            self.img("convert", "-f", "raw", "-O", base_fmt, "base.raw", "base.img")
        self.create("disk.img", self.size, options=options,
                    base="base.raw" if base_fmt == "raw" else "base.img", base_fmt=base_fmt)

    def options_for_block(self, block, *more):
        if FORMAT == "fvd":
            return [f"block_size={block}", *more]
        return []

    def run_rounds(self, one_round):
        for number in range(ROUNDS):
            one_round(REQUESTS // ROUNDS)
            self.compare_all(number)

    def compare_all(self, number):
        """The image at rest against the model, then against the twin, then against itself."""
        self.check("disk.img")
        self.img("convert", "-f", FORMAT, "-O", "raw", "disk.img", "seen.raw")
        place = self.disk.compare(0, read_file("seen.raw"))
        self.assertIsNone(place, f"first wrong byte after round {number}")
        self.disk.settle()
        self.follow_discards()
        self.assert_same("disk.img", FORMAT, "twin.raw", "raw")

    def follow_discards(self):
        """What a discard leaves may differ between two disks; the twin takes the image's answer."""
        pathlib.Path("twin.raw").write_bytes(self.disk.content)

    # ---------------------------------------------------------------- through qemu-io

    def qemu_io_round(self, *options):
        def one_round(count):
            lines = []
            for batch in batches(self.generator, count):
                lines += script_of(batch, self.disk)
            self.io_script(image_options("disk.img", options), lines, fmt=None,
                           options=["--image-opts", *options])
            self.io_script("twin.raw", [line for line in lines if "discard" not in line],
                           fmt="raw", options=["-t", "unsafe"])
            self.assert_twin()
        return one_round

    def assert_twin(self):
        """The twin got no discards, so it says whether the model is right where it is sure."""
        twin = read_file("twin.raw")
        if twin != self.disk.content:
            place = self.disk.compare(0, bytes(byte if not unknown else 0 for byte, unknown in
                                               zip(twin, self.disk.unknown)))
            self.assertIsNone(place, "the model itself is wrong")

    def through_qemu_io(self, block, *options, base=None, base_fmt="raw", create=()):
        self.set_up_pair(block, base, base_fmt, self.options_for_block(block, *create))
        self.run_rounds(self.qemu_io_round(*options))

    # ---------------------------------------------------------------- through NBD

    def nbd_round(self, **how):
        def one_round(count):
            daemon, client = qmp.serve(self, "disk.img", FORMAT, **how,
                                       discard="unmap")
            Pipeline(self, client, self.disk).run(self.generator, count)
            client.close()
            daemon.quit()
        return one_round

    def through_nbd(self, block, base=None, base_fmt="raw", create=(), **how):
        self.set_up_pair(block, base, base_fmt, self.options_for_block(block, *create))
        self.run_rounds(self.nbd_round(**how))


class Pipeline:
    """Keeps requests in flight; what is in flight never overlaps, everything else may happen."""

    def __init__(self, test, client, disk):
        self.test, self.client, self.disk = test, client, disk
        self.in_flight = {}

    def run(self, generator, count):
        for _ in range(count):
            request = generator.next()
            while (len(self.in_flight) >= IN_FLIGHT or
                   any(overlap(request, other) for other in self.in_flight.values())):
                self.reap()
            self.in_flight[self.submit(request)] = request
        while self.in_flight:
            self.reap()

    def submit(self, request):
        kinds = {"read": (nbd.READ, 0), "write": (nbd.WRITE, 0), "fua": (nbd.WRITE, nbd.FUA),
                 "zero": (nbd.WRITE_ZEROES, nbd.NO_HOLE), "unmap": (nbd.WRITE_ZEROES, 0),
                 "discard": (nbd.TRIM, 0), "flush": (nbd.FLUSH, 0)}
        command, flags = kinds[request.kind]
        data = bytes([request.value]) * request.length if command == nbd.WRITE else b""
        if request.kind != "read":
            self.disk.apply(request)
        return self.client.submit(command, request.offset, request.length, data, flags)

    def reap(self):
        done = self.client.reap()
        request = self.in_flight.pop(done.handle)
        self.test.assertEqual(done.error, 0, f"{request}")
        if request.kind == "read":
            place = self.disk.compare(request.offset, done.data)
            self.test.assertIsNone(place, f"wrong byte in {request}")


@limit(240)
class QemuIo(Differential):
    def test_without_base(self):
        self.through_qemu_io(65536)

    def test_base_as_long_as_the_disk(self):
        self.through_qemu_io(4096, base=SIZE)

    def test_shorter_base_with_64k_blocks(self):
        self.size = LARGE
        self.through_qemu_io(65536, base=LARGE // 2 + 512)

    def test_base_that_ends_inside_a_sector(self):
        self.through_qemu_io(4096, base=SIZE // 2 + 77)

    def test_longer_base_with_512_byte_blocks(self):
        self.through_qemu_io(512, base=SIZE + 3 * MIB)

    def test_data_file_and_odd_block_size(self):
        self.through_qemu_io(7680, base=SIZE, create=["data_file=data.raw", "data_file_fmt=raw"])

    def test_data_file_in_qcow2(self):
        self.img("create", "-q", "-f", "qcow2", "data.qcow2", SIZE)
        self.through_qemu_io(4096, base=SIZE,
                             create=["data_file=data.qcow2", "data_file_fmt=qcow2"])

    def test_small_journal_units_native_aio_without_cache(self):
        self.through_qemu_io(4096, "-t", "none", "-i", "native", base=SIZE, create=[
            "journal_unit=512", "journal_size=65536"])

    def test_io_uring_without_cache_over_qcow2(self):
        self.size = LARGE
        self.through_qemu_io(65536, "-t", "none", "-i", "io_uring", base=LARGE, base_fmt="qcow2")

    def test_writethrough(self):
        self.through_qemu_io(4096, "-t", "writethrough", base=SIZE)


@limit(240)
class Nbd(Differential):
    def test_many_in_flight_over_a_base(self):
        self.through_nbd(4096, base=SIZE)

    def test_many_in_flight_into_64k_blocks_over_a_shorter_base(self):
        self.size = LARGE
        self.through_nbd(65536, base=LARGE // 2 + 77, create=["journal_size=262144"])

    def test_in_an_iothread_without_cache(self):
        self.through_nbd(7680, base=SIZE, iothread=True, cache="none", aio="io_uring")

    def test_in_an_iothread_with_a_data_file_and_no_base(self):
        self.through_nbd(4096, iothread=True, cache="none", aio="native",
                         create=["data_file=data.raw"])


@limit(240)
class Blkverify(Differential):
    """QEMU's own comparison: every read is made of both disks, and a difference ends the program. (It
    knows neither zero writes nor discards.)"""

    weights = {"read": 45, "write": 45, "fua": 4, "flush": 3}

    def rounds(self, block, base, create=()):
        self.set_up_pair(block, base, options=self.options_for_block(block, *create))
        for _ in range(ROUNDS):
            lines = []
            for batch in batches(self.generator, REQUESTS // ROUNDS):
                lines += script_of(batch, self.disk)
            self.io_script(self.pair(), lines, fmt=None, options=["--image-opts"])
        self.check("disk.img")
        self.assert_same("disk.img", FORMAT, "twin.raw", "raw")
        self.assertEqual(read_file("twin.raw"), self.disk.content)

    def pair(self):
        return ("driver=blkverify,raw.driver=raw,raw.file.driver=file,raw.file.filename=twin.raw,"
                "raw.file.cache.no-flush=on,test." + image_options("disk.img").replace(",", ",test."))

    def test_without_base(self):
        self.rounds(4096, None)

    def test_over_a_base_with_odd_block_size(self):
        self.rounds(15872, SIZE - 3000)
