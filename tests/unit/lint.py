#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs clang-tidy or clang-format over the sources of the core, one test case a file (TAP).

    lint.py clang-tidy|clang-format

Skipped as a whole where the tool is not installed."""

import concurrent.futures
import os
import shutil
import subprocess
import sys

import tidy

FLAGS = ["-std=c++20", "-fno-exceptions", "-fno-rtti", "-Iinclude", "-Itests/unit"]

# The C ABI keeps the pointers of C.
OTHER_STYLE = {"include/fvd/fvd.h"}


def wanted(tool):
    """clang-tidy sees headers through the sources that include them."""
    for path in tidy.tracked():
        file = tidy.name(path)
        core = tidy.room_of(file) is not None
        if tool == "clang-tidy" and core and path.suffix == ".cc":
            yield file
        if tool == "clang-format" and path.suffix in tidy.CPP and file not in OTHER_STYLE and \
                (core or file.startswith(("tests/unit/", "tests/sim/", "tests/threads/",
                                         "tests/fuzz/"))):
            yield file


def command(tool, file):
    if tool == "clang-tidy":
        return [tool, "--quiet", file, "--"] + FLAGS
    return [tool, "--dry-run", "--Werror", file]


def complaints(tool, file):
    done = subprocess.run(command(tool, file), cwd=tidy.ROOT, capture_output=True, text=True)
    return (done.stdout + done.stderr).strip() if done.returncode else ""


def main():
    tool = sys.argv[1]
    if shutil.which(tool) is None:
        print(f"1..0 # SKIP {tool} is not installed")
        return 0
    files = list(wanted(tool))
    print(f"1..{len(files)}")
    failed = False
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        outcomes = pool.map(lambda file: complaints(tool, file), files)
        for number, (file, text) in enumerate(zip(files, outcomes), 1):
            failed |= bool(text)
            print(f"{'not ok' if text else 'ok'} {number} - {tool} {file}", flush=True)
            for line in text.splitlines():
                print(f"# {line}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
