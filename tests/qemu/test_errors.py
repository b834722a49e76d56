# SPDX-License-Identifier: GPL-2.0-or-later
"""The file under the image fails at each step that the driver announces (QEMU's blkdebug), once or for
ever, with EIO or ENOSPC. The guest gets an error or a success that is true; the image is sound
afterwards, and what was flushed is there."""

import itertools
import os
import re

import nbd
from qmp import Daemon, QmpError, quick_node
from support import FORMAT, MIB, REPOSITORY, ImageTest, limit, only_fvd, patterned, read_file, write_file

ERRNO = {"EIO": 5, "ENOSPC": 28}
SIZE = 4 * MIB
BLOCK = 4096


def announced_events():
    """Step of the driver -> event of blkdebug, from the driver's own table."""
    source = (REPOSITORY / "block/qemu/fvd-host.c").read_text()
    rows = re.findall(r'\[FVD_EVENT_\w+\] = \{\s*"([\w-]+)",\s*BLKDBG_(\w+)', source)
    return {step: event.lower() for step, event in rows}


def over(content, write):
    value, length = write
    return bytes([value]) * length + content[length:]


class Block:
    """What one block may hold: its contents at the last good flush (several where a failed write may or
    may not have left its bytes), and the writes since then."""

    def __init__(self, value):
        self.durable = {bytes([value]) * BLOCK}
        self.since = []  # (write, acknowledged)

    def flushed(self):
        for write, acknowledged in self.since:
            with_it = {over(content, write) for content in self.durable}
            self.durable = with_it if acknowledged else self.durable | with_it
        self.since = []

    def possible(self):
        """Nobody promised anything about what came after the flush."""
        contents = set(self.durable)
        for write, _ in self.since:
            contents |= {over(content, write) for content in contents}
        return contents


@only_fvd
@limit(300)
class Blkdebug(ImageTest):
    base_value = 0xBB
    data_file = False

    def setUp(self):
        super().setUp()
        write_file("base.raw", bytes([self.base_value]) * SIZE)

    def fresh(self):
        options = ["journal_unit=512", "journal_size=32768"]
        if self.data_file:
            options.append("data_file=data.raw")
        self.create("disk.img", SIZE, options=options, base="base.raw", base_fmt="raw")
        # Some blocks are here already, and the image is in use when it is opened.
        self.io("disk.img", "write -P 170 0 64k")
        self.blocks = [Block(170 if block < 16 else self.base_value)
                       for block in range(SIZE // BLOCK)]
        self.version = 0

    def add(self, daemon, event, errno, once):
        daemon.command("blockdev-add", driver="fvd", node_name="disk0", file={
            "driver": "blkdebug", "image": quick_node("disk.img"),
            "inject-error": [{"event": event, "errno": errno, "once": once}]})

    # ---------------------------------------------------------------- the guest

    def write(self, client, block, length):
        """A write of the whole block, or of its first part."""
        self.version = self.version % 0xA0 + 1
        client.submit(nbd.WRITE, block * BLOCK, data=bytes([self.version]) * length)
        acknowledged = client.reap().error == 0
        self.blocks[block].since.append(((self.version, length), acknowledged))

    def flush(self, client):
        client.submit(nbd.FLUSH)
        if client.reap().error == 0:
            for block in self.blocks:
                block.flushed()

    def workload(self, client):
        """First writes (whole and partial), overwrites, reads, enough groups for a checkpoint."""
        for group in range(40):
            for block in (16 + group * 8, 16 + group * 8 + 3, group % 16, 900 - group):
                self.write(client, block, BLOCK if (group + block) % 3 else 1000)
            for block in (group % 16, 1000 - group):
                client.submit(nbd.READ, block * BLOCK, BLOCK)
                client.reap()
            self.flush(client)

    # ---------------------------------------------------------------- judgement

    def judge(self, name):
        self.check("disk.img")
        self.img("convert", "-f", "fvd", "-O", "raw", "disk.img", "seen.raw")
        seen = read_file("seen.raw")
        for number, block in enumerate(self.blocks):
            content = seen[number * BLOCK:(number + 1) * BLOCK]
            if content not in block.possible():
                self.fail(f"{name}: block {number} is lost; it starts {content[:2].hex()}, and the "
                          f"writes since the last flush are {block.since}")

    def one_run(self, number, step, event, errno, once):
        self.fresh()
        daemon = Daemon(self, name=f"d{number}")
        try:
            self.add(daemon, event, errno, once)
        except QmpError:
            # An error while opening is an answer, too.
            daemon.quit()
            self.judge(step)
            return
        client = daemon.export("disk0", f"n{number}.sock")
        self.workload(client)
        client.close()
        daemon.quit()
        self.judge(f"{step} {errno} once={once}")

    def runs(self, errors, onces):
        events = announced_events()
        self.assertGreaterEqual(len(events), 15)
        for number, ((step, event), errno, once) in enumerate(
                itertools.product(events.items(), errors, onces)):
            with self.subTest(step=step, errno=errno, once=once):
                self.one_run(number, step, event, ERRNO[errno], once)

    def test_every_step_fails_once(self):
        self.runs(("EIO", "ENOSPC"), (True,))

    def test_every_step_fails_for_ever(self):
        self.runs(("EIO", "ENOSPC"), (False,))


class BlkdebugWithDataFile(Blkdebug):
    data_file = True


@only_fvd
class FullDisk(ImageTest):
    def test_a_full_file_system_is_an_error_and_then_none(self):
        """A small tmpfs under the image: ENOSPC reaches the guest, and room makes it go on."""
        if os.geteuid() != 0:
            self.skipTest("needs root")
        os.mkdir("small")
        self.run_program(["mount", "-t", "tmpfs", "-o", "size=3m", "none", "small"])
        self.addCleanup(self.run_program, ["umount", "-l", "small"], expect=None)
        write_file("base.raw", patterned([(0, SIZE, 7)], SIZE))
        self.create("small/disk.img", SIZE, base=os.path.abspath("base.raw"), base_fmt="raw",
                    options=["journal_size=1M"] if FORMAT == "fvd" else [])
        ran = self.io("small/disk.img", "write -P 1 0 1M", "flush", "write -P 2 1M 3M", "flush",
                      expect=1)
        self.assertIn("No space left", ran.text)
        self.check("small/disk.img")
        self.io("small/disk.img", "read -P 1 0 1M")
        self.run_program(["mount", "-o", "remount,size=8m", "small"])
        self.io("small/disk.img", "write -P 2 1M 3M", "flush", "read -P 1 0 1M", "read -P 2 1M 3M")
        self.check("small/disk.img")
