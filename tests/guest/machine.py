# SPDX-License-Identifier: GPL-2.0-or-later
"""The programs of build/bin as the guest's tests use them: a virtual machine whose console
is read line by line, an NBD server, and qemu-img."""

import os
import pathlib
import re
import selectors
import shlex
import signal
import socket
import subprocess
import time

from make_guest import GuestError, ensure_unpacked

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent.parent
# The same words that the other tests of the real programs listen to.
BIN = pathlib.Path(os.environ.get("FVD_BIN", REPOSITORY / "build/bin"))
FORMAT = os.environ.get("FVD_FORMAT", "fvd")
MEMORY_MIB = 256
# Emulated, and perhaps beside a compiler that takes both cores: generous on purpose.
BOOT_SECONDS = 240
WRITE_SECONDS = 240
TOOL_SECONDS = 300
# Any of these on the console means that the guest met a disk or a kernel gone wrong.
ALARMS = re.compile(r"EXT4-fs (error|warning)|I/O error|Kernel panic|JBD2: .*(error|fail)|"
                    r"BUG:|Oops|blocked for more than|@@ FAILED|e2fsck: ")
KERNEL_WORDS = ["console=ttyS0", "root=/dev/vda", "quiet", "loglevel=4", "panic=-1",
                "mitigations=off", "nokaslr", "random.trust_cpu=on", "no_timer_check",
                "tsc=reliable", "hung_task_panic=1"]


def program(name):
    path = BIN / name
    if not os.access(path, os.X_OK):
        raise GuestError(f"{path} is not there; build it with `make`")
    return str(path)


def spoken(command):
    """A command as a person would type it in the repository."""
    words = [str(word).replace(f"{REPOSITORY}/", "") for word in command]
    return " ".join(shlex.quote(word) for word in words)


def bound_to_us(command):
    """Children die with us even if we are killed ourselves and can clean up nothing."""
    return ["setpriv", "--pdeathsig", "KILL", "--"] + [str(word) for word in command]


def qemu_img(*words, accept=(0,)):
    """Runs qemu-img and gives back what it printed."""
    command = [program("qemu-img")] + [str(word) for word in words]
    try:
        done = subprocess.run(bound_to_us(command), timeout=TOOL_SECONDS, check=False, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    except subprocess.TimeoutExpired:
        raise GuestError(f"{spoken(command)} did not finish in {TOOL_SECONDS} s") from None
    if done.returncode not in accept:
        raise GuestError(f"{spoken(command)} ended with code {done.returncode}:\n{done.stdout}")
    return done.stdout


def check_image(image):
    """qemu-img check must find no fault; other formats may leak space at a power cut (code 3),
    FVD has nothing to leak."""
    return qemu_img("check", "-f", FORMAT, image, accept=(0,) if FORMAT == "fvd" else (0, 3))


def end_process(process):
    """SIGTERM for a polite end, SIGKILL for a deaf one."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()


class NbdServer:
    """qemu-nbd serving a raw file read-only on a unix socket, as long as the block lasts."""

    def __init__(self, file, path):
        self.socket = pathlib.Path(path)
        self.uri = f"nbd+unix:///?socket={path}"
        self.command = self.words(file)

    def words(self, file):
        return [program("qemu-nbd"), "--read-only", "--persistent", "--shared=0",
                "-f", "raw", "-k", str(self.socket), str(file)]

    def __enter__(self):
        self.process = subprocess.Popen(bound_to_us(self.command), start_new_session=True,
                                        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                        stderr=subprocess.PIPE, text=True)
        try:
            self.wait_for_socket()
        except BaseException:
            self.__exit__()
            raise
        return self

    def wait_for_socket(self):
        deadline = time.monotonic() + 30
        while not self.socket.exists():
            if self.process.poll() is not None:
                raise GuestError(f"{spoken(self.command)} ended at once:\n"
                                 f"{self.process.stderr.read()}")
            if time.monotonic() > deadline:
                raise GuestError(f"{spoken(self.command)} opened no socket in 30 s")
            time.sleep(0.02)

    def __exit__(self, *_):
        end_process(self.process)
        self.process.stderr.close()
        self.socket.unlink(missing_ok=True)


class FarNbdServer(NbdServer):
    """The same at the end of a link: milliseconds to each answer, and so many bits a second."""

    def __init__(self, file, path, milliseconds, bits_per_second):
        self.delay, self.rate = milliseconds, bits_per_second
        super().__init__(file, path)

    def words(self, file):
        return ["nbdkit", "--foreground", "--readonly", "--threads=32", f"--unix={self.socket}",
                "--filter=delay", "--filter=rate", "file", str(file), f"rdelay={self.delay}ms",
                f"rate={self.rate}"]


class HttpServer:
    """nginx serving a file, ranges of it too, as long as the block lasts."""

    CONFIGURATION = """
        daemon off; master_process off; pid {place}/pid; error_log {place}/errors;
        events {{ }}
        http {{
            access_log {place}/requests;
            client_body_temp_path {place}/1; proxy_temp_path {place}/2; fastcgi_temp_path {place}/3;
            uwsgi_temp_path {place}/4; scgi_temp_path {place}/5;
            server {{ listen 127.0.0.1:{port}; root {root}; }}
        }}
        """

    def __init__(self, file, place):
        self.place = pathlib.Path(place)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}/{file.name}"
        configuration = self.place / "nginx.conf"
        configuration.write_text(self.CONFIGURATION.format(place=place, port=self.port,
                                                           root=file.resolve().parent))
        self.command = [str(ensure_unpacked("nginx", "usr/sbin/nginx")), "-p", str(place),
                        "-c", str(configuration)]

    def __enter__(self):
        self.process = subprocess.Popen(bound_to_us(self.command), start_new_session=True,
                                        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                        stderr=subprocess.DEVNULL)
        try:
            self.wait_until_it_listens()
        except BaseException:
            self.__exit__()
            raise
        return self

    def wait_until_it_listens(self):
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise GuestError(f"{spoken(self.command)} does not serve") from None
                time.sleep(0.02)

    def requests(self):
        """Lines of its log."""
        return (self.place / "requests").read_text().splitlines()

    def __exit__(self, *_):
        end_process(self.process)


class Machine:
    """A running virtual machine. Everything it prints goes to a log; lines that start with
    "@@" are what the guest tells us."""

    def __init__(self, guest, disk, log, guest_words=(), tick=lambda: None):
        self.command = machine_command(guest, disk, guest_words)
        self.log_path = pathlib.Path(log)
        self.tick = tick
        self.pending = b""
        self.tail = []

    def __enter__(self):
        self.log = open(self.log_path, "wb")
        self.process = subprocess.Popen(bound_to_us(self.command), start_new_session=True,
                                        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT)
        os.set_blocking(self.process.stdout.fileno(), False)
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.process.stdout, selectors.EVENT_READ)
        return self

    def __exit__(self, *_):
        end_process(self.process)
        self.selector.close()
        self.process.stdout.close()
        self.log.close()

    def messages(self, seconds):
        """The guest's "@@" lines until the machine ends; no single wait may pass the limit."""
        deadline = time.monotonic() + seconds
        for line in self.lines(deadline):
            if ALARMS.search(line):
                raise GuestError(self.evidence(f"the guest reports: {line}"))
            if line.startswith("@@ "):
                yield line[3:]

    def wait_for(self, wanted, seconds):
        for message in self.messages(seconds):
            if message.startswith(wanted):
                return message
        raise GuestError(self.evidence(f"the machine ended before the guest said '{wanted}'"))

    def lines(self, deadline):
        while True:
            while b"\n" in self.pending:
                raw, self.pending = self.pending.split(b"\n", 1)
                line = raw.decode(errors="replace").strip()
                self.tail = self.tail[-19:] + [line]
                yield line
            if not self.read_more(deadline):
                return

    def read_more(self, deadline):
        """False at the end of the machine's output."""
        while not self.selector.select(timeout=0.5):
            self.tick()
            if time.monotonic() > deadline:
                raise GuestError(self.evidence("the guest did not get on in time"))
        self.tick()
        data = os.read(self.process.stdout.fileno(), 65536)
        self.log.write(data)
        self.log.flush()
        self.pending += data
        return bool(data)

    def evidence(self, what):
        last = "\n".join(f"    | {line}" for line in self.tail)
        return f"{what}\nlast lines of the console (all of it: {self.log_path}):\n{last}"

    def cut_power(self):
        """What the driver had only in memory is gone: nothing is flushed, nothing closed."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def wait_for_power_off(self, seconds):
        for _ in self.messages(seconds):
            pass
        try:
            code = self.process.wait(60)
        except subprocess.TimeoutExpired:
            raise GuestError(self.evidence("QEMU does not end after power off")) from None
        if code != 0:
            raise GuestError(self.evidence(f"QEMU ended with code {code}"))


def machine_command(guest, disk, guest_words):
    command = [program("qemu-system-x86_64"), "-nodefaults", "-display", "none",
               "-machine", "q35", "-cpu", "max", "-smp", "1", "-m", str(MEMORY_MIB)]
    for accelerator in accelerators():
        command += ["-accel", accelerator]
    return command + ["-serial", "stdio", "-no-reboot", "-kernel", str(guest.kernel),
                      "-initrd", str(guest.initrd),
                      "-append", " ".join(KERNEL_WORDS + list(guest_words))] + list(disk)


def accelerators():
    """Emulation is always there; the processor's own help only if we may use it."""
    usable = os.access("/dev/kvm", os.R_OK | os.W_OK)
    return ["kvm", "tcg"] if usable else ["tcg"]


def drive(image, cache, extra=""):
    """The disk the short way. Errors go to the guest, which reports them; QEMU's default for
    a full host disk would be to stop the guest."""
    return ["-drive", f"file={image},format={FORMAT},if=virtio,cache={cache},"
                      f"werror=report,rerror=report{extra}"]


def blockdev(image, cache):
    """The same disk the way that management software says it."""
    direct = "on" if cache == "none" else "off"
    return ["-blockdev", f"driver={FORMAT},node-name=disk,cache.direct={direct},"
                         f"file.driver=file,file.filename={image},file.cache.direct={direct}",
            "-device", "virtio-blk-pci,drive=disk,werror=report,rerror=report"]


def cache_mode(directory):
    """cache=none, as a user runs it, wherever the file system can do direct I/O."""
    probe = pathlib.Path(directory) / ".direct-io"
    try:
        os.close(os.open(probe, os.O_CREAT | os.O_RDWR | os.O_DIRECT, 0o600))
        return "none"
    except OSError:
        return "writeback"
    finally:
        probe.unlink(missing_ok=True)
