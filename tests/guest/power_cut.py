# SPDX-License-Identifier: GPL-2.0-or-later
"""The story that the demo tells and the test checks: a guest writes and syncs files, the
power is cut while it goes on writing, and the next boot must find every file whose sync
had been reported. The host is the judge: it computes itself what the files must hold."""

import hashlib
import re
import time

from make_guest import GuestError
from machine import BOOT_SECONDS, WRITE_SECONDS

GUEST_PATH = re.compile(r"/data/round-(\d+)/file-(\d+)")


def expected_sum(path):
    """The content that root-init's content() gives this file, summed."""
    round_number, index = map(int, GUEST_PATH.fullmatch(path).groups())
    lines = 400 + (index * 7919 + round_number * 104729) % 8000
    start = round_number * 1_000_000_000 + index * 100_000
    text = "".join(f"{number}\n" for number in range(start, start + lines))
    return hashlib.sha256(text.encode()).hexdigest()


class Promises:
    """Files whose sync the guest has reported, in that order."""

    def __init__(self):
        self.paths = []

    def add(self, message):
        path = message.removeprefix("SYNCED ")
        # The console may show half a line when the power goes; half a promise is none.
        if GUEST_PATH.fullmatch(path):
            self.paths.append(path)

    def judge(self, sums, ledger):
        """Raises with every broken promise."""
        broken = [verdict for path in self.paths if (verdict := self.broken_file(path, sums))]
        broken += self.broken_ledger(ledger)
        if broken:
            raise GuestError("DATA LOST after the power cut:\n    " + "\n    ".join(broken))

    @staticmethod
    def broken_file(path, sums):
        if path not in sums:
            return f"{path}: sync was reported, file is missing"
        if sums[path] != expected_sum(path):
            return f"{path}: sync was reported, content is wrong (sha256 {sums[path]})"
        return None

    def broken_ledger(self, ledger):
        """The guest syncs the ledger after each file, before it reports the file. Between the
        two the power may go, so the ledger may know a file that we do not."""
        ours = set(self.paths)
        known = [path for path in ledger if path in ours]
        if known == self.paths:
            return []
        lost = [path for path in self.paths if path not in known]
        return [f"the ledger, synced after each file, lacks {lost}" if lost
                else f"the ledger is out of order: {known}"]


class Boot:
    """What a boot found before it wrote anything."""

    def __init__(self):
        self.journal_replayed = False
        self.fsck_clean = False
        self.base = ""
        self.sums = {}
        self.ledger = []
        self.seconds_to_up = 0.0
        self.started = time.monotonic()

    def hear(self, message):
        kind, _, rest = message.partition(" ")
        if kind == "JOURNAL":
            self.journal_replayed = True
        elif kind == "FSCK":
            self.fsck_clean = rest == "clean"
        elif kind == "UP":
            self.seconds_to_up = time.monotonic() - self.started
        elif kind == "BASE":
            self.base = rest
        elif kind == "FILE":
            path, _, digest = rest.partition(" ")
            self.sums[path] = digest
        elif kind == "LEDGER":
            self.ledger.append(rest)

    def complete(self):
        return self.fsck_clean and self.base.endswith("files good")


def boot_and_verify(machine, promises):
    """Reads the guest's report up to its end and judges it."""
    boot = Boot()
    for message in machine.messages(BOOT_SECONDS):
        boot.hear(message)
        if message == "VERIFY end":
            break
    else:
        raise GuestError(machine.evidence("the machine ended before its checks did"))
    if not boot.complete():
        raise GuestError(machine.evidence("the guest left checks out"))
    promises.judge(boot.sums, boot.ledger)
    return boot


def write_until_cut(machine, promises, files, more_seconds, enough=lambda: True):
    """Lets the guest sync so many files, and more until there is enough(), cuts the power a moment
    later; returns how many syncs were reported in the end."""
    before = len(promises.paths)
    for message in machine.messages(WRITE_SECONDS):
        if message.startswith("SYNCED "):
            promises.add(message)
        if len(promises.paths) - before >= files and enough():
            break
    else:
        raise GuestError(machine.evidence("the machine ended before the power cut"))
    # The cut falls at a moment the guest does not choose, most likely inside a request.
    time.sleep(more_seconds)
    machine.cut_power()
    # What the guest managed to print before it died is promised too.
    for message in machine.messages(30):
        if message.startswith("SYNCED "):
            promises.add(message)
    return len(promises.paths) - before


def round_words(number):
    # More files than any round lives to write: the cut ends it, not the count.
    return [f"guest.round={number}", "guest.files=5000"]
