# SPDX-License-Identifier: GPL-2.0-or-later
"""Makes the small Linux guest that the tests and `make demo` boot.

The kernel is Debian's own, the userland is busybox, the root is an ext4 made on the spot.
Everything is downloaded and unpacked into a cache; nothing is installed on the host.
Run by itself, it prints the directory that holds the guest.
"""

import contextlib
import fcntl
import hashlib
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
RECIPE = ["make_guest.py", "guest-packages.txt", "initramfs-init", "root-init"]
DISK_MIB = 256
# What the initramfs must be able to do, by module; those built into the kernel are skipped.
DRIVERS = ["virtio_pci", "virtio_blk", "ext4"]
FIXED_UUID = "6f7664de-0000-4000-8000-67756573740a"
DOWNLOAD_SECONDS = 600
TOOL_SECONDS = 300


class GuestError(Exception):
    """What went wrong and what to do about it, in words for the person at the terminal."""


class Guest:
    """The finished files of a guest."""

    def __init__(self, directory):
        self.directory = pathlib.Path(directory)
        self.kernel = self.directory / "vmlinuz"
        self.initrd = self.directory / "initrd.cpio"
        self.disk = self.directory / "disk.raw"


def cache_directory():
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return pathlib.Path(os.environ.get("QEMU_FVD_CACHE") or os.path.join(home, "qemu-fvd"))


def recipe_key():
    """Names the guest by what it is made from, so that a changed recipe makes a new one."""
    digest = hashlib.sha256()
    for name in RECIPE:
        digest.update(name.encode() + b"\0" + (HERE / name).read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def ensure_guest(say=lambda line: None):
    """The guest from the cache; made first if it is not there."""
    place = cache_directory() / "guest" / recipe_key()
    place.parent.mkdir(parents=True, exist_ok=True)
    with one_maker(place.parent):
        if not place.is_dir():
            with tempfile.TemporaryDirectory(dir=place.parent, prefix="making-") as work:
                make_guest(pathlib.Path(work), say)
                # One rename, so that nobody ever sees half a guest.
                (pathlib.Path(work) / "guest").rename(place)
    return Guest(place)


def ensure_unpacked(package, inside):
    """The path of a program of a Debian package that is not installed: a web server that came with
    a test would go on serving after it."""
    place = cache_directory() / "guest" / f"unpacked-{package}"
    place.parent.mkdir(parents=True, exist_ok=True)
    with one_maker(place.parent):
        if not (place / inside).exists():
            with tempfile.TemporaryDirectory(dir=place.parent, prefix="making-") as work:
                unpack(fetch(package, lambda line: None), pathlib.Path(work) / "tree")
                shutil.rmtree(place, ignore_errors=True)
                (pathlib.Path(work) / "tree").rename(place)
    return place / inside


@contextlib.contextmanager
def one_maker(directory):
    """Tests run side by side; the first makes the guest and the others wait for it."""
    with open(directory / "lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def make_guest(work, say):
    out = work / "guest"
    out.mkdir()
    tree = work / "packages"
    for package in guest_packages():
        unpack(fetch_with_kernel(package, say), tree)
    kernel = only(tree.glob("boot/vmlinuz-*"), "kernel in the kernel package")
    version = kernel.name.removeprefix("vmlinuz-")
    shutil.copyfile(kernel, out / "vmlinuz")
    say(f"initramfs for Linux {version}")
    make_initramfs(tree, version, work / "initramfs", out / "initrd.cpio")
    say(f"ext4 root of {DISK_MIB} MiB")
    make_root(tree, version, out, work / "root")


def guest_packages():
    lines = (HERE / "guest-packages.txt").read_text().splitlines()
    return [line.split("#")[0].strip() for line in lines if line.split("#")[0].strip()]


def only(paths, what):
    found = sorted(paths)
    if len(found) != 1:
        raise GuestError(f"expected exactly one {what}, found {len(found)}; "
                         f"remove {cache_directory() / 'guest'} and try again")
    return found[0]


def run(command, **more):
    """Runs a tool; its own words become the error when it fails."""
    more.setdefault("timeout", TOOL_SECONDS)
    try:
        done = subprocess.run([str(word) for word in command], check=False,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more)
    except FileNotFoundError:
        raise GuestError(f"{command[0]} is not installed; the packages that provide it are "
                         f"listed in {HERE / 'packages.txt'}") from None
    except subprocess.TimeoutExpired as late:
        raise GuestError(f"{command[0]} did not finish in {late.timeout} s") from None
    if done.returncode != 0:
        words = done.stderr.decode(errors="replace").strip()
        raise GuestError(f"{' '.join(map(str, command))} failed: {words}")
    return done.stdout.decode(errors="replace")


# --- packages -------------------------------------------------------------------------------

def fetch_with_kernel(package, say):
    """Downloads a package, or for a kernel's metapackage the kernel it depends on."""
    if package.startswith("linux-image-"):
        refresh_lists_if_unknown(package)
        depends = run(["apt-cache", "depends", package])
        real = re.findall(r"Depends: (linux-image-\S+)", depends)
        if not real:
            raise GuestError(f"apt knows no kernel behind {package}; run apt-get update")
        package = real[0]
    return fetch(package, say)


def refresh_lists_if_unknown(package):
    """A fresh machine has no package lists yet."""
    known = subprocess.run(["apt-cache", "show", package], check=False, timeout=TOOL_SECONDS,
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    if known.returncode != 0:
        run(["apt-get", "update", "-qq"], timeout=DOWNLOAD_SECONDS)


def fetch(package, say):
    """The package's file, out of the cache when it is there; apt checks its signature chain."""
    store = cache_directory() / "guest" / "packages"
    store.mkdir(parents=True, exist_ok=True)
    cached = sorted(store.glob(f"{package}_*.deb"), key=lambda path: path.stat().st_mtime)
    if cached:
        return cached[-1]
    say(f"downloading {package}")
    refresh_lists_if_unknown(package)
    with tempfile.TemporaryDirectory(dir=store, prefix="fetching-") as landing:
        download(package, landing)
        file = only(pathlib.Path(landing).glob("*.deb"), f"package file of {package}")
        return file.rename(store / file.name)


def download(package, landing):
    # apt's unprivileged user may not enter the cache; the file is only stored, not run.
    command = ["apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root", package]
    try:
        run(command, cwd=landing, timeout=DOWNLOAD_SECONDS)
    except GuestError:
        # The lists are older than the archive: the version they name is gone.
        run(["apt-get", "update", "-qq"], timeout=DOWNLOAD_SECONDS)
        try:
            run(command, cwd=landing, timeout=DOWNLOAD_SECONDS)
        except GuestError as error:
            raise GuestError(f"{error}\nThe guest is made of Debian packages: apt must be able "
                             f"to fetch {package}") from None


def unpack(package_file, tree):
    tree.mkdir(exist_ok=True)
    run(["dpkg-deb", "-x", package_file, tree])


# --- initramfs ------------------------------------------------------------------------------

def make_initramfs(tree, version, root, archive):
    for name in ["bin", "dev", "proc", "sys", "root", "modules"]:
        (root / name).mkdir(parents=True)
    install_busybox(tree, root)
    fsck = only(tree.glob("**/sbin/e2fsck.static"), "e2fsck.static")
    shutil.copy(fsck, root / "bin/e2fsck")
    install_script("initramfs-init", root / "init")
    install_modules(tree, version, root / "modules")
    pack_cpio(root, archive)


def install_script(name, place):
    shutil.copyfile(HERE / name, place)
    place.chmod(0o755)


def install_busybox(tree, root):
    """busybox under every name it answers to; links are made here because it is quicker
    than letting an emulated machine make them at each boot."""
    busybox = only(tree.glob("**/bin/busybox"), "busybox")
    shutil.copy(busybox, root / "bin/busybox")
    for applet in run([busybox, "--list"]).split():
        if applet != "busybox":
            (root / "bin" / applet).symlink_to("busybox")


def install_modules(tree, version, place):
    """The drivers' modules, each after those it needs, and a list of that order."""
    base = modules_directory(tree, version)
    files = {module_name(path): path for path in base.glob("kernel/**/*.ko*")}
    order = []
    for driver in DRIVERS:
        if driver not in built_in(base):
            add_with_needs(driver, files, order)
    for name in order:
        (place / f"{name}.ko").write_bytes(module_bytes(files[name]))
    (place / "order").write_text("".join(f"{name}.ko\n" for name in order))


def modules_directory(tree, version):
    return only(tree.glob(f"**/lib/modules/{version}"), f"module directory of {version}")


def module_name(path):
    return pathlib.Path(path).name.split(".ko")[0].replace("-", "_")


def built_in(base):
    return {module_name(line) for line in (base / "modules.builtin").read_text().splitlines()}


def add_with_needs(name, files, order):
    if name in order:
        return
    if name not in files:
        raise GuestError(f"the guest's kernel has no module {name}; "
                         f"choose another kernel in {HERE / 'guest-packages.txt'}")
    needs = re.search(rb"\0depends=([^\0]*)\0", b"\0" + module_bytes(files[name]))
    for need in needs.group(1).decode().split(",") if needs else []:
        if need:
            add_with_needs(need.replace("-", "_"), files, order)
    order.append(name)


def module_bytes(path):
    """Newer Debian kernels compress their modules."""
    if path.suffix == ".xz":
        import lzma
        return lzma.decompress(path.read_bytes())
    return path.read_bytes()


def pack_cpio(root, archive):
    """busybox's own cpio does it, which saves the host a package."""
    names = sorted(str(path.relative_to(root)) for path in root.rglob("*"))
    with open(archive, "wb") as out:
        subprocess.run([str(root / "bin/busybox"), "cpio", "-o", "-H", "newc", "-R", "0:0"],
                       cwd=root, input="\n".join(names).encode() + b"\n", stdout=out,
                       stderr=subprocess.DEVNULL, check=True, timeout=TOOL_SECONDS)


# --- root disk ------------------------------------------------------------------------------

def make_root(tree, version, out, root):
    for name in ["bin", "sbin", "dev", "proc", "sys", "etc", "data", "boot", "lib/modules"]:
        (root / name).mkdir(parents=True)
    install_busybox(tree, root)
    install_script("root-init", root / "sbin/init")
    shutil.copyfile(out / "vmlinuz", root / "boot/vmlinuz")
    shutil.copyfile(out / "initrd.cpio", root / "boot/initrd.cpio")
    modules = root / "lib/modules" / version
    shutil.copytree(modules_directory(tree, version), modules, symlinks=True)
    write_sums(root, root / "etc/base.sha256")
    make_ext4(root, out / "disk.raw")


def write_sums(root, list_file):
    """Sums of files the guest checks at every boot: a part, since an emulated machine is slow."""
    chosen = [root / "bin/busybox"] + sorted(root.glob("lib/modules/*/kernel/fs/**/*.ko*"))
    with open(list_file, "w", encoding="ascii") as out:
        for path in chosen:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            out.write(f"{digest}  /{path.relative_to(root)}\n")


def make_ext4(root, disk):
    # Nothing is left for the kernel to initialise later: a guest that only reads writes nothing.
    # 4 KiB blocks, as on any disk that is not this small.
    run(["mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-d", root,
         "-L", "guest-root", "-U", FIXED_UUID,
         "-E", f"hash_seed={FIXED_UUID},root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0",
         disk, f"{DISK_MIB}M"],
        env=dict(os.environ, PATH=os.environ.get("PATH", "") + ":/usr/sbin:/sbin"))
    dig_holes(disk)


def dig_holes(disk):
    """A disk image is sparse in real life; where the file system cannot, it stays as it is."""
    subprocess.run(["fallocate", "--dig-holes", str(disk)], check=False, timeout=TOOL_SECONDS,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def main():
    started = time.monotonic()

    def say(line):
        print(f"{time.monotonic() - started:6.1f} s  {line}", file=sys.stderr, flush=True)

    try:
        print(ensure_guest(say).directory)
    except GuestError as error:
        sys.exit(f"make_guest: {error}")


if __name__ == "__main__":
    main()
