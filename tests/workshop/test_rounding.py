"""Quantization: grids, NF4, and GPTQ against its definition."""

from __future__ import annotations

import numpy as np
import pytest

from archiver.errors import UsageError
from archiver.predict.packed import NF4, Packing, dynamic_table, expand, unpack_codes
from archiver.predict.sources import read_source
from archiver.workshop.base import store_result
from archiver.workshop.calibration import read_calibration
from archiver.workshop.quantize import Quantizing, quantize_source
from archiver.workshop.rounding import gptq, round_to_nearest

GRID = Packing(method="grid", bits=4, group=16)
HEAD = Packing(method="symmetric", bits=8, group=64)


def expanded(found, shape):
    packing, arrays = found
    return expand("w", shape, packing, {f"w{suffix}": array for suffix, array in arrays.items()})


def some_weights(seed=0, shape=(24, 64)):
    return np.random.default_rng(seed).standard_t(5, shape).astype(np.float32)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("method", ["grid", "symmetric"])
def test_rounding_errs_by_half_a_step_at_most(method, bits):
    weights = some_weights()
    packing = Packing(method=method, bits=bits, group=16)
    found = round_to_nearest(weights, packing)
    steps = np.repeat(found[1][".scales"].astype(np.float32), 16, axis=1)
    error = np.abs(expanded(found, weights.shape) - weights)
    # Half a step, and what float16 took from scale and minimum.
    assert (error <= steps * 0.5 + np.abs(weights).max() * 2.0**-9).all()


def test_rounding_to_the_grid_that_weights_are_on_loses_nothing():
    weights = some_weights()
    once = expanded(round_to_nearest(weights, GRID), weights.shape)
    assert (expanded(round_to_nearest(once, GRID), weights.shape) == once).all()


def test_a_searched_range_errs_less_where_it_matters():
    weights, importance = some_weights(), np.random.default_rng(1).exponential(1, 64)
    coarse = Packing(method="grid", bits=3, group=16)

    def error(found):
        return (np.square(expanded(found, weights.shape) - weights) * importance).sum()

    searched = error(round_to_nearest(weights, coarse, importance))
    assert searched < 0.95 * error(round_to_nearest(weights, coarse))


def test_nf4_takes_the_nearest_points_and_little_space():
    weights = some_weights(shape=(64, 512))
    packing = Packing(method="nf4", bits=4, group=64)
    found = round_to_nearest(weights, packing)
    arrays = found[1]
    scales = dynamic_table()[arrays[".scales"]] * np.repeat(arrays[".ranges"], 256)
    scales = (scales + arrays[".offset"]).reshape(64, 8, 1)
    assert np.abs(scales[..., 0] / np.abs(weights.reshape(64, 8, 64)).max(axis=2) - 1).max() < 0.1
    choices = np.abs(weights.reshape(64, 8, 64, 1) - NF4 * scales[..., None])
    codes = unpack_codes(arrays[".codes"], 4, 512).reshape(64, 8, 64)
    taken = np.take_along_axis(choices, codes[..., None].astype(np.int64), axis=3)[..., 0]
    assert (taken <= choices.min(axis=3) + 1e-6).all()
    bits = 8 * sum(array.nbytes for array in arrays.values()) / weights.size
    assert bits < 4.14


def reference_gptq(weights, hessian, packing, damping):
    """Row by row and column by column, as the paper states it for one row: OBQ in a fixed order."""
    diagonal = np.diag(hessian)
    found = round_to_nearest(weights, packing, diagonal + diagonal.mean() * damping + 1e-12)
    scales = np.repeat(found[1][".scales"].astype(np.float64), packing.group, axis=1)
    minima = np.repeat(found[1][".minima"].astype(np.float64), packing.group, axis=1)
    damped = hessian + np.eye(len(hessian)) * damping * diagonal.mean()
    result = np.empty(weights.shape)
    for row in range(len(weights)):
        left, inverse = weights[row].astype(np.float64), np.linalg.inv(damped)
        for column in range(weights.shape[1]):
            scale, low = scales[row, column], minima[row, column]
            code = np.clip(np.rint((left[column] - low) / scale), 0, 15)
            result[row, column] = code * scale + low
            step = (left[column] - result[row, column]) / inverse[column, column]
            left -= step * inverse[column]
            inverse -= np.outer(inverse[:, column], inverse[column]) / inverse[column, column]
    return result


def correlated_inputs(seed=3, count=400, width=64):
    generator = np.random.default_rng(seed)
    mixing = generator.normal(size=(width, width)) * generator.exponential(1, width)
    return generator.normal(size=(count, width)) @ mixing


def test_gptq_is_the_published_algorithm():
    weights, inputs = some_weights(2, (6, 64)), correlated_inputs()
    hessian = inputs.T @ inputs
    found = gptq(weights, hessian, GRID, damping=0.01, by_activation=False)
    expected = reference_gptq(weights, hessian, GRID, 0.01)
    agreement = np.isclose(expanded(found, weights.shape), expected, atol=1e-4).mean()
    assert agreement > 0.99  # a tie may fall either way


@pytest.mark.parametrize("by_activation", [False, True])
def test_gptq_leaves_smaller_output_errors_than_rounding(by_activation):
    weights, inputs = some_weights(4), correlated_inputs()
    packing = Packing(method="grid", bits=3, group=16)

    def error(found):
        return np.square(inputs @ (expanded(found, weights.shape) - weights).T).sum()

    found = gptq(weights, inputs.T @ inputs, packing, by_activation=by_activation)
    assert error(found) < 0.6 * error(round_to_nearest(weights, packing))


def test_gptq_takes_inputs_that_are_always_zero():
    inputs = correlated_inputs()
    inputs[:, 5] = 0
    found = gptq(some_weights(), inputs.T @ inputs, GRID)
    assert np.isfinite(expanded(found, (24, 64))).all()


@pytest.mark.parametrize(
    ("method", "packing"),
    [
        ("rtn", Packing(method="grid", bits=3, group=32)),
        ("rtn", Packing(method="symmetric", bits=8, group=64)),
        ("nf4", Packing(method="nf4", bits=4, group=64)),
        ("gptq", Packing(method="grid", bits=4, group=32)),
    ],
)
def test_a_quantized_model_comes_back_from_its_folder(tiny, tmp_path, method, packing):
    plan = Quantizing(method=method, packing=packing, head=HEAD)
    calibration = read_calibration(tiny, None, windows=4, steps=64)
    result, packed, report = quantize_source(tiny, plan, calibration)
    assert store_result(tmp_path / "q", result, packed) is None
    found = read_source(tmp_path / "q")
    assert all((found.tensors[name] == result.tensors[name]).all() for name in tiny.tensors)
    errors = {name: np.abs(found.tensors[name] - tiny.tensors[name]).max() for name in tiny.tensors}
    assert errors["norm"] == 0
    assert 0 < errors["layers.1.down"] < 0.2
    assert found.history == (*tiny.history, result.history[-1])
    assert method in result.history[-1]
    scale_bits = {"grid": 32, "symmetric": 16, "nf4": 8}[packing.method] / packing.group
    assert report.bits_a_weight == pytest.approx(packing.bits + scale_bits, abs=0.2)


def test_methods_without_calibration_are_the_same_on_any_number_of_threads(tiny):
    import torch

    for method, packing in (("rtn", GRID), ("nf4", Packing(method="nf4", bits=4, group=32))):
        plan = Quantizing(method=method, packing=packing, head=HEAD, search=False)
        assert not plan.needs_calibration
        results = []
        for threads in (1, 4):
            torch.set_num_threads(threads)
            results.append(quantize_source(tiny, plan, None)[1])
        for name, (_, arrays) in results[0].items():
            for suffix, array in arrays.items():
                assert (array == results[1][name][1][suffix]).all()


def test_plans_that_do_not_fit_are_refused(tiny):
    wide = Quantizing(method="rtn", packing=Packing(method="grid", bits=4, group=48), head=HEAD,
                      search=False)  # fmt: skip
    with pytest.raises(UsageError, match="groups of 48 do not divide"):
        quantize_source(tiny, wide, None)
    with pytest.raises(UsageError, match="needs a calibration text"):
        quantize_source(tiny, Quantizing(method="gptq", packing=GRID, head=HEAD), None)
    with pytest.raises(UsageError, match="nf4 is a method and a packing"):
        Quantizing(method="nf4", packing=GRID, head=HEAD)
