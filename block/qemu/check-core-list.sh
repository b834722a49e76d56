#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# Fails when block/qemu/meson.build does not list exactly the core's source files.
set -eu
here=$(cd "$(dirname "$0")" && pwd -P)
repo=$here/../..

listed() { sed -n "s/^ *'\([a-z]*\/[^']*\.cc\)',.*/\1/p" "$here/meson.build" | sort; }
present() {
    for room in base:block/base format:block/format engine:block/engine verbs:qemu-img; do
        for file in "$repo/${room#*:}"/*.cc; do
            [ ! -e "$file" ] || echo "${room%%:*}/${file##*/}"
        done
    done | sort
}

if [ "$(listed)" != "$(present)" ]; then
    echo "block/qemu/meson.build does not list the core's files as they are:" >&2
    { listed; present; } | sort | uniq -u | while read -r file; do
        if listed | grep -qxF "$file"; then
            echo "  listed but missing: $file" >&2
        else
            echo "  add the line:         '$file'," >&2
        fi
    done
    exit 1
fi
