# SPDX-License-Identifier: GPL-2.0-or-later
"""The other verbs of qemu-img: convert, compare, map, measure, bench, dd, rebase, commit, and the ones
that FVD does not have and says so."""

import os
import random

import fvdformat
from support import (FORMAT, KIB, MIB, ImageTest, allocated, digests, only_fvd, patterned,
                     read_file, seed, write_file)

SIZE = 16 * MIB
RUNS = [(0, 5000, 1), (MIB + 77, 300000, 2), (SIZE - 1000, 1000, 3), (6 * MIB, 2 * MIB, 4)]


class Verbs(ImageTest):
    def setUp(self):
        super().setUp()
        self.content = patterned(RUNS, SIZE)
        write_file("source.raw", self.content)

    def image(self, name="disk.img", **how):
        """An image with this content of its own."""
        self.img("convert", "-f", "raw", "-O", FORMAT, "source.raw", name, **how)

    def overlay(self, name="top.img", base="source.raw", base_fmt="raw", **how):
        self.create(name, base=base, base_fmt=base_fmt, **how)


class Convert(Verbs):
    def test_from_raw_and_back_is_the_same_and_stays_sparse(self):
        self.image()
        self.check("disk.img")
        self.assertLess(allocated("disk.img"), allocated("source.raw") + 2 * MIB)
        self.img("convert", "-f", FORMAT, "-O", "raw", "disk.img", "back.raw")
        self.assertEqual(read_file("back.raw"), self.content)
        self.assertLess(allocated("back.raw"), allocated("source.raw") + 2 * MIB)

    def test_from_qcow2_and_back_is_the_same_and_stays_sparse(self):
        self.img("convert", "-f", "raw", "-O", "qcow2", "source.raw", "source.qcow2")
        self.img("convert", "-f", "qcow2", "-O", FORMAT, "source.qcow2", "disk.img")
        self.assertLess(allocated("disk.img"), allocated("source.qcow2") + 2 * MIB)
        self.img("convert", "-f", FORMAT, "-O", "qcow2", "disk.img", "back.qcow2")
        self.assert_same("back.qcow2", "qcow2", "source.raw", "raw")
        self.assertLess(allocated("back.qcow2"), allocated("source.qcow2") + 2 * MIB)

    def test_out_of_order_with_many_coroutines(self):
        self.image()
        self.img("convert", "-W", "-m", "16", "-f", FORMAT, "-O", FORMAT, "disk.img", "copy.img")
        self.assert_reads("copy.img", self.content)
        self.check("copy.img")

    def test_without_cache(self):
        self.img("convert", "-t", "none", "-T", "none", "-f", "raw", "-O", FORMAT, "source.raw",
                 "disk.img")
        self.assert_reads("disk.img", self.content)

    def test_onto_an_existing_image(self):
        self.create("disk.img", SIZE)
        self.io("disk.img", f"write -P 9 0 {SIZE}")
        self.img("convert", "-n", "-f", "raw", "-O", FORMAT, "source.raw", "disk.img")
        self.assert_reads("disk.img", self.content)

    def test_over_a_base_stores_only_the_difference(self):
        self.overlay()
        self.io("top.img", "write -P 8 4M 64k")
        before = allocated("top.img")
        self.img("convert", "-f", FORMAT, "-O", FORMAT, "-B", "source.raw", "-F", "raw",
                 "top.img", "copy.img")
        self.assert_same("copy.img", FORMAT, "top.img", FORMAT)
        self.assertLess(allocated("copy.img"), before + MIB)

    def test_zeros_that_hide_base_data_survive(self):
        self.overlay()
        self.io("top.img", "write -z 6M 1M")
        self.img("convert", "-f", FORMAT, "-O", FORMAT, "-B", "source.raw", "-F", "raw",
                 "top.img", "copy.img")
        self.io("copy.img", "read -P 0 6M 1M", "read -P 4 7M 1M")

    def test_with_creation_options(self):
        options = ["-o", "data_file=data.raw"] if FORMAT == "fvd" else []
        self.img("convert", "-f", "raw", "-O", FORMAT, *options, "source.raw", "disk.img")
        self.assert_reads("disk.img", self.content)
        if FORMAT == "fvd":
            self.assertEqual(read_file("data.raw"), self.content)
            self.assertLess(allocated("data.raw"), allocated("source.raw") + MIB)

    @only_fvd
    def test_compression_is_refused_clearly(self):
        ran = self.img("convert", "-c", "-f", "raw", "-O", "fvd", "source.raw", "disk.img",
                       expect=1)
        self.assertIn("ompress", ran.err)


class Compare(Verbs):
    def test_equal_and_different_disks_are_told_apart(self):
        self.image()
        self.assert_same("disk.img", FORMAT, "source.raw", "raw")
        self.io("disk.img", "write -P 9 3M 1")
        ran = self.img("compare", "-f", FORMAT, "-F", "raw", "disk.img", "source.raw", expect=1)
        self.assertIn("3145728", ran.out)

    def test_what_is_in_the_base_counts(self):
        self.overlay()
        self.assert_same("top.img", FORMAT, "source.raw", "raw")


class Map(Verbs):
    def test_data_holes_and_base_are_told_apart(self):
        self.overlay()
        self.io("top.img", "write -P 5 0 64k", "write -P 6 10M 64k")
        depths = {}
        for entry in self.map("top.img"):
            for place in range(entry["start"], entry["start"] + entry["length"], 4096):
                depths[place] = (entry["depth"], entry["zero"], entry["data"])
        self.assertEqual(depths[0], (0, False, True))
        self.assertEqual(depths[10 * MIB], (0, False, True))
        self.assertEqual(depths[6 * MIB], (1, False, True))
        self.assertTrue(depths[4 * MIB][1], "a hole of the base reads as zeros")

    def test_offsets_lead_to_the_bytes(self):
        self.image()
        for entry in self.map("disk.img"):
            if not entry["data"]:
                continue
            stored = fvdformat.load("disk.img", entry["offset"], entry["length"])
            self.assertEqual(stored, self.content[entry["start"]:entry["start"] + entry["length"]])

    @only_fvd
    def test_holes_of_the_data_file_show(self):
        self.create("disk.img", SIZE, options=["data_file=data.raw"])
        self.io("disk.img", "write -P 5 4M 64k")
        zeros = [entry for entry in self.map("disk.img") if entry["zero"]]
        # The file's first block is written when it is made, to learn about its alignment.
        self.assertEqual(sum(entry["length"] for entry in zeros), SIZE - 64 * KIB - 4 * KIB)

    def test_a_fresh_disk_is_one_hole(self):
        self.create("disk.img", SIZE)
        self.assertTrue(all(entry["zero"] for entry in self.map("disk.img")))


class Measure(Verbs):
    def test_a_converted_image_fits_what_was_measured(self):
        measured = self.img("measure", "-O", FORMAT, "-f", "raw", "--output=json",
                            "source.raw").json()
        self.image()
        length = os.stat("disk.img").st_size
        self.assertLessEqual(length, measured["required"])
        self.assertLess(measured["required"], length + MIB)
        self.assertGreaterEqual(measured["fully-allocated"], length)

    def test_a_full_disk_fits_what_was_measured(self):
        measured = self.img("measure", "-O", FORMAT, "--size", SIZE, "--output=json").json()
        self.create("disk.img", SIZE)
        self.io("disk.img", f"write -P 1 0 {SIZE}")
        self.assertLessEqual(allocated("disk.img"), measured["fully-allocated"])

    @only_fvd
    def test_a_data_file_takes_the_data(self):
        measured = self.img("measure", "-O", "fvd", "-o", "data_file=data.raw", "--size", SIZE,
                            "--output=json").json()
        self.assertLess(measured["fully-allocated"], 2 * MIB)


class Bench(Verbs):
    def test_reads_and_writes_run(self):
        self.image()
        self.img("bench", "-q", "-c", "500", "-d", "16", "-s", "4k", "-S", "4k", "-f", FORMAT,
                 "disk.img")
        self.img("bench", "-q", "-w", "--flush-interval=50", "-c", "500", "-d", "16", "-s", "4k",
                 "-S", "4k", "-f", FORMAT, "disk.img")
        self.check("disk.img")

    def test_first_writes_over_a_base_run(self):
        self.overlay()
        self.img("bench", "-q", "-w", "-t", "none", "--flush-interval=32", "-c", "1000", "-d", "8",
                 "-s", "4k", "-S", "12k", "-f", FORMAT, "top.img")
        self.check("top.img")


class Dd(Verbs):
    def test_copies_into_and_out_of_an_image(self):
        self.img("dd", "-f", "raw", "-O", FORMAT, "bs=1M", "if=source.raw", "of=disk.img")
        self.assert_reads("disk.img", self.content)
        self.img("dd", "-f", FORMAT, "-O", "raw", "bs=64k", "skip=17", "if=disk.img", "of=part.raw")
        self.assertEqual(read_file("part.raw"), self.content[17 * 64 * KIB:])
        self.img("dd", "-f", FORMAT, "-O", "raw", "bs=64k", "count=33", "if=disk.img",
                 "of=part.raw")
        self.assertEqual(read_file("part.raw"), self.content[:33 * 64 * KIB])


class Rebase(Verbs):
    def test_unsafe_changes_only_the_name(self):
        self.overlay()
        self.io("top.img", "write -P 5 1M 64k")
        os.rename("source.raw", "moved.raw")
        self.img("rebase", "-u", "-f", FORMAT, "-b", "moved.raw", "-F", "raw", "top.img")
        info = self.info("top.img")
        self.assertEqual((info["backing-filename"], info["backing-filename-format"]),
                         ("moved.raw", "raw"))
        self.io("top.img", "read -P 5 1M 64k", "read -P 4 6M 2M")
        self.check("top.img")

    def test_unsafe_to_no_base_leaves_zeros(self):
        self.overlay()
        self.io("top.img", "write -P 5 1M 64k")
        self.img("rebase", "-u", "-f", FORMAT, "-b", "", "top.img")
        self.assertNotIn("backing-filename", self.info("top.img"))
        self.io("top.img", "read -P 5 1M 64k", "read -P 0 6M 2M")
        self.check("top.img")

    def test_unsafe_to_no_base_and_back(self):
        self.overlay()
        self.img("rebase", "-u", "-f", FORMAT, "-b", "", "top.img")
        self.img("rebase", "-u", "-f", FORMAT, "-b", "source.raw", "-F", "raw", "top.img")
        self.assert_same("top.img", FORMAT, "source.raw", "raw")

    def test_safe_keeps_what_the_guest_sees(self):
        other = bytearray(self.content)
        other[6 * MIB:7 * MIB] = b"\x63" * MIB
        write_file("other.raw", bytes(other[:12 * MIB]))
        self.overlay()
        self.io("top.img", "write -P 5 3M 64k")
        expected = bytearray(self.content)
        expected[3 * MIB:3 * MIB + 64 * KIB] = b"\x05" * (64 * KIB)
        self.img("rebase", "-f", FORMAT, "-b", "other.raw", "-F", "raw", "top.img")
        self.assert_reads("top.img", bytes(expected))
        self.check("top.img")

    def test_safe_to_no_base_makes_the_image_whole(self):
        self.overlay()
        self.io("top.img", "write -P 5 3M 64k")
        self.img("convert", "-f", FORMAT, "-O", "raw", "top.img", "before.raw")
        self.img("rebase", "-f", FORMAT, "-b", "", "top.img")
        os.unlink("source.raw")
        self.assert_same("top.img", FORMAT, "before.raw", "raw")

    @only_fvd
    def test_without_a_format_is_refused(self):
        self.overlay()
        self.img("rebase", "-u", "-f", FORMAT, "-b", "source.raw", "top.img", expect=1)

    def test_along_a_chain(self):
        self.overlay("mid.img")
        self.io("mid.img", "write -P 5 3M 64k")
        self.overlay("top.img", "mid.img", FORMAT)
        self.io("top.img", "write -P 6 8M 100")
        self.img("convert", "-f", FORMAT, "-O", "raw", "top.img", "before.raw")
        self.img("rebase", "-f", FORMAT, "-b", "source.raw", "-F", "raw", "top.img")
        self.assert_same("top.img", FORMAT, "before.raw", "raw")


class Commit(Verbs):
    def expected(self):
        content = bytearray(self.content)
        content[3 * MIB + 9:3 * MIB + 70009] = b"\x05" * 70000
        content[6 * MIB:7 * MIB] = bytes(MIB)
        return bytes(content)

    def changed_overlay(self, **how):
        self.overlay(**how)
        self.io("top.img", "write -P 5 3145737 70000", "write -z 6M 1M")

    def test_moves_changes_into_the_base_and_empties_the_image(self):
        self.changed_overlay()
        self.img("commit", "-q", "-f", FORMAT, "top.img")
        self.assertEqual(read_file("source.raw"), self.expected())
        self.assert_reads("top.img", self.expected())
        self.check("top.img")
        self.assertFalse(any(entry["data"] and entry["depth"] == 0
                             for entry in self.map("top.img")))
        self.io("top.img", "write -P 7 3M 1M", "read -P 7 3M 1M")
        self.check("top.img")

    def test_without_emptying(self):
        self.changed_overlay()
        self.img("commit", "-q", "-d", "-f", FORMAT, "top.img")
        self.assertEqual(read_file("source.raw"), self.expected())
        self.assert_reads("top.img", self.expected())

    def test_into_a_qcow2_base(self):
        self.img("convert", "-O", "qcow2", "source.raw", "source.qcow2")
        self.changed_overlay(base="source.qcow2", base_fmt="qcow2")
        self.img("commit", "-q", "-f", FORMAT, "top.img")
        self.assert_reads("source.qcow2", self.expected(), "qcow2")

    def test_into_an_fvd_base(self):
        self.image("base.img")
        self.changed_overlay(base="base.img", base_fmt=FORMAT)
        self.img("commit", "-q", "-f", FORMAT, "top.img")
        self.assert_reads("base.img", self.expected())
        self.check("base.img")

    def test_of_the_middle_of_a_chain(self):
        self.overlay("mid.img")
        self.io("mid.img", "write -P 5 3145737 70000", "write -z 6M 1M")
        self.overlay("top.img", "mid.img", FORMAT)
        self.io("top.img", "write -P 6 8M 64k")
        self.img("commit", "-q", "-f", FORMAT, "-b", "source.raw", "top.img")
        expected = bytearray(self.expected())
        expected[8 * MIB:8 * MIB + 64 * KIB] = b"\x06" * (64 * KIB)
        self.assertEqual(read_file("source.raw"), bytes(expected))

    @only_fvd
    def test_with_a_data_file(self):
        self.changed_overlay(options=["data_file=data.raw"])
        self.img("commit", "-q", "-f", FORMAT, "top.img")
        self.assertEqual(read_file("source.raw"), self.expected())
        self.assert_reads("top.img", self.expected())


@only_fvd
class NotThere(Verbs):
    """What FVD cannot do fails, says what, and changes nothing."""

    def refused(self, *command, words):
        before = digests("disk.img")
        ran = self.img(*command, expect=(1, 2, 63))
        self.assertRegex(ran.err, words)
        self.assert_unchanged(before)
        self.check("disk.img")

    def setUp(self):
        super().setUp()
        self.image()

    def test_internal_snapshots(self):
        for command in ("-c", "-a", "-d"):
            with self.subTest(command):
                self.refused("snapshot", command, "name", "disk.img", words="(?i)snapshot|support")

    def test_amend(self):
        self.refused("amend", "-f", "fvd", "-o", "block_size=8192", "disk.img",
                     words="(?i)support|amend")

    def test_dirty_bitmaps_in_the_image(self):
        self.refused("bitmap", "-f", "fvd", "--add", "disk.img", "b0", words="(?i)support|bitmap")

    def test_vm_state(self):
        ran = self.io("disk.img", "write -b 0 64k", expect=1)
        self.assertRegex(ran.text, "(?i)supported|failed")
