# SPDX-License-Identifier: GPL-2.0-or-later
"""What management does to an image that is in use: nodes, creation, reopening, block jobs, overlays,
moving between threads, and quitting in the middle."""

import os
import time

import nbd
import qmp
from model import Disk, Generator
from qmp import Daemon, QmpError, file_node, image_node
from support import (FORMAT, KIB, MIB, ImageTest, limit, only_fvd, patterned, read_file, seed,
                     write_file)

SIZE = 8 * MIB
RUNS = [(0, 70000, 1), (3 * MIB + 5, 500000, 2), (SIZE - 100, 100, 3)]


class QmpTest(ImageTest):
    def setUp(self):
        super().setUp()
        self.content = patterned(RUNS, SIZE)
        write_file("base.raw", self.content)
        self.create("disk.img", base="base.raw", base_fmt="raw")

    def daemon(self, *options):
        return Daemon(self, *options)

    def add(self, daemon, path="disk.img", node="disk0", fmt=FORMAT, **more):
        daemon.command("blockdev-add", **image_node(path, node, fmt, **more))

    def new_image(self, daemon, path, size=SIZE, fmt=FORMAT, **options):
        """Create a file and an image in it by jobs alone."""
        daemon.monitor.run_create_job(f"create-file-{path}", {
            "driver": "file", "filename": path, "size": 0})
        daemon.command("blockdev-add", node_name=f"file-{path}", **file_node(path))
        daemon.monitor.run_create_job(f"create-{path}", {
            "driver": fmt, "file": f"file-{path}", "size": size, **options})
        daemon.command("blockdev-del", node_name=f"file-{path}")


class Nodes(QmpTest):
    def test_image_on_named_nodes(self):
        daemon = self.daemon()
        daemon.command("blockdev-add", node_name="file0", **file_node("disk.img"))
        daemon.command("blockdev-add", node_name="base0", driver="raw", file=file_node("base.raw"))
        daemon.command("blockdev-add", driver=FORMAT, node_name="disk0", file="file0",
                       backing="base0")
        client = daemon.export("disk0")
        self.assertEqual(client.read_all(), self.content)
        client.close()
        daemon.quit()

    @only_fvd
    def test_data_file_on_a_named_node(self):
        self.create("split.img", SIZE, options=["data_file=data.raw"])
        daemon = self.daemon()
        daemon.command("blockdev-add", node_name="data0", driver="raw",
                       file=file_node("data.raw"))
        self.add(daemon, "split.img", **{"data_file": "data0"})
        client = daemon.export("disk0")
        client.write(MIB, b"d" * 1000)
        client.flush()
        client.close()
        daemon.quit()
        self.assertEqual(read_file("data.raw")[MIB:MIB + 1000], b"d" * 1000)

    @only_fvd
    def test_data_file_given_overrides_the_stored_name(self):
        self.create("split.img", SIZE, options=["data_file=data.raw"])
        os.rename("data.raw", "moved.raw")
        daemon = self.daemon()
        with self.assertRaisesRegex(QmpError, "data.raw"):
            self.add(daemon, "split.img")
        self.add(daemon, "split.img", **{"data-file": {"driver": "file", "filename": "moved.raw"}})
        daemon.quit()

    @only_fvd
    def test_data_file_for_an_image_without_one_is_refused(self):
        write_file("data.raw", bytes(SIZE))
        daemon = self.daemon()
        with self.assertRaisesRegex(QmpError, "(?i)data.file"):
            self.add(daemon, **{"data-file": file_node("data.raw")})
        self.add(daemon)
        daemon.quit()

    @only_fvd
    def test_unknown_option_is_refused(self):
        daemon = self.daemon()
        with self.assertRaisesRegex(QmpError, "no-such"):
            self.add(daemon, **{"no-such": 1})
        daemon.quit()

    @only_fvd
    def test_nodes_tell_about_the_format(self):
        daemon = self.daemon()
        self.add(daemon)
        client = daemon.export("disk0")
        client.write(0, b"x" * 4096)
        nodes = daemon.command("query-named-block-nodes")
        image = next(node for node in nodes if node["node-name"] == "disk0")["image"]
        specific = image["format-specific"]
        self.assertEqual(specific["type"], "fvd")
        self.assertEqual(specific["data"]["condition"], "healthy")
        self.assertEqual(specific["data"]["block-size"], 4096)
        if "blocks-in-image" in specific["data"]:
            self.assertEqual(specific["data"]["blocks-in-image"] +
                             specific["data"]["blocks-in-base"], SIZE // 4096)
        client.close()
        daemon.quit()

    def test_one_image_cannot_be_opened_twice_for_writing(self):
        daemon = self.daemon()
        self.add(daemon)
        daemon.export("disk0")
        ran = self.io("disk.img", "write 0 4k", expect=1)
        self.assertIn("lock", ran.err)
        daemon.quit()

    def test_missing_base_is_an_error_that_names_it(self):
        os.unlink("base.raw")
        daemon = self.daemon()
        with self.assertRaisesRegex(QmpError, "base.raw"):
            self.add(daemon)
        daemon.quit()

    def test_without_base_when_asked(self):
        os.unlink("base.raw")
        daemon = self.daemon()
        self.add(daemon, backing=None)
        daemon.quit()


class CreateJob(QmpTest):
    def test_creates_an_image(self):
        daemon = self.daemon()
        self.new_image(daemon, "new.img")
        self.add(daemon, "new.img", "new0")
        client = daemon.export("new0")
        client.write(5, b"hello")
        client.close()
        daemon.quit()
        self.check("new.img")
        self.io("new.img", "read -P 104 5 1")

    @only_fvd
    def test_creates_an_image_with_every_option(self):
        daemon = self.daemon()
        write_file("data.raw", b"")
        daemon.command("blockdev-add", node_name="data0", **file_node("data.raw"))
        self.new_image(daemon, "new.img", **{
            "data-file": "data0", "backing-file": "base.raw", "backing-fmt": "raw",
            "block-size": 8192, "journal-size": 65536, "journal-unit": 512,
            "detect-sparse-hole": 0, "preallocation": "off"})
        daemon.quit()
        specific = self.specific("new.img")
        self.assertEqual((specific["block-size"], specific["journal-size"],
                          specific["journal-unit"]), (8192, 65536, 512))
        self.assertEqual(self.info("new.img")["backing-filename"], "base.raw")
        self.check("new.img")

    @only_fvd
    def test_wrong_options_fail_the_job(self):
        daemon = self.daemon()
        for options in ({"backing-file": "base.raw"}, {"journal-unit": 1000},
                        {"backing-file": "base.raw", "backing-fmt": "raw", "block-size": 513},
                        {"size": 100}):
            with self.subTest(options=options), self.assertRaises(QmpError):
                self.new_image(daemon, f"bad{len(str(options))}.img", **options)
        daemon.quit()


class Reopen(QmpTest):
    def reopen(self, daemon, read_only):
        daemon.command("blockdev-reopen", options=[{
            "driver": FORMAT, "node-name": "disk0", "read-only": read_only, "file": "file0",
            "backing": "base0"}])

    def test_between_read_only_and_writable(self):
        daemon = self.daemon()
        daemon.command("blockdev-add", node_name="file0", **file_node("disk.img"))
        daemon.command("blockdev-add", node_name="base0", driver="raw", read_only=True,
                       file=file_node("base.raw"))
        daemon.command("blockdev-add", driver=FORMAT, node_name="disk0", file="file0",
                       backing="base0")
        for value in (1, 2, 3):
            client = daemon.export("disk0", f"n{value}.sock")
            client.write(value * MIB, bytes([value]) * 5000)
            client.close()
            self.stop_export(daemon)
            self.reopen(daemon, True)
            client = daemon.export("disk0", f"r{value}.sock", writable=False)
            self.assertEqual(client.read(value * MIB, 5000), bytes([value]) * 5000)
            client.close()
            self.stop_export(daemon)
            # Read-only means at rest: another program sees a clean image.
            if FORMAT == "fvd":
                self.assertTrue(self.specific("disk.img")["clean-shutdown"])
            self.reopen(daemon, False)
        daemon.quit()
        self.check("disk.img")
        self.io("disk.img", *[f"read -P {value} {value}M 5000" for value in (1, 2, 3)])

    def stop_export(self, daemon):
        daemon.command("block-export-del", id="export-disk0", mode="hard")
        daemon.monitor.wait("BLOCK_EXPORT_DELETED", id="export-disk0")
        daemon.command("nbd-server-stop")


class Writer:
    """Writes numbered stamps while jobs run; what it wrote must be in whatever comes out."""

    def __init__(self, client, content):
        self.client, self.disk = client, Disk(content)
        self.generator = Generator(seed(), len(content), 4096,
                                   weights={"write": 8, "zero": 1, "flush": 1})

    def some(self, count):
        for _ in range(count):
            request = self.generator.next()
            if request.kind == "write":
                self.client.submit(nbd.WRITE, request.offset,
                                   data=bytes([request.value]) * request.length)
            elif request.kind == "zero":
                self.client.submit(nbd.WRITE_ZEROES, request.offset, request.length)
            else:
                self.client.submit(nbd.FLUSH)
            self.disk.apply(request)
            # One at a time and in order, so that the model knows the result.
            done = self.client.reap()
            if done.error:
                raise AssertionError(f"{request}: error {done.error}")


@limit(240)
class Jobs(QmpTest):
    def start(self, *options, **more):
        daemon = self.daemon(*options)
        self.add(daemon, **more)
        client = daemon.export("disk0")
        writer = Writer(client, self.content)
        writer.some(200)
        return daemon, client, writer

    def finish(self, daemon, client, writer, name="disk.img", fmt=FORMAT):
        writer.some(50)
        self.assertEqual(client.read_all(), bytes(writer.disk.content))
        client.close()
        daemon.quit()
        self.check(name, fmt=fmt)
        self.assert_reads(name, bytes(writer.disk.content), fmt)

    def run_job(self, daemon, writer, command, job="job0", ready=False, **arguments):
        daemon.command(command, job_id=job, **arguments)
        writer.some(200)
        if ready:
            daemon.monitor.wait("BLOCK_JOB_READY", device=job)
            writer.some(100)
            daemon.command("job-complete", id=job)
        daemon.monitor.finish_job(job)

    def test_stream_makes_the_image_independent_of_its_base(self):
        daemon, client, writer = self.start()
        self.run_job(daemon, writer, "block-stream", device="disk0")
        self.finish(daemon, client, writer)
        self.assertNotIn("backing-filename", self.info("disk.img"))

    def test_commit_of_the_active_layer(self):
        self.img("convert", "-f", "raw", "-O", FORMAT, "base.raw", "base.img")
        self.create("top.img", base="base.img", base_fmt=FORMAT)
        daemon = self.daemon()
        self.add(daemon, "top.img")
        client = daemon.export("disk0")
        writer = Writer(client, self.content)
        writer.some(200)
        self.run_job(daemon, writer, "block-commit", device="disk0", ready=True)
        self.finish(daemon, client, writer, "base.img")

    def test_commit_of_a_middle_layer(self):
        self.io("disk.img", "write -P 77 2M 64k")
        self.create("top.img", base="disk.img", base_fmt=FORMAT)
        self.content = self.content[:2 * MIB] + b"\x4d" * 65536 + self.content[2 * MIB + 65536:]
        daemon = self.daemon()
        daemon.command("blockdev-add", node_name="base0", driver="raw", file=file_node("base.raw"))
        self.add(daemon, "disk.img", "mid0", backing="base0")
        self.add(daemon, "top.img", "disk0", backing="mid0")
        client = daemon.export("disk0")
        writer = Writer(client, self.content)
        writer.some(100)
        self.run_job(daemon, writer, "block-commit", device="disk0", top_node="mid0",
                     base_node="base0")
        self.finish(daemon, client, writer, "top.img")
        self.assertEqual(self.info("top.img")["backing-filename"], "base.raw")

    def test_mirror_into_a_new_image(self):
        daemon, client, writer = self.start()
        self.new_image(daemon, "target.img")
        self.add(daemon, "target.img", "target0")
        self.run_job(daemon, writer, "blockdev-mirror", device="disk0", target="target0",
                     sync="full", ready=True)
        self.finish(daemon, client, writer, "target.img")

    def test_mirror_of_the_top_layer_into_an_overlay(self):
        daemon, client, writer = self.start()
        self.new_image(daemon, "target.img", **({"backing-file": "base.raw", "backing-fmt": "raw"}))
        self.add(daemon, "target.img", "target0")
        self.run_job(daemon, writer, "blockdev-mirror", device="disk0", target="target0",
                     sync="top", ready=True)
        self.finish(daemon, client, writer, "target.img")

    def test_mirror_that_is_cancelled_leaves_the_image_alone(self):
        daemon, client, writer = self.start()
        self.new_image(daemon, "target.img")
        self.add(daemon, "target.img", "target0")
        daemon.command("blockdev-mirror", job_id="job0", device="disk0", target="target0",
                       sync="full", speed=MIB)
        writer.some(100)
        daemon.command("block-job-cancel", device="job0", force=True)
        daemon.monitor.wait("BLOCK_JOB_CANCELLED", device="job0")
        self.finish(daemon, client, writer)

    def backup(self, fmt):
        daemon, client, writer = self.start()
        before = bytes(writer.disk.content)
        self.new_image(daemon, "backup.img", fmt=fmt)
        self.add(daemon, "backup.img", "backup0", fmt=fmt)
        self.run_job(daemon, writer, "blockdev-backup", device="disk0", target="backup0",
                     sync="full")
        self.finish(daemon, client, writer)
        self.assert_reads("backup.img", before, fmt)
        self.check("backup.img", fmt=fmt)

    def test_backup_into_an_image_of_the_same_format(self):
        self.backup(FORMAT)

    def test_backup_into_qcow2(self):
        self.backup("qcow2")

    def test_jobs_in_an_iothread(self):
        daemon = self.daemon("--object", "iothread,id=io0")
        self.add(daemon)
        client = daemon.export("disk0", iothread="io0", fixed_iothread=True)
        writer = Writer(client, self.content)
        writer.some(200)
        self.new_image(daemon, "target.img")
        self.add(daemon, "target.img", "target0")
        self.run_job(daemon, writer, "blockdev-mirror", device="disk0", target="target0",
                     sync="full", ready=True)
        self.finish(daemon, client, writer, "target.img")

    def test_copy_on_read_filter_over_the_image(self):
        daemon = self.daemon()
        self.add(daemon, node="image0")
        daemon.command("blockdev-add", driver="copy-on-read", node_name="disk0", file="image0")
        client = daemon.export("disk0")
        writer = Writer(client, self.content)
        self.assertEqual(client.read_all(), self.content)
        writer.some(100)
        self.finish(daemon, client, writer)


@limit(240)
class Overlays(QmpTest):
    """A new image on top of one that is being written to."""

    def start(self):
        daemon = self.daemon()
        self.add(daemon)
        client = daemon.export("disk0")
        writer = Writer(client, self.content)
        writer.some(200)
        return daemon, client, writer

    def finish(self, daemon, client, writer, top, fmt):
        writer.some(200)
        self.assertEqual(client.read_all(), bytes(writer.disk.content))
        client.close()
        daemon.quit()
        self.check("disk.img")
        self.check(top, fmt=fmt)
        self.assert_reads(top, bytes(writer.disk.content), fmt)

    def blockdev_snapshot(self, fmt):
        daemon, client, writer = self.start()
        self.new_image(daemon, "top.img", fmt=fmt, **{"backing-file": "disk.img",
                                                      "backing-fmt": FORMAT})
        self.add(daemon, "top.img", "top0", fmt=fmt, backing=None)
        writer.some(100)
        before = bytes(writer.disk.content)
        daemon.command("blockdev-snapshot", node="disk0", overlay="top0")
        self.finish(daemon, client, writer, "top.img", fmt)
        self.assert_reads("disk.img", before)

    def test_qcow2_overlay(self):
        self.blockdev_snapshot("qcow2")

    def test_overlay_of_the_same_format(self):
        self.blockdev_snapshot(FORMAT)

    def snapshot_in_the_middle(self, fmt):
        """Writes are in flight when QEMU itself creates the overlay: areas that are zero now may not be
        when the overlay takes effect."""
        daemon, client, writer = self.start()
        pending = {}
        for number in range(300):
            offset = 4 * MIB + number * 8192
            value = number % 255 + 1
            pending[client.submit(nbd.WRITE, offset, data=bytes([value]) * 5000)] = True
            writer.disk.content[offset:offset + 5000] = bytes([value]) * 5000
            if number == 150:
                self.begin_snapshot(daemon, fmt)
        while pending:
            done = client.reap()
            self.assertEqual(done.error, 0)
            del pending[done.handle]
        daemon.monitor.answer()
        self.finish(daemon, client, writer, "top.img", fmt)

    def begin_snapshot(self, daemon, fmt):
        daemon.monitor.send("blockdev-snapshot-sync", {
            "node-name": "disk0", "snapshot-file": "top.img", "snapshot-node-name": "top0",
            "format": fmt})

    def test_snapshot_sync_while_writes_are_in_flight(self):
        self.snapshot_in_the_middle(FORMAT)

    def test_snapshot_sync_with_qcow2_while_writes_are_in_flight(self):
        self.snapshot_in_the_middle("qcow2")

    def test_chain_grows_and_is_streamed_together(self):
        daemon, client, writer = self.start()
        for number in range(4):
            daemon.command("blockdev-snapshot-sync", **{
                "node-name": "disk0" if number == 0 else f"top{number - 1}",
                "snapshot-file": f"top{number}.img", "snapshot-node-name": f"top{number}",
                "format": FORMAT})
            writer.some(100)
        daemon.command("block-stream", job_id="job0", device="top3")
        writer.some(200)
        daemon.monitor.finish_job("job0")
        self.finish(daemon, client, writer, "top3.img", FORMAT)


@limit(240)
class Threads(QmpTest):
    def test_moves_between_threads(self):
        daemon = self.daemon("--object", "iothread,id=io0", "--object", "iothread,id=io1")
        self.add(daemon)
        content = Disk(self.content)
        for number, thread in enumerate(("io0", "io1", None)):
            daemon.command("x-blockdev-set-iothread", node_name="disk0", iothread=thread)
            client = daemon.export("disk0", f"n{number}.sock",
                                   **({"iothread": thread} if thread else {}))
            writer = Writer(client, content.content)
            writer.some(300)
            content = writer.disk
            self.assertEqual(client.read_all(), bytes(content.content))
            client.close()
            daemon.command("block-export-del", id="export-disk0", mode="hard")
            daemon.monitor.wait("BLOCK_EXPORT_DELETED", id="export-disk0")
            daemon.command("nbd-server-stop")
        daemon.quit()
        self.check("disk.img")
        self.assert_reads("disk.img", bytes(content.content))

    def test_two_clients_write_neighbouring_parts_of_the_same_blocks(self):
        daemon, first = qmp.serve(self, "disk.img", FORMAT, iothread=True)
        second = nbd.Client("nbd.sock", "disk")
        half = 2048
        for number in range(512):
            place = number * 4096
            first.submit(nbd.WRITE, place, data=b"a" * half)
            second.submit(nbd.WRITE, place + half, data=b"b" * half)
            for client in (first, second):
                self.reap(client, down_to=15)
        for client in (first, second):
            self.reap(client, down_to=0)
        expected = (b"a" * half + b"b" * half) * 512
        self.assertEqual(first.read(0, len(expected)), expected)
        first.close()
        second.close()
        daemon.quit()
        self.assert_reads("disk.img", expected + self.content[len(expected):])

    def reap(self, client, down_to):
        while client.in_flight > down_to:
            self.assertEqual(client.reap().error, 0)

    def test_quit_while_writes_are_in_flight(self):
        for number in range(8):
            daemon, client = qmp.serve(self, "disk.img", FORMAT, name=f"d{number}",
                                       socket=f"n{number}.sock", iothread=bool(number % 2))
            client.write(0, bytes([number + 1]) * 4096)
            client.flush()
            for place in range(100):
                client.submit(nbd.WRITE, MIB + place * 4096 + 7, data=b"q" * 100)
            daemon.quit()
            client.socket.close()
            self.check("disk.img")
            self.io("disk.img", f"read -P {number + 1} 0 4k")
            if FORMAT == "fvd":
                self.assertTrue(self.specific("disk.img")["clean-shutdown"])


class Background(QmpTest):
    @only_fvd
    def test_writes_without_flush_are_committed_within_seconds(self):
        """The guest never flushes; still a kill after a while costs nothing."""
        daemon, client = qmp.serve(self, "disk.img", FORMAT)
        client.write(MIB, b"w" * 4096)
        time.sleep(7)
        daemon.kill()
        self.io("disk.img", "read -P 119 1M 4k")
        self.check("disk.img")
