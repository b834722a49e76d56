# SPDX-License-Identifier: GPL-2.0-or-later
"""The format in Python, written from docs/format.md and not from the driver: whole images, and damage
with a valid checksum, which the driver must judge by its sense alone."""

import struct

HEADER_SIZE = 4096
COPY_OFFSET = 4096
MAGIC, VERSION = 0x00445646, 3
CRC_OFFSET = 4092
NAME, FORMAT_NAME = 1024, 16

# name: (offset, struct code or a length of text)
FIELDS = {
    "magic": (0, "I"), "version": (4, "I"), "virtual_disk_size": (8, "Q"),
    "data_offset": (16, "Q"), "data_file": (24, NAME), "data_file_fmt": (1048, FORMAT_NAME),
    "base_img": (1064, NAME), "base_img_fmt": (2088, FORMAT_NAME), "base_img_size": (2104, "Q"),
    "bitmap_offset": (2112, "Q"), "bitmap_size": (2120, "Q"), "block_size": (2128, "Q"),
    "table_offset": (2136, "Q"), "table_size": (2144, "Q"), "chunk_size": (2152, "Q"),
    "storage_grow_unit": (2160, "Q"), "add_storage_cmd": (2168, NAME),
    "journal_offset": (3192, "Q"), "journal_size": (3200, "Q"),
    "stable_journal_epoch": (3208, "Q"), "clean_shutdown": (3216, "I"), "copy_on_read": (3220, "I"),
    "max_outstanding_copy_on_read_data": (3224, "Q"), "prefetch_start_delay": (3232, "q"),
    "base_img_fully_prefetched": (3240, "I"), "num_prefetch_slots": (3244, "I"),
    "bytes_per_prefetch": (3248, "Q"), "prefetch_min_read_throughput": (3256, "Q"),
    "prefetch_max_read_throughput": (3264, "Q"), "prefetch_min_write_throughput": (3272, "Q"),
    "prefetch_max_write_throughput": (3280, "Q"), "prefetch_throttle_time": (3288, "Q"),
    "prefetch_read_throughput_measure_time": (3296, "Q"),
    "prefetch_write_throughput_measure_time": (3304, "Q"), "need_zero_init": (3312, "I"),
    "incompatible_features": (3320, "Q"), "compatible_features": (3328, "Q"),
    "autoclear_features": (3336, "Q"), "image_id": (3344, 16), "header_generation": (3360, "Q"),
    "journal_unit": (3368, "I"), "boot_profile_offset": (3376, "Q"),
    "boot_profile_size": (3384, "Q"),
}

UNIT_MAGIC, UNIT_HEADER_SIZE = 0x4A445646, 64
BITMAP_RECORD, TABLE_RECORD = 0x3F2AB8ED, 0xB4E6F7AC


# ---------------------------------------------------------------- crc32c

def _crc_table():
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


_TABLE = _crc_table()


def crc32c(data, previous=0):
    crc = previous ^ 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


# ---------------------------------------------------------------- header

def encode_field(block, name, value):
    offset, kind = FIELDS[name]
    if isinstance(kind, str):
        # Any bit pattern may be wanted, so values wrap.
        size = struct.calcsize("<" + kind)
        block[offset:offset + size] = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
    else:
        value = value.encode() if isinstance(value, str) else value
        block[offset:offset + kind] = value[:kind].ljust(kind, b"\0")


def decode_field(block, name):
    offset, kind = FIELDS[name]
    if isinstance(kind, str):
        return struct.unpack_from("<" + kind, block, offset)[0]
    return bytes(block[offset:offset + kind])


def seal(block):
    """Give a header block the checksum that belongs to it."""
    struct.pack_into("<I", block, CRC_OFFSET, crc32c(block[:CRC_OFFSET]))


def encode_header(**fields):
    block = bytearray(HEADER_SIZE)
    defaults = {"magic": MAGIC, "version": VERSION, "clean_shutdown": 1, "journal_unit": 4096,
                "prefetch_start_delay": -1, "header_generation": 1, "image_id": b"0123456789abcdef"}
    for name, value in {**defaults, **fields}.items():
        encode_field(block, name, value)
    seal(block)
    return bytes(block)


def headers_of(path):
    """Both copies."""
    with open(path, "rb") as file:
        data = file.read(2 * HEADER_SIZE)
    return data[:HEADER_SIZE], data[HEADER_SIZE:]


def field_of(path, name):
    """From the copy with the higher generation."""
    newest = max(headers_of(path), key=lambda block: decode_field(block, "header_generation"))
    return decode_field(newest, name)


def store(path, offset, data):
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


def load(path, offset, length):
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(length)


def patch(path, copies=(0, 1), raw=(), sealed=True, **fields):
    """Change fields of the header copies, and give them valid checksums. raw: (offset, bytes)."""
    for number in copies:
        block = bytearray(headers_of(path)[number])
        for name, value in fields.items():
            encode_field(block, name, value)
        for offset, data in raw:
            block[offset:offset + len(data)] = data
        if sealed:
            seal(block)
        store(path, number * COPY_OFFSET, block)


# ---------------------------------------------------------------- journal

def bitmap_record(first, count):
    return struct.pack("<IIQ", BITMAP_RECORD, count, first)


def table_record(first, entries):
    record = struct.pack("<IIII", TABLE_RECORD, len(entries), first, 0)
    record += struct.pack(f"<{len(entries)}I", *entries)
    return record + bytes(-len(record) % 8)


def encode_unit(size, image_id, epoch, sequence, records=b"", *, tail=0, group_index=0,
                group_size=1, record_bytes=None):
    """One unit of the journal with the checksum that belongs to it."""
    record_bytes = len(records) if record_bytes is None else record_bytes
    unit = bytearray(size)
    struct.pack_into("<IIQQQIII", unit, 0, UNIT_MAGIC, 0, epoch, sequence, tail, group_index,
                     group_size, record_bytes)
    unit[UNIT_HEADER_SIZE:UNIT_HEADER_SIZE + len(records)] = records
    del unit[size:]
    struct.pack_into("<I", unit, 4, crc32c(unit, crc32c(image_id)))
    return bytes(unit)


class Journal:
    """Plants units in the ring of an image."""

    def __init__(self, path):
        self.path = path
        self.offset, self.size = field_of(path, "journal_offset"), field_of(path, "journal_size")
        self.unit = field_of(path, "journal_unit")
        self.epoch = field_of(path, "stable_journal_epoch")
        self.image_id = field_of(path, "image_id")

    def units(self):
        return self.size // self.unit

    def plant(self, sequence, records=b"", place=None, epoch=None, image_id=None, **how):
        data = encode_unit(self.unit, self.image_id if image_id is None else image_id,
                           self.epoch if epoch is None else epoch, sequence, records, **how)
        self.put(sequence if place is None else place, data)

    def put(self, place, data):
        store(self.path, self.offset + place % self.units() * self.unit, data)

    def get(self, place):
        return load(self.path, self.offset + place % self.units() * self.unit, self.unit)


# ---------------------------------------------------------------- table

NOT_STORED = 0xFFFFFFFF


class Table:
    """Entries of a compact image at home; the journal's records are not looked at."""

    def __init__(self, path):
        self.path = path
        self.offset, self.size = field_of(path, "table_offset"), field_of(path, "table_size")
        self.chunk_size = field_of(path, "chunk_size")
        self.data_offset = field_of(path, "data_offset")
        self.chunks = -(-field_of(path, "virtual_disk_size") // self.chunk_size)

    def entries(self):
        data = load(self.path, self.offset, self.size)
        return list(struct.unpack(f"<{self.size // 4}I", data))

    def slots(self):
        """chunk: slot, of those that are stored"""
        return {chunk: slot for chunk, slot in enumerate(self.entries()[:self.chunks])
                if slot != NOT_STORED}

    def put(self, chunk, entry):
        store(self.path, self.offset + 4 * chunk, struct.pack("<I", entry))


# ---------------------------------------------------------------- whole images

def build(path, size, *, base="", base_fmt="", base_size=0, block_size=4096, bitmap=b"",
          journal_size=1 << 20, data=b"", **fields):
    """A whole linear image without a line of the driver: an independent reading of the format."""
    blocks = -(-base_size // block_size)
    bitmap_size = -(-blocks // 8 // 4096) * 4096 if base_size else 0
    regions = {}
    end = 2 * HEADER_SIZE
    if bitmap_size:
        regions = {"bitmap_offset": end, "bitmap_size": bitmap_size, "block_size": block_size,
                   "journal_offset": end + bitmap_size, "journal_size": journal_size}
        end += bitmap_size + journal_size
    data_offset = -(-end // (1 << 20)) << 20
    header = encode_header(virtual_disk_size=size, data_offset=data_offset, base_img=base,
                           base_img_fmt=base_fmt, base_img_size=base_size,
                           **{**regions, **fields})
    with open(path, "wb") as file:
        file.write(header + header)
        file.seek(regions.get("bitmap_offset", 0) or 2 * HEADER_SIZE)
        file.write(bitmap)
        file.seek(data_offset)
        file.write(data)
        file.truncate(data_offset + size)
