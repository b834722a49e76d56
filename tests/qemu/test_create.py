# SPDX-License-Identifier: GPL-2.0-or-later
"""qemu-img create and info: every option, what it changes, and what is refused."""

import os

from support import (GIB, KIB, MIB, TIB, ImageTest, allocated, digests, only_fvd, patterned,
                     read_file, truncate, write_file)

SIZE = 8 * MIB


@only_fvd
class Create(ImageTest):
    def base(self, size=SIZE):
        write_file("base.raw", patterned([(0, 4096, 1), (size // 2, 70000, 2)], size))
        return {"base": "base.raw", "base_fmt": "raw"}

    def refused(self, *words, options=(), size=SIZE, **how):
        """Creation fails, says these words, and leaves no image that opens."""
        ran = self.create("bad.img", size, options=options, expect=1, **how)
        for word in words:
            self.assertIn(word, ran.err)
        self.assertNotIn("Unknown error", ran.err)
        self.img("info", "-f", "fvd", "bad.img", expect=1)

    # ---------------------------------------------------------------- sizes

    def test_without_options_makes_a_sparse_empty_disk(self):
        self.create("disk.img", SIZE)
        self.assertEqual(self.info("disk.img")["virtual-size"], SIZE)
        self.assertLess(allocated("disk.img"), 64 * KIB)
        self.assert_reads("disk.img", bytes(SIZE))
        self.check("disk.img")

    def test_size_comes_from_the_base_when_it_is_not_given(self):
        self.create("disk.img", **self.base())
        self.assertEqual(self.info("disk.img")["virtual-size"], SIZE)
        self.assert_reads("disk.img", read_file("base.raw"))

    def test_size_zero_is_legal(self):
        self.create("disk.img", 0)
        self.assertEqual(self.info("disk.img")["virtual-size"], 0)
        self.check("disk.img")
        self.assert_reads("disk.img", b"")

    def test_size_zero_over_a_base_is_legal(self):
        self.create("disk.img", 0, **self.base())
        self.check("disk.img")
        self.assert_reads("disk.img", b"")

    def test_odd_size_is_rounded_up_to_a_sector(self):
        self.create("disk.img", 1000)
        self.assertEqual(self.info("disk.img")["virtual-size"], 1024)

    def test_base_of_odd_length_is_rounded_up_to_a_sector(self):
        write_file("base.raw", b"x" * 1001)
        self.create("disk.img", base="base.raw", base_fmt="raw")
        self.assert_reads("disk.img", b"x" * 1001 + bytes(23))

    def test_a_tebibyte_takes_room_for_metadata_only(self):
        truncate("base.raw", TIB)
        self.create("disk.img", TIB, base="base.raw", base_fmt="raw")
        self.assertLess(allocated("disk.img"), 24 * MIB)
        self.check("disk.img")

    def test_disk_over_the_limit_is_refused(self):
        self.refused(size=2 << 60)

    # ---------------------------------------------------------------- block size

    def test_default_block_size_is_4k(self):
        self.create("disk.img", SIZE, **self.base())
        self.assertEqual(self.specific("disk.img")["block-size"], 4096)

    def test_default_block_size_keeps_the_bitmap_small(self):
        for size, block in ((128 * GIB, 4096), (129 * GIB, 8192), (4 * TIB, 128 * KIB)):
            with self.subTest(size=size):
                truncate("big.raw", size)
                self.create("disk.img", base="big.raw", base_fmt="raw")
                self.assertEqual(self.specific("disk.img")["block-size"], block)
                os.unlink("disk.img")

    def test_every_legal_block_size_works(self):
        base = self.base()
        for block in (512, 1024, 7680, 15872, 65024, 65536, 1048064, 2 * MIB):
            with self.subTest(block=block):
                self.create("disk.img", SIZE, options=[f"block_size={block}"], **base)
                self.assertEqual(self.specific("disk.img")["block-size"], block)
                self.io("disk.img", f"write -P 5 {SIZE // 2 + 100} 1")
                self.check("disk.img")
                expected = bytearray(read_file("base.raw"))
                expected[SIZE // 2 + 100] = 5
                self.assert_reads("disk.img", bytes(expected))

    def test_illegal_block_size_is_refused_by_name_and_range(self):
        for block in (1, 511, 513, 4097, 2 * MIB + 512, 1 << 31):
            with self.subTest(block=block):
                self.refused("block_size", str(block), "512", options=[f"block_size={block}"],
                             **self.base())

    def test_block_size_too_small_for_the_base_is_refused(self):
        truncate("big.raw", 8 * TIB)
        self.refused("block_size", options=["block_size=512"], size=8 * TIB, base="big.raw",
                     base_fmt="raw")

    # ---------------------------------------------------------------- journal

    def test_journal_options_are_kept(self):
        self.create("disk.img", SIZE, options=["journal_size=65536,journal_unit=512"],
                    **self.base())
        specific = self.specific("disk.img")
        self.assertEqual((specific["journal-size"], specific["journal-unit"]), (65536, 512))
        self.io("disk.img", "write -P 1 0 1M", "flush")
        self.check("disk.img")

    def test_illegal_journal_is_refused_by_name(self):
        for option, word in (("journal_size=100", "journal_size"),
                             ("journal_size=8192", "journal_size"),
                             ("journal_size=4G", "journal_size"),
                             ("journal_unit=1024", "journal_unit"),
                             ("journal_unit=4095", "journal_unit"),
                             ("journal_unit=4294971392", "journal_unit")):
            with self.subTest(option=option):
                self.refused(word, options=[option], **self.base())

    # ---------------------------------------------------------------- data file

    def test_data_file_holds_the_disk_byte_for_byte(self):
        self.create("disk.img", SIZE, options=["data_file=data.raw,data_file_fmt=raw"])
        self.io("disk.img", "write -P 7 12345 100000")
        self.assert_same("disk.img", "fvd", "data.raw", "raw")
        self.assertEqual(os.stat("data.raw").st_size, SIZE)
        self.assertEqual(self.specific("disk.img")["data-file"], "data.raw")
        self.assertEqual(self.specific("disk.img")["data-file-format"], "raw")
        self.check("disk.img")

    def test_data_file_is_raw_when_no_format_is_given(self):
        self.create("disk.img", SIZE, options=["data_file=data.raw"])
        self.io("disk.img", "write -P 7 0 64k")
        self.assert_same("disk.img", "fvd", "data.raw", "raw")

    def test_data_file_over_a_base_is_usable_alone_once_complete(self):
        base = self.base()
        self.create("disk.img", SIZE, options=["data_file=data.raw"], **base)
        self.img("rebase", "-f", "fvd", "-b", "", "disk.img")
        self.assert_same("data.raw", "raw", "base.raw", "raw")

    def test_data_file_name_is_relative_to_the_image(self):
        os.mkdir("sub")
        self.create("sub/disk.img", SIZE, options=["data_file=data.raw"])
        self.io("sub/disk.img", "write -P 9 0 4k")
        self.assertEqual(read_file("sub/data.raw")[:4096], b"\x09" * 4096)

    def test_data_file_that_is_the_image_is_refused(self):
        self.refused("data", options=["data_file=bad.img"])

    # ---------------------------------------------------------------- base

    def test_base_without_format_is_refused(self):
        self.base()
        ran = self.img("create", "-q", "-f", "fvd", "-b", "base.raw", "disk.img", SIZE, expect=1)
        self.assertRegex(ran.err, "(?i)backing.*format|backing_fmt")

    def test_base_format_is_never_probed(self):
        """A raw base whose first bytes a guest made look like another format stays raw."""
        self.img("create", "-q", "-f", "qcow2", "base.raw", MIB)
        content = read_file("base.raw")
        self.create("disk.img", base="base.raw", base_fmt="raw")
        self.assert_reads("disk.img", content + bytes(-len(content) % 512))
        self.assertEqual(self.info("disk.img")["backing-filename-format"], "raw")

    def test_missing_base_is_refused(self):
        self.refused("nowhere.raw", base="nowhere.raw", base_fmt="raw")

    def test_base_need_not_be_there_with_u(self):
        self.img("create", "-q", "-u", "-f", "fvd", "-b", "later.raw", "-F", "raw", "disk.img",
                 SIZE)
        self.assertEqual(self.info("disk.img")["backing-filename"], "later.raw")
        write_file("later.raw", b"\x03" * SIZE)
        self.io("disk.img", f"read -P 3 0 {SIZE}")

    def test_too_long_base_name_is_refused(self):
        name = "/".join(["." for _ in range(600)]) + "/base.raw"
        self.base()
        self.refused(base=name, base_fmt="raw")

    def test_longest_base_name_is_kept(self):
        self.base()
        name = "./" * 507 + "base.raw"
        self.assertEqual(len(name), 1022)
        self.create("disk.img", base="./" * 507 + "base.raw", base_fmt="raw")
        self.assertEqual(self.info("disk.img")["backing-filename"], name)

    def test_base_in_fvd(self):
        write_file("data.raw", patterned([(5000, 100000, 4)], SIZE))
        self.img("convert", "-O", "fvd", "data.raw", "base.fvd")
        self.create("disk.img", base="base.fvd", base_fmt="fvd")
        self.assert_same("disk.img", "fvd", "data.raw", "raw")

    # ---------------------------------------------------------------- preallocation

    def test_preallocation_off_and_metadata_take_no_room(self):
        for mode in ("off", "metadata"):
            with self.subTest(mode=mode):
                self.create("disk.img", SIZE, options=[f"preallocation={mode}"])
                self.assertLess(allocated("disk.img"), SIZE // 2)

    def test_preallocation_falloc_and_full_take_the_room(self):
        for mode in ("falloc", "full"):
            for more in ("", ",data_file=data.raw"):
                with self.subTest(mode=mode, more=more):
                    self.create("disk.img", SIZE, options=[f"preallocation={mode}{more}"])
                    self.assertGreaterEqual(allocated("data.raw" if more else "disk.img"), SIZE)
                    self.assert_reads("disk.img", bytes(SIZE))
                    self.check("disk.img")

    def test_unknown_preallocation_is_refused(self):
        self.refused("preallocation", options=["preallocation=some"])

    # ---------------------------------------------------------------- options that must not exist

    def test_a_storage_command_cannot_be_stored(self):
        self.refused("add_storage_cmd", options=["add_storage_cmd=/bin/true"])

    def test_unknown_option_is_refused(self):
        self.refused("no_such_option", options=["no_such_option=1"])

    def test_help_names_every_option(self):
        ran = self.img("create", "-f", "fvd", "-o", "help")
        for option in ("backing_file", "backing_fmt", "block_size", "data_file", "data_file_fmt",
                       "detect_sparse_hole", "journal_size", "journal_unit", "preallocation",
                       "size"):
            self.assertIn(f"  {option}=", ran.out)

    def test_creating_over_an_image_leaves_nothing_of_it(self):
        self.create("disk.img", SIZE)
        self.io("disk.img", f"write -P 9 0 {SIZE}")
        self.create("disk.img", SIZE, **self.base())
        self.assert_reads("disk.img", read_file("base.raw"))


@only_fvd
class Info(ImageTest):
    def setUp(self):
        super().setUp()
        write_file("base.raw", patterned([(0, MIB, 1)], SIZE))
        self.create("disk.img", SIZE, options=["block_size=64k", "journal_size=1M"],
                    base="base.raw", base_fmt="raw")

    def test_json_has_every_documented_member(self):
        specific = self.specific("disk.img")
        expected = {"format-version": 3, "block-size": 65536, "base-size": SIZE,
                    "journal-size": MIB, "journal-unit": 4096, "clean-shutdown": True,
                    "base-fully-prefetched": False, "incompatible-features": 0,
                    "compatible-features": 0, "autoclear-features": 0, "condition": "healthy"}
        self.assertEqual({key: specific[key] for key in expected}, expected)
        self.assertRegex(specific["image-id"].replace("-", ""), "^[0-9a-f]{32}$")
        self.assertGreater(specific["data-offset"], 0)
        self.assertNotIn("add-storage-cmd", specific)
        self.assertNotIn("data-file", specific)
        self.assertEqual(self.info("disk.img")["format-specific"]["type"], "fvd")

    def test_two_images_have_two_ids(self):
        self.create("other.img", SIZE)
        self.assertNotEqual(self.specific("disk.img")["image-id"],
                            self.specific("other.img")["image-id"])

    def test_people_can_read_it(self):
        text = self.img("info", "-f", "fvd", "disk.img").out
        for line in ("file format: fvd", "virtual size: 8 MiB (8388608 bytes)",
                     "backing file: base.raw", "backing file format: raw",
                     "block size: 65536", "journal size: 1048576", "clean shutdown: true"):
            self.assertIn(line, text)

    def test_the_format_is_recognised(self):
        self.assertEqual(self.img("info", "--output=json", "disk.img").json()["format"], "fvd")

    def test_neither_base_nor_data_file_need_be_there(self):
        self.create("split.img", SIZE, options=["data_file=data.raw"], base="base.raw",
                    base_fmt="raw")
        os.unlink("data.raw")
        os.unlink("base.raw")
        self.assertEqual(self.specific("split.img")["data-file"], "data.raw")

    def test_the_whole_chain_is_shown(self):
        self.create("top.img", base="disk.img", base_fmt="fvd")
        chain = self.img("info", "-f", "fvd", "--backing-chain", "--output=json", "top.img").json()
        self.assertEqual([entry["format"] for entry in chain], ["fvd", "fvd", "raw"])

    def test_looking_changes_nothing(self):
        before = digests("disk.img", "base.raw")
        self.info("disk.img")
        self.map("disk.img")
        self.check("disk.img")
        self.assert_unchanged(before)
