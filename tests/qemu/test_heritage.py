# SPDX-License-Identifier: GPL-2.0-or-later
"""Images that the first FVD driver wrote in January 2011: they open read-only, convert to any format
with the content that they must have, and are never written to.

tests/corpus/heritage has a few of them. FVD_HERITAGE names a directory with more: `manifest.json` and
the files it describes, each packed with xz."""

import hashlib
import json
import lzma
import os
import pathlib
import struct

from qmp import Daemon, QmpError, image_node
from support import MIB, REPOSITORY, ImageTest, digests, limit, only_fvd, truncate

HERE = REPOSITORY / "tests/corpus/heritage"
# Too large to be read as a whole: what was written is compared, and that nothing else is there.
HUGE = 1 << 32


def directory():
    return pathlib.Path(os.environ.get("FVD_HERITAGE", HERE))


def manifest():
    return json.loads((directory() / "manifest.json").read_text())


def unpack(packed, name):
    """Sparse, as the file was."""
    with lzma.open(packed) as source, open(name, "wb") as target:
        length = 0
        while piece := source.read(MIB):
            if piece.count(0) != len(piece):
                target.seek(length)
                target.write(piece)
            length += len(piece)
        target.truncate(length)


class Sample:
    """One image of the manifest, unpacked here with all that it needs."""

    def __init__(self, name):
        images = manifest()["images"]
        self.name = name
        self.file = f"{name}.fvd"
        self.about = images[name]
        self.header = self.about["header"]
        self.files = list(self.about["files"])
        base = self.about["base"]
        for file in [*self.files, *manifest()["bases"]]:
            if file in self.files or file == base or base and not base.endswith(".raw"):
                unpack(directory() / f"{file}.xz", file)
        for file in self.files:
            digest = digests(file)[file]
            assert digest == self.about["files"][file]["sha256"], f"{file} is not what it was"

    @property
    def options(self):
        """For a chain of FVD images, whose headers never say so."""
        words = f"driver=fvd,file.filename={self.file}"
        if self.about["base"] and self.about["base"].endswith(".fvd"):
            words += ",backing.driver=fvd"
        return words


def digest_of_guest(name):
    digest = hashlib.sha256()
    with open(name, "rb") as file:
        while piece := file.read(MIB):
            digest.update(piece)
    return digest.hexdigest()


class Heritage(ImageTest):
    def convert(self, sample, fmt, target):
        return self.img("convert", "--image-opts", sample.options, "-O", fmt, target)

    def assert_content(self, sample, raw):
        """raw: a converted image."""
        self.assertEqual(os.path.getsize(raw), sample.about["virtual_size"])
        self.assertEqual(digest_of_guest(raw), sample.about["expected_guest_sha256"],
                         f"{sample.name} does not read as it was written")

    def read_as_written(self, sample):
        """Of a disk that is too large to be hashed."""
        for write in sample.about["writes_in_order"]:
            self.io(sample.options, f"read -P {write['byte']} {write['offset']} {write['length']}",
                    options=["-r", "--image-opts"], fmt=None)
        there = {(e["start"], e["length"]) for e in self.map_of(sample) if e["data"]}
        for write in sample.about["writes_in_order"]:
            self.assertTrue(any(s <= write["offset"] and
                                write["offset"] + write["length"] <= s + n for s, n in there))
        chunk = sample.header["chunk_size"]
        self.assertLessEqual(sum(n for _, n in there), chunk * len(sample.about["table_used"]))

    def map_of(self, sample):
        return self.img("map", "--image-opts", "--output=json", sample.options).json()

    def judge(self, name):
        """One sample from end to end."""
        sample = Sample(name)
        before = digests(*sample.files)
        info = self.info(sample.file)
        self.assertEqual(info["virtual-size"], sample.about["virtual_size"])
        self.assertEqual(info["format-specific"]["data"]["format-version"], 1)
        self.assertEqual(info["dirty-flag"], not sample.header["clean_shutdown"])
        if sample.about["expected_guest_sha256"]:
            self.convert(sample, "raw", "disk.raw")
            self.assert_content(sample, "disk.raw")
            self.convert(sample, "fvd", "disk.fvd")
            self.img("convert", "-f", "fvd", "-O", "raw", "disk.fvd", "again.raw")
            self.assert_content(sample, "again.raw")
            self.check("disk.fvd")
        else:
            self.assertGreater(sample.about["virtual_size"], HUGE)
            self.read_as_written(sample)
        found = self.img("check", "--image-opts", sample.options,
                         expect=2 if name == "lost-by-failed-open" else 0)
        self.assertIn("January 2011", found.text)
        self.assert_unchanged(before)
        return sample


def test_of(name):
    def test(self):
        self.judge(name)
    return test


@only_fvd
@limit(240)
class Samples(Heritage):
    """A test for each image."""


for _name in manifest()["images"]:
    setattr(Samples, f"test_{_name.replace('-', '_')}", test_of(_name))


@only_fvd
@limit(240)
class Opening(Heritage):
    def setUp(self):
        super().setUp()
        self.sample = Sample("dirty-compact-base")

    def test_is_found_by_probing(self):
        info = self.img("info", "--output=json", self.sample.file).json()
        self.assertEqual(info["format"], "fvd")
        self.assertEqual(info["backing-filename"], "base-8m.raw")

    def test_every_way_to_write_is_refused(self):
        before = digests(*self.sample.files)
        name = self.sample.file
        for words in (["resize", "-f", "fvd", name, "32M"],
                      ["commit", "-f", "fvd", name],
                      ["rebase", "-u", "-f", "fvd", "-b", "", name],
                      ["check", "-f", "fvd", "-r", "leaks", name],
                      ["check", "-f", "fvd", "-r", "all", name]):
            ran = self.img(*words, expect=1)
            self.assertIn("2011", ran.text)
            self.assertIn("qemu-img convert", ran.text)
        ran = self.io(name, "write 0 4k", expect=1)
        self.assertIn("only be opened read-only; 'qemu-img convert' makes", ran.text)
        self.assert_unchanged(before)

    def test_a_node_that_may_be_read_only_becomes_it(self):
        daemon = Daemon(self)
        with self.assertRaisesRegex(QmpError, "only be opened read-only; 'qemu-img convert'"):
            daemon.command("blockdev-add", **image_node(self.sample.file, "old", "fvd"))
        daemon.command("blockdev-add", **image_node(self.sample.file, "old", "fvd",
                                                    auto_read_only=True))
        nodes = {node["node-name"]: node for node in daemon.command("query-named-block-nodes")}
        self.assertTrue(nodes["old"]["ro"])
        client = daemon.export("old", writable=False)
        self.assertEqual(client.read(0, 4096), bytes([17]) * 4096)
        client.close()
        with self.assertRaisesRegex(QmpError, "2011"):
            daemon.command("blockdev-reopen", options=[
                {key.replace("_", "-"): value for key, value in
                 image_node(self.sample.file, "old", "fvd", read_only=False).items()}])
        daemon.quit()

    def test_a_reopen_for_writing_is_refused(self):
        ran = self.io(self.sample.file, "reopen -w", "read 0 4k", options=["-r"], expect=(0, 1))
        self.assertIn("2011", ran.text)

    def test_map_tells_base_data_and_zeros_apart(self):
        depths = {}
        for extent in self.map_of(self.sample):
            kind = (extent["depth"], extent["data"], extent["zero"])
            depths[kind] = depths.get(kind, 0) + extent["length"]
        self.assertEqual(sum(depths.values()), 16 * MIB)
        self.assertTrue(any(depth == 1 and data for depth, data, _ in depths), depths)
        self.assertTrue(any(depth == 0 and data for depth, data, _ in depths), depths)
        self.assertIn((0, False, True), depths)

    def test_as_the_base_of_an_image_of_today(self):
        self.create("top.fvd", base=self.sample.file, base_fmt="fvd")
        self.io("top.fvd", "read -P 17 0 4k", "write -P 1 0 4k", "read -P 1 0 4k",
                "read -P 34 96k 32k")

    def test_converts_to_every_format(self):
        for fmt in ("qcow2", "qed", "vdi", "vmdk", "vhdx", "fvd"):
            self.convert(self.sample, fmt, f"disk.{fmt}")
            self.img("convert", "-f", fmt, "-O", "raw", f"disk.{fmt}", "disk.raw")
            self.assert_content(self.sample, "disk.raw")

    def test_a_base_whose_format_nobody_stated_is_raw_and_said_so(self):
        ran = self.img("convert", "-f", "fvd", "-O", "raw", self.sample.file, "disk.raw")
        self.assertIn("taken for 'raw'", ran.err)

    def test_a_dirty_image_reads_replayed(self):
        self.io(self.sample.file, "read -P 117 8388096 1024", options=["-r"])
        self.assertTrue(self.info(self.sample.file)["dirty-flag"])


@only_fvd
class Hostile(Heritage):
    """Fields out of range: an error that names them, and no crash. The units test the rest."""

    def setUp(self):
        super().setUp()
        self.sample = Sample("dirty-compact-base")

    def patch(self, offset, form, value):
        with open(self.sample.file, "r+b") as file:
            file.seek(offset)
            file.write(struct.pack("<" + form, value))

    def refused(self, *words):
        ran = self.io(self.sample.file, "read 0 512", options=["-r"], expect=1, memory=1 << 30)
        for word in words:
            self.assertIn(word, ran.text)
        self.check(self.sample.file, expect=(1, 2))

    def test_fields(self):
        for offset, form, value, name in ((4, "I", 2, "version is 2"),
                                          (12, "q", -512, "virtual_disk_size"),
                                          (1084, "Q", 1 << 60, "bitmap_size"),
                                          (1092, "i", -1, "block_size"),
                                          (2212, "Q", 1 << 62, "table at"),
                                          (2220, "Q", 4096 * 3 + 1, "chunk_size"),
                                          (4292, "Q", 1 << 40, "journal_size")):
            with self.subTest(name):
                self.sample = Sample("dirty-compact-base")
                self.patch(offset, form, value)
                self.refused(name)

    def test_a_slot_beyond_the_file(self):
        self.patch(self.sample.header["table_offset"] + 4 * 255, "I", 0x7FFFFFF0)
        # The journal has the last word about this chunk; about the one before it has none.
        self.patch(self.sample.header["table_offset"] + 4 * 254, "I", 0x7FFFFFF0)
        self.refused("chunk 254 is in slot 2147483632")

    def test_a_record_that_makes_no_sense(self):
        self.patch(self.sample.header["journal_offset"] + 512, "I", 0xDEADBEEF)
        self.refused("journal sector 1", "0xdeadbeef")

    def test_a_file_that_was_cut(self):
        truncate(self.sample.file, self.sample.about["files"][self.sample.file]["size"] - MIB)
        self.refused("slots must be below")

    def test_the_command_is_shown_and_not_run(self):
        with open(self.sample.file, "r+b") as file:
            file.seek(2236)
            file.write(b"touch was-run #\0")
        self.assertEqual(self.specific(self.sample.file)["add-storage-cmd"], "touch was-run #")
        self.io(self.sample.file, "read 0 512", options=["-r"])
        self.assertFalse(os.path.exists("was-run"))
