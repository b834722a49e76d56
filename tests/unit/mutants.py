#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Flips one condition of block/format/*.cc at a time and asks the unit tests whether they notice.

    mutants.py [--sample N] [FILE...]

Each mutant is one object compiled again and linked with the tests that 'ninja -C build/core' made. A
mutant that all tests pass is a survivor: a case is missing, or the two programs are equal. Those that
are equal stand in mutants-equal.txt, one 'FILE | FLIP | SOURCE LINE | WHY' a line. Ends with
'mutants: N passed, N failed'."""

import argparse
import concurrent.futures
import json
import os
import pathlib
import random
import re
import shlex
import subprocess
import sys
import tempfile

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent.parent
BUILD = REPOSITORY / "build/core"
EQUAL = pathlib.Path(__file__).with_name("mutants-equal.txt")
FLIPS = {"<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "==", "&&": "||", "||": "&&"}
# With blanks around it: an operator, not a bracket of a template.
OPERATOR = re.compile(r"(?<= )(<=|>=|==|!=|&&|\|\||<|>)(?= |$)")
# What is judged while compiling is no business of a test.
NOT_A_CONDITION = re.compile(r"^\s*(#|//|/\*|\*|static_assert|template)")
TIME_LIMIT = 120


def sites(path):
    """(line number, column, operator) of each condition that can be flipped."""
    inside_comment = False
    for number, line in enumerate(path.read_text().splitlines()):
        inside_comment = inside_comment or line.lstrip().startswith("/*")
        if inside_comment or NOT_A_CONDITION.match(line):
            inside_comment = inside_comment and "*/" not in line
            continue
        code = re.sub(r'"(?:[^"\\]|\\.)*"', lambda text: "_" * len(text[0]), line.split("/*")[0])
        for found in OPERATOR.finditer(code):
            yield number, found.start(), found[1]


class Mutant:
    def __init__(self, path, number, column, operator):
        self.path = path
        self.lines = path.read_text().splitlines(keepends=True)
        self.number, self.column, self.operator = number, column, operator
        self.flip = f"{operator} -> {FLIPS[operator]}"

    def source(self):
        line = self.lines[self.number]
        after = line[self.column + len(self.operator):]
        changed = line[:self.column] + FLIPS[self.operator] + after
        return "".join(self.lines[:self.number] + [changed] + self.lines[self.number + 1:])

    def key(self):
        return self.path.name, self.flip, self.lines[self.number].strip()

    def __str__(self):
        return (f"{self.path.relative_to(REPOSITORY)}:{self.number + 1}: {self.flip} at column "
                f"{self.column + 1}: {self.lines[self.number].strip()}")


def compile_command(path):
    """As ninja compiles this source for the core's own library."""
    for entry in json.loads((BUILD / "compile_commands.json").read_text()):
        source = (BUILD / entry["file"]).resolve()
        if source == path and "libfvd-format.a.p" in entry["output"]:
            words = shlex.split(entry["command"])
            return [word for word in words if word not in ("-g", "ccache")], entry["output"]
    sys.exit(f"{path} is no source of the core's format library in {BUILD}")


def judge(mutant):
    """killed, survived, or not compiled."""
    words, output = compile_command(mutant.path)
    with tempfile.TemporaryDirectory() as directory:
        source = pathlib.Path(directory) / mutant.path.name
        program = pathlib.Path(directory) / "tests"
        source.write_text(mutant.source())
        made = pathlib.Path(directory) / "mutant.o"
        del words[words.index("-MF"):words.index("-MF") + 2]
        words[words.index("-o") + 1] = str(made)
        words[words.index("-c") + 1] = str(source)
        words.append(f"-I{mutant.path.parent}")
        words = [word for word in words if word not in ("-MD", "-MQ", output, "-Werror")]
        if subprocess.run(words, cwd=BUILD, capture_output=True).returncode:
            return "not compiled"
        others = [p for p in BUILD.glob("libfvd-format.a.p/*.o") if p != BUILD / output]
        tests = list(BUILD.glob("tests/unit/format-tests.p/*.o"))
        subprocess.run(["c++", *tests, made, *others, "-lgtest_main", "-lgtest", "-lisal",
                        "-lpthread", "-o", program], check=True, capture_output=True)
        try:
            done = subprocess.run(
                [program, "--gtest_fail_fast", "--gtest_brief=1"], capture_output=True,
                timeout=TIME_LIMIT, cwd=directory,
                env={**os.environ, "FVD_FORMAT_DOC": str(REPOSITORY / "docs/format.md")})
        except subprocess.TimeoutExpired:
            return "killed"
        return "killed" if done.returncode else "survived"


def known_equal():
    lines = EQUAL.read_text().splitlines() if EQUAL.exists() else []
    return {tuple(word.strip() for word in line.split(" | ")[:3]) for line in lines
            if line and not line.startswith("#")}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("files", nargs="*", type=pathlib.Path)
    parser.add_argument("--sample", type=int, metavar="N", help="only so many, drawn at random")
    arguments = parser.parse_args()
    files = [path.resolve() for path in arguments.files] or \
        sorted((REPOSITORY / "block/format").glob("*.cc"))
    mutants = [Mutant(path, *site) for path in files for site in sites(path)]
    if arguments.sample:
        mutants = random.sample(mutants, min(arguments.sample, len(mutants)))
    counts = {"killed": 0, "survived": 0, "not compiled": 0, "equal": 0}
    equal = known_equal()
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for mutant, outcome in zip(mutants, pool.map(judge, mutants)):
            if outcome == "survived" and mutant.key() in equal:
                outcome = "equal"
            counts[outcome] += 1
            if outcome == "survived":
                print(f"SURVIVED  {mutant}", flush=True)
    print("mutants of conditions: " + ", ".join(f"{n} {what}" for what, n in counts.items()))
    passed = len(mutants) - counts["survived"]
    print(f"mutants: {passed} passed, {counts['survived']} failed")
    return 1 if counts["survived"] or not mutants else 0


if __name__ == "__main__":
    sys.exit(main())
