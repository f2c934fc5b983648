"""Chunks that are deflated here: the library reads them, and they are no longer than those that it writes itself."""

from __future__ import annotations

import io

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from store_samples import make_task

from store_schema import encode_subnetwork
from store_schema.deflated import deflated
from store_schema.hdf5 import DTYPES
from store_schema.subnetworks import SMALL, _put

ARRAYS = st.sampled_from(DTYPES).flatmap(
    lambda name: hnp.arrays(np.dtype(name), hnp.array_shapes(max_dims=3, max_side=40))
)


@given(value=ARRAYS)
def test_what_is_put_is_read_bit_for_bit_by_the_library(value: np.ndarray) -> None:
    image = io.BytesIO()
    with h5py.File(image, "w") as file:
        put = _put(file, "x", value)
        assert put.chunks == (None if value.nbytes <= SMALL else value.shape)
    with h5py.File(image) as file:
        assert file["x"][()].tobytes() == value.tobytes()


@pytest.mark.parametrize("kind", ["noise", "repeats", "steps"])
def test_a_chunk_is_no_longer_than_the_library_makes_it(kind: str) -> None:
    rng = np.random.default_rng(0)
    value = {
        "noise": rng.normal(size=(300, 100)).astype(np.float16),
        "repeats": np.tile(rng.integers(0, 255, 700, dtype=np.uint8), 40),
        "steps": rng.normal(scale=20, size=(300, 100)).round().astype(np.uint16),
    }[kind]
    image = io.BytesIO()
    with h5py.File(image, "w") as file:
        its = file.create_dataset("x", data=value, compression="gzip", shuffle=True, chunks=value.shape)
        assert len(deflated(value)) <= its.id.get_storage_size() * 1.01


def test_the_same_values_give_the_same_bytes() -> None:
    assert encode_subnetwork(make_task("t", 0)) == encode_subnetwork(make_task("t", 0))
