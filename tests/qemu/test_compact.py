# SPDX-License-Identifier: GPL-2.0-or-later
"""Compact images: storage chunk by chunk. What create makes, what measure promises, what discards give
back, what check says of damaged tables, and that a compact disk is the same disk as any other."""

import array
import os
import random
import resource
import unittest
import zlib

import fvdformat
import nbd
from qmp import Daemon, QmpError, file_node, serve
from support import (FORMAT, KIB, MIB, SANITIZED, TIB, ImageTest, allocated, digests, limit, only_fvd, patterned, seed,
                     truncate, write_file)
from test_differential import LARGE, SIZE, Differential

CHUNK = 64 * KIB
MILLION, IN_FLIGHT = 1_000_000, 64
DISK = 4 * MIB
COMPACT = ("compact_image=on", f"chunk_size={CHUNK}", f"storage_grow_unit={2 * CHUNK}")


class CompactTest(ImageTest):
    def compact(self, *more, size=DISK, name="disk.img", **how):
        self.create(name, size, options=[*COMPACT, *more], **how)

    def slots(self, name="disk.img"):
        return fvdformat.Table(name).slots()

    def storage(self, name="disk.img"):
        return os.path.getsize(name) - fvdformat.field_of(name, "data_offset")


# ---------------------------------------------------------------- create

@only_fvd
class Create(CompactTest):
    def refused(self, *options, words):
        ran = self.create("bad.img", DISK, options=options, expect=1)
        for word in words:
            self.assertIn(word, ran.err)
        self.assertFalse(os.path.exists("bad.img"))

    def test_defaults(self):
        self.create("disk.img", TIB, options=["compact_image=on"])
        known = self.specific("disk.img")
        self.assertEqual(known["chunk-size"], MIB)
        self.assertEqual(known["storage-grow-unit"], 16 * MIB)
        self.assertEqual(self.storage(), 0)
        self.assertLess(allocated("disk.img"), 24 * MIB)
        self.check("disk.img")

    def test_a_linear_image_has_no_chunks(self):
        self.create("disk.img", DISK)
        self.assertNotIn("chunk-size", self.specific("disk.img"))

    def test_nothing_is_stored_and_all_reads_as_zeros(self):
        self.compact()
        self.assertEqual(self.slots(), {})
        self.assert_reads("disk.img", bytes(DISK))
        self.check("disk.img")

    def test_info_tells_people_too(self):
        self.compact()
        text = self.img("info", "-f", "fvd", "disk.img").out
        self.assertIn(f"chunk size: {CHUNK}", text)

    def test_chunk_sizes(self):
        for size in (4 * KIB, 7680, MIB, 64 * MIB):
            with self.subTest(size=size):
                self.create("disk.img", DISK, options=["compact_image=on", f"chunk_size={size}"])
                self.assertEqual(self.specific("disk.img")["chunk-size"], size)
                self.io("disk.img", "write -P 7 1000000 70000")
                self.io("disk.img", "read -P 7 1000000 70000", "read -P 0 0 1000000")
                self.check("disk.img")

    def test_wrong_sizes_are_refused(self):
        for size in (1, 512, 4095, 4097, 128 * MIB):
            self.refused("compact_image=on", f"chunk_size={size}",
                         words=[f"chunk_size is {size} bytes", "4096 and 67108864"])
        self.refused("compact_image=on", "block_size=8k", "chunk_size=12k",
                     words=["must be a multiple of block_size, 8192"])
        self.refused("compact_image=on", "storage_grow_unit=512k",
                     words=["storage_grow_unit is 524288 bytes"])

    def test_options_of_compact_images_want_one(self):
        for option in ("chunk_size=1M", "storage_grow_unit=1M"):
            self.refused(option, words=["compact_image is off"])

    def test_over_a_base(self):
        content = patterned([(0, 100000, 1), (DISK // 2, 70000, 2)], DISK)
        write_file("base.raw", content)
        self.compact(size=None, base="base.raw", base_fmt="raw")
        self.assertEqual(self.storage(), 0)
        self.assert_reads("disk.img", content)

    def test_a_data_file_starts_empty(self):
        self.compact("data_file=data.raw", "data_file_fmt=raw")
        self.assertEqual(os.path.getsize("data.raw"), 0)
        self.io("disk.img", "write -P 5 1M 100k")
        self.assertEqual(os.path.getsize("data.raw"), 2 * CHUNK)
        self.io("disk.img", "read -P 5 1M 100k", "read -P 0 0 1M")
        self.check("disk.img")

    def test_preallocation(self):
        least = {"metadata": 0, "falloc": DISK, "full": DISK}
        for mode, room in least.items():
            with self.subTest(mode=mode):
                self.compact(f"preallocation={mode}")
                self.assertEqual(self.storage(), DISK)
                self.assertEqual(self.slots(), {n: n for n in range(DISK // CHUNK)})
                self.assertGreaterEqual(allocated("disk.img"), room)
                self.assert_reads("disk.img", bytes(DISK))
                self.check("disk.img")

    def test_converted_there_and_back(self):
        content = patterned([(0, 4096, 1), (MIB + 512, CHUNK, 2), (DISK - 512, 512, 3)], DISK)
        write_file("disk.raw", content)
        self.img("convert", "-f", "raw", "-O", "fvd", *[word for option in COMPACT
                                                       for word in ("-o", option)],
                 "disk.raw", "disk.img")
        self.assertEqual(len(self.slots()), 4)
        self.assert_reads("disk.img", content)
        self.check("disk.img")


@only_fvd
class Largest(CompactTest):
    """64 TiB, of which next to nothing is stored. What it takes is the table: four bytes for each of 64 million
    chunks on disk, and twice that in memory, while it can be written to."""
    memory = 1536 * MIB  # of addresses, QEMU's own included

    @limit(300)
    def test_64_tib(self):
        size = 64 * TIB
        self.create("disk.img", size, options=["compact_image=on"], memory=self.memory)
        self.assertEqual(self.info("disk.img")["virtual-size"], size)
        self.assertLess(allocated("disk.img"), 320 * MIB)  # the table, and little else
        places = {offset: value for value, offset in enumerate(
            (0, TIB - 512, 20 * TIB + 4096, 50 * TIB + 123 * 512, size - 70144), start=1)}
        self.io("disk.img", *[f"write -P {value} {offset} 70144" for offset, value in places.items()], "flush",
                memory=self.memory)
        reads = [f"read -P {value} {offset} 70144" for offset, value in places.items()]
        self.io("disk.img", *reads, f"read -P 0 {30 * TIB} 64M", options=["-r"], memory=self.memory)
        self.check("disk.img")
        found = {area["start"]: area["length"] for area in self.map("disk.img") if not area["zero"]}
        self.assertEqual(sum(1 for offset in places if any(
            start <= offset < start + length for start, length in found.items())), len(places))
        self.img("resize", "-q", "--shrink", "-f", "fvd", "disk.img", 40 * TIB)
        self.img("resize", "-q", "-f", "fvd", "disk.img", size)
        gone = [f"read -P {value if offset < 40 * TIB else 0} {offset} 70144" for offset, value in places.items()]
        self.io("disk.img", *gone, options=["-r"], memory=self.memory)
        self.check("disk.img")

    @unittest.skipIf(SANITIZED, "a figure of time")
    def test_a_full_disk_of_16_tib_opens_at_once(self):
        """By the processor's time: machines that run tests are busy. No file of ext4 has all of 16 TiB."""
        size = 16 * TIB - 16 * 1024 * MIB
        self.create("disk.img", size, options=["compact_image=on", "preallocation=metadata"])
        self.assertLess(self.least_time_of_an_open(), 0.5)
        table = fvdformat.Table("disk.img")
        with open("disk.img", "r+b") as file:  # worst of all: nothing stands beside its neighbour
            file.seek(table.offset)
            file.write(array.array("I", range(table.chunks - 1, -1, -1)).tobytes())
        self.assertLess(self.least_time_of_an_open(), 1)

    def least_time_of_an_open(self):
        def spent():
            usage = resource.getrusage(resource.RUSAGE_CHILDREN)
            return usage.ru_utime + usage.ru_stime
        times = []
        for _ in range(5):
            before = spent()
            self.io("disk.img", "read 0 4k")
            times.append(spent() - before)
        return min(times)

    def test_a_chunk_size_that_makes_too_many_chunks(self):
        ran = self.create("bad.img", 64 * TIB, options=["compact_image=on", "chunk_size=4096"], expect=1)
        self.assertIn("chunk_size is 4096 bytes; must be between 262144 and 67108864", ran.err)


@only_fvd
class CreateJob(CompactTest):
    def test_blockdev_create_takes_the_same_options(self):
        daemon = Daemon(self)
        daemon.monitor.run_create_job("file", {"driver": "file", "filename": "disk.img", "size": 0})
        daemon.command("blockdev-add", node_name="file0", **file_node("disk.img"))
        daemon.monitor.run_create_job("fvd", {
            "driver": "fvd", "file": "file0", "size": DISK, "compact-image": True,
            "chunk-size": CHUNK, "storage-grow-unit": 2 * CHUNK, "preallocation": "metadata"})
        with self.assertRaisesRegex(QmpError, "chunk_size is 4097 bytes"):
            daemon.monitor.run_create_job("bad", {
                "driver": "fvd", "file": "file0", "size": DISK, "compact-image": True,
                "chunk-size": 4097})
        daemon.quit()
        table = fvdformat.Table("disk.img")
        self.assertEqual(table.chunk_size, CHUNK)
        self.assertEqual(fvdformat.field_of("disk.img", "storage_grow_unit"), 2 * CHUNK)
        self.assertEqual(table.slots(), {n: n for n in range(DISK // CHUNK)})


# ---------------------------------------------------------------- measure

@only_fvd
class Measure(CompactTest):
    def measure(self, *words):
        options = [word for option in COMPACT for word in ("-o", option)]
        return self.img("measure", "-O", "fvd", "--output=json", *options, *words).json()

    def test_an_empty_disk_needs_metadata_only(self):
        self.compact()
        found = self.measure("--size", str(DISK))
        self.assertEqual(found["required"], os.path.getsize("disk.img"))
        self.assertEqual(found["fully-allocated"], os.path.getsize("disk.img") + DISK)

    def test_a_converted_disk_is_within_what_is_required(self):
        source = random.Random(seed())
        runs = [(source.randrange(DISK - 9000), source.randrange(1, 9000), 1) for _ in range(12)]
        write_file("disk.raw", patterned(runs, DISK))
        found = self.measure("-f", "raw", "disk.raw")
        self.img("convert", "-f", "raw", "-O", "fvd", *[word for option in COMPACT
                                                       for word in ("-o", option)],
                 "disk.raw", "disk.img")
        self.assertLessEqual(os.path.getsize("disk.img"), found["required"])
        self.assertLessEqual(found["required"], found["fully-allocated"])

    def test_preallocated_is_full(self):
        for mode in ("metadata", "falloc", "full"):
            found = self.measure("-o", f"preallocation={mode}", "--size", str(DISK))
            self.assertEqual(found["required"], found["fully-allocated"])

    @limit(240)
    def test_no_sequence_of_writes_and_discards_outgrows_it(self):
        self.compact()
        self.write_and_discard({"disk.img": self.measure("--size", str(DISK))["fully-allocated"]})

    def test_with_a_data_file_each_of_the_two_has_its_bound(self):
        self.compact("data_file=data.raw", size=DISK - 512)
        found = self.measure("-o", "data_file=data.raw", "--size", str(DISK - 512))
        self.write_and_discard({"disk.img": found["fully-allocated"], "data.raw": DISK})

    def write_and_discard(self, bounds):
        source = random.Random(seed() ^ zlib.crc32(b"measure"))
        for _ in range(4):
            lines = []
            for _ in range(3000):
                offset = source.randrange(0, DISK - 512, 512)
                length = min(source.choice((512, 4096, CHUNK, 3 * CHUNK)), DISK - 512 - offset)
                kind = source.choice(("aio_write -q -P 9", "aio_write -q -P 9", "discard -q",
                                      "aio_write -q -z -u"))
                lines += [f"{kind} {offset} {length}"]
                lines += ["aio_flush"] if source.random() < 0.1 else []
            self.io_script("disk.img", [*lines, "aio_flush"], options=["-d", "unmap", "-t", "unsafe"])
            for file, most in bounds.items():
                self.assertLessEqual(os.path.getsize(file), most)
            self.check("disk.img")

    @limit(600)
    def test_a_million_random_requests_never_outgrow_it(self):
        """Many in flight, so that slots are freed and taken beside each other."""
        most = self.measure("--size", str(DISK))["fully-allocated"]
        self.compact()
        daemon, client = serve(self, "disk.img", FORMAT, discard="unmap")
        source = random.Random(seed() ^ zlib.crc32(b"million"))
        data = b"\x09" * (2 * CHUNK)
        for done in range(0, MILLION, IN_FLIGHT):
            for _ in range(IN_FLIGHT):
                offset = source.randrange(0, DISK - CHUNK, 512)
                kind = source.random()
                if kind < 0.6:
                    client.submit(nbd.WRITE, offset, data=data[:512 if kind < 0.5 else 5120])
                elif kind < 0.97:
                    whole = offset // CHUNK * CHUNK
                    client.submit(nbd.TRIM if kind < 0.9 else nbd.WRITE_ZEROES, whole, CHUNK)
                else:
                    client.submit(nbd.FLUSH)
            for _ in range(IN_FLIGHT):
                self.assertEqual(client.reap().error, 0)
            if done % (64 * IN_FLIGHT) == 0:
                self.assertLessEqual(os.path.getsize("disk.img"), most)
        self.assertLessEqual(os.path.getsize("disk.img"), most)
        client.close()
        daemon.quit()
        self.check("disk.img")


# ---------------------------------------------------------------- storage

@only_fvd
class Storage(CompactTest):
    def test_a_first_write_takes_a_slot_and_growth_whole_steps(self):
        self.compact()
        self.io("disk.img", "write -P 1 1M 4k")
        self.assertEqual(self.slots(), {MIB // CHUNK: 0})
        self.assertEqual(self.storage(), 2 * CHUNK)

    def test_sequential_writes_get_slots_in_order(self):
        self.compact()
        self.io("disk.img", f"write -P 1 0 {DISK}")
        self.assertEqual(self.slots(), {n: n for n in range(DISK // CHUNK)})
        self.assertEqual(self.storage(), DISK)

    def test_requests_in_flight_together_keep_each_its_run(self):
        """Growth suspends the first of them when it has its slots already."""
        self.compact(size=64 * MIB)
        self.img("bench", "-w", "-c", "128", "-d", "8", "-s", str(8 * CHUNK), "-f", FORMAT, "disk.img")
        slots = self.slots()
        self.assertEqual(len(slots), 64 * MIB // CHUNK)
        for first in range(0, len(slots), 8):
            self.assertEqual([slots[first + i] for i in range(8)],
                             list(range(slots[first], slots[first] + 8)))

    def test_zeros_need_no_storage(self):
        self.compact()
        self.io("disk.img", f"write -z -u 0 {DISK}")
        self.assertEqual(self.slots(), {})

    def test_discarded_chunks_are_free_again(self):
        self.compact()
        self.io("disk.img", f"write -P 1 0 {DISK}")
        self.io("disk.img", f"discard {CHUNK} {DISK - 2 * CHUNK}", options=["-d", "unmap"])
        self.assertEqual(self.slots(), {0: 0, DISK // CHUNK - 1: DISK // CHUNK - 1})
        self.io("disk.img", "read -P 1 0 64k", "read -P 0 64k 1M")
        self.check("disk.img")
        self.io("disk.img", "write -P 2 1M 1M")
        self.assertEqual(self.storage(), DISK, "free slots are used before new ones are made")
        self.io("disk.img", "read -P 2 1M 1M", "read -P 0 64k 960k", "read -P 0 2M 1M")

    def test_space_of_discarded_chunks_goes_back(self):
        self.compact()
        self.io("disk.img", f"write -P 1 0 {DISK}")
        full = allocated("disk.img")
        self.io("disk.img", f"discard 0 {DISK}", options=["-d", "unmap"])
        self.assertLess(allocated("disk.img"), full - DISK + 2 * CHUNK)

    def test_a_slot_that_is_used_again_shows_nothing_of_its_past(self):
        self.compact()
        self.io("disk.img", f"write -P 0xEE 0 {DISK}")
        self.io("disk.img", f"discard 0 {DISK}", options=["-d", "unmap"])
        self.io("disk.img", *[f"write -P 1 {n * CHUNK + 512} 512" for n in range(DISK // CHUNK)])
        content = (bytes(512) + b"\1" * 512 + bytes(CHUNK - 1024)) * (DISK // CHUNK)
        self.assert_reads("disk.img", content)

    def test_map_shows_holes_and_slots(self):
        self.compact()
        self.io("disk.img", "write -P 1 1M 64k", "write -P 1 0 64k")
        offset = fvdformat.field_of("disk.img", "data_offset")
        runs = [(run["start"], run["length"], run["data"], run.get("offset"))
                for run in self.map("disk.img")]
        self.assertEqual(runs, [(0, CHUNK, True, offset + CHUNK),
                                (CHUNK, MIB - CHUNK, False, None),
                                (MIB, CHUNK, True, offset),
                                (MIB + CHUNK, DISK - MIB - CHUNK, False, None)])

    def test_over_a_base_only_the_first_write_stores(self):
        content = patterned([(0, DISK, 7)], DISK)
        write_file("base.raw", content)
        self.compact(size=None, base="base.raw", base_fmt="raw")
        self.io("disk.img", "write -P 1 1M 512", "discard 2M 1M", "write -z -u 3M 64k",
                options=["-d", "unmap"])
        expected = bytearray(content)
        expected[MIB:MIB + 512] = b"\1" * 512
        expected[3 * MIB:3 * MIB + CHUNK] = bytes(CHUNK)
        self.assertEqual(self.slots(), {MIB // CHUNK: 0})
        self.io("disk.img", "read -P 1 1M 512", "read -P 7 1049088 900k", "read -P 0 3M 64k")
        self.check("disk.img")


# ---------------------------------------------------------------- check

@only_fvd
class Check(CompactTest):
    """A disk with chunk n in slot n, filled with n + 1, up to chunk 7."""

    def setUp(self):
        super().setUp()
        self.compact()
        self.io("disk.img", *[f"write -P {n + 1} {n * CHUNK} {CHUNK}" for n in range(8)])
        self.table = fvdformat.Table("disk.img")
        self.assertEqual(self.slots(), {n: n for n in range(8)})

    def assert_chunks(self, *values):
        self.io("disk.img", *[f"read -P {value} {n * CHUNK} {CHUNK}"
                              for n, value in enumerate(values)])

    def repaired(self, *words):
        """Told, not opened for writing, repaired once, and then as it should be."""
        before = digests("disk.img")
        ran = self.check("disk.img", expect=2)
        for word in words:
            self.assertIn(word, ran.text)
        self.assert_unchanged(before)
        self.check("disk.img", "-r", "leaks", expect=2)
        self.check("disk.img", "-r", "all")
        self.check("disk.img")

    def test_numbers(self):
        found = self.img("check", "-f", "fvd", "--output=json", "disk.img").json()
        self.assertEqual(found["total-clusters"], DISK // CHUNK)
        self.assertEqual(found["allocated-clusters"], 8)
        self.assertNotIn("fragmented-clusters", found)
        self.assertEqual(found["image-end-offset"], self.table.data_offset + 8 * CHUNK)
        self.table.put(3, 2)
        self.table.put(2, 3)
        found = self.img("check", "-f", "fvd", "--output=json", "disk.img").json()
        self.assertEqual(found["fragmented-clusters"], 3)

    def test_free_slots_are_nothing_to_report(self):
        self.table.put(5, fvdformat.NOT_STORED)
        self.check("disk.img")
        self.assert_chunks(1, 2, 3, 4, 5, 0, 7, 8)

    def test_slots_that_cannot_exist(self):
        self.table.put(5, 1024)  # entries of the table, and so slots
        self.table.put(9, 0xFFFFFFFE)
        ran = self.io("disk.img", "write 0 512", expect=1)
        self.assertIn("qemu-img check -r all", ran.text)
        self.repaired("chunks with a slot that cannot exist: 2, the first is chunk 5")
        self.assert_chunks(1, 2, 3, 4, 5, 0, 7, 8, 0, 0)

    def test_chunks_that_share_a_slot(self):
        self.table.put(6, 2)
        self.table.put(20, 2)
        ran = self.io("disk.img", "write 0 512", expect=1)
        self.assertIn("qemu-img check -r all", ran.text)
        self.repaired("chunks with a slot that another chunk has, too: 2, the first is chunk 6")
        self.assert_chunks(1, 2, 3, 4, 5, 6, 3, 8)
        self.io("disk.img", f"read -P 3 {20 * CHUNK} {CHUNK}",
                f"write -P 99 {20 * CHUNK} {CHUNK}", f"write -P 98 {6 * CHUNK} {CHUNK}")
        self.assert_chunks(1, 2, 3, 4, 5, 6, 98, 8)

    def test_a_file_that_was_cut(self):
        truncate("disk.img", self.table.data_offset + 6 * CHUNK + 4096)
        self.repaired("chunks with a slot behind the end of storage: 2, the first is chunk 6")
        self.assert_chunks(1, 2, 3, 4, 5, 6)
        self.io("disk.img", f"read -P 7 {6 * CHUNK} 4096", f"read -P 0 {7 * CHUNK} {CHUNK}")

    def test_read_only_only_the_lost_chunk_is_an_error(self):
        truncate("disk.img", self.table.data_offset + 7 * CHUNK)
        self.io("disk.img", f"read -P 7 {6 * CHUNK} {CHUNK}", options=["-r"])
        self.io("disk.img", f"read {7 * CHUNK} 512", options=["-r"], expect=1)

    def test_entries_of_no_chunk_are_leaks(self):
        self.table.put(DISK // CHUNK, 3)
        self.check("disk.img", expect=3)
        self.check("disk.img", "-r", "leaks")
        self.check("disk.img")

    def test_records_of_chunks_that_do_not_exist(self):
        fvdformat.patch("disk.img", clean_shutdown=0)
        journal = fvdformat.Journal("disk.img")
        journal.plant(0, fvdformat.table_record(DISK // CHUNK, [9]))
        self.repaired("journal units that name blocks, chunks or slots which do not exist: 1")
        self.assert_chunks(1, 2, 3, 4, 5, 6, 7, 8)

    def test_records_are_replayed(self):
        fvdformat.patch("disk.img", clean_shutdown=0)
        journal = fvdformat.Journal("disk.img")
        journal.plant(0, fvdformat.table_record(0, [1, 0]))
        journal.plant(1, fvdformat.table_record(7, [fvdformat.NOT_STORED, 7]))
        self.check("disk.img")
        self.assert_chunks(2, 1, 3, 4, 5, 6, 7, 0, 8)
        self.check("disk.img")

    def test_any_damage_is_repaired_once_and_never_made_worse(self):
        source = random.Random(seed())
        for _ in range(12):
            before = self.slots()
            for chunk in source.sample(range(DISK // CHUNK), 6):
                self.table.put(chunk, source.choice((source.randrange(8), source.randrange(64),
                                                     source.randrange(1 << 32))))
            damaged = self.slots()
            self.check("disk.img", "-r", "all", expect=(0, 2))
            self.check("disk.img")
            after = self.slots()
            self.assertEqual(len(set(after.values())), len(after))
            untouched = [chunk for chunk, slot in before.items() if damaged.get(chunk) == slot]
            self.assertTrue(set(untouched) <= set(after))


# ---------------------------------------------------------------- the same disk as any other

@only_fvd
@limit(240)
class CompactQemuIo(Differential):
    def compact(self, chunk, *more):
        return ["compact_image=on", f"chunk_size={chunk}", f"storage_grow_unit={2 * chunk}", *more]

    def test_without_base_or_bitmap(self):
        self.options_for_block = lambda block, *more: list(more)
        self.through_qemu_io(CHUNK, create=self.compact(CHUNK))

    def test_smallest_chunks_over_a_base(self):
        self.through_qemu_io(4096, base=SIZE, create=self.compact(4096))

    def test_chunks_of_many_blocks_over_a_shorter_base(self):
        self.size = LARGE
        self.through_qemu_io(4096, base=LARGE // 2 + 77, create=self.compact(MIB))

    def test_odd_chunks_with_a_data_file(self):
        self.through_qemu_io(7680, base=SIZE, create=self.compact(
            4 * 7680, "data_file=data.raw", "data_file_fmt=raw"))

    def test_preallocated_over_a_longer_base(self):
        self.through_qemu_io(512, base=SIZE + 3 * MIB, create=self.compact(
            CHUNK, "preallocation=metadata"))

    def test_small_journal_without_cache(self):
        self.through_qemu_io(4096, "-t", "none", "-i", "native", base=SIZE, create=self.compact(
            16 * KIB, "journal_unit=512", "journal_size=65536"))


@only_fvd
@limit(240)
class CompactNbd(Differential):
    def test_many_in_flight_over_a_base(self):
        self.through_nbd(4096, base=SIZE, create=["compact_image=on", "chunk_size=16k",
                                                  "storage_grow_unit=16k"])

    def test_many_in_flight_in_an_iothread(self):
        self.through_nbd(7680, iothread=True, cache="none", aio="io_uring",
                         create=["compact_image=on", "chunk_size=61440", "storage_grow_unit=61440"])
