#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Teach a QEMU 10.0 source tree the FVD block driver.

The driver itself is linked into the tree as block/fvd; what QEMU's own files must say about it is
described in hooks.toml: for each insertion the file, the place (fragments of a line that stand next
to it) and our text. Nothing of QEMU's is replaced or removed, so a hook that still finds its place
is a hook that still means the same.

With --pristine DIR every hooked file is made anew from the pristine tree and written only if it
differs, so that a changed hook rebuilds what depends on it and nothing else. Without it the hooks
are inserted in place; a hook whose text already stands at its place is left alone.
"""

import argparse
import os
import re
import shutil
import sys
import tomllib

HERE = os.path.dirname(os.path.realpath(__file__))
REPO = os.path.dirname(HERE)

# Where an anchor's second and later fragments may be looked for. Far enough for the longest list of
# QEMU's schema, near enough that a hook cannot slip into the next definition unnoticed.
FORWARD_LINES = 120

# block/fvd in QEMU's tree: a real directory with links into this repository, so that an edited file
# is rebuilt at once and QEMU's own rules about directories (trace-events, include paths) hold.
LINKS = {
    "include": "include",
    "base": "block/base",
    "format": "block/format",
    "engine": "block/engine",
    "verbs": "qemu-img",
    "qemu": "block/qemu",
    "meson.build": "block/qemu/meson.build",
}

# Files that are wholly ours and have to stand inside QEMU's tree.
ADDED_FILES = {
    "configs/devices/x86_64-softmmu/fvd.mak": "qemu/devices.mak",
}


class HookError(Exception):
    """A hook does not fit the tree: says the file and the anchor."""


class NotApplied(Exception):
    """Hooks that fit the tree and are not in it."""


def shown(fragment):
    return fragment.strip("\n").replace("\n", "\\n")


def find_anchor(file, text, fragments):
    """The span of the last of `fragments`; the first must be unique, the others follow it closely."""
    first = fragments[0]
    found = text.count(first)
    if found != 1:
        where = "not found" if found == 0 else f"found {found} times, expected once"
        raise HookError(f"{file}: anchor '{shown(first)}' {where}")
    start = text.index(first)
    end = start + len(first)
    limit = start
    for _ in range(FORWARD_LINES):
        limit = text.find("\n", limit) + 1
        if limit == 0:
            limit = len(text)
            break
    for fragment in fragments[1:]:
        start = text.find(fragment, end, limit)
        if start < 0:
            raise HookError(f"{file}: anchor '{shown(fragment)}' not found within {FORWARD_LINES}"
                            f" lines after '{shown(first)}'")
        end = start + len(fragment)
    return start, end


def insert(file, text, hook):
    """`text` with the hook in it, and whether that changed anything."""
    new = hook["text"]
    side = "after" if "after" in hook else "before"
    start, end = find_anchor(file, text, hook[side])
    if side == "after":
        if text.startswith(new, end):
            return text, False
        return text[:end] + new + text[end:], True
    if text.endswith(new, 0, start):
        return text, False
    return text[:start] + new + text[start:], True


# A test's own statement of the formats it is for, in bash and in Python. The call may go over lines.
FORMAT_LISTS = re.compile(r"^_supported_fmt [^\n]*$"
                          r"|supported_fmts=\[[^\]]*\]"
                          r"|supported_fmts=\w+\b"
                          r"|^_unsupported_fmt [^\n]*$", re.M)


def name_format(file, text, neighbour):
    """Adds fvd behind `neighbour` in the one list of formats a test declares."""
    lists = [m for m in FORMAT_LISTS.finditer(text) if not m.group().startswith("_unsupported")]
    if len(lists) != 1:
        raise HookError(f"{file}: found {len(lists)} lists of supported formats, expected one")
    declared = lists[0].group()
    if re.search(r"\bfvd\b", declared):
        return text, False
    if declared.startswith("_supported_fmt"):
        pattern, replacement = rf"(?<=\s){neighbour}(?=\s|$)", f"{neighbour} fvd"
    else:
        pattern, replacement = rf"'{neighbour}'", f"'{neighbour}', 'fvd'"
    changed, count = re.subn(pattern, replacement, declared, count=1)
    if count != 1:
        raise HookError(f"{file}: '{neighbour}' is not among the formats it declares: {declared}")
    return text[:lists[0].start()] + changed + text[lists[0].end():], True


def load_hooks():
    """hooks.toml as a list of {file, why, after|before, text} in the order they are applied."""
    with open(os.path.join(HERE, "hooks.toml"), "rb") as f:
        doc = tomllib.load(f)
    hooks = []
    for hook in doc["hook"]:
        name = f"hooks.toml: hook for {hook.get('file', '?')}"
        unknown = set(hook) - {"file", "why", "after", "before", "text", "snippet"}
        if unknown:
            raise HookError(f"{name}: unknown key {', '.join(sorted(unknown))}")
        if ("after" in hook) == ("before" in hook) or ("text" in hook) == ("snippet" in hook):
            raise HookError(f"{name}: needs one of after/before and one of text/snippet")
        if "snippet" in hook:
            with open(os.path.join(HERE, "snippets", hook["snippet"]), encoding="utf-8") as f:
                hook["text"] = f.read()
        hooks.append(hook)
    iotests = [(f"tests/qemu-iotests/{test}", neighbour)
               for neighbour, tests in doc.get("iotests-formats", {}).items() for test in tests]
    return hooks, iotests


def read(path):
    try:
        with open(path, encoding="utf-8") as f:
            return f.read()
    except FileNotFoundError:
        return None


def hooked_texts(source):
    """For each file our hooks touch: its text with the hooks in it, and how many were missing."""
    hooks, iotests = load_hooks()
    texts, missing, errors = {}, {}, []

    def apply(file, step):
        if file not in texts:
            texts[file] = read(os.path.join(source, file))
            missing[file] = 0
        if texts[file] is None:
            errors.append(f"{file}: no such file in {source}")
            return
        try:
            texts[file], changed = step(texts[file])
            missing[file] += changed
        except HookError as e:
            errors.append(str(e))

    for hook in hooks:
        apply(hook["file"], lambda text, hook=hook: insert(hook["file"], text, hook))
    for file, neighbour in iotests:
        apply(file, lambda text, file=file, n=neighbour: name_format(file, text, n))
    if errors:
        raise HookError("\n".join(errors))
    return texts, missing


def write_if_changed(path, text, like=None):
    """Writes `text`; a file that already says it keeps its time, so nothing is rebuilt for it."""
    if read(path) == text:
        return False
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = path + ".fvd-new"
    with open(temporary, "w", encoding="utf-8") as f:
        f.write(text)
    if like:
        shutil.copymode(like, temporary)
    os.replace(temporary, path)
    return True


def link_driver(tree):
    directory = os.path.join(tree, "block/fvd")
    os.makedirs(directory, exist_ok=True)
    for name, target in LINKS.items():
        path = os.path.join(directory, name)
        target = os.path.relpath(os.path.join(REPO, target), os.path.realpath(directory))
        if os.path.islink(path) and os.readlink(path) == target:
            continue
        if os.path.lexists(path):
            os.remove(path)
        os.symlink(target, path)


def recorded(path):
    return set((read(path) or "").split("\n")) - {""}


def check(tree):
    _, missing = hooked_texts(tree)
    wanting = [f"{file}: {n} hook{'s' if n > 1 else ''} not applied" for file, n in missing.items() if n]
    wanting += [f"block/fvd/{name}: not linked to this repository" for name in LINKS
                if not os.path.exists(os.path.join(tree, "block/fvd", name))]
    wanting += [f"{file}: differs from {ours}" for file, ours in ADDED_FILES.items()
                if read(os.path.join(tree, file)) != read(os.path.join(REPO, ours))]
    if wanting:
        raise NotApplied("\n".join(wanting))
    print(f"{tree}: all hooks are in place")


def apply(tree, pristine):
    source = pristine or tree
    texts, _ = hooked_texts(source)
    for file, ours in ADDED_FILES.items():
        texts[file] = read(os.path.join(REPO, ours))
    changed = [file for file, text in texts.items()
               if write_if_changed(os.path.join(tree, file), text, like=os.path.join(source, file)
                                   if os.path.exists(os.path.join(source, file)) else None)]
    record = os.path.join(tree, ".fvd-hooked-files")
    if pristine:
        # A file that is hooked no more goes back to what it was.
        for file in sorted(recorded(record) - set(texts)):
            original = read(os.path.join(pristine, file))
            if original is None:
                os.remove(os.path.join(tree, file))
            else:
                write_if_changed(os.path.join(tree, file), original, like=os.path.join(pristine, file))
            changed.append(file)
    write_if_changed(record, "".join(f"{file}\n" for file in sorted(texts)))
    link_driver(tree)
    print(f"{tree}: {len(texts)} files hooked, {len(changed)} of them changed now")


def main():
    parser = argparse.ArgumentParser(description="Insert FVD's hooks into a QEMU 10.0 source tree.")
    parser.add_argument("tree", help="the QEMU source tree to change")
    parser.add_argument("--pristine", metavar="DIR", help="unchanged copy of the same tree to start from")
    parser.add_argument("--check", action="store_true", help="change nothing, say whether all hooks are in")
    args = parser.parse_args()
    try:
        if args.check:
            check(args.tree)
        else:
            apply(args.tree, args.pristine)
    except (HookError, NotApplied) as e:
        for line in str(e).split("\n"):
            print(f"apply-hooks: {line}", file=sys.stderr)
        if isinstance(e, NotApplied):
            print("apply-hooks: without --check they are inserted; ./configure does so", file=sys.stderr)
            return 1
        print("apply-hooks: this QEMU tree is not one these hooks were written for (10.0.x expected), or"
              " already changed otherwise;\n             the hooks are in qemu/hooks.toml", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
