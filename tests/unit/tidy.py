#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The house rules that a program can check, one test case a rule (TAP).

Only files that git knows are looked at, so that a half-written file of somebody else fails nobody."""

import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
MAX_COLUMNS = 100
MAX_FUNCTION_LINES = 70

CPP = {".cc", ".h"}
PROGRAMS = CPP | {".c", ".py", ".sh"}

# Rooms of the core from low to high; a file includes from its own room and from lower ones.
ROOMS = [("base", ("include/fvd/base/", "block/base/")),
         ("format", ("include/fvd/format/", "block/format/")),
         ("engine", ("include/fvd/engine/", "include/fvd/fvd.h", "block/engine/")),
         ("verbs", ("include/fvd/verbs.h", "qemu-img/"))]

# The C ABI is the one place in the engine that knows the verbs.
EXCEPTIONS = {"block/engine/c_api.cc": 3}

# All that the core takes from its surroundings. No clock, thread, file, environment or randomness:
# those come from the Host.
ALLOWED_HEADERS = set("""
    algorithm array atomic bit cerrno cinttypes cmath compare cstddef cstdint cstring iterator new optional
    span string_view type_traits utility stdbool.h stddef.h stdint.h isa-l/crc.h
    cstdarg cstdio cstdlib
    """.split())
FORBIDDEN_CALLS = re.compile(
    r"\b(fopen|open|fprintf|printf|puts|getenv|system|popen|exec\w*|fork|rand|srand|time|clock|malloc"
    r"|calloc|realloc|free|abort|exit)\s*\(")
FORBIDDEN_WORDS = re.compile(r"\b(try|catch|throw|dynamic_cast|typeid|goto|thread_local)\b")
# Where the last words of a process are printed.
MAY_ABORT = {"block/base/assert.cc"}


def tracked():
    try:
        out = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True,
                             check=True).stdout
        files = [ROOT / line for line in out.splitlines()]
    except (OSError, subprocess.CalledProcessError):  # an unpacked archive
        files = [path for path in ROOT.rglob("*") if "build" not in path.parts]
    return sorted(path for path in files if path.is_file() and not path.is_symlink())


def name(path):
    return path.relative_to(ROOT).as_posix()


def text(path):
    return path.read_text(encoding="utf-8", errors="replace")


def room_of(file):
    for rank, (_, prefixes) in enumerate(ROOMS):
        if file.startswith(prefixes):
            return rank
    return None


def blank(match):
    """Spaces in place of a comment or string, lines kept."""
    return re.sub(r"[^\n]", " ", match.group(0))


def without_comments(source):
    return re.sub(r'R"\((?s:.*?)\)"|//[^\n]*|/\*(?s:.*?)\*/|"(?:\\.|[^"\\\n])*"'
                  r"|(?<![0-9a-fA-F])'(?:\\.|[^'\\\n])+'", blank, source)


def closing(code, at):
    """Where the brace that opens at @at closes."""
    depth = 0
    for match in re.finditer("[{}]", code[at:]):
        depth += 1 if match.group() == "{" else -1
        if depth == 0:
            return at + match.start()
    return len(code) - 1


def functions(source):
    """(line, lines) of the bodies of functions, lambdas inside them not counted apart."""
    code = re.sub(r"^[ \t]*#(?:.*\\\n)*.*$", blank, without_comments(source), flags=re.MULTILINE)
    parentheses = 0
    head = at = 0  # head: where the declaration begins that a brace ends
    while at < len(code):
        char = code[at]
        parentheses += {"(": 1, ")": -1}.get(char, 0)
        if char == "{" and parentheses == 0:
            before = code[head:at]
            if re.search(r"\b(namespace|class|struct|union|enum|extern)\b[^()]*$", before):
                head = at + 1  # a scope: look inside
            else:
                end = closing(code, at)
                if ")" in before and "=" not in before.rsplit(")", 1)[1]:
                    yield code.count("\n", 0, at) + 1, code.count("\n", at, end) + 1
                at = end
                head = at + 1
        elif char in ";}" and parentheses == 0:
            head = at + 1
        at += 1


def check_licence(files):
    for path in files:
        first = text(path)[:200] if path.suffix in PROGRAMS or path.name == "meson.build" else None
        if first is not None and "SPDX-License-Identifier: GPL-2.0-or-later" not in first:
            yield f"{name(path)}: no SPDX-License-Identifier in its first lines"


def check_columns(files):
    for path in files:
        core = name(path).startswith(("include/", "block/", "qemu-img/", "tests/unit/"))
        if core and path.suffix in CPP | {".c"}:
            for number, line in enumerate(text(path).splitlines(), 1):
                if len(line) > MAX_COLUMNS:
                    yield f"{name(path)}:{number}: {len(line)} columns, at most {MAX_COLUMNS}"


def check_blanks(files):
    for path in files:
        if path.suffix in PROGRAMS:
            content = text(path)
            if not content.endswith("\n"):
                yield f"{name(path)}: no newline at the end"
            for number, line in enumerate(content.splitlines(), 1):
                if line != line.rstrip() or "\t" in line:
                    yield f"{name(path)}:{number}: a tab, or blanks at the end"


def check_function_length(files):
    for path in files:
        if path.suffix in CPP | {".c"}:
            for line, lines in functions(text(path)):
                if lines > MAX_FUNCTION_LINES:
                    yield f"{name(path)}:{line}: a function of {lines} lines, at most " \
                          f"{MAX_FUNCTION_LINES}"


def check_headers_once(files):
    for path in files:
        if path.suffix == ".h" and name(path).startswith("include/"):
            content = text(path)
            if "#pragma once" not in content and not re.search(r"#ifndef \w+_H\n#define", content):
                yield f"{name(path)}: neither #pragma once nor a guard"


def check_arrows(files):
    for path in files:
        file = name(path)
        rank = EXCEPTIONS.get(file, room_of(file))
        if rank is None:
            continue
        for included in re.findall(r'#include "([^"]+)"', text(path)):
            target = room_of("include/" + included)
            if target is None or target > rank:
                yield f"{file} ({ROOMS[rank][0]}) includes {included}"


def check_system_headers(files):
    for path in files:
        if room_of(name(path)) is not None:
            for included in re.findall(r"#include <([^>]+)>", text(path)):
                if included not in ALLOWED_HEADERS:
                    yield f"{name(path)} includes <{included}>"


def check_calls(files):
    for path in files:
        file = name(path)
        if room_of(file) is None or file in MAY_ABORT or path.suffix not in CPP:
            continue
        for number, line in enumerate(without_comments(text(path)).splitlines(), 1):
            # Members of the same name, and declarations of them, are somebody else's.
            call = FORBIDDEN_CALLS.search(line)
            own = call and re.search(r"(\.|->|\w\s+|Status |~)" + call.group(1) + r"\s*\($",
                                     line[:call.end()])
            if (call and not own) or FORBIDDEN_WORDS.search(line):
                yield f"{file}:{number}: {line.strip()}"


def check_sources_are_built(files):
    listed = text(ROOT / "meson.build")
    for path in files:
        if path.suffix == ".cc" and room_of(name(path)) is not None and \
                f"'{name(path)}'" not in listed:
            yield f"meson.build does not list {name(path)}"


RULES = [("every source file carries its licence", check_licence),
         (f"no line of the core is longer than {MAX_COLUMNS} columns", check_columns),
         ("no tabs, no blanks at the end of lines", check_blanks),
         (f"no function is longer than {MAX_FUNCTION_LINES} lines", check_function_length),
         ("headers can be included twice", check_headers_once),
         ("includes point downwards: verbs, engine, format, base", check_arrows),
         ("the core includes only what it may", check_system_headers),
         ("the core calls nothing but its Host, and throws nothing", check_calls),
         ("every source file of the core is built", check_sources_are_built)]


def main():
    files = tracked()
    print(f"1..{len(RULES)}")
    failed = False
    for number, (title, rule) in enumerate(RULES, 1):
        complaints = list(rule(files))
        failed |= bool(complaints)
        print(f"{'not ok' if complaints else 'ok'} {number} - {title}")
        for complaint in complaints:
            print(f"# {complaint}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
