"""Constants made by exact arithmetic: pinned, and checked against their definitions."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest

from archiver.predict import tables


def sha256(*arrays: np.ndarray) -> str:
    return hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)).hexdigest()


def test_rotary_tables_are_pinned() -> None:
    fine, coarse = tables.rotary_tables(100000.0, 64)
    assert sha256(fine, coarse) == ROTARY_SHA256
    cosines, sines = tables.rotary_angles(fine, coarse, 5000)
    assert sha256(cosines, sines) == ANGLES_SHA256


def test_rotary_angles_are_those_of_the_definition() -> None:
    fine, coarse = tables.rotary_tables(10000.0, 16)
    cosines, sines = tables.rotary_angles(fine, coarse, 65536)
    for position in (0, 1, 255, 256, 4321, 65535):
        for pair in range(8):
            angle = position * 10000.0 ** (-2 * pair / 16)
            assert cosines[position, pair] == pytest.approx(math.cos(angle), abs=2e-7)
            assert sines[position, pair] == pytest.approx(math.sin(angle), abs=2e-7)


@pytest.mark.parametrize("order", [1, 2, 4, 8, 12, 20, 28, 36, 48, 64, 96, 576, 960])
def test_hadamard_matrices_are_orthogonal(order: int) -> None:
    matrix = tables.hadamard(order)
    assert matrix is not None
    assert set(np.unique(matrix).tolist()) <= {-1, 1}
    wide = matrix.astype(np.int64)
    assert np.array_equal(wide @ wide.T, order * np.eye(order, dtype=np.int64))


@pytest.mark.parametrize("order", [3, 6, 18, 92, 172])
def test_orders_without_a_construction(order: int) -> None:
    assert tables.hadamard(order) is None


@pytest.mark.parametrize("size", [48, 64, 90, 576, 2048])
def test_rotations_are_orthogonal(size: int) -> None:
    for matrix, terms in (tables.rotation(size), tables.activation_rotation(size)):
        wide = matrix.astype(np.float64)  # exact, and much faster than int64
        assert np.array_equal(wide @ wide.T, terms * np.eye(size))


def test_rotation_of_the_default_model_is_pinned() -> None:
    matrix, terms = tables.rotation(576)
    assert terms == 576
    assert sha256(matrix) == ROTATION_SHA256


ROTARY_SHA256 = "00bb6c5daf7c562cbd5ac95233457e6b30939969a1c9324eac3931bdd0bc56c0"
ANGLES_SHA256 = "ffac652b00fecf211847182f11facac10b24a22f70822c70ac2fbb81c591118b"
ROTATION_SHA256 = "35909c9a82f91653924038a43e72cbf8d75f155a6f8bf9ced35649d6360398c7"
