# SPDX-License-Identifier: GPL-2.0-or-later
"""What every test of the real programs uses: the programs, a record of what was run, and a few
helpers about files."""

import functools
import hashlib
import json
import os
import pathlib
import re
import resource
import shlex
import signal
import subprocess
import tempfile
import unittest

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent.parent
BIN = pathlib.Path(os.environ.get("FVD_BIN", REPOSITORY / "build" / "bin")).resolve()
FORMAT = os.environ.get("FVD_FORMAT", "fvd")
SANITIZED = bool(os.environ.get("FVD_SANITIZED"))
KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
COMMAND_SECONDS = 240 if SANITIZED else 60
SHOWN_COMMANDS = 8
SHOWN_CHARACTERS = 3000
# What the address sanitizer says of coroutines in general; its findings look otherwise.
SANITIZER_REMARKS = re.compile(
    r"^(?:==\d+==WARNING: ASan .*|False positive error reports may follow"
    r"|For details see https://github.com/google/sanitizers/.*)\n", re.M)


def limit(seconds):
    """Give a test (or a class of tests) a time limit of its own."""
    def mark(thing):
        thing.limit = seconds
        return thing
    return mark


only_fvd = unittest.skipUnless(FORMAT == "fvd", "about FVD itself")


def program(name):
    return str(BIN / name)


@functools.lru_cache(maxsize=None)
def seed():
    """New ground with each commit, the same ground for the same commit."""
    if "FVD_SEED" in os.environ:
        return int(os.environ["FVD_SEED"], 0)
    git = subprocess.run(["git", "-C", str(REPOSITORY), "rev-parse", "--short=8", "HEAD"],
                         stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return int(git.stdout, 16) if git.returncode == 0 else 1


class Ran:
    """A command that has ended."""

    def __init__(self, command, code, out, err):
        self.command, self.code, self.out, self.err = command, code, out, err

    @property
    def text(self):
        return self.out + SANITIZER_REMARKS.sub("", self.err)

    def json(self):
        return json.loads(self.out)

    def describe(self):
        text = self.text
        if len(text) > SHOWN_CHARACTERS:
            text = text[:SHOWN_CHARACTERS] + "\n[...]\n"
        return f"$ {shlex.join(map(str, self.command))}\n{text}exit code {self.code}\n"


def limited(memory):
    """Run in the child before the program starts: no core files, and a bound on memory."""
    def apply():
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        # A sanitizer reserves terabytes of addresses for itself.
        if memory and not SANITIZED:
            resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    return apply


class ImageTest(unittest.TestCase):
    """A test with a scratch directory, which is also the current one, and a record of its commands."""

    maxDiff = 2000

    def setUp(self):
        if "FVD_SCRATCH" in os.environ:
            os.chdir(os.environ["FVD_SCRATCH"])
        else:
            scratch = tempfile.TemporaryDirectory(prefix="fvd-", dir="/var/tmp")
            self.addCleanup(scratch.cleanup)
            self.addCleanup(os.chdir, "/")
            os.chdir(scratch.name)
        self.record = []

    def _formatMessage(self, msg, standard):
        """Every failure shows what was run before it."""
        commands = "\n".join(entry.describe() if isinstance(entry, Ran) else str(entry)
                             for entry in self.record[-SHOWN_COMMANDS:])
        return f"{super()._formatMessage(msg, standard)}\n--- what was run:\n{commands}"

    # ---------------------------------------------------------------- running programs

    def run_program(self, command, expect=0, stdin=None, memory=0, timeout=COMMAND_SECONDS,
                    environment=None):
        """expect: an exit code, several of them, or None when the caller looks at it. A death by
        signal is never expected."""
        command = [str(word) for word in command]
        if memory:
            # The C library gives every thread an arena of 64 MiB of addresses: how many of QEMU's
            # workers start would decide, not what the program asked for.
            environment = dict(environment or {}, MALLOC_ARENA_MAX="1")
        try:
            done = subprocess.run(
                command, input=stdin, stdin=None if stdin is not None else subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=timeout, text=True,
                errors="replace", preexec_fn=limited(memory),
                env=dict(os.environ, **environment) if environment else None)
        except subprocess.TimeoutExpired as late:
            out, err = [(piece or b"").decode(errors="replace") for piece in
                        (late.stdout, late.stderr)]
            self.record.append(Ran(command, "none: still running", out, err))
            self.fail(f"no end within {timeout} seconds")
        ran = Ran(command, done.returncode, done.stdout, done.stderr)
        self.record.append(ran)
        self.assertGreaterEqual(ran.code, 0, "the program died of a signal")
        self.assertNotIn("AddressSanitizer", ran.err)
        self.assertNotIn("runtime error:", ran.err)
        if expect is not None:
            codes = expect if isinstance(expect, tuple) else (expect,)
            self.assertIn(ran.code, codes, "exit code")
        return ran

    def img(self, *words, **how):
        return self.run_program([program("qemu-img"), *words], **how)

    def io(self, image, *commands, expect=0, options=(), fmt=FORMAT, **how):
        words = [program("qemu-io"), *(["-f", fmt] if fmt else []), *options]
        for command in commands:
            words += ["-c", command]
        return self.run_program([*words, image], expect=expect, **how)

    def io_script(self, image, lines, options=(), fmt=FORMAT, **how):
        """Many commands through one qemu-io; any complaint is a failure."""
        ran = self.run_program(
            [program("qemu-io"), *(["-f", fmt] if fmt else []), *options, image],
            stdin="\n".join([*lines, "quit"]) + "\n", **how)
        self.assert_no_complaint(ran)
        return ran

    def assert_no_complaint(self, ran):
        complaint = re.search(r"[^>\n]*(?:failed|rror|mismatch|not found|invalid).*", ran.text)
        self.assertIsNone(complaint, complaint and complaint[0])

    # ---------------------------------------------------------------- images

    def create(self, name, size=None, options=(), base=None, base_fmt=None, fmt=FORMAT, **how):
        words = ["create", "-q", "-f", fmt]
        if base is not None:
            words += ["-b", base, "-F", base_fmt]
        for option in options:
            words += ["-o", option]
        words.append(name)
        if size is not None:
            words.append(size)
        return self.img(*words, **how)

    def info(self, name, fmt=FORMAT, **how):
        return self.img("info", "-f", fmt, "--output=json", name, **how).json()

    def specific(self, name):
        return self.info(name)["format-specific"]["data"]

    def map(self, name, fmt=FORMAT):
        return self.img("map", "-f", fmt, "--output=json", name).json()

    def check(self, name, *options, expect=0, fmt=FORMAT):
        return self.img("check", "-f", fmt, *options, name, expect=expect)

    def assert_same(self, one, one_fmt, other, other_fmt):
        self.img("compare", "-f", one_fmt, "-F", other_fmt, one, other)

    def assert_reads(self, name, content, fmt=FORMAT):
        """The guest sees exactly these bytes."""
        write_file("expected.raw", content)
        self.assertEqual(self.info(name, fmt)["virtual-size"], len(content))
        self.assert_same(name, fmt, "expected.raw", "raw")

    def assert_unchanged(self, before):
        """before: result of digests()."""
        for name, digest in before.items():
            self.assertEqual(digest, digest_of(name), f"{name} was written to")


def digest_of(name):
    with open(name, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digests(*names):
    return {name: digest_of(name) for name in names}


def write_file(name, content):
    """Sparse where the content is zero."""
    with open(name, "wb") as file:
        file.truncate(len(content))
        step, zeros = 4096, bytes(4096)
        for offset in range(0, len(content), step):
            piece = content[offset:offset + step]
            if piece != zeros[:len(piece)]:
                file.seek(offset)
                file.write(piece)


def read_file(name):
    return pathlib.Path(name).read_bytes()


def truncate(name, size):
    with open(name, "ab") as file:
        file.truncate(size)


def allocated(name):
    return os.stat(name).st_blocks * 512


def patterned(runs, size):
    """Bytes made of (offset, length, value) runs on zeros."""
    content = bytearray(size)
    for offset, length, value in runs:
        content[offset:offset + length] = bytes([value]) * length
    return bytes(content)


def kill(process):
    """The power cut of a program."""
    process.send_signal(signal.SIGKILL)
    process.wait()
