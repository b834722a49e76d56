# SPDX-License-Identifier: GPL-2.0-or-later
"""A storage daemon or a machine, and the monitor through which it is led."""

import json
import subprocess
import time

import nbd
from support import COMMAND_SECONDS, limited, program


class QmpError(Exception):
    """An error that the monitor answered."""


class Monitor:
    def __init__(self, path, record, patience=COMMAND_SECONDS):
        self.record = record
        self.patience = patience
        self.socket = nbd.connect(path, 20)
        self.socket.settimeout(patience)
        self.lines = self.socket.makefile("r", encoding="utf-8")
        self.events = []
        self._next()  # the greeting
        self.command("qmp_capabilities")

    def _next(self):
        line = self.lines.readline()
        if not line:
            raise ConnectionResetError("the monitor went away")
        return json.loads(line)

    def command(self, name, /, **arguments):
        """Underscores in argument names stand for dashes. Returns what the monitor returns."""
        self.send(name, {key.replace("_", "-"): value for key, value in arguments.items()})
        return self.answer()

    def send(self, name, arguments):
        """Without waiting; answer() must follow."""
        request = {"execute": name, "arguments": arguments}
        self.record.append("-> " + json.dumps(request))
        self.socket.sendall(json.dumps(request).encode() + b"\n")

    def answer(self):
        while True:
            answer = self._next()
            if "event" in answer:
                self.events.append(answer)
                continue
            self.record.append("<- " + json.dumps(answer)[:1000])
            if "error" in answer:
                raise QmpError(answer["error"]["desc"])
            return answer["return"]

    def wait(self, name, **fields):
        """The first event of this name whose data has these fields; earlier ones are kept."""
        deadline = time.monotonic() + self.patience
        while time.monotonic() < deadline:
            for event in self.events:
                data = event.get("data", {})
                if event["event"] == name and all(data.get(key) == value
                                                  for key, value in fields.items()):
                    self.events.remove(event)
                    self.record.append("<- " + json.dumps(event)[:1000])
                    return data
            answer = self._next()
            if "event" in answer:
                self.events.append(answer)
        raise TimeoutError(f"no event {name} {fields}")

    def finish_job(self, job):
        """Wait for a block job's end; its error is raised."""
        data = self.wait("BLOCK_JOB_COMPLETED", device=job)
        if "error" in data:
            raise QmpError(data["error"])

    def run_create_job(self, job, options):
        """blockdev-create is a job that waits to be dismissed."""
        self.command("blockdev-create", job_id=job, options=options)
        self.wait("JOB_STATUS_CHANGE", id=job, status="concluded")
        error = next(entry.get("error") for entry in self.command("query-jobs")
                     if entry["id"] == job)
        self.command("job-dismiss", id=job)
        if error:
            raise QmpError(error)


class Daemon:
    """qemu-storage-daemon with a monitor; ended with the test."""

    program = "qemu-storage-daemon"
    monitor_words = ("--monitor", "chardev=mon")

    def __init__(self, test, *options, name="daemon", strace=()):
        self.test = test
        self.path = f"{name}.qmp"
        self.log = open(f"{name}.log", "w+")
        test.addCleanup(self.log.close)
        command = [*strace, program(self.program),
                   "--chardev", f"socket,id=mon,path={self.path},server=on,wait=off",
                   *self.monitor_words, *options]
        test.record.append("$ " + " ".join(command))
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self.log,
                                        stderr=subprocess.STDOUT, preexec_fn=limited(0))
        test.addCleanup(self.kill)
        try:
            self.monitor = Monitor(self.path, test.record)
        except (OSError, ValueError):
            test.record.append(self.output())
            raise

    def command(self, name, /, **arguments):
        return self.monitor.command(name, **arguments)

    def output(self):
        self.log.seek(0)
        return self.log.read()

    def export(self, node, socket="nbd.sock", name="disk", writable=True, **more):
        """Serve a node by NBD; returns a client's connection."""
        self.command("nbd-server-start", addr={"type": "unix", "data": {"path": socket}},
                     max_connections=16)
        self.command("block-export-add", type="nbd", id=f"export-{node}", node_name=node,
                     name=name, writable=writable, **more)
        return nbd.Client(socket, name)

    def quit(self):
        """An orderly end; anything but exit code 0 fails the test."""
        self.command("quit")
        code = self.process.wait(COMMAND_SECONDS)
        self.test.record.append(self.output())
        self.test.assertEqual(code, 0, f"exit code of {self.program}")

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


class MachineWithoutSystem(Daemon):
    """qemu-system-x86_64 whose guest is its firmware, with one disk: the node disk0."""

    program = "qemu-system-x86_64"
    monitor_words = ("-mon", "chardev=mon,mode=control")

    def __init__(self, test, disk, *options, name="machine"):
        super().__init__(test, "-nodefaults", "-display", "none", "-machine", "q35", "-m", "32",
                         "-blockdev", json.dumps(disk), "-device", "virtio-blk-pci,drive=disk0,id=vd0",
                         *options, name=name)

    def io(self, command):
        """As the guest would; returns what qemu-io says."""
        return self.command("human-monitor-command", command_line=
                            f'qemu-io -d /machine/peripheral/vd0/virtio-backend "{command}"')


def file_node(path, **more):
    return {"driver": "file", "filename": str(path), **more}


def quick_node(path):
    """Without the host's flush: the daemon may die, the host does not, so nothing is lost; and a test
    does not wait for a disk that it shares with others."""
    return file_node(path, cache={"no-flush": True})


def image_node(path, node, fmt, **more):
    """blockdev-add arguments of an image in a file."""
    return {"driver": fmt, "node_name": node, "file": quick_node(path), **more}


def serve(test, image, fmt, *, name="daemon", socket="nbd.sock", cache=None, aio=None,
          iothread=False, **more):
    """A daemon that exports one image; returns it and a connection."""
    options = ["--object", "iothread,id=io0"] if iothread else []
    daemon = Daemon(test, *options, name=name)
    protocol = file_node(image, cache={"direct": True}) if cache == "none" else quick_node(image)
    if aio:
        protocol["aio"] = aio
    daemon.command("blockdev-add", driver=fmt, node_name="disk0", file=protocol, **more)
    client = daemon.export("disk0", socket, **({"iothread": "io0"} if iothread else {}))
    return daemon, client
