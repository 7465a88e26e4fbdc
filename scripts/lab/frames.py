"""Numbered frames with known content, as pcap files: what goes in must come out, each once and unharmed."""

import os
import random
import struct

ETHERTYPE = 0x88B5  # local experimental (IEEE 802)
HEADER = struct.Struct("<IHHiIII")
RECORD = struct.Struct("<IIII")
_noise = random.Random(7).randbytes(1 << 16)


def frame(number, size, stream=0):
    """One frame of `size` bytes; every byte depends on its number and stream."""
    head = b"\x02\0\0\0\0\x01\x02\0\0\0\0\x02" + struct.pack(">HHIH", ETHERTYPE, stream, number, size)
    start = (number * 131 + stream * 17) % 50000
    body = _noise[start:start + size - len(head)]
    while len(head) + len(body) < size:
        body += _noise[:size - len(head) - len(body)]
    return head + body


def sizes(spec, count):
    """`count` sizes: all alike for a number, or spread over (low, high), ends included, for a pair."""
    if isinstance(spec, int):
        return [spec] * count
    low, high = spec
    spread = random.Random(count)
    return [low, high] + [spread.randint(low, high) for _ in range(count - 2)]


def write(path, frames):
    with open(path, "wb", buffering=1 << 20) as f:
        f.write(HEADER.pack(0xA1B2C3D4, 2, 4, 0, 0, 65535, 1))
        for data in frames:
            f.write(RECORD.pack(0, 0, len(data), len(data)) + data)


def read(path):
    """The frames of a pcap file, in order; an absent file has none, a cut-off last record is left out."""
    if not os.path.exists(path):
        return []
    with open(path, "rb") as f:
        data = f.read()
    out, at = [], HEADER.size
    while at + RECORD.size <= len(data):
        length = RECORD.unpack_from(data, at)[2]
        if at + RECORD.size + length > len(data):
            break
        out.append(data[at + RECORD.size:at + RECORD.size + length])
        at += RECORD.size + length
    return out


def macs_swapped(data):
    return data[6:12] + data[:6] + data[12:]


def difference(sent, got):
    """None when `got` is exactly `sent` in the same order, else what is wrong with it, in words."""
    if sent == got:
        return None
    known = {data: i for i, data in enumerate(sent)}
    places = [known.get(data) for data in got]
    damaged = sum(p is None for p in places)
    whole = [p for p in places if p is not None]
    distinct = set(whole)
    faults = {"lost": len(sent) - len(distinct) - damaged, "damaged": damaged, "duplicated": len(whole) - len(distinct),
              "out of order": sum(a > b for a, b in zip(whole, whole[1:]))}
    words = ", ".join(f"{n} {what}" for what, n in faults.items() if n)
    bad = next((i for i, p in enumerate(places) if p is None), None)
    if bad is not None:
        words += f"; the first damaged is number {bad}: {got[bad][:48].hex()}... ({len(got[bad])} bytes)"
    return f"{len(got)} of {len(sent)} frames came back: {words}"
