"""Directions as whole numbers of steps: what goes in comes out, bit for bit, and what nobody packed is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from store_samples import SHAPES, make_task

from store_schema import SubnetworkRecord, decode_subnetwork, directions, encode_subnetwork
from store_schema.deflated import size

HALVES = hnp.arrays(np.float16, hnp.array_shapes(min_dims=2, max_dims=3, max_side=9), elements=st.floats(width=16))
STEPS = st.integers(-24, 4)


def stored(value: np.ndarray, group: str = "gate") -> SubnetworkRecord:
    """A task with these directions, after a trip through its object."""
    record = replace(make_task("t", 0), **{group: {"directions": value}})
    return decode_subnetwork(encode_subnetwork(record), "file", "t", "e1", SHAPES)


def rounded(rng: np.random.Generator, d: int, k: int, bits: int, exponent: int) -> np.ndarray:
    most = 1 << (bits - 1)
    return np.ldexp(rng.integers(1 - most, most, (d, k)).astype(np.float64), exponent).astype(np.float16)


@given(value=HALVES)
def test_any_halves_come_back_bit_for_bit(value: np.ndarray) -> None:
    packed = directions._packed(value)
    if packed is None:
        assert not np.isfinite(value).all() or np.signbit(value[value == 0]).any() or np.abs(value).max() > 64
    else:
        back = directions.unpacked(packed)
        assert back.dtype == np.float16
        assert back.tobytes() == value.tobytes()
        assert back.shape == value.shape
    if np.isfinite(value).all():
        assert stored(value).gate["directions"].tobytes() == value.tobytes()


@given(seed=st.integers(0, 99), bits=st.integers(5, 9), exponent=STEPS, group=st.sampled_from(["gate", "statistics"]))
def test_rounded_directions_take_about_as_many_bits_as_they_have(
    seed: int, bits: int, exponent: int, group: str
) -> None:
    value = rounded(np.random.default_rng(seed), 300, 20, bits, exponent)
    packed = directions.smaller(value)
    assert packed.dtype == np.uint16
    assert packed.shape == (20, 301)
    # Evenly drawn numbers have no fewer bits than they have; the sizes say what gzip adds.
    assert size(packed) <= value.size * bits / 8 * 1.2 + 300
    assert size(packed) < size(value)
    assert getattr(stored(value, group), group)["directions"].tobytes() == value.tobytes()


def test_the_packed_form_is_the_documented_one() -> None:
    value = np.array([[[0.5, 0.0], [-0.25, 0.0], [0.75, 0.0]]], dtype=np.float16)
    # In quarters 2, −1 and 3, after the exponent −2; zeros are multiples of the finest step, 2⁻²⁴.
    expected = np.array([[[3, 4, 1, 6], [47, 0, 0, 0]]])
    packed = directions._packed(value)
    assert packed is not None
    assert packed.dtype == np.uint16
    assert np.array_equal(packed, expected)
    assert directions.unpacked(packed).tobytes() == value.tobytes()


def test_numbers_of_many_sizes_need_wider_ones() -> None:
    value = np.array([[1.0], [2.0**-24]], dtype=np.float16)
    packed = directions._packed(value)
    assert packed is not None
    assert packed.dtype == np.uint32
    assert directions.unpacked(packed).tobytes() == value.tobytes()
    assert directions._packed(np.array([[60000.0], [2.0**-24]], dtype=np.float16)) is None


def worth_packing() -> np.ndarray:
    """Directions that take fewer bytes packed."""
    value = np.random.default_rng(0).normal(size=(1024, 8)).round().astype(np.float16)
    return np.where(value == 0, np.float16(0), value)


def test_a_negative_zero_keeps_its_sign() -> None:
    value = worth_packing()
    assert directions.smaller(value) is not value
    value[0, 0] = -0.0
    assert directions.smaller(value) is value


@pytest.mark.parametrize(
    "value",
    [
        np.ones(5, np.float16),
        np.ones((4, 3), np.float32),
        np.zeros((0, 3), np.float16),
        np.array([[-0.0, 1.0]], np.float16),
        np.array([[np.nan, 1.0]], np.float16),
        np.array([[np.inf, 1.0]], np.float16),
    ],
)
def test_what_has_no_packed_form_stays(value: np.ndarray) -> None:
    assert directions.smaller(value) is value


def packed(*numbers: int, dtype: Any = np.uint16) -> np.ndarray:
    return np.array([numbers], dtype=dtype)


HOSTILE = {
    "one row": np.zeros(4, np.uint16),
    "no numbers": packed(3),
    "a step too small for half precision": packed(49, 2),
    "a step too large": packed(50, 2),
    "an exponent beyond any": packed(2**32 - 1, 2, dtype=np.uint32),
    "a number between two halves": packed(0, 2 * 2049),
    "a number beyond half precision": packed(20, 2 * 128),
    "a wide number between two halves": packed(0, 2**31 + 2, dtype=np.uint32),
}


@pytest.mark.parametrize("value", HOSTILE.values(), ids=HOSTILE)
def test_what_nobody_packed_is_refused(value: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"directions of shape|exponents of|between those of half precision"):
        directions.unpacked(value)
