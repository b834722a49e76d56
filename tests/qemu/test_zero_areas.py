# SPDX-License-Identifier: GPL-2.0-or-later
"""When is the base read? Never where it is known to be zero, never where the guest's write replaces
it, and never again once the data is here. The base of these tests refuses every read, so what
succeeds has not read it."""

import json

from support import KIB, MIB, ImageTest, only_fvd, patterned, truncate, write_file

SIZE = 4 * MIB


UNREADABLE = "json:" + json.dumps({
    "driver": "raw", "file": {
        "driver": "blkdebug", "image": {"driver": "file", "filename": "base.raw"},
        "inject-error": [{"event": "none", "iotype": "read", "errno": 5}]}})


@only_fvd
class ZeroAreas(ImageTest):
    def over(self, runs, base_size=SIZE, size=SIZE, options=(), holes=True):
        content = patterned(runs, base_size)
        if holes:
            write_file("base.raw", content)
        else:
            with open("base.raw", "wb") as file:
                file.write(content)
        self.create("disk.img", size, options=options, base="base.raw", base_fmt="raw")

    def io_unreadable(self, *commands, expect=0):
        """Commands on the disk while every read of its base fails with EIO."""
        self.rebase(UNREADABLE)
        ran = self.io("disk.img", *commands, expect=expect)
        self.rebase("base.raw")
        return ran

    def rebase(self, base):
        self.img("rebase", "-u", "-f", "fvd", "-b", base, "-F", "raw", "disk.img")

    def zero_depths(self):
        return {entry["start"]: entry["depth"] for entry in self.map("disk.img") if entry["zero"]}

    def test_holes_of_the_base_are_marked_as_here(self):
        self.over([(MIB, 64 * KIB, 1)])
        self.assertEqual(set(self.zero_depths().values()), {0})
        self.io_unreadable("read -P 0 0 1M", f"read -P 0 {MIB + 64 * KIB} 1M")

    def test_data_of_the_base_is_read_from_it(self):
        self.over([(MIB, 64 * KIB, 1)])
        self.assertIn("failed", self.io_unreadable("read 1M 4k", expect=1).text)

    def test_stored_zeros_are_read_without_the_option(self):
        self.over([(MIB, 64 * KIB, 1)], holes=False)
        self.assertIn("failed", self.io_unreadable("read 0 4k", expect=1).text)

    def test_stored_zeros_are_found_by_reading_with_the_option(self):
        self.over([(MIB, 64 * KIB, 1)], holes=False, options=["detect_sparse_hole=65536"])
        self.io_unreadable("read -P 0 0 1M", f"read -P 0 {MIB + 64 * KIB} 2M")
        self.assertIn("failed", self.io_unreadable("read 1M 4k", expect=1).text)
        self.io("disk.img", "read -P 1 1M 64k")

    def test_short_runs_are_passed_over_by_the_option(self):
        """Zeros shorter than asked for stay in the base; the guest sees the same."""
        self.over([(0, MIB, 1), (MIB + 4096, MIB, 2)], holes=False,
                  options=["detect_sparse_hole=1048576"])
        self.io("disk.img", "read -P 1 0 1M", "read -P 0 1M 4k", f"read -P 2 {MIB + 4096} 1M")

    def test_partly_zero_blocks_keep_their_data(self):
        self.over([(5000, 100, 1)], options=["block_size=64k", "detect_sparse_hole=4096"])
        self.io("disk.img", "read -P 0 0 5000", "read -P 1 5000 100", "read -P 0 5100 60436")

    def test_zero_clusters_of_a_qcow2_base_are_marked(self):
        self.img("create", "-q", "-f", "qcow2", "base.qcow2", SIZE)
        self.io("base.qcow2", "write -P 1 0 4M", "write -z 1M 1M", fmt="qcow2")
        self.create("disk.img", base="base.qcow2", base_fmt="qcow2")
        depths = {entry["start"]: (entry["depth"], entry["zero"]) for entry in self.map("disk.img")}
        self.assertEqual(depths[MIB], (0, True))
        self.io("disk.img", "read -P 1 0 1M", "read -P 0 1M 1M", "read -P 1 2M 2M")

    def test_a_base_of_holes_only_is_not_marked(self):
        """Most likely it is still to be filled: whoever makes a chain of images makes them all first."""
        truncate("base.raw", SIZE)
        self.create("disk.img", base="base.raw", base_fmt="raw")
        self.io("base.raw", "write -P 9 2M 64k", fmt="raw")
        self.io("disk.img", "read -P 9 2M 64k", "read -P 0 0 2M")

    def test_beyond_a_shorter_base_nothing_is_read(self):
        self.over([(0, MIB, 1)], base_size=MIB)
        self.io_unreadable("read -P 0 1M 3M", "write -P 3 2M 10")

    def test_later_changes_of_marked_areas_do_not_show(self):
        """The marks are a promise made at creation: the base must not change, and what was zero then
        stays zero."""
        self.over([(MIB, 64 * KIB, 1)])
        self.io("base.raw", "write -P 9 2M 64k", fmt="raw")
        self.io("disk.img", "read -P 0 2M 64k")

    # ---------------------------------------------------------------- writes

    def test_whole_block_writes_do_not_read_the_base(self):
        self.over([(0, SIZE, 1)])
        self.io_unreadable("write -P 2 0 4k", "write -P 3 64k 1M", "read -P 3 64k 1M")
        self.check("disk.img")

    def test_partial_writes_need_the_rest_of_the_block(self):
        self.over([(0, SIZE, 1)])
        self.assertIn("failed", self.io_unreadable("write -P 2 100 100", expect=1).text)
        self.check("disk.img")
        self.io("disk.img", "read -P 1 0 64k")

    def test_a_failed_copy_fails_that_request_only(self):
        self.over([(0, SIZE, 1)])
        ran = self.io_unreadable("write -P 2 100 100", "write -P 3 64k 4k", "read -P 3 64k 4k",
                                 "flush", expect=1)
        self.assertIn("Input/output error", ran.text)
        self.check("disk.img")
        self.io("disk.img", "read -P 1 0 64k", "read -P 3 64k 4k", "read -P 1 68k 4k")

    def test_partial_writes_into_data_that_is_here_do_not_read_the_base(self):
        self.over([(0, SIZE, 1)])
        self.io_unreadable("write -P 2 0 4k", "write -P 3 100 100", "read -P 3 100 100",
                           "read -P 2 0 100")

    def test_whole_block_zeroes_and_discards_do_not_read_the_base(self):
        self.over([(0, SIZE, 1)])
        self.io_unreadable("write -z 0 64k", "write -z -u 1M 64k", "read -P 0 0 64k",
                           "read -P 0 1M 64k", "discard 2M 64k")
        self.check("disk.img")

    def test_writes_to_the_last_part_of_a_block_at_the_end_of_the_base_do_not_read_it(self):
        """A last block that the base only half fills is whole once the guest wrote that half."""
        self.over([(0, MIB + 2048, 1)], base_size=MIB + 2048)
        self.io_unreadable(f"write -P 2 {MIB} 2048")
        self.io("disk.img", f"read -P 2 {MIB} 2048", f"read -P 0 {MIB + 2048} 2048",
                f"read -P 1 0 {MIB}")
