from __future__ import annotations

import struct

import pytest

from store_schema import heaps


def heap(*objects: tuple[int, int], free: int | None = 48) -> bytes:
    body = b"".join(struct.pack("<HH4xQ", i, 0, size) + bytes(-(-min(size, 999) // 8) * 8) for i, size in objects)
    if free is not None:
        body += struct.pack("<HH4xQ", 0, 0, free) + bytes(32)
    return b"before" + struct.pack("<4sB3xQ", b"GCOL", 1, 16 + len(body)) + body


@pytest.mark.parametrize(
    "data",
    [
        heap((1, 5), (3, 5)), heap((2, 5)), heap((1, 5), (1, 5)), heap((1, 5), free=40), heap((1, 5), free=56),
        heap((1, 1 << 60)), heap((1, 500), free=None)[:60], heap((1, 8))[:-1], heap()[:12],
        heap((1, 8)) + heap((7, 8)), heap((1, 24)).replace(bytes(24), heap()[6:30]),
    ],
)  # fmt: skip
def test_heaps_out_of_order_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="heap at"):
        heaps.check(data)


def test_heaps_in_order_are_read() -> None:
    heaps.check(heap((1, 5), (2, 8), (3, 17)) + heap() + b"after")
    heaps.check(heap((1, 5), free=None))
