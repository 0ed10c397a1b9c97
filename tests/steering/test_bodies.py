"""Vectors come back from their bodies under every prior; malformed bodies are refused."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from archiver.container.varint import MalformedError
from archiver.errors import LimitExceededError, UnsupportedVersionError, UsageError
from archiver.predict.package import ModelPackage
from archiver.steering import quantizers
from archiver.steering.bodies import (
    base_vectors,
    decode_body,
    encode_body,
)
from archiver.steering.priors import (
    LEVELS,
    Base,
    EmpiricalPrior,
    GaussianPrior,
    LloydMaxPrior,
    PriorKind,
    ScalesPrior,
    decode_prior,
    scale_tables,
)
from archiver.steering.quantizers import Quantized
from archiver.steering.starts import read_start, storable_scale
from archiver.types import Float32Array

HIDDEN = 48  # of the package "tiny"


def vectors(seed: int, count: int = 3, spread: float = 0.2) -> Float32Array:
    values = np.random.default_rng(seed).normal(0, spread, (count, HIDDEN))
    return values.astype(np.float32)


def with_base(package: ModelPackage, values: Float32Array, step: float) -> Quantized:
    base = Base(ranks=tuple(range(len(values))))
    prompt = base_vectors(base, package)
    near = prompt.codes.astype(np.float32) * prompt.scales[:, None] + values / 10
    return quantizers.scales(near.astype(np.float32), step, base, prompt)


Quantizer = Callable[[ModelPackage, Float32Array], Quantized]
QUANTIZERS: dict[str, Quantizer] = {
    "gaussian": lambda package, values: quantizers.gaussian(values, 15),
    "gaussian, most bins": lambda package, values: quantizers.gaussian(values, 255),
    "empirical": lambda package, values: quantizers.empirical(values, 15),
    "empirical, two bins": lambda package, values: quantizers.empirical(values, 2),
    "lloyd-max": lambda package, values: quantizers.lloyd_max(values, 9),
    "scales": lambda package, values: quantizers.scales(values, 0.05),
    "scales from tokens": lambda package, values: with_base(package, values, 0.01),
}


@pytest.mark.parametrize("name", QUANTIZERS)
def test_vectors_come_back(name: str, tiny: ModelPackage) -> None:
    quantized = QUANTIZERS[name](tiny, vectors(1))
    body = encode_body(quantized.codes, quantized.scale, quantized.prior, tiny)
    prompt = decode_body(body, tiny)
    assert np.array_equal(prompt.codes, quantized.codes)
    assert prompt.scales.tolist() == [quantized.scale] * 3
    start = read_start(body)
    assert (start.vectors, start.scale, start.prior) == (3, quantized.scale, quantized.prior)


@given(
    codes=arrays(np.int8, (2, HIDDEN), elements=st.integers(-127, 127)),
    vector_levels=st.tuples(*[st.integers(0, LEVELS - 1)] * 2),
    group_levels=st.lists(st.integers(1 - LEVELS, LEVELS - 1), max_size=HIDDEN),
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_codes_come_back_at_any_levels(
    tiny: ModelPackage,
    codes: np.ndarray,
    vector_levels: tuple[int, ...],
    group_levels: list[int],
) -> None:
    prior = ScalesPrior(
        base=None, stride=1, vector_levels=vector_levels, group_levels=tuple(group_levels)
    )
    body = encode_body(codes, 0.5, prior, tiny)
    assert np.array_equal(decode_body(body, tiny).codes, codes)
    assert decode_prior(PriorKind.SCALES, prior.encode(), 0, 2) == (prior, len(prior.encode()))


@pytest.mark.parametrize("bins", [3, 9, 33, 129])
def test_the_error_is_that_of_the_bins(bins: int) -> None:
    values = vectors(2, 8)
    step = float(np.ptp(values)) / (bins - 1)
    for quantized in (quantizers.gaussian(values, bins), quantizers.scales(values, step)):
        error = np.abs(quantized.values() - values)
        assert error.max() <= 0.51 * quantized.scale
    clipped = quantizers.empirical(values, bins)
    assert clipped.scale < quantizers.gaussian(values, bins).scale
    square = np.mean((quantizers.lloyd_max(values, bins).values() - values) ** 2)
    assert square < np.mean((quantizers.gaussian(values, bins).values() - values) ** 2)


def test_coordinates_worth_nothing_cost_nothing(tiny: ModelPackage) -> None:
    values = np.zeros((4, HIDDEN), np.float32)
    values[2, 5] = 1.0
    quantized = quantizers.scales(values, 0.25)
    body = encode_body(quantized.codes, quantized.scale, quantized.prior, tiny)
    assert len(body) <= 17  # 11 bytes of them are the start and the levels
    assert (decode_body(body, tiny).codes[2, 5], quantized.scale) == (4, 0.25)


def test_groups_of_other_spread_get_levels_of_their_own(tiny: ModelPackage) -> None:
    spread = np.where(np.arange(512) < 64, 40.0, 1.0)
    rest = np.rint(np.random.default_rng(3).normal(0, spread, (8, 512))).clip(-127, 127)
    _, group_levels = quantizers.fit_levels(rest.astype(np.int32))
    assert len(group_levels) == 8
    assert group_levels[0] > max(group_levels[1:]) + 12
    even = np.rint(np.random.default_rng(3).normal(0, 3.0, (8, 512))).astype(np.int32)
    assert quantizers.fit_levels(even)[1] == ()


def test_the_cost_of_codes_is_what_the_coder_writes(tiny: ModelPackage) -> None:
    quantized = quantizers.scales(vectors(4, 40), 0.04)
    assert isinstance(quantized.prior, ScalesPrior)
    tables = quantized.prior.tables(*quantized.codes.shape)
    bits = quantizers.code_costs()[tables.numbers, quantized.codes.astype(int) + 127].sum()
    body = encode_body(quantized.codes, quantized.scale, quantized.prior, tiny)
    coded_bytes = len(body) - read_start(body).coordinates_at
    assert abs(coded_bytes - bits / 8) < 4


def test_tables_of_levels_are_strictly_ascending() -> None:
    assert (np.diff(scale_tables(), axis=1) >= 1).all()
    assert scale_tables()[:, -1].max() < 1 << 23


@given(scale=st.floats(1e-11, 250))
def test_scales_that_are_stored_are_near(scale: float) -> None:
    stored = storable_scale(scale)
    assert abs(stored / scale - 1) < 2**-8
    assert storable_scale(stored) == stored


MALFORMED = {
    "": "variable-length integer is cut off",
    "00": "no vectors",
    "01 01 00": "cut short",
    "01 01 00 00 40 00 00": "scale is out of range",
    "01 01 80 7F 40 00 00": "scale is out of range",
    "01 01 C0 7F 40 00 00": "scale is out of range",
    "01 00 00 3F": "unknown prior 0",
    "01 05 00 3F": "unknown prior 5",
    "01 01 00 3F 00 00 00": "a sigma of 0",
    "01 01 00 3F 81 80 01 00 00": "a sigma of 16385",
    "01 01 00 3F 40 01 00": "codes from 1 to 0",
    "01 01 00 3F 40 80 00": "codes from -128 to 0",
    "01 01 00 3F 40 00": "parameters are cut short",
    "01 02 00 3F 00 00": "frequencies out of range",
    "01 02 00 3F 00 02 05 00": "frequencies out of range",
    "01 02 00 3F 00 01 81 80 80 08": "frequencies out of range",
    "01 02 00 3F 7F 02 01 01": "2 codes from 127 on",
    "01 02 00 3F 00 02 05": "cut off",
    "01 03 00 3F 02 05 05 01 01": "centroids out of order",
    "01 03 00 3F 01 80 01": "centroids out of order or out of range",
    "01 03 00 3F 00": "frequencies out of range",
    "01 04 00 3F 03": "means of unknown kind 3",
    "01 04 00 3F 02 00": "built-in vectors of number 0",
    "01 04 00 3F 00 00 28 00": "a stride of 0",
    "01 04 00 3F 00 80 28 00": "a stride of 128",
    "01 04 00 3F 00 01 29 00": "vector's level out of range",
    "01 04 00 3F 00 01 28 01 29": "group's level out of range",
    "01 04 00 3F 00 01 28 01": "parameters are cut short",
    "01 04 00 3F 01 FF 7F 01 28 00": "no token 16383",
    "01 04 00 3F 00 01 28 31" + 49 * "00": "49 groups of 48 dimensions",
    "01 01 00 3F 40 00 01 FF FF FF FF": "outside the coder's range",
}


@pytest.mark.parametrize("body", MALFORMED)
def test_malformed_bodies_are_refused(body: str, tiny: ModelPackage) -> None:
    with pytest.raises(MalformedError, match=MALFORMED[body]):
        decode_body(bytes.fromhex(body), tiny)


def test_too_many_vectors_are_refused_at_once(tiny: ModelPackage) -> None:
    for count in ("81 02", "FF FF FF FF 0F"):
        with pytest.raises(LimitExceededError, match=r"steering vectors are more than 256"):
            decode_body(bytes.fromhex(count + "01 00 3F 40 00 00"), tiny)


@given(damage=st.binary(max_size=40), kind=st.integers(0, 5))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_give_vectors_or_a_named_error(
    tiny: ModelPackage, damage: bytes, kind: int
) -> None:
    with suppress(MalformedError, UnsupportedVersionError):
        prompt = decode_body(bytes([2, kind, 0, 0x3F]) + damage, tiny)
        assert prompt.codes.shape == (2, HIDDEN)


@pytest.mark.parametrize("bins", [1, 256])
def test_absurd_numbers_of_bins_are_refused(bins: int) -> None:
    for quantizer in (quantizers.gaussian, quantizers.empirical, quantizers.lloyd_max):
        with pytest.raises(UsageError, match=f"must be 2 to 255, not {bins}"):
            quantizer(vectors(1), bins)


def test_priors_say_their_parameters() -> None:
    for prior, parameters in (
        (GaussianPrior(sigma=200, low=-3, high=4), "C8 01 FD 04"),
        (EmpiricalPrior(low=-1, counts=(5, 300, 1)), "FF 03 05 AC 02 01"),
        (LloydMaxPrior(codes=(-127, 0, 127), counts=(1, 2, 3)), "03 81 00 7F 01 02 03"),
        (
            ScalesPrior(
                base=Base(ranks=(7, 300)), stride=5, vector_levels=(1, 40), group_levels=(-1, 2)
            ),
            "01 07 AC 02 05 01 28 02 FF 02",
        ),
        (
            ScalesPrior(base=Base(number=3), stride=127, vector_levels=(0, 0), group_levels=()),
            "02 03 7F 00 00 00",
        ),
    ):
        assert prior.encode() == bytes.fromhex(parameters)
        decoded = decode_prior(prior.kind, prior.encode(), 0, 2)
        assert decoded == (prior, len(prior.encode()))
