"""Who makes the steps of streams in lockstep; that it changes nothing is tested elsewhere, too."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from archiver.codec import stepper
from archiver.codec.signatures import signatures_of
from archiver.codec.stepper import Pace, Stepper
from archiver.predict.engine import Engine
from archiver.predict.package import ModelPackage
from archiver.predict.team import Team, shares_products

STEPS = 60


def ways(pace: Pace, together_s: float, apart_s: float, steps: int, first: bool) -> list[bool]:
    """Whether each of some steps was made together, if they take so long; and the one after."""
    found = [first]
    for _ in range(steps):
        found.append(pace.after(together_s if found[-1] else apart_s))
    return found


def test_the_quicker_way_is_taken() -> None:
    found = ways(Pace(), 0.03, 0.06, 2000, True)
    assert found.count(False) / len(found) < 0.02
    assert False in found[: 2 * stepper.FIRST_TRIAL]
    found = ways(Pace(), 0.15, 0.06, 2000, True)
    assert found.count(True) / len(found) < 0.04


def test_what_changes_is_noticed() -> None:
    pace = Pace()
    before = ways(pace, 0.03, 0.06, 1000, True)
    crowded = ways(pace, 0.15, 0.08, 1000, before[-1])
    assert crowded.count(True) / len(crowded) < 0.08
    alone = ways(pace, 0.03, 0.06, 1000, crowded[-1])
    last = alone[stepper.LAST_TRIAL + 2 * stepper.TRIAL_STEPS :]
    assert last.count(False) / len(last) < 0.05


def test_noise_does_not_make_it_change_much() -> None:
    generator = random.Random(4)
    pace, together, changes, spent = Pace(), True, 0, 0.0
    for _ in range(5000):
        seconds = (0.03 if together else 0.04) * generator.choice((1, 1, 1, 3))
        spent += seconds
        before, together = together, pace.after(seconds)
        changes += before != together
    assert changes < 200
    assert spent < 5000 * 0.04 * 1.5 * 0.9  # what only steps apart would take, and less


@pytest.mark.parametrize("streams", [1, 3, 8, 21])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_groups_are_all_streams_in_turn(
    tiny: ModelPackage, monkeypatch: pytest.MonkeyPatch, streams: int, threads: int
) -> None:
    monkeypatch.setattr(stepper, "FIRST_TRIAL", 3)
    monkeypatch.setattr(stepper, "LAST_TRIAL", 4)
    engine = Engine(tiny, window=64, local_window=64, sinks=4)
    tokens = np.random.default_rng(2).integers(0, 60, (STEPS, streams)).astype(np.int32)
    alone = engine.team(streams=streams, tokens=STEPS, threads=1)
    inputs = np.full(streams, engine.start_token, np.int32)
    shapes = set()
    with ThreadPoolExecutor(threads) as pool:
        steps = Stepper(engine, pool, threads, streams, STEPS)
        for step in range(STEPS):
            alone.run_apart(0, inputs)
            groups = steps.groups
            shapes.add(len(groups))
            done = 0
            for group in groups:
                assert group.start == done < group.stop
                done = group.stop
                weights, cumulative, signatures = steps.weights_of(group)
                assert np.array_equal(weights, alone.weights[group])
                assert np.array_equal(cumulative, alone.cumulative[group])
                assert np.array_equal(signatures, signatures_of(alone.states[group]))
                if step + 1 < STEPS:
                    steps.advance(group, tokens[step, group])
            assert done == streams
            inputs = tokens[step]
        steps.stop()
    if shares_products(engine):
        assert isinstance(alone, Team)
        assert shapes == {1, min(threads, streams)}
