"""Costs of short windows: derivatives against differences, order, and what is left afterwards."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from archiver.errors import UsageError
from archiver.predict.sources import read_source
from archiver.workshop.base import store_result
from archiver.workshop.calibration import read_calibration
from archiver.workshop.llama import FloatLlama
from archiver.workshop.localize import (
    HeadCosts,
    check_count,
    localized,
    measure_heads,
    switch_slopes,
)
from archiver.workshop.measure import window_bits
from archiver.workshop.reshape import with_weights
from archiver.workshop.training import with_start
from archiver.workshop.windows import Windows

STEPS, SPAN = 60, 12


@pytest.fixture(scope="module")
def calibration(tiny):
    return read_calibration(tiny, None, windows=2, steps=STEPS)


def marked(source, local_heads):
    return dataclasses.replace(
        source, config=dataclasses.replace(source.config, local_heads=local_heads)
    )


def some_heads(count: int, values: list[float]) -> HeadCosts:
    return HeadCosts(
        span_tokens=SPAN, sink_tokens=4, costs=np.array(values).reshape(-1, count), remark="here"
    )


class Switched:
    """Nats of a text in float64 with switches of any setting, by the definition."""

    def __init__(self, source, targets: torch.Tensor) -> None:
        self._targets, self._start = targets, source.start_token_id
        config, windows = source.config, Windows(window_tokens=STEPS, local_window_tokens=SPAN)
        every = dataclasses.replace(config, local_heads=((1,) * config.kv_heads,) * config.layers)
        weights = {
            name: weight.double() for name, weight in FloatLlama.from_source(source).weights.items()
        }
        self._full, self._local = (
            FloatLlama(kind, weights, windows=windows, dtype=torch.float64)
            for kind in (config, every)
        )

    def nats(self, switches: torch.Tensor) -> float:
        """Args: switches: float64 [layers, kv_heads, steps]."""
        model = self._full

        def attend(layer: int, qkv: torch.Tensor) -> torch.Tensor:
            full, local = (kind.attention(layer, qkv, 1) for kind in (model, self._local))
            group = model.config.heads // model.config.kv_heads * model.config.head_dim
            share = switches[layer].T.repeat_interleave(group, dim=1)
            return full + share * (local - full)

        with torch.no_grad():
            state = model.enter(with_start(self._targets, self._start))
            for layer in range(model.config.layers):
                state = model.block(layer, *state, 1, attend=attend)
            logits = model.leave(*state) @ model.head.T
        wanted = self._targets.reshape(-1)
        return torch.nn.functional.cross_entropy(logits, wanted, reduction="sum").item()

    def slope(self, place: tuple[int | slice, ...]) -> float:
        """The central difference by the switches at a place together."""
        sides = []
        for step in (-1e-3, 1e-3):
            switches = torch.zeros(4, 2, STEPS, dtype=torch.float64)
            switches[place] = step
            sides.append(self.nats(switches))
        return (sides[1] - sides[0]) / 2e-3


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-3), (torch.bfloat16, 0.05)])
def test_slopes_are_differences_by_switches(tiny, calibration, dtype, error):
    targets = torch.from_numpy(calibration.windows[:1])
    slopes, nats = switch_slopes(FloatLlama.from_source(tiny, dtype=dtype), targets, 0, SPAN)
    switched = Switched(tiny, targets)
    nothing = torch.zeros(4, 2, STEPS, dtype=torch.float64)
    assert nats == pytest.approx(switched.nats(nothing), rel=error / 10)
    assert (slopes[..., :SPAN] == 0).all()
    assert (slopes[..., SPAN:] != 0).any(-1).all()
    scale = slopes.abs().max().item()
    for layer, head, step in ((0, 0, 12), (0, 1, 40), (1, 0, 59), (2, 1, 20), (3, 0, 33)):
        found = slopes[layer, head, step].item()
        assert found == pytest.approx(switched.slope((layer, head, step)), abs=error * scale)
    for layer in range(4):
        found = slopes[layer, 1].sum().item()
        expected = switched.slope((layer, 1, slice(None)))
        assert found == pytest.approx(expected, abs=error * slopes[layer, 1].abs().sum().item())


def test_a_small_change_costs_what_is_estimated(tiny, calibration):
    """Heads of which little arrives: there the estimate has to be the loss itself."""
    tensors = {name: np.array(tiny.tensors[name]) for name in tiny.tensors}
    for layer in range(4):
        tensors[f"layers.{layer}.o"] *= np.float32(0.1)
    source = with_weights(tiny, tensors, "quiet")
    windows = calibration.windows[:1]
    model = FloatLlama.from_source(source, dtype=torch.float32)
    slopes, nats = switch_slopes(model, torch.from_numpy(windows), 0, SPAN)
    switched = Switched(source, torch.from_numpy(windows))
    for layer, head in ((0, 0), (1, 1), (3, 0)):
        everywhere = torch.zeros(4, 2, STEPS, dtype=torch.float64)
        everywhere[layer, head] = 1.0
        cost = switched.nats(everywhere) - switched.nats(torch.zeros_like(everywhere))
        found = slopes[layer, head].sum().item()
        assert found == pytest.approx(cost, abs=0.1 * slopes[layer, head].abs().sum().item())
    assert nats > 0


def test_costs_are_of_the_texts_alike(tiny, calibration):
    model, shares = FloatLlama.from_source(tiny), []
    for text in torch.from_numpy(calibration.windows).split(1):
        slopes, nats = switch_slopes(model, text, tiny.start_token_id, SPAN)
        shares.append(((slopes + slopes**2 / 2).sum(-1) / nats).numpy())
    both = measure_heads(tiny, [calibration], SPAN)
    assert np.allclose(both.costs, np.mean(shares, axis=0), rtol=1e-6)
    one = dataclasses.replace(calibration, windows=calibration.windows[:1], sha256="1" * 64)
    twice = measure_heads(tiny, [one, calibration], SPAN)
    assert np.allclose(twice.costs, 0.75 * shares[0] + 0.25 * shares[1], rtol=1e-6)
    assert twice.remark == f"{one.describe()}, {calibration.describe()}"


def test_marks_that_are_there_change_nothing(tiny, calibration):
    costs = measure_heads(tiny, [calibration], SPAN).costs
    again = measure_heads(marked(tiny, ((1, 0), (1, 1), (0, 1), (0, 0))), [calibration], SPAN)
    assert (again.costs == costs).all()


def test_heads_that_say_nothing_cost_nothing(tiny, calibration):
    """A head without values, and one whose output nothing reads."""
    tensors = {name: np.array(tiny.tensors[name]) for name in tiny.tensors}
    tensors["layers.1.v"][32:] = 0
    tensors["layers.2.o"][:, :64] = 0
    costs = measure_heads(with_weights(tiny, tensors, "silent"), [calibration], SPAN).costs
    assert costs[1, 1] == 0
    assert costs[2, 0] == 0
    assert (costs == 0).sum() == 2


def test_the_cheapest_are_marked():
    costs = some_heads(2, [0.3, -0.1, 0.2, 0.0, 0.2, 0.5])
    assert costs.cheapest(1) == ((0, 1), (0, 0), (0, 0))
    assert costs.cheapest(3) == ((0, 1), (1, 1), (0, 0))
    assert costs.cheapest(6) == ((1, 1),) * 3


def test_the_table_has_a_row_a_block():
    costs = some_heads(2, [0.3, -0.001, 0.02, 0.0])
    assert list(costs.lines(((0, 1), (1, 0)))) == [
        "bits added by seeing 12 tokens only, %, by block and key/value head",
        "    0   30.0000   -0.1000*",
        "    1    2.0000*   0.0000",
        "* local: 2 of 4",
    ]
    assert list(costs.lines(None))[1:] == ["    0   30.0000   -0.1000", "    1    2.0000    0.0000"]


def test_a_localized_model_comes_back_from_its_folder(tiny, calibration, tmp_path):
    costs = measure_heads(tiny, [calibration], SPAN)
    marks = costs.cheapest(5)
    result = localized(tiny, costs, marks)
    store_result(tmp_path / "l", result)
    costs.write(tmp_path / "l", marks)
    found = read_source(tmp_path / "l")
    assert found.config.local_heads == marks
    assert (found.tensors["layers.3.o"] == tiny.tensors["layers.3.o"]).all()
    assert found.history[-1] == (
        "localized: 5 of 8 key/value heads, those that lose least beyond 12 tokens and 4 sinks, "
        f"calibrated on 2 x 60 tokens of {calibration.sha256[:16]}"
    )
    table = json.loads((tmp_path / "l" / "localize.json").read_text())
    assert table["local_heads"] == [list(row) for row in marks]
    assert np.allclose(table["costs"], costs.costs, rtol=1e-5)
    windows = Windows(window_tokens=STEPS, local_window_tokens=SPAN)
    bits = [
        window_bits(
            FloatLlama.from_source(source, windows=windows, dtype=torch.float32),
            calibration.windows, 0,
        )
        for source in (tiny, found)
    ]  # fmt: skip
    assert np.allclose(bits[0][:, :SPAN], bits[1][:, :SPAN], atol=1e-4)
    assert np.abs(bits[0] - bits[1])[:, SPAN:].max() > 0.01


@pytest.mark.parametrize("count", [0, 9])
def test_heads_that_are_not_there_are_refused(tiny, count):
    with pytest.raises(UsageError, match="1 to 8 heads can be local"):
        check_count(tiny.config, count)


@pytest.mark.parametrize("span", [0, STEPS])
def test_a_span_beyond_the_text_is_refused(tiny, calibration, span):
    with pytest.raises(UsageError, match="--span has to be from 1 to 59: windows have 60 tokens"):
        measure_heads(tiny, [calibration], span)
