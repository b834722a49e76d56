#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Prints the mirror, and the keyring that verifies it, from which this machine takes a release of
Debian: what apt itself says it uses, and the Signed-By of that entry in either form of sources."""

import pathlib
import re
import subprocess
import sys

SOURCES = pathlib.Path("/etc/apt")


def mirror_of(release):
    """apt's own answer, so that every form of sources it can read is understood."""
    targets = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)",
         "Created-By: Packages"], check=True, stdout=subprocess.PIPE, text=True).stdout
    for line in targets.splitlines():
        uri, suite, component = line.split()[:3]
        if (suite, component) == (release, "main"):
            return uri.rstrip("/")
    return None


def stanzas(text):
    """The paragraphs of a deb822 file as dictionaries with lower-case keys."""
    text = re.sub(r"^#.*\n", "", text, flags=re.M)
    for paragraph in re.split(r"\n\s*\n", text):
        fields = re.findall(r"^([\w-]+):[ \t]*(.*(?:\n[ \t].*)*)", paragraph, flags=re.M)
        yield {key.lower(): value.strip() for key, value in fields}


def signed_by(mirror, release):
    """The Signed-By of the entry: a path, the text of a key, or None (apt's trusted keys)."""
    for path in sorted([*SOURCES.glob("*.list"), *SOURCES.glob("sources.list.d/*.list")]):
        for line in path.read_text().splitlines():
            entry = re.match(r"\s*deb\s+(?:\[(.*?)\]\s+)?(\S+)\s+(\S+)", line)
            if entry and (entry[2].rstrip("/"), entry[3]) == (mirror, release):
                key = re.search(r"signed-by=(\S+)", entry[1] or "")
                return key and key[1]
    for path in sorted(SOURCES.glob("sources.list.d/*.sources")):
        for stanza in stanzas(path.read_text()):
            uris = [uri.rstrip("/") for uri in stanza.get("uris", "").split()]
            if mirror in uris and release in stanza.get("suites", "").split():
                return stanza.get("signed-by")
    return None


def main():
    release, directory = sys.argv[1:]
    mirror = mirror_of(release)
    if not mirror:
        return 1
    key = signed_by(mirror, release)
    if key and "\n" in key:
        # A key in the sources themselves: a leading blank, and a dot for an empty line.
        lines = [line.strip() for line in key.splitlines()]
        path = pathlib.Path(directory) / "mirror-key.asc"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join("" if line == "." else line for line in lines) + "\n")
        key = str(path)
    print(mirror, (key or "").split(",")[0])
    return 0


if __name__ == "__main__":
    sys.exit(main())
