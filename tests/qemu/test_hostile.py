# SPDX-License-Identifier: GPL-2.0-or-later
"""Bad input: images as an attacker or a broken disk would make them, most with a valid checksum. Every
row of the table in docs/format.md ends in an error that names field and value, or in a correct
answer; never in a crash, a hang, much memory, a process, or a foreign file."""

import os
import random
import re
import resource
import shutil
import struct

import fvdformat
import qmp
from support import (GIB, KIB, MIB, SANITIZED, TIB, ImageTest, digests, limit, only_fvd, patterned,
                     program, read_file, seed, truncate, write_file)

SIZE = 4 * MIB
ADDRESS_SPACE = GIB
RESIDENT = 160 * MIB
PATIENCE = 20
U64 = (1 << 64) - 1


class Hostile(ImageTest):
    """A sound image over a base, to be damaged."""

    options = ()

    def setUp(self):
        super().setUp()
        self.content = patterned([(0, 70000, 1), (2 * MIB + 5, 300000, 2)], SIZE)
        write_file("base.raw", self.content)
        self.create("disk.img", options=self.options, base="base.raw", base_fmt="raw")
        self.io("disk.img", "write -P 9 1M 64k")
        self.seen = bytearray(self.content)
        self.seen[MIB:MIB + 64 * KIB] = b"\x09" * (64 * KIB)
        shutil.copy("disk.img", "sound.img")

    def tearDown(self):
        if not SANITIZED:
            used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * KIB
            self.assertLess(used, RESIDENT, "resident memory of a tool")

    def restore(self):
        shutil.copy("sound.img", "disk.img")

    def bounded(self, name, *words, expect=None):
        return self.run_program([program(name), *words], expect=expect, memory=ADDRESS_SPACE,
                                timeout=PATIENCE * (6 if SANITIZED else 1))

    def everyone(self, name="disk.img"):
        """Each way to look at an image."""
        return {
            "info": self.bounded("qemu-img", "info", "-f", "fvd", name),
            "check": self.bounded("qemu-img", "check", "-f", "fvd", name),
            "convert": self.bounded("qemu-img", "convert", "-f", "fvd", "-O", "raw", name,
                                    "out.raw"),
            "read": self.bounded("qemu-io", "-r", "-f", "fvd", "-c", "read 0 4k", name),
            "write": self.bounded("qemu-io", "-f", "fvd", "-c", "write 0 4k", name),
        }

    def refused(self, *words, name="disk.img", despite_check=False):
        """Everyone fails, names what is wrong, and changes nothing."""
        before = digests(name)
        for verb, ran in self.everyone(name).items():
            self.assertNotEqual(ran.code, 0, verb)
            if verb != "check" or not despite_check:
                for word in words:
                    self.assertIn(word, ran.text, verb)
        self.assert_unchanged(before)

    def refused_field(self, words=(), copies=(0, 1), raw=(), **fields):
        """A header with these values and a right checksum is refused by the first one's name."""
        with self.subTest(**fields):
            self.restore()
            fvdformat.patch("disk.img", copies, raw, **fields)
            self.refused(*(words or list(fields)[:1]))

    def opens(self, **how):
        for verb, ran in self.everyone().items():
            self.assertEqual(ran.code, 0, verb)


@only_fvd
@limit(240)
class TooShort(Hostile):
    def test_any_length_inside_the_header_is_too_short(self):
        fields = [offset for offset, _ in fvdformat.FIELDS.values()]
        lengths = {0, 1, 511, 512, 513, 4091, 4092, 4095, 4096, 4097, 8191, *fields,
                   *(4096 + field for field in fields)}
        # QEMU itself rounds a file's length up to a sector.
        for length in sorted(length for length in lengths if length <= 8192 - 512):
            self.restore()
            os.truncate("disk.img", length)
            ran = self.bounded("qemu-img", "info", "-f", "fvd", "disk.img")
            self.assertEqual(ran.code, 1, f"length {length}")
            self.assertRegex(ran.err, "too short: [0-9]+ bytes", f"length {length}")

    def test_any_length_inside_the_metadata_names_the_region(self):
        end = fvdformat.field_of("disk.img", "journal_offset") + MIB
        for length in (8192, 8193, 12287, 12288, 16384, MIB, end - 4096, end - 512):
            with self.subTest(length=length):
                self.restore()
                os.truncate("disk.img", length)
                self.refused()
                ran = self.bounded("qemu-io", "-f", "fvd", "-c", "read 0 4k", "disk.img")
                self.assertRegex(ran.text, "bitmap|journal|data")

    def test_data_that_was_cut_off_does_not_read_as_zeros(self):
        os.truncate("disk.img", os.stat("disk.img").st_size - 4096)
        for commands in (["read 0 4k"], ["write 0 4k"]):
            ran = self.bounded("qemu-io", "-f", "fvd", "-c", commands[0], "disk.img")
            self.assertNotEqual(ran.code, 0)
            self.assertIn("bytes", ran.text)

    def test_an_empty_file_and_magic_only(self):
        for content in (b"", b"FVD\0", b"FVD\0\3\0\0\0"):
            with self.subTest(content=content):
                write_file("disk.img", content)
                self.refused("too short")


@only_fvd
@limit(240)
class WhatItIs(Hostile):
    def test_other_versions_are_named(self):
        for version in (0, 1, 2, 4, 1 << 31, (1 << 32) - 1):
            self.refused_field([f"version is {version}", "3"], version=version)
            self.assertEqual(self.img("info", "--output=json", "disk.img").json()["format"], "raw")

    def test_the_magic_of_january_2011_is_named(self):
        self.refused_field(["January 2011"], magic=0x5143F5A9)

    def test_wrong_magic(self):
        self.refused_field(["magic"], magic=0x12345678)

    def test_wrong_checksum_in_both_copies(self):
        fvdformat.patch("disk.img", sealed=False, virtual_disk_size=SIZE + 512)
        self.refused("header_crc32c")

    def test_random_bytes(self):
        write_file("disk.img", random.Random(1).randbytes(MIB))
        self.refused("magic")

    def test_unknown_must_understand_bits_are_listed(self):
        for bit in (0, 1, 31, 32, 63):
            self.refused_field(["incompatible_features", str(bit)], incompatible_features=1 << bit)
        self.refused_field(["0, 1, 2", "63"], incompatible_features=U64)

    def test_unknown_may_ignore_bits_are_ignored_and_kept(self):
        fvdformat.patch("disk.img", compatible_features=U64)
        self.assert_reads("disk.img", bytes(self.seen))
        self.io("disk.img", "write -P 9 1M 4k", "write -P 3 3M 4k")
        self.assertEqual(fvdformat.field_of("disk.img", "compatible_features"), U64)

    def test_unknown_autoclear_bits_are_cleared_by_the_first_write_only(self):
        fvdformat.patch("disk.img", autoclear_features=U64)
        before = digests("disk.img")
        self.assert_reads("disk.img", bytes(self.seen))
        self.check("disk.img")
        self.assert_unchanged(before)
        self.io("disk.img", "write -P 3 3M 4k")
        for block in fvdformat.headers_of("disk.img"):
            self.assertEqual(fvdformat.decode_field(block, "autoclear_features"), 0)


@only_fvd
@limit(240)
class Fields(Hostile):
    def test_virtual_size(self):
        for size in (1, 511, SIZE + 1, 1 << 63, U64, (1 << 60) + 512):
            self.refused_field(["virtual_disk_size", str(size)], virtual_disk_size=size)

    def test_virtual_size_smaller_than_the_base(self):
        self.refused_field(["base_img_size"], virtual_disk_size=SIZE - 512)

    def test_virtual_size_beyond_the_file(self):
        for size in (SIZE + 512, TIB, 1 << 60):
            with self.subTest(size=size):
                self.restore()
                fvdformat.patch("disk.img", virtual_disk_size=size)
                for command in ("read 0 4k", "write 0 4k"):
                    ran = self.bounded("qemu-io", "-f", "fvd", "-c", command, "disk.img")
                    self.assertNotEqual(ran.code, 0)

    def test_base_size(self):
        for size in (1, SIZE + 512, 1 << 62, U64):
            self.refused_field(["base_img_size", str(size)], base_img_size=size)

    def test_base_size_that_the_bitmap_cannot_describe(self):
        self.refused_field(["bitmap_size"], base_img_size=TIB, virtual_disk_size=TIB)

    def test_block_size(self):
        for size in (1, 511, 513, 4097, 1 << 31, 4 * MIB, U64):
            self.refused_field(["block_size", str(size)], block_size=size)
        self.refused_field(["block_size", "0"], block_size=0)

    def test_block_size_too_small_for_the_bitmap(self):
        self.create("disk.img", 4 * MIB * 32, base="base.raw", base_fmt="raw")
        fvdformat.patch("disk.img", base_img_size=128 * MIB, block_size=512)
        self.refused("bitmap_size")

    def test_regions_at_bad_places(self):
        end = os.stat("disk.img").st_size
        for region in ("bitmap_offset", "journal_offset"):
            for offset in (1, 512, 4096, 8193, 1 << 63, U64, (1 << 62) + 4096):
                self.refused_field([region, str(offset)], **{region: offset})
            self.refused_field([region], **{region: 0})
            self.refused_field([region.split("_")[0], "past the end"],
                               **{region: (end + 4095) // 4096 * 4096})
            self.refused_field([region.split("_")[0]], **{region: 1 << 62})

    def test_data_at_bad_places(self):
        for offset in (0, 1, 4096, 8193, 1 << 63, U64):
            self.refused_field(["data_offset", str(offset)], data_offset=offset)

    def test_overlapping_regions_are_both_named(self):
        bitmap = fvdformat.field_of("disk.img", "bitmap_offset")
        journal = fvdformat.field_of("disk.img", "journal_offset")
        self.refused_field(["bitmap", "journal", "overlap"], journal_offset=bitmap)
        self.refused_field(["bitmap", "journal", "overlap"], bitmap_offset=journal + 4096)
        self.refused_field(["data", "overlap"], data_offset=journal)
        self.refused_field(["data", "overlap"], data_offset=bitmap)

    def test_bitmap_size(self):
        for size in (1, 4095, 256 * MIB + 4096, 1 << 60, U64):
            self.refused_field(["bitmap_size", str(size)], bitmap_size=size)
        self.refused_field(["bitmap"], bitmap_size=0)
        self.refused_field(["bitmap"], bitmap_size=256 * MIB)

    def test_journal_size(self):
        for size in (1, 4095, 4096, GIB + 4096, 1 << 60, U64):
            self.refused_field(["journal_size", str(size)], journal_size=size)
        self.refused_field(["journal"], journal_size=0)
        self.refused_field(["journal", "past the end"], journal_size=GIB)

    def test_journal_unit(self):
        for unit in (0, 1, 511, 1024, 2048, 8192, (1 << 32) - 1):
            self.refused_field(["journal_unit", str(unit)], journal_unit=unit)

    def test_counters_near_their_end(self):
        for field in ("stable_journal_epoch", "header_generation"):
            self.refused_field([field, str(U64)], **{field: U64})
            self.refused_field([field], **{field: (1 << 62) + 1})

    def test_flags_other_than_zero_and_one(self):
        for field in ("clean_shutdown", "copy_on_read", "base_img_fully_prefetched",
                      "need_zero_init"):
            self.refused_field([f"{field} is 2"], **{field: 2})

    def test_reserved_bytes(self):
        for offset in (3316, 3319, 3372, 3392, 4091):
            self.refused_field(["reserved"], raw=[(offset, b"\1")])
        self.refused_field(["boot_profile_offset"], boot_profile_offset=8192)

    def test_compact_images_are_not_there_yet(self):
        journal = fvdformat.field_of("disk.img", "journal_offset")
        for fields in ({"table_size": 4096, "table_offset": journal, "chunk_size": MIB},
                       {"table_size": 4096, "table_offset": 8192, "chunk_size": 0},
                       {"table_size": 1 << 60, "table_offset": 1 << 61, "chunk_size": 4096},
                       {"table_size": 4096, "table_offset": 8192, "chunk_size": 4096 + 512}):
            with self.subTest(**fields):
                self.restore()
                fvdformat.patch("disk.img", **fields)
                before = digests("disk.img")
                for command in ("read 0 4k", "write 0 4k"):
                    ran = self.bounded("qemu-io", "-f", "fvd", "-c", command, "disk.img")
                    self.assertNotEqual(ran.code, 0)
                    self.assertRegex(ran.text, "table|chunk")
                self.assert_unchanged(before)

    def test_advice_out_of_range_is_clamped(self):
        for fields in ({"prefetch_start_delay": -(1 << 63)}, {"prefetch_start_delay": 1 << 62},
                       {"num_prefetch_slots": (1 << 32) - 1}, {"bytes_per_prefetch": U64},
                       {"prefetch_min_read_throughput": U64}, {"prefetch_throttle_time": U64},
                       {"max_outstanding_copy_on_read_data": U64},
                       {"prefetch_write_throughput_measure_time": 1 << 63}):
            with self.subTest(**fields):
                self.restore()
                fvdformat.patch("disk.img", **fields)
                self.opens()
                self.io("disk.img", "read -P 9 1M 64k")

    def test_random_values_in_random_fields(self):
        source = random.Random(seed())
        print(f"seed {seed():#x}")
        numbers = [name for name, (_, kind) in fvdformat.FIELDS.items() if isinstance(kind, str)]
        interesting = (0, 1, 511, 512, 4096, 8192, MIB, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 62,
                       1 << 63, U64)
        for number in range(40):
            self.restore()
            fields = {name: source.choice(interesting) + source.choice((-1, 0, 0, 1))
                      for name in source.sample(numbers, source.randrange(1, 4))}
            fvdformat.patch("disk.img", **fields)
            self.record.append(f"random header {number}: {fields}")
            for ran in self.everyone().values():
                self.assertIn(ran.code, (0, 1, 2, 3, 63))


@only_fvd
@limit(240)
class Copies(Hostile):
    def test_one_torn_copy_costs_nothing(self):
        for number in (0, 1):
            with self.subTest(copy=number):
                self.restore()
                fvdformat.store("disk.img", number * 4096 + 2048, b"\xff" * 2048)
                before = digests("disk.img")
                self.assert_reads("disk.img", bytes(self.seen))
                self.assert_unchanged(before)
                self.io("disk.img", "write -P 3 3M 4k", "read -P 3 3M 4k")
                self.check("disk.img")

    def test_a_damaged_copy_is_reported_and_repaired(self):
        for number in (0, 1):
            with self.subTest(copy=number):
                self.restore()
                fvdformat.store("disk.img", number * 4096, bytes(4096))
                ran = self.check("disk.img", expect=(2, 3))
                self.assertIn("header", ran.text)
                self.check("disk.img", "-r", "all")
                self.check("disk.img")
                self.assertEqual(*fvdformat.headers_of("disk.img"))
                self.assert_reads("disk.img", bytes(self.seen))

    def test_two_damaged_copies_are_an_error(self):
        fvdformat.store("disk.img", 0, bytes(8192))
        self.refused("magic")

    def test_the_newer_copy_wins(self):
        generation = fvdformat.field_of("disk.img", "header_generation")
        fvdformat.patch("disk.img", copies=(1,), header_generation=generation + 1,
                        compatible_features=5)
        self.assertEqual(self.specific("disk.img")["compatible-features"], 5)
        fvdformat.patch("disk.img", copies=(0,), header_generation=generation + 2,
                        compatible_features=6)
        self.assertEqual(self.specific("disk.img")["compatible-features"], 6)


@only_fvd
@limit(240)
class Journal(Hostile):
    """Units planted in the ring of an image that is marked as in use."""

    def setUp(self):
        super().setUp()
        fvdformat.patch("disk.img", clean_shutdown=0)
        shutil.copy("disk.img", "sound.img")
        self.journal = fvdformat.Journal("disk.img")
        self.blocks = SIZE // 4096
        # A block that is still in the base, and the same place in the image's own data.
        self.block = (2 * MIB + 64 * KIB) // 4096
        fvdformat.store("sound.img", fvdformat.field_of("disk.img", "data_offset") +
                        self.block * 4096, b"J" * 4096)
        self.restore()

    def replayed(self):
        """Does the guest see what the planted record exposes?"""
        ran = self.bounded("qemu-io", "-r", "-f", "fvd", "-c",
                           f"read -P 74 {self.block * 4096} 4k", "disk.img")
        return ran.code == 0

    def record_for_block(self):
        return fvdformat.bitmap_record(self.block, 1)

    def ignored(self, **how):
        """The planted unit is as if it were not there: the guest still sees the base."""
        self.assertFalse(self.replayed())
        self.assert_reads("disk.img", bytes(self.seen))
        self.io("disk.img", "write -P 9 1M 4k")
        self.check("disk.img")
        self.assert_reads("disk.img", bytes(self.seen))

    def damaged(self, *words):
        """Refused, not shown wrongly; and check says so and repairs it."""
        before = digests("disk.img")
        for command in ("read 0 4k", "write 0 4k"):
            ran = self.bounded("qemu-io", "-f", "fvd", "-c", command, "disk.img")
            self.assertNotEqual(ran.code, 0)
            for word in words:
                self.assertIn(word, ran.text)
        self.check("disk.img", expect=2)
        self.assert_unchanged(before)
        self.check("disk.img", "-r", "all")
        self.check("disk.img")
        self.bounded("qemu-io", "-f", "fvd", "-c", "read 0 4k", "disk.img", expect=0)

    def test_a_right_unit_is_replayed(self):
        """The control: what the other tests break is otherwise believed."""
        self.journal.plant(0, self.record_for_block())
        self.assertTrue(self.replayed())
        self.check("disk.img")
        self.io("disk.img", f"read -P 74 {self.block * 4096} 4k")
        self.assertIs(self.specific("disk.img")["clean-shutdown"], True)
        self.assertTrue(self.replayed())

    def test_wrong_epoch_position_image_or_checksum_is_ignored(self):
        plants = {
            "older epoch": {"epoch": max(0, self.journal.epoch - 1)},
            "position": {"place": 5},
            "image": {"image_id": b"another image!!!"},
        }
        for name, how in plants.items():
            with self.subTest(name):
                self.restore()
                self.journal.plant(0, self.record_for_block(), **how)
                self.ignored()

    def test_an_epoch_above_the_headers_is_not_believed_and_is_reported(self):
        """No writer leaves one behind; a later session must not grow into it."""
        self.journal.plant(0, self.record_for_block(), epoch=self.journal.epoch + 1000)
        self.assertFalse(self.replayed())
        self.assertIn("epoch", self.check("disk.img", expect=2).text)
        self.check("disk.img", "-r", "all")
        self.check("disk.img")
        self.assertFalse(self.replayed())
        self.assertGreater(fvdformat.field_of("disk.img", "stable_journal_epoch"),
                           self.journal.epoch + 1000)

    def test_every_flipped_bit_makes_a_unit_void(self):
        self.journal.plant(0, self.record_for_block())
        unit = self.journal.get(0)
        for place in (0, 4, 8, 16, 24, 32, 36, 40, 44, 63, 64, 68, 72, 79, 80, 511, 4095):
            broken = bytearray(unit)
            broken[place] ^= 0x10
            self.restore()
            self.journal.put(0, broken)
            self.assertFalse(self.replayed(), f"byte {place}")

    def test_torn_units_are_ignored(self):
        self.journal.plant(0, self.record_for_block())
        unit = self.journal.get(0)
        for kept in (512, 2048, 3584):
            self.restore()
            self.journal.put(0, unit[:kept] + b"\xaa" * (4096 - kept))
            self.ignored()

    def test_random_bytes_are_ignored(self):
        for place in range(self.journal.units()):
            self.journal.put(place, random.Random(place).randbytes(4096))
        self.ignored()

    def test_malformed_records_make_a_unit_void(self):
        record = self.record_for_block()
        count = struct.Struct("<IIQ")
        plants = {
            "type": struct.pack("<IIQ", 0x11111111, 1, self.block),
            "count of zero": count.pack(fvdformat.BITMAP_RECORD, 0, self.block),
            "cut short": record[:8],
            "good then bad": record + b"\1" * 16,
            "wrapping range": count.pack(fvdformat.BITMAP_RECORD, 2, U64),
        }
        for name, records in plants.items():
            with self.subTest(name):
                self.restore()
                self.journal.plant(0, records)
                self.ignored()

    def test_record_bytes_beyond_the_unit_make_it_void(self):
        for size in (4033, 1 << 31, (1 << 32) - 1):
            with self.subTest(size=size):
                self.restore()
                self.journal.plant(0, self.record_for_block(), record_bytes=size)
                self.ignored()

    def test_groups_that_cannot_be_make_a_unit_void(self):
        for how in ({"group_index": 1, "group_size": 1}, {"group_index": 5, "group_size": 9},
                    {"group_size": 0}, {"group_size": (1 << 32) - 1}, {"tail": 1}, {"tail": U64}):
            with self.subTest(**how):
                self.restore()
                self.journal.plant(0, self.record_for_block(), **how)
                self.ignored()

    def test_blocks_outside_the_disk_are_refused_and_never_set(self):
        for first, count in ((self.blocks, 1), (self.blocks - 1, 2), (0, (1 << 32) - 1),
                             (1 << 63, 1)):
            with self.subTest(first=first, count=count):
                self.restore()
                self.journal.plant(0, fvdformat.bitmap_record(first, count))
                self.damaged("journal")
                self.assert_reads("disk.img", bytes(self.seen))

    def test_no_partial_record_of_a_bad_unit_is_applied(self):
        self.journal.plant(0, self.record_for_block() + fvdformat.bitmap_record(self.blocks, 9))
        self.damaged("journal")
        self.assert_reads("disk.img", bytes(self.seen))

    def test_a_record_of_a_table_that_does_not_exist_is_refused(self):
        self.journal.plant(0, fvdformat.table_record(0, [1, 2, 3]))
        self.damaged("journal")

    def test_a_torn_last_group_is_replayed_up_to_the_gap(self):
        self.journal.plant(0, fvdformat.bitmap_record(MIB // 4096, 1), group_index=0, group_size=3)
        self.journal.plant(2, self.record_for_block(), group_index=2, group_size=3)
        self.ignored()

    def test_a_gap_before_the_last_group_is_damage(self):
        self.journal.plant(0, fvdformat.bitmap_record(MIB // 4096, 1))
        self.journal.plant(2, self.record_for_block())
        self.damaged("journal")

    def test_current_records_win_over_a_clean_mark(self):
        fvdformat.patch("disk.img", clean_shutdown=1)
        self.journal.plant(0, self.record_for_block())
        self.assertTrue(self.replayed())

    def test_a_full_ring_is_replayed_in_bounded_time(self):
        for sequence in range(self.journal.units()):
            self.journal.plant(sequence, fvdformat.bitmap_record(self.block, 1))
        self.assertTrue(self.replayed())
        self.io("disk.img", "read 0 4k")
        self.check("disk.img")

    def test_sequences_near_their_end_do_not_wrap(self):
        for sequence in (U64, U64 - 4095, (1 << 63) - (1 << 63) % self.journal.units()):
            with self.subTest(sequence=sequence):
                self.restore()
                self.journal.plant(sequence, self.record_for_block(), tail=sequence)
                self.ignored()

    def test_a_huge_ring_opens_in_bounded_memory(self):
        fvdformat.build("huge.img", SIZE, base="base.raw", base_fmt="raw", base_size=SIZE,
                        journal_size=GIB, clean_shutdown=0)
        for ran in self.everyone("huge.img").values():
            self.assertEqual(ran.code, 0)


@only_fvd
@limit(240)
class Names(Hostile):
    """Strings of the header, and what is done with them."""

    def traced(self, *words):
        """Run a program; return what it executed and opened."""
        if not shutil.which("strace"):
            self.skipTest("no strace")
        ran = self.run_program(
            ["strace", "-f", "-qq", "-o", "trace", "-e",
             "trace=execve,execveat,open,openat,creat,connect,fork,vfork", *words], expect=None)
        trace = read_file("trace").decode(errors="replace")
        executed = re.findall(r'execve(?:at)?\(.*?"([^"]+)"', trace)
        opened = re.findall(r'(?:open|openat|creat)\([^"]*"([^"]+)"', trace)
        self.record.append("executed: " + " ".join(executed))
        self.assertEqual(executed, [words[0]], "a process was started")
        self.assertNotIn("vfork", trace)
        return ran, opened, trace

    def image_with(self, **fields):
        self.restore()
        fvdformat.patch("disk.img", **fields)

    def test_text_without_end_is_refused_by_name(self):
        for field in ("data_file", "base_img", "add_storage_cmd"):
            self.refused_field([field, "NUL"], **{field: b"x" * 1024})
        for field in ("data_file_fmt", "base_img_fmt"):
            self.refused_field([field, "NUL"], **{field: b"x" * 16})

    def test_control_characters_and_bad_utf8_are_refused_by_name(self):
        for text in (b"a\nb", b"\x1b[31m", b"\x7f", b"\xff\xfe", b"\xc0\x80", b"\xed\xa0\x80"):
            for field in ("data_file", "base_img", "add_storage_cmd", "base_img_fmt"):
                self.refused_field([field], **{field: text})

    def test_bytes_after_the_end_of_text_are_refused(self):
        self.refused_field(["base_img"], base_img=b"base.raw\0secret")

    def test_a_storage_command_is_shown_kept_and_never_run(self):
        command = "/bin/touch pwned"
        self.image_with(add_storage_cmd=command)
        for words in ([program("qemu-img"), "info", "-f", "fvd", "disk.img"],
                      [program("qemu-img"), "check", "-f", "fvd", "disk.img"],
                      [program("qemu-io"), "-f", "fvd", "-c", "write 3M 64k", "-c", "flush",
                       "disk.img"]):
            ran, _, _ = self.traced(*words)
            self.assertEqual(ran.code, 0)
        self.assertFalse(os.path.exists("pwned"))
        self.assertEqual(self.specific("disk.img")["add-storage-cmd"], command)
        self.assertIn("ignored", self.img("info", "-f", "fvd", "disk.img").text)

    def test_info_opens_one_file_whatever_the_image_names(self):
        for fields in ({"data_file": "secret.raw", "data_offset": 0},
                       {"base_img": "secret.raw"},
                       {"base_img": "json:{\"driver\":\"file\",\"filename\":\"secret.raw\"}"}):
            with self.subTest(**fields):
                self.image_with(**fields)
                write_file("secret.raw", b"s" * 512)
                ran, opened, trace = self.traced(program("qemu-img"), "info", "-f", "fvd",
                                                 "disk.img")
                self.assertEqual(ran.code, 0)
                self.assertNotIn("secret.raw", " ".join(opened))
                self.assertNotIn("connect(", trace)

    def test_a_data_file_that_looks_like_a_protocol_is_a_file_name(self):
        for name in ("json:{\"driver\":\"null-co\"}", "nbd:localhost:10809", "nbd://localhost/x",
                     "null-co://", "ssh://host/x", "fat:rw:.", "exec:touch"):
            with self.subTest(name):
                self.image_with(data_file=name, data_offset=0)
                ran, _, trace = self.traced(program("qemu-io"), "-f", "fvd", "-c", "read 0 4k",
                                            "disk.img")
                self.assertNotEqual(ran.code, 0)
                self.assertIn(name, ran.text)
                self.assertIn("No such file", ran.text)
                self.assertNotIn("connect(", trace)

    def test_a_data_file_that_is_a_device_is_refused(self):
        os.symlink("/dev/zero", "link")
        for name in ("/dev/zero", "/dev/null", "//dev/zero", "/../dev/zero", "link",
                     "/dev/fdset/1"):
            with self.subTest(name):
                self.image_with(data_file=name, data_offset=0)
                ran = self.bounded("qemu-io", "-f", "fvd", "-c", "read 0 4k", "disk.img")
                self.assertNotEqual(ran.code, 0)
                self.assertIn(name, ran.text)

    def test_a_data_file_that_is_the_image_or_its_base_is_refused(self):
        os.symlink("disk.img", "link.img")
        os.link("base.raw", "hard.raw")
        for name in ("disk.img", "./disk.img", "link.img", os.path.abspath("disk.img"), "base.raw",
                     "hard.raw"):
            with self.subTest(name):
                self.image_with(data_file=name, data_offset=0)
                before = digests("disk.img", "base.raw")
                ran = self.bounded("qemu-io", "-f", "fvd", "-c", "write 0 4k", "disk.img")
                self.assertNotEqual(ran.code, 0)
                self.assert_unchanged(before)

    def test_a_data_file_that_is_missing_or_short_is_named(self):
        self.image_with(data_file="data.raw", data_offset=0)
        ran = self.bounded("qemu-io", "-f", "fvd", "-c", "read 0 4k", "disk.img")
        self.assertNotEqual(ran.code, 0)
        self.assertIn("data.raw", ran.text)
        truncate("data.raw", SIZE - 4096)
        ran = self.bounded("qemu-io", "-f", "fvd", "-c", "read 0 4k", "disk.img")
        self.assertNotEqual(ran.code, 0)
        self.assertIn("data.raw", ran.text)

    def test_the_format_of_the_data_file_is_never_probed(self):
        self.img("create", "-q", "-f", "qcow2", "data.raw", SIZE)
        stored = read_file("data.raw")
        self.image_with(data_file="data.raw", data_offset=0, base_img_fully_prefetched=1)
        truncate("data.raw", SIZE)
        self.img("convert", "-f", "fvd", "-O", "raw", "disk.img", "out.raw")
        self.assertEqual(read_file("out.raw")[:len(stored)][:4096], stored[:4096])

    def test_unknown_formats_of_data_file_and_base_are_refused(self):
        write_file("data.raw", bytes(SIZE))
        for fields in ({"data_file": "data.raw", "data_offset": 0, "data_file_fmt": "nosuch"},
                       {"data_file": "data.raw", "data_offset": 0, "data_file_fmt": "nbd"},
                       {"base_img_fmt": "nosuch"}):
            with self.subTest(**fields):
                self.image_with(**fields)
                ran = self.bounded("qemu-io", "-f", "fvd", "-c", "read 0 4k", "disk.img")
                self.assertNotEqual(ran.code, 0)

    def test_a_base_without_format_is_raw_and_warned_about(self):
        self.img("create", "-q", "-f", "qcow2", "base.raw", SIZE)
        stored = read_file("base.raw")
        truncate("base.raw", SIZE)
        self.image_with(base_img_fmt=b"")
        ran = self.bounded("qemu-img", "convert", "-f", "fvd", "-O", "raw", "disk.img", "out.raw")
        self.assertEqual(ran.code, 0)
        self.assertEqual(read_file("out.raw")[:4], stored[:4])
        self.assertIn("raw", ran.err)

    def test_an_image_that_is_its_own_base_is_refused(self):
        self.image_with(base_img="disk.img", base_img_fmt="fvd")
        for ran in (self.bounded("qemu-io", "-f", "fvd", "-c", "read 0 4k", "disk.img"),
                    self.bounded("qemu-img", "info", "-f", "fvd", "--backing-chain", "disk.img")):
            self.assertNotEqual(ran.code, 0)

    def test_a_loop_of_bases_is_refused(self):
        shutil.copy("disk.img", "other.img")
        self.image_with(base_img="other.img", base_img_fmt="fvd")
        fvdformat.patch("other.img", base_img="disk.img", base_img_fmt="fvd")
        for ran in (self.bounded("qemu-io", "-f", "fvd", "-c", "read 0 4k", "disk.img"),
                    self.bounded("qemu-img", "info", "-f", "fvd", "--backing-chain", "disk.img")):
            self.assertNotEqual(ran.code, 0)


@only_fvd
class FromScratch(ImageTest):
    """Images made by this directory's own encoder: two readings of the format meet."""

    def test_an_image_made_without_the_driver_opens_and_is_sound(self):
        content = patterned([(0, MIB, 1)], 2 * MIB)
        fvdformat.build("disk.img", 2 * MIB, data=content)
        self.assert_reads("disk.img", content)
        self.check("disk.img")
        self.io("disk.img", "write -P 5 1M 64k")
        self.check("disk.img")

    def test_bits_of_the_bitmap_are_least_significant_first(self):
        write_file("base.raw", b"B" * MIB)
        fvdformat.build("disk.img", MIB, base="base.raw", base_fmt="raw", base_size=MIB,
                        bitmap=b"\x05\x80", data=b"D" * MIB)
        expected = bytearray(b"B" * MIB)
        for block in (0, 2, 15):
            expected[block * 4096:block * 4096 + 4096] = b"D" * 4096
        self.assert_reads("disk.img", bytes(expected))
        self.check("disk.img")

    def test_the_driver_writes_the_header_as_the_document_says(self):
        write_file("base.raw", bytes(range(256)) * 4096)
        self.create("disk.img", 2 * MIB, options=["block_size=8192"], base="base.raw",
                    base_fmt="raw")
        one, two = fvdformat.headers_of("disk.img")
        self.assertEqual(one, two)
        fields = {name: fvdformat.decode_field(one, name) for name in fvdformat.FIELDS}
        self.assertEqual(one[:4], b"FVD\0")
        self.assertEqual(fields["base_img"].rstrip(b"\0"), b"base.raw")
        self.assertEqual(fields["base_img_fmt"].rstrip(b"\0"), b"raw")
        self.assertEqual((fields["version"], fields["virtual_disk_size"], fields["base_img_size"],
                          fields["block_size"], fields["clean_shutdown"]),
                         (3, 2 * MIB, MIB, 8192, 1))
        self.assertEqual(fvdformat.encode_header(**fields), one)

    def test_the_driver_writes_the_journal_as_the_document_says(self):
        write_file("base.raw", b"B" * MIB)
        self.create("disk.img", base="base.raw", base_fmt="raw")
        daemon, client = qmp.serve(self, "disk.img", "fvd")
        client.write(5 * 4096, b"x" * 8192)
        client.flush()
        daemon.kill()
        journal = fvdformat.Journal("disk.img")
        self.assertEqual(fvdformat.field_of("disk.img", "clean_shutdown"), 0)
        self.assertEqual(journal.get(0), fvdformat.encode_unit(
            journal.unit, journal.image_id, journal.epoch, 0, fvdformat.bitmap_record(5, 2)))
