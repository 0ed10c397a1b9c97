"""A team's step gives the weights that one thread's session gives, whoever does which part."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from archiver.predict import team
from archiver.predict.engine import Engine
from archiver.predict.kernels import meeting, products
from archiver.predict.package import ModelPackage
from archiver.predict.predictor import PredictorTeam
from archiver.predict.soft_prompt import SoftPrompt
from archiver.predict.team import SoloTeam, Team, shares_products

from .engines import engine_of, small_package

STEPS = 40  # beyond the narrow window


@pytest.fixture(scope="module", params=["narrow", "wide"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelPackage:
    """A small random model; every size of the wide one is a multiple of 64."""
    return small_package(tmp_path_factory, wide=request.param == "wide")


def engines(model: ModelPackage, **settings: Any) -> list[Engine]:
    """One engine for every own product that is exact here."""
    found = []
    for name in ("amx", "vnni"):
        probe = engine_of(model, matmul="float32")
        if products.is_exact(products.backend_named(name), probe.inner_sizes):
            found.append(engine_of(model, matmul=name, **settings))
    return found


Found = list[tuple[np.ndarray, np.ndarray]]


def steps(found: PredictorTeam, tokens: np.ndarray, together: Iterable[bool] = (False,)) -> Found:
    """Weights and totals after every step, made together or apart in turns."""
    results = []
    turns = itertools.cycle(together)
    with ThreadPoolExecutor(len(found.shares)) as pool:
        for step in range(tokens.shape[1]):
            last = np.ascontiguousarray(tokens[:, step])
            run = found.run_apart
            if next(turns):
                assert isinstance(found, Team)
                run = found.run_together
            jobs = [pool.submit(run, n, last[share]) for n, share in enumerate(found.shares)]
            for job in jobs:
                job.result()
            results.append((found.weights.copy(), found.cumulative.copy()))
    return results


def assert_same(found: Found, expected: Found) -> None:
    for (weights, cumulative), wanted in zip(found, expected, strict=True):
        assert np.array_equal(weights, wanted[0])
        assert np.array_equal(cumulative, wanted[1])


def tokens_of(model: ModelPackage, streams: int) -> np.ndarray:
    count = model.config["tokens"]
    assert isinstance(count, int)
    return np.random.default_rng(5).integers(0, count, (streams, STEPS)).astype(np.int32)


@pytest.mark.parametrize("streams", [1, 2, 5, 33, 47])
@pytest.mark.parametrize("members", [1, 2, 3])
def test_a_team_equals_one_thread(model: ModelPackage, streams: int, members: int) -> None:
    tokens = tokens_of(model, streams)
    plain = engine_of(model, matmul="float32", window=24)
    expected = steps(plain.team(streams=streams, tokens=STEPS, threads=1), tokens)
    for engine in engines(model, window=24):
        for together in ((True,), (False,), (True, True, False)):
            shared = Team(engine, streams=streams, tokens=STEPS, members=members)
            assert_same(steps(shared, tokens, together), expected)


@pytest.mark.parametrize("members", [2, 3])
def test_members_apart_need_no_products_of_our_own(model: ModelPackage, members: int) -> None:
    tokens = tokens_of(model, 13)
    plain = engine_of(model, matmul="float32", window=24)
    expected = steps(SoloTeam(plain, streams=13, tokens=STEPS, members=1), tokens)
    assert_same(steps(SoloTeam(plain, streams=13, tokens=STEPS, members=members), tokens), expected)


def test_a_team_sees_a_soft_prompt(model: ModelPackage) -> None:
    generator = np.random.default_rng(3)
    prompt = SoftPrompt(
        codes=generator.integers(-127, 128, (5, int(model.config["hidden"]))).astype(np.int8),
        scales=np.full(5, 0.01, np.float32),
    )
    tokens = tokens_of(model, 3)
    plain = engine_of(model, matmul="float32").steered(prompt)
    expected = steps(plain.team(streams=3, tokens=STEPS, threads=1), tokens)
    for engine in engines(model):
        shared = engine.steered(prompt).team(streams=3, tokens=STEPS, threads=2)
        assert_same(steps(shared, tokens, (True, False)), expected)


def test_which_engines_share_products(model: ModelPackage) -> None:
    plain = engine_of(model, matmul="float32")
    assert not shares_products(plain)
    # Members that each read the weights, and cannot share, need streams enough.
    for streams, members in ((2, 1), (8, 2), (30, 3)):
        found = plain.team(streams=streams, tokens=9, threads=3)
        assert isinstance(found, SoloTeam)
        assert len(found.shares) == members
    for engine in engines(model):
        assert isinstance(engine.team(streams=2, tokens=9, threads=2), Team)


def test_a_member_that_fails_leaves_nobody_waiting(
    model: ModelPackage, monkeypatch: pytest.MonkeyPatch
) -> None:
    for engine in engines(model):
        shared = Team(engine, streams=4, tokens=STEPS, members=2)
        tokens = np.ascontiguousarray(tokens_of(model, 4)[:, 0])
        whole = team.step

        def step(*arguments: Any, whole: Any = whole) -> None:
            if threading.current_thread() is threading.main_thread():
                raise MemoryError("no room")
            whole(*arguments)

        with monkeypatch.context() as patched, ThreadPoolExecutor(1) as pool:
            patched.setattr(team, "step", step)
            other = pool.submit(shared.run_together, 1, tokens[2:])
            with pytest.raises(MemoryError, match="no room"):
                shared.run_together(0, tokens[:2])
            other.result(timeout=60)


def test_all_see_what_was_written_before_a_meeting() -> None:
    members, rounds = 3, 200
    place = meeting.new_meeting()
    written = np.zeros(members, np.int64)
    wrong: list[int] = []

    def take_part(number: int) -> None:
        for turn in range(1, rounds + 1):
            written[number] = turn
            meeting.meet(place, members * (2 * turn - 1))
            if (written != turn).any():
                wrong.append(turn)
            meeting.meet(place, members * 2 * turn)

    with ThreadPoolExecutor(members) as pool:
        for job in [pool.submit(take_part, number) for number in range(members)]:
            job.result()
    assert not wrong
    assert place[0] == 2 * members * rounds
