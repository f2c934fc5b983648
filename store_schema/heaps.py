"""Global heaps, where HDF5 keeps texts of variable length: checked before the library reads any.

One changed byte in a heap (an object's length) has HDF5 2.0 loop for ever, where no exception and no signal handler
can reach it. The texts of our attributes lie in such heaps, so that every one in a file is
looked at first. The library only follows what begins with the signature, wherever that may be.
"""

from __future__ import annotations

import struct

SIGNATURE = b"GCOL\x01"
HEADER = struct.Struct("<4sB3xQ")
ENTRY = struct.Struct("<HH4xQ")


def check(data: bytes) -> None:
    """Raises ValueError unless every global heap in a file is as the library itself writes them.

    Takes time in proportion to the file: a heap within another one is refused.
    """
    start, end = data.find(SIGNATURE), 0
    while start >= 0:
        if start < end:
            raise ValueError(f"the global heap at {start} lies within another one")
        end = _check_one(data, start)
        start = data.find(SIGNATURE, start + 1)


def _check_one(data: bytes, start: int) -> int:
    """Walks through one heap; returns where it ends."""
    if start + HEADER.size > len(data):
        raise ValueError(f"the global heap at {start} does not fit the file")
    size: int = HEADER.unpack_from(data, start)[2]
    end = start + size
    if end > len(data):
        raise ValueError(f"the global heap at {start} does not fit the file")
    place, wanted = start + HEADER.size, 1
    while place + ENTRY.size <= end:
        index, _, length = ENTRY.unpack_from(data, place)
        if index == 0:  # what is left free
            if length != end - place:
                raise ValueError(f"the global heap at {start} declares {length} bytes free of {end - place}")
            return end
        if index != wanted:
            raise ValueError(f"the global heap at {start} has object {index} in the place of {wanted}")
        place, wanted = place + ENTRY.size + -(-length // 8) * 8, wanted + 1
    if place > end:
        raise ValueError(f"the global heap at {start} has an object that is larger than itself")
    return end
