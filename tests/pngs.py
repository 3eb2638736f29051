"""PNG files that Pillow reads and does not write: of few and of many bits."""

from __future__ import annotations

import struct
import zlib

import numpy as np


def chunk(name: bytes, data: bytes) -> bytes:
    """One part of a PNG file, with its length and its checksum."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(values: np.ndarray, depth: int, colour: int, transparent: bytes = b"") -> bytes:
    """A PNG file of one row of values, (W,) or (W, channels).

    Parameters
    ----------
    values
        The values as they are in the file.
    depth
        Bits per value.
    colour
        The colour type: 0 grey, 2 RGB, 4 grey with alpha, 6 RGB with alpha.
    transparent
        The content of the chunk tRNS.
    """
    bits = "".join(f"{value:0{depth}b}" for value in values.flatten().tolist())
    row = int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")
    head = struct.pack(">IIBBBBB", len(values), 1, depth, colour, 0, 0, 0)
    clear = chunk(b"tRNS", transparent) if transparent else b""
    pixels = chunk(b"IDAT", zlib.compress(b"\0" + row))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + clear + pixels + chunk(b"IEND", b"")
