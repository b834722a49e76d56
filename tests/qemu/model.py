# SPDX-License-Identifier: GPL-2.0-or-later
"""Random requests, and what a disk must hold after them. One seed gives one sequence."""

import random

PATTERN_RUN = 8192  # a typical stretch of one value in a base image
COMPARED_AT_ONCE = 4096


def base_content(source, size):
    """Runs of one value, a third of them zero, with odd edges."""
    content = bytearray(size)
    offset = 0
    while offset < size:
        length = min(source.randrange(1, 8 * PATTERN_RUN), size - offset)
        value = source.choice((0, source.randrange(1, 256), source.randrange(1, 256)))
        content[offset:offset + length] = bytes([value]) * length
        offset += length
    return bytes(content)


def disk_over(base, size):
    """What a fresh disk of this size shows over a base."""
    return bytearray(base[:size]) + bytearray(max(0, size - len(base)))


class Request:
    """kind: read, write, fua, zero, unmap, discard or flush."""

    def __init__(self, kind, offset=0, length=0, value=0):
        self.kind, self.offset, self.length, self.value = kind, offset, length, value

    def __str__(self):
        return f"{self.kind} {self.offset}+{self.length} value {self.value}"


WEIGHTS = {"read": 30, "write": 38, "fua": 4, "zero": 8, "unmap": 8, "discard": 6, "flush": 3}


class Generator:
    """Requests crowd on a few hot places, so that neighbours meet in one block, and cross the ends of
    blocks, of the base and of the disk."""

    def __init__(self, seed, size, block, edges=(), largest=65536, weights=None):
        self.random = random.Random(seed)
        self.size, self.block, self.largest = size, block, min(largest, size)
        weights = weights or WEIGHTS
        self.kinds, self.weights = list(weights), list(weights.values())
        self.edges = [edge for edge in (*edges, size) if 0 < edge <= size]
        self.hot = []

    def next(self):
        kind = self.random.choices(self.kinds, self.weights)[0]
        if kind == "flush":
            return Request(kind)
        offset, length = self._range()
        return Request(kind, offset, length, self.random.randrange(1, 256))

    def _range(self):
        length = self._length()
        offset = self._place(length)
        grain = self.random.choice((1, 1, 512, 512, 4096, self.block))
        offset -= offset % grain
        if grain > 1 and self.random.random() < 0.7:
            length = max(grain, length - length % grain)
        offset = max(0, min(offset, self.size - 1))
        return offset, min(length, self.size - offset)

    def _length(self):
        shape = self.random.random()
        if shape < 0.3:
            return self.random.randrange(1, 513)
        if shape < 0.95:
            return self.random.randrange(1, min(2 * self.block + 2, self.largest + 1))
        return self.random.randrange(1, self.largest + 1)

    def _place(self, length):
        shape = self.random.random()
        if shape < 0.1:
            return self.random.choice(self.edges) - self.random.randrange(length + 1)
        if shape < 0.6:
            if len(self.hot) < 8 or self.random.random() < 0.02:
                self.hot.append(self.random.randrange(self.size))
                self.hot = self.hot[-8:]
            return self.random.choice(self.hot) + self.random.randrange(2 * self.block)
        return self.random.randrange(self.size)


class Disk:
    """The truth. What a discard leaves behind is the disk's choice between old bytes and zeros, so
    those bytes are unknown until they are written or looked at."""

    def __init__(self, content):
        self.content = bytearray(content)
        self.unknown = bytearray(len(content))

    def apply(self, request):
        start, end = request.offset, request.offset + request.length
        if request.kind in ("write", "fua"):
            self._put(start, end, request.value)
        elif request.kind in ("zero", "unmap"):
            self._put(start, end, 0)
        elif request.kind == "discard":
            self.unknown[start:end] = b"\1" * request.length

    def _put(self, start, end, value):
        self.content[start:end] = bytes([value]) * (end - start)
        self.unknown[start:end] = bytes(end - start)

    def uniform_run(self, start, end):
        """The longest known stretch of one value that starts at a few tried places in [start, end)."""
        best = (start, 0, 0)
        for place in (start, (start + end) // 2, start + (end - start) // 4):
            if self.unknown[place]:
                continue
            run = self._run_at(place, end)
            if run > best[1]:
                best = (place, run, self.content[place])
        return best

    def _run_at(self, place, end):
        window = self.content[place:end]
        same = len(window) - len(window.lstrip(window[:1]))
        unknown = self.unknown.find(1, place, end)
        return same if unknown < 0 else min(same, unknown - place)

    def compare(self, offset, data):
        """None, or the first offset that differs. Bytes that were unknown are known now, if they are
        one of the two values a discard may leave."""
        end = offset + len(data)
        if self.content[offset:end] == data:
            return None
        for start in range(offset, end, COMPARED_AT_ONCE):
            piece = data[start - offset:start - offset + COMPARED_AT_ONCE]
            if self.content[start:start + len(piece)] != piece:
                place = self._compare_bytes(start, piece)
                if place is not None:
                    return place
        return None

    def _compare_bytes(self, start, piece):
        for place, value in enumerate(piece, start):
            if value == self.content[place]:
                continue
            if value != 0 or not self.unknown[place]:
                return place
            self.content[place] = 0
        return None

    def settle(self):
        """After a comparison of the whole disk nothing is unknown."""
        self.unknown = bytearray(len(self.content))
