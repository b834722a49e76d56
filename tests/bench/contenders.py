# SPDX-License-Identifier: GPL-2.0-or-later
"""The image formats that are compared, and how their images are made."""

import dataclasses
import os
import pathlib
import shutil
import subprocess

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent.parent
BIN = pathlib.Path(os.environ.get("FVD_BIN", REPOSITORY / "build" / "bin")).resolve()
# Under build/, not /tmp, which may be a tmpfs: no disk, no O_DIRECT.
SCRATCH = pathlib.Path(os.environ.get("FVD_BENCH_DIR", REPOSITORY / "build" / "bench")).resolve()
KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40


def program(name):
    return str(BIN / name)


@dataclasses.dataclass(frozen=True)
class Contender:
    name: str
    format: str
    options: str = ""
    separate_data: bool = False
    note: str = ""

    def paths(self, path):
        """Every file of the image at path."""
        return [path, path.with_suffix(".data")] if self.separate_data else [path]


RAW = Contender("raw", "raw", note="a sparse file, without base")
QCOW2 = Contender("qcow2", "qcow2", note="all defaults")
# 128 KiB: its subclusters are then 4 KiB, the size of the guest's writes.
QCOW2_EXTENDED = Contender("qcow2 ext-l2", "qcow2", "extended_l2=on,cluster_size=128k",
                           note="`extended_l2=on,cluster_size=128k`: subclusters of 4 KiB")
QCOW2_LAZY = Contender("qcow2 lazy", "qcow2", "lazy_refcounts=on", note="`lazy_refcounts=on`")
QED = Contender("qed", "qed", note="all defaults")
FVD = Contender("fvd", "fvd", note="all defaults, one file")
FVD_DATA = Contender("fvd +data", "fvd", separate_data=True, note="guest data in a `data_file`")
ALL = [RAW, QCOW2, QCOW2_EXTENDED, QCOW2_LAZY, QED, FVD, FVD_DATA]
MAIN = [RAW, QCOW2, QED, FVD, FVD_DATA]


def can_create(format_name):
    """The programs know the format, and not only by name."""
    command = [program("qemu-img"), "create", "-f", format_name, "-o", "help", "x", "1M"]
    return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


def create(contender, path, size, base=None):
    """A fresh image of a raw base, or of nothing. raw has no base: it gets a sparse file."""
    options = [contender.options] if contender.options else []
    if contender.separate_data:
        options.append(f"data_file={path.with_suffix('.data')},data_file_fmt=raw")
    command = [program("qemu-img"), "create", "-q", "-f", contender.format]
    if options:
        command += ["-o", ",".join(options)]
    if base and contender.format != "raw":
        command += ["-b", str(base), "-F", "raw"]
    remove(contender, path)
    subprocess.run(command + [str(path), str(size)], check=True, stdout=subprocess.DEVNULL)
    settle(contender, path)
    return path


def settle(contender, path):
    """What creating left in the page cache is not to be paid for in what is measured."""
    for file in contender.paths(path):
        if file.exists():
            with open(file, "rb") as opened:
                os.fsync(opened.fileno())


def remove(contender, path):
    for file in contender.paths(path):
        file.unlink(missing_ok=True)


def make_base(path, size, step=None, length=None):
    """A raw file that has data everywhere, or `length` bytes of it every `step` bytes."""
    step, length = step or 4 * MIB, length or step or 4 * MIB
    piece = os.urandom(64 * KIB) * max(1, length // (64 * KIB))
    with open(path, "wb") as file:
        file.truncate(size)
        for offset in range(0, size, step):
            file.seek(offset)
            file.write(piece[:min(length, size - offset)])
        file.flush()
        os.fsync(file.fileno())
    return path


def clear_scratch():
    shutil.rmtree(SCRATCH, ignore_errors=True)
    SCRATCH.mkdir(parents=True)
