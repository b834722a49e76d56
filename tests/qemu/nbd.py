# SPDX-License-Identifier: GPL-2.0-or-later
"""A small NBD client that keeps many requests in flight: what a guest's disk queue looks like."""

import select
import socket
import struct
import time

READ, WRITE, DISCONNECT, FLUSH, TRIM, WRITE_ZEROES = 0, 1, 2, 3, 4, 6
FUA, NO_HOLE = 1, 2

MAGIC, OPTION_MAGIC, REPLY_MAGIC = 0x4E42444D41474943, 0x49484156454F5054, 0x0003E889045565A9
REQUEST_MAGIC, SIMPLE_MAGIC = 0x25609513, 0x67446698
OPT_GO, REP_ACK, REP_INFO, INFO_EXPORT = 7, 1, 3, 0
FIXED_NEWSTYLE, NO_ZEROES = 1, 2


class NbdError(Exception):
    pass


class Done:
    """An answered request. error is an errno of the protocol, 0 for success."""

    def __init__(self, handle, error, data):
        self.handle, self.error, self.data = handle, error, data


class Client:
    def __init__(self, path, export="disk", patience=10):
        self.socket = connect(path, patience)
        self.next_handle = 1
        self.reads = {}  # handle -> length of the answer's payload
        self.in_flight = 0
        self.early = bytearray()  # answers that came while a request was sent
        self.size = self._negotiate(export)

    # ---------------------------------------------------------------- negotiation

    def _negotiate(self, export):
        magic, option_magic, flags = struct.unpack(">QQH", self._receive(18))
        if magic != MAGIC or option_magic != OPTION_MAGIC:
            raise NbdError("not an NBD server")
        self.socket.sendall(struct.pack(">I", flags & (FIXED_NEWSTYLE | NO_ZEROES)))
        name = export.encode()
        # No information is asked for, so requests may have any alignment.
        payload = struct.pack(">I", len(name)) + name + struct.pack(">H", 0)
        self.socket.sendall(struct.pack(">QII", OPTION_MAGIC, OPT_GO, len(payload)) + payload)
        size = None
        while True:
            magic, _, kind, length = struct.unpack(">QIII", self._receive(20))
            data = self._receive(length)
            if magic != REPLY_MAGIC or kind >= 1 << 31:
                raise NbdError(f"refused: {data.decode(errors='replace')}")
            if kind == REP_ACK:
                return size
            if kind == REP_INFO and struct.unpack(">H", data[:2])[0] == INFO_EXPORT:
                size = struct.unpack(">Q", data[2:10])[0]

    def _send(self, data):
        """A server whose answers nobody takes reads no requests any more, so answers are taken meanwhile."""
        rest = memoryview(data)
        while rest:
            readable, writable, _ = select.select([self.socket], [self.socket], [])
            if writable:
                try:
                    rest = rest[self.socket.send(rest, socket.MSG_DONTWAIT):]
                    continue
                except BlockingIOError:  # there was room, but not enough
                    pass
            if readable:
                answer = self.socket.recv(1 << 20)
                if not answer:
                    raise ConnectionResetError("the server went away")
                self.early += answer

    def _receive(self, length):
        data = bytearray(length)
        rest = memoryview(data)
        early = min(length, len(self.early))
        rest[:early] = self.early[:early]
        del self.early[:early]
        rest = rest[early:]
        while rest:
            count = self.socket.recv_into(rest)
            if not count:
                raise ConnectionResetError("the server went away")
            rest = rest[count:]
        return bytes(data)

    # ---------------------------------------------------------------- requests

    def submit(self, command, offset=0, length=0, data=b"", flags=0):
        """Start a request; returns its handle."""
        handle, self.next_handle = self.next_handle, self.next_handle + 1
        if command == READ:
            self.reads[handle] = length
        length = length or len(data)
        request = struct.pack(">IHHQQI", REQUEST_MAGIC, flags, command, handle, offset, length)
        self.in_flight += 1
        self._send(request + data)
        return handle

    def reap(self):
        """Wait for any one answer."""
        magic, error, handle = struct.unpack(">IIQ", self._receive(16))
        if magic != SIMPLE_MAGIC:
            raise NbdError(f"bad reply {magic:#x}")
        self.in_flight -= 1
        length = self.reads.pop(handle, 0)
        return Done(handle, error, self._receive(length) if length and not error else b"")

    def call(self, *request, **how):
        """One request, waited for; nothing else may be in flight."""
        self.submit(*request, **how)
        done = self.reap()
        if done.error:
            raise NbdError(f"request {request[:3]} failed with error {done.error}")
        return done.data

    def read(self, offset, length):
        return self.call(READ, offset, length)

    def write(self, offset, data, flags=0):
        self.call(WRITE, offset, data=data, flags=flags)

    def zero(self, offset, length, flags=0):
        self.call(WRITE_ZEROES, offset, length, flags=flags)

    def trim(self, offset, length):
        self.call(TRIM, offset, length)

    def flush(self):
        self.call(FLUSH)

    def read_all(self, step=1 << 20):
        return b"".join(self.read(offset, min(step, self.size - offset))
                        for offset in range(0, self.size, step))

    def close(self):
        try:
            self.socket.sendall(struct.pack(">IHHQQI", REQUEST_MAGIC, 0, DISCONNECT, 0, 0, 0))
        except OSError:
            pass
        self.socket.close()


def connect(path, patience):
    """The server may still be starting."""
    deadline = time.monotonic() + patience
    while True:
        link = socket.socket(socket.AF_UNIX)
        try:
            link.connect(path)
            return link
        except (FileNotFoundError, ConnectionRefusedError):
            link.close()
            if time.monotonic() > deadline:
                raise
            time.sleep(0.005)
