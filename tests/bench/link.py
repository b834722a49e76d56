#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""A link between a client and a server on unix sockets: half a round trip each way, and a rate in the
direction of the client at which bytes leave one after the other, as at the end of a cable.

    link.py LISTEN SERVER MILLISECONDS BITS_A_SECOND

Servers that only make their answers late let them wait for each other; bytes on a cable do not."""

import os
import queue
import socket
import sys
import threading
import time

PIECE = 16 << 10


def carry(source, target, delay, rate):
    """Until either side closes."""
    under_way = queue.Queue()

    def deliver():
        while (item := under_way.get()) is not None:
            due, data = item
            time.sleep(max(0, due - time.monotonic()))
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)

    threading.Thread(target=deliver, daemon=True).start()
    free = 0
    while data := source.recv(PIECE):
        free = max(free, time.monotonic()) + (len(data) / rate if rate else 0)
        under_way.put((free + delay, data))
    under_way.put(None)


def main():
    listen, server, milliseconds, bits = sys.argv[1:]
    delay = float(milliseconds) / 2000
    sys.setswitchinterval(1e-4)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(listen + ".new")
    listener.listen(8)
    os.rename(listen + ".new", listen)
    while True:
        client, _ = listener.accept()
        far = socket.socket(socket.AF_UNIX)
        far.connect(server)
        for source, target, rate in ((client, far, 0), (far, client, int(bits) / 8)):
            threading.Thread(target=carry, args=(source, target, delay, rate), daemon=True).start()


main()
