# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=bash disable=SC2154,SC2034  # some variables are configure's
# What configure asks of Debian: packages, and files of other releases than the machine's own. The
# machine's apt setup is never changed: other releases are reached through a list in the cache
# directory, from the mirror the machine already uses, verified by the keys it already trusts.

# The packages of packages.txt: one a line, '#' begins a comment, 'a | b' is satisfied by either.
wanted_packages() {
    sed -e 's/#.*//' -e 's/[[:space:]]*$//' -e '/^$/d' \
        "$source"/qemu/packages.txt "$source"/tests/*/packages.txt | sort -u
}

package_installed() {
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

missing_packages() {
    local alternatives name
    wanted_packages | while IFS= read -r alternatives; do
        for name in ${alternatives//|/ }; do
            package_installed "$name" && continue 2
        done
        echo "${alternatives%% *}"
    done
}

install_packages() {
    local missing
    if ! command -v dpkg-query >/dev/null; then
        [ "$quiet" = yes ] || note "not a Debian system: packages are not checked"
        return
    fi
    mapfile -t missing < <(missing_packages)
    [ ${#missing[@]} -gt 0 ] || return 0
    if [ "$install" = no ]; then
        note "missing, not installed (--no-install): ${missing[*]}"
        return
    fi
    [ "$(id -u)" = 0 ] || die "these packages are missing: ${missing[*]}" \
        "as root: apt-get install ${missing[*]}"
    step "Installing ${#missing[@]} packages: ${missing[*]}"
    logged packages apt-get update -q
    DEBIAN_FRONTEND=noninteractive logged packages \
        apt-get install -q -y --no-install-recommends "${missing[@]}" ||
        die "apt-get could not install: ${missing[*]}" "see $logs/packages.log; install them by hand, then run again"
}

# apt with sources, lists and caches of our own.
private_apt() {
    local tool=$1
    shift
    "$tool" -o Dir::Etc::SourceList="$cache/apt/sources.list" -o Dir::Etc::SourceParts=- \
        -o Dir::State::Lists="$cache/apt/lists" -o Dir::Cache="$cache/apt" \
        -o APT::Sandbox::User= -o Acquire::Retries=3 "$@"
}

private_lists_read=no
read_private_lists() {
    local mirror keyring codename options
    [ "$private_lists_read" = no ] || return 0
    command -v apt-get >/dev/null || die "there is no apt-get to fetch QEMU's source with" "$own_tree"
    codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
    mkdir -p "$cache/apt/lists/partial" "$cache/apt/archives/partial"
    read -r mirror keyring < <("$python" "$source/qemu/debian-mirror.py" "$codename" "$cache/apt") ||
        die "apt's configuration names no mirror of Debian '$codename'" "$own_tree"
    options=${keyring:+[signed-by=$keyring] }
    {
        echo "deb-src $options$mirror $qemu_release main"
        [ "$codename" != bookworm ] || echo "deb $options$mirror $codename-backports main"
    } > "$cache/apt/sources.list"
    step "Reading the package lists of Debian $qemu_release"
    logged lists private_apt apt-get update -q ||
        die "the package lists of Debian $qemu_release could not be read" \
            "see $logs/lists.log: is the mirror reachable? Or: $own_tree"
    private_lists_read=yes
}

# Sets pristine: QEMU's source, verified by apt and dpkg-source, in the cache.
fetch_qemu() {
    local version directory
    directory=$(find "$cache" -maxdepth 1 -name "qemu-$qemu_series.*" ! -name '*.part' 2>/dev/null | sort -V | tail -n 1)
    if [ -z "$directory" ]; then
        read_private_lists
        version=$(private_apt apt-cache showsrc qemu | sed -n 's/^Version: //p' |
            grep -E "^([0-9]+:)?${qemu_series//./\\.}\." | sort -V | tail -n 1)
        [ -n "$version" ] || die "Debian $qemu_release has no QEMU $qemu_series" "$own_tree"
        directory=$cache/qemu-${version#*:}
        rm -rf "$directory.part"
        mkdir -p "$directory.part"
        step "Fetching QEMU's source ${version#*:}"
        (cd "$directory.part" && logged fetch private_apt apt-get source -q --download-only "qemu=$version") ||
            die "QEMU's source could not be fetched" "see $logs/fetch.log: is the mirror reachable? Or: $own_tree"
        step "Unpacking it"
        (cd "$directory.part" && logged unpack dpkg-source -x qemu_*.dsc tree) ||
            die "QEMU's source could not be unpacked" "see $logs/unpack.log: is the disk full?"
        mv "$directory.part/tree" "$directory"
        rm -rf "$directory.part"
    fi
    pristine=$directory
}

has_meson() {
    "$1" - "$meson_needed" >/dev/null 2>&1 <<'PYTHON'
import sys
from mesonbuild.coredata import version
def number(v): return [int(part) for part in v.split(".")[:2]]
sys.exit(number(version) < number(sys.argv[1]))
PYTHON
}

# Makes $python an interpreter that has a meson new enough: the machine's, else one in the cache with
# the meson of Debian's backports. An environment rather than a search path in a variable: it holds
# for every program that the builds start, now and when ninja calls meson again.
find_meson() {
    local home=$cache/python unpacked=$cache/python.part
    has_meson "$python" && return
    if ! has_meson "$home/bin/python3"; then
        read_private_lists
        step "Fetching meson"
        rm -rf "$home" "$unpacked"
        mkdir -p "$unpacked"
        {
            (cd "$unpacked" && logged meson private_apt apt-get download -q meson) &&
            logged meson dpkg-deb -x "$unpacked"/meson_*.deb "$unpacked" &&
            logged meson "$python" -m venv --system-site-packages --without-pip "$home" &&
            cp -r "$unpacked"/usr/lib/python3/dist-packages/. "$home"/lib/python3.*/site-packages/ &&
            has_meson "$home/bin/python3"
        } || die "no meson $meson_needed or newer could be fetched" \
            "see $logs/meson.log; or install one that $python can import"
        rm -rf "$unpacked"
    fi
    python=$home/bin/python3
}
