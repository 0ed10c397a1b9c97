"""Training: the float model is the engine's, vectors get better, runs resume, charges count."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import archiver
from archiver import frames
from archiver.codec import PricedSymbols, open_codec, settings_for
from archiver.errors import InputError, OutputError, UsageError
from archiver.levels import Chunking
from archiver.options import STEERING_PRIORS, CompressOptions
from archiver.predict import registry
from archiver.predict.kernels import head
from archiver.predict.package import ModelPackage
from archiver.predict.soft_prompt import SoftPrompt
from archiver.steering import choice, files, quantizers
from archiver.steering.bodies import base_vectors, encode_body
from archiver.steering.charge import Charge, ChargedVectors
from archiver.steering.fit import stored_vectors, token_weights
from archiver.steering.llama import TrainingModel
from archiver.steering.priors import Base, PriorKind
from archiver.steering.sections import built_in_section
from archiver.steering.sources import random_vectors, resolve
from archiver.steering.starts import read_start
from archiver.steering.train import (
    EVALUATE_EVERY,
    WINDOW_TOKENS,
    Trainer,
    TrainingSettings,
    TrainingState,
    _Windows,
    stream_weights,
)
from archiver.types import Float32Array, Int32Array
from tests.golden.make import line_of
from tests.predict.engines import engine_of, run

# A few of the model's tokens in no order: which ones, a prompt may tell.
TEXT = line_of(80_000, 1)


@pytest.fixture(scope="module")
def model(tiny_home: Path) -> TrainingModel:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMZIP_HOME", str(tiny_home))
        return TrainingModel(registry.resolve("tiny"))


@pytest.fixture(scope="module")
def ranks() -> Int32Array:
    return np.random.default_rng(0).integers(0, 60, 12_000).astype(np.int32)


def engine_bits(
    package: ModelPackage, ranks: Int32Array, prompt: SoftPrompt | None = None
) -> Float32Array:
    """What the exact engine's weights say: the bits of each token of one stream."""
    engine = engine_of(package, window=512, sinks=4)
    if prompt is not None:
        engine = engine.steered(prompt)
    inputs = np.concatenate([[engine.start_token], ranks[:-1]]).astype(np.int32)
    codes, scales = run(engine, inputs[None], len(ranks))
    size = engine.vocabulary.size
    logits, weights = np.empty(size, np.float32), np.empty(size, np.int32)
    cumulative = np.empty(-(-size // head.TILE_RANKS) + 1, np.int64)
    bits = np.empty(len(ranks), np.float32)
    products, row_scales, head_scales = engine.head(codes[0], scales[0])
    for i, product in enumerate(products):
        head.weigh_vocabulary(product, row_scales[i], head_scales, logits, weights, cumulative)
        bits[i] = np.log2(weights.sum(dtype=np.float64) / weights[ranks[i]])
    return bits


def test_the_float_model_is_the_engines(
    tiny: ModelPackage, model: TrainingModel, ranks: Int32Array
) -> None:
    prompt = random_vectors(5, 3, tiny)
    vectors = prompt.codes.astype(np.float32) * prompt.scales[:, None]
    exact = engine_bits(tiny, ranks[:200], prompt)
    windows = torch.from_numpy(ranks[:400].astype(np.int64)).view(2, 200)
    with torch.no_grad():
        bits = model.bits(torch.from_numpy(vectors), windows)[0].numpy()
        plain = model.bits(torch.empty(0, vectors.shape[1]), windows)[0].numpy()
    assert np.abs(bits - exact).mean() < 0.03 * exact.std()
    assert np.corrcoef(bits, exact)[0, 1] > 0.999
    assert np.abs(bits - plain).mean() > 10 * np.abs(bits - exact).mean()


def test_gradients_are_those_of_the_bits(
    tiny: ModelPackage, model: TrainingModel, ranks: Int32Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64 the directional derivative is the difference quotient."""
    from archiver.steering import llama

    monkeypatch.setattr(llama, "PRODUCT_TYPE", torch.float64)
    exact = TrainingModel(tiny)
    exact.embeddings = exact.embeddings.double()
    windows = torch.from_numpy(ranks[:120].astype(np.int64)).view(2, 60)
    generator = torch.Generator().manual_seed(1)
    start = 0.2 * torch.randn(3, 48, generator=generator, dtype=torch.float64)
    direction = torch.randn(3, 48, generator=generator, dtype=torch.float64)
    vectors = torch.nn.Parameter(start)
    exact.bits(vectors, windows).sum().backward()
    assert vectors.grad is not None
    slope = float((vectors.grad * direction).sum())
    with torch.no_grad():
        ahead, behind = (
            float(exact.bits(start + sign * 1e-3 * direction, windows).double().sum())
            for sign in (1, -1)
        )
    assert slope == pytest.approx((ahead - behind) / 2e-3, rel=0.02)


def trainer(
    model: TrainingModel, ranks: Int32Array, checkpoint: Path | None = None, **settings: object
) -> Trainer:
    chosen = TrainingSettings(**{"vectors": 3, "steps": 40, **settings})  # type: ignore[arg-type]
    return Trainer(model, [ranks], chosen, checkpoint=checkpoint)


@pytest.mark.parametrize("charge", [None, Charge(streams=3000, step=0.1)])
def test_vectors_get_better_than_what_they_began_as(
    model: TrainingModel, ranks: Int32Array, charge: Charge | None
) -> None:
    states: list[TrainingState] = []
    training = trainer(model, ranks, charge=charge)
    beginning = training.state
    found = training.run(states.append)
    assert [state.step for state in states] == list(range(1, 41))
    assert states[-1].part == 1.0
    assert found.best_bits < beginning.best_bits - 5
    assert found.best_bits < found.plain_bits
    assert found.values.shape == (3, 48)
    assert len(found.base_ranks) == 3
    assert all(rank in ranks for rank in found.base_ranks)


@pytest.mark.parametrize("charge", [None, Charge(streams=300, step=0.1)])
def test_a_training_that_was_interrupted_goes_on(
    model: TrainingModel, ranks: Int32Array, tmp_path: Path, charge: Charge | None
) -> None:
    whole = trainer(model, ranks, charge=charge).run()
    path = tmp_path / "checkpoint"
    pieces = 0
    while not (piece := trainer(model, ranks, path, charge=charge)).done:
        found = piece.run(pause_after_s=0.05)
        pieces += 1
    assert pieces > 1
    assert np.array_equal(found.values, whole.values)
    assert (found.best_bits, found.base_ranks) == (whole.best_bits, whole.base_ranks)
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint"]


def test_checkpoints_of_other_trainings_are_refused(
    model: TrainingModel, ranks: Int32Array, tmp_path: Path
) -> None:
    path = tmp_path / "checkpoint"
    trainer(model, ranks, path, steps=1).run()
    for other, changes in (
        (ranks[:-1], {}),
        (ranks, {"seed": 1}),
        (ranks, {"vectors": 2}),
        (ranks, {"stream_tokens": 9}),
    ):
        with pytest.raises(UsageError, match="is the checkpoint of another training"):
            trainer(model, other, path, **{"steps": 1, **changes})
    path.write_bytes(b"no checkpoint")
    with pytest.raises(UsageError, match="is not a checkpoint"):
        trainer(model, ranks, path, steps=1)


def test_a_time_limit_ends_the_training(model: TrainingModel, ranks: Int32Array) -> None:
    training = trainer(model, ranks, steps=10**6, limit_s=0.5)
    training.run()
    assert training.done
    assert 0 < training.state.step < 10**5
    assert training.state.part == 1.0


def test_nothing_gained_ends_the_training(model: TrainingModel, ranks: Int32Array) -> None:
    """A step so dear that no coordinate can pay for leaving its place."""
    charge = Charge(streams=1e-3, step=100.0)
    training = trainer(model, ranks, steps=10**6, charge=charge)
    found = training.run()
    assert training.state.step < 40 * EVALUATE_EVERY
    embeddings = model.embeddings[list(found.base_ranks)].numpy()
    assert np.array_equal(found.values, embeddings)


def test_a_charge_makes_vectors_cheaper(
    tiny: ModelPackage, model: TrainingModel, ranks: Int32Array
) -> None:
    sizes = {}
    for streams in (3, 3000):
        found = trainer(model, ranks, charge=Charge(streams=streams, step=0.1)).run()
        base = Base(ranks=found.base_ranks)
        quantized = quantizers.scales(found.values, 0.1, base, base_vectors(base, tiny))
        body = encode_body(quantized.codes, quantized.scale, quantized.prior, tiny)
        sizes[streams] = len(body)
    assert sizes[3] < 0.6 * sizes[3000]


@pytest.mark.parametrize("stream_tokens", [200, 384, 500.5, 16_000])
def test_a_windows_second_half_stands_for_all_that_follows(stream_tokens: float) -> None:
    weights = stream_weights(stream_tokens)
    half = WINDOW_TOKENS // 2
    assert float(weights.sum()) == pytest.approx(stream_tokens)
    assert (weights[:half] == 1).all()
    assert (weights[half:] == weights[-1]).all()


def test_the_bits_of_a_stream_are_those_of_windows_weighted(
    model: TrainingModel, ranks: Int32Array
) -> None:
    window, stream = (trainer(model, ranks, stream_tokens=tokens) for tokens in (384, 9792))
    with torch.no_grad():
        bits = model.bits(model.embeddings[:0], window._windows.held_out().ranks).mean(0)
    assert window.state.plain_bits == pytest.approx(float(bits.sum()), rel=1e-5)
    expected = float(bits[:192].sum() + 50 * bits[192:].sum())
    assert stream.state.plain_bits == pytest.approx(expected, rel=1e-5)


def test_a_token_that_stands_for_others_bends_the_loss_as_often(
    model: TrainingModel, ranks: Int32Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients a token are the same then, and so are their squares, which AdamW keeps."""
    seen: list[torch.Tensor] = []
    of_moves = ChargedVectors.of_moves

    def spy(
        charge: Charge, base: torch.Tensor, vectors: torch.Tensor, curvature: torch.Tensor
    ) -> ChargedVectors:
        seen.append(curvature)
        return of_moves(charge, base, vectors, curvature)

    monkeypatch.setattr(ChargedVectors, "of_moves", spy)
    settings = TrainingSettings(vectors=3, steps=2, charge=Charge(streams=300, step=0.1))
    for factor, weight in ((1, 1), (8, 1), (1, 8)):  # which no product rounds
        weights = np.full(len(ranks), weight, np.float32)
        training = Trainer(model, [ranks], settings, weights=[weights])
        training._weights *= factor
        training.run()
    once, *eight_times = seen
    assert float(once.min()) >= 0
    assert float(once.mean()) > 0
    for curvature in eight_times:
        assert torch.allclose(curvature, 8 * once, rtol=1e-3)


def test_weights_of_tokens_count(model: TrainingModel, ranks: Int32Array) -> None:
    """What weighs nothing is not learned; bits are weighted sums."""
    rare = ranks < 10
    weights = np.where(rare, 0, 0.5).astype(np.float32)
    settings = TrainingSettings(vectors=3, steps=60)
    training = Trainer(model, [ranks], settings, weights=[weights])
    held = training._windows.held_out()
    assert torch.equal(held.weights == 0, held.ranks < 10)
    with torch.no_grad():
        plain = model.bits(model.embeddings[:0], held.ranks)
    expected = float((plain * (held.ranks >= 10)).sum(1).mean()) / 2
    assert training.state.plain_bits == pytest.approx(expected, rel=1e-5)
    found = [each.run().values for each in (Trainer(model, [ranks], settings), training)]
    with torch.no_grad():
        whole, part = (model.bits(torch.from_numpy(vectors), held.ranks) for vectors in found)
    unweighted = held.ranks < 10
    assert part[unweighted].mean() > whole[unweighted].mean() + 0.1
    assert part[~unweighted].mean() < whole[~unweighted].mean() - 0.05


def test_a_tokens_weight_is_what_the_mixer_leaves(tiny: ModelPackage) -> None:
    """Symbol by symbol, in whichever order streams are coded."""
    predictor, mixer = settings_for(tiny, CompressOptions(model="tiny", window_tokens=512))
    codec = open_codec(
        replace(predictor, local_window_tokens=512), mixer, package=tiny, threads=1,
        chunking=Chunking(tokens_min=100, streams=1000),
    )  # fmt: skip
    priced = codec.encode_priced(TEXT[:4000])[1]
    starts = codec.plan(len(priced.ranks)).starts
    assert len(starts) > 3
    parts = itertools.pairwise(starts)
    exact = np.concatenate([engine_bits(tiny, priced.ranks[slice(*part)]) for part in parts])
    assert np.allclose(priced.model_bits, exact, atol=0.01)
    assert np.allclose(token_weights(priced) * exact, priced.bits, atol=0.01)


def test_weights_are_within_bounds() -> None:
    symbols = PricedSymbols(
        ranks=np.array([5, 6, 7], np.int32),
        bits=np.array([1, 9, 0.02], np.float32),
        model_bits=np.array([2, 1, 0.01], np.float32),
    )
    assert token_weights(symbols) == pytest.approx([0.5, 3, 0.4])


def test_windows_held_out_are_never_trained_on() -> None:
    marked = np.arange(20_000, dtype=np.int32)
    weights = (marked / 4).astype(np.float32)
    windows = _Windows([marked], [weights], torch.device("cpu"))
    held = windows.held_out()
    assert held.ranks.shape == (6, WINDOW_TOKENS)
    drawn = windows.draw(300, 100, torch.Generator().manual_seed(0))
    assert not np.intersect1d(held.ranks.numpy(), drawn.ranks.numpy()).size
    assert (drawn.ranks.diff(dim=1) == 1).all()
    assert torch.equal(drawn.weights, drawn.ranks / 4)


def test_short_texts_are_refused(model: TrainingModel, ranks: Int32Array) -> None:
    for texts in ([], [ranks[:6143]], [ranks[:383]] * 100):
        with pytest.raises(UsageError, match="training needs texts of 6,144 tokens and more"):
            Trainer(model, texts, TrainingSettings(vectors=1))
    escapes = np.full(9000, -1, np.int32)
    with pytest.raises(UsageError, match="training needs texts"):
        Trainer(model, [escapes], TrainingSettings(vectors=1))


# --- in the program ---------------------------------------------------------------------------


def options(steering: str) -> CompressOptions:
    return CompressOptions(model="tiny", steering=steering, window_tokens=64, chunk_tokens=400)


@pytest.fixture
def without_zstd(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames are left to the predictor: this model is too small to beat zstd at anything else
    than short texts, which cannot be trained on."""
    monkeypatch.setattr(frames, "ZSTD_LEVEL", -100_000)


@pytest.mark.usefixtures("without_zstd")
def test_archives_with_trained_vectors_decode(tiny: ModelPackage) -> None:
    stages: list[tuple[str, int, int]] = []
    archive = archiver.compress(
        TEXT,
        options=options("trained:2:1s"),
        model_progress=lambda *stage: stages.append(stage),
    )
    assert archiver.decompress(archive) == TEXT
    info = archiver.info(archive).steering
    assert info is not None
    assert (info.kind, info.vectors, info.prior) == ("embedded", 2, "scales")
    assert stages[-1] == ("training steering vectors", 1000, 1000)
    assert ("measuring the text", len(TEXT), len(TEXT)) in stages


@pytest.mark.usefixtures("without_zstd")
def test_training_never_makes_an_archive_larger(
    tiny: ModelPackage,
) -> None:
    plain = archiver.compress(TEXT, options=options("auto"))
    chosen = archiver.compress(TEXT, options=options("auto:2s"))
    assert len(chosen) <= len(plain)
    assert archiver.decompress(chosen) == TEXT
    short = archiver.compress(TEXT[:2000], options=options("auto:1s"))
    assert short == archiver.compress(TEXT[:2000], options=options("auto"))
    with pytest.raises(UsageError, match="training needs texts"):
        archiver.compress(TEXT[:2000], options=options("trained:2:1s"))


@pytest.mark.usefixtures("without_zstd")
def test_where_training_is_allowed_nothing_makes_an_archive_larger(
    tiny: ModelPackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Vectors that seem best on an extract, but are not, are found out."""
    values = np.random.default_rng(5).normal(0, 0.2, (3, 48)).astype(np.float32)
    quantized = quantizers.gaussian(values, 15)
    body = encode_body(quantized.codes, quantized.scale, quantized.prior, tiny)
    file = files.SteeringFile(package_fingerprint=tiny.fingerprint_bytes, body=body)
    (tmp_path / "bad.steer").write_bytes(file.encode())
    monkeypatch.setattr(files, "FOLDER", tmp_path)
    monkeypatch.setattr(files, "BUILT_IN", {"bad": (9, file.fingerprint)})
    files.built_in_file.cache_clear()
    section = built_in_section("bad")
    found = (section, resolve(section, tiny, None))
    monkeypatch.setattr(choice, "best_built_in", lambda *_: found)
    text = TEXT[:3000]  # too short to train on
    plain, bad, guarded = (
        archiver.compress(text, options=options(steering))
        for steering in ("none", "bad", "auto:1s")
    )
    assert len(bad) > len(plain)
    assert archiver.compress(text, options=options("auto")) == bad
    assert guarded == plain
    files.built_in_file.cache_clear()


def test_training_may_begin_as_built_in_vectors(
    tiny: ModelPackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archiver.train([TEXT], tmp_path / "mine.steer", model="tiny", vectors=2, time_limit_s=2)
    file = files.read_file(tmp_path / "mine.steer")
    monkeypatch.setattr(files, "FOLDER", tmp_path)
    monkeypatch.setattr(files, "BUILT_IN", {"mine": (9, file.fingerprint)})
    files.built_in_file.cache_clear()
    ranks = np.random.default_rng(0).integers(0, 60, 12_000).astype(np.int32)
    bits = np.full(len(ranks), 6, np.float32)
    symbols = PricedSymbols(ranks=ranks, bits=bits, model_bits=bits)
    before = built_in_section("mine")
    section, prompt = stored_vectors(
        tiny, symbols, streams=10**6, vectors=7, before=before, steps=100, limit_s=2, threads=1,
        report=None,
    )  # fmt: skip
    files.built_in_file.cache_clear()
    built_in = resolve(before, tiny, None)
    assert prompt.codes.shape == built_in.codes.shape == (2, 48)
    change = prompt.codes * prompt.scales[:, None] - built_in.codes * built_in.scales[:, None]
    assert 0.05 < np.abs(change).max() < 2
    assert section.fields[0] == 2
    files.built_in_file.cache_clear()


@pytest.mark.usefixtures("without_zstd")
def test_vectors_trained_in_steps_are_the_same_again(tiny: ModelPackage) -> None:
    first, second = (
        archiver.compress(TEXT, options=replace(options("trained:2:3steps"), threads=1))
        for _ in range(2)
    )
    assert first == second
    info = archiver.info(first).steering
    assert info is not None
    assert (info.kind, info.vectors, info.prior) == ("embedded", 2, "scales")


def test_one_training_stored_by_every_prior(tiny: ModelPackage, tmp_path: Path) -> None:
    """With the checkpoint of a training that is done, nothing is trained again."""
    found = {}
    for prior in STEERING_PRIORS:
        for bins in (7, 63):
            target = tmp_path / f"{prior}-{bins}.steer"
            found[prior, bins] = archiver.train(
                [TEXT], target, model="tiny", vectors=2, steps=3, prior=prior, bins=bins,
                checkpoint=tmp_path / "state",
            )  # fmt: skip
            start = read_start(files.read_file(target).body)
            assert start.prior.kind.name.lower().replace("_", "-") == prior
    assert {(each.steps, each.trained_s, each.best_bits) for each in found.values()} == {
        (3, found["gaussian", 7].trained_s, found["gaussian", 7].best_bits)
    }
    for prior in STEERING_PRIORS:
        coarse, fine = found[prior, 7], found[prior, 63]
        assert coarse.square_error > fine.square_error > 0
        assert coarse.vector_bytes < fine.vector_bytes
    errors = {prior: found[prior, 7].square_error for prior in STEERING_PRIORS}
    assert errors["lloyd-max"] < min(errors["gaussian"], errors["empirical"])
    fine = found["gaussian", 63].square_error
    assert found["gaussian", 7].square_error == pytest.approx(100 * fine, rel=0.5)


def test_vectors_that_serve_more_streams_may_take_more(tiny: ModelPackage, tmp_path: Path) -> None:
    sizes = []
    for streams in (1, 1_000_000):
        target = tmp_path / f"{streams}.steer"
        found = archiver.train(
            [TEXT], target, model="tiny", vectors=2, steps=90, chunk_tokens=200, streams=streams
        )
        body = files.read_file(target).body
        assert read_start(body).prior.kind is PriorKind.SCALES
        assert found.vector_bytes == len(body)
        sizes.append(len(body))
    assert sizes[0] < 20 < sizes[1]


def test_settings_of_training_that_make_no_sense(tiny: ModelPackage, tmp_path: Path) -> None:
    for changes, message in (
        ({"prior": "uniform"}, "no prior 'uniform'; there are gaussian, empirical, lloyd-max, sca"),
        ({"bins": 1}, "the number of bins must be 2 to 255, not 1"),
        ({"bins": 256}, "the number of bins must be 2 to 255, not 256"),
        ({"steps": 0}, "the number of steps must be 1 to 100000, not 0"),
        ({"vectors": 33}, "the number of trained vectors must be 1 to 32, not 33"),
        ({"chunk_tokens": 0}, "the chunk must be 1 to 16777216, not 0"),
        ({"streams": 0}, "the number of streams must be 1 to 1000000000, not 0"),
        ({"streams": 9, "prior": "gaussian"}, "give a number of streams, or a prior and bins"),
        ({"streams": 9, "bins": 63}, "give a number of streams, or a prior and bins"),
    ):
        with pytest.raises(UsageError, match=message):
            archiver.train([TEXT], tmp_path / "x.steer", model="tiny", **changes)  # type: ignore[arg-type]
    assert not (tmp_path / "x.steer").exists()


@pytest.mark.usefixtures("without_zstd")
def test_a_steering_file_helps_other_texts_like_its_own(tiny: ModelPackage, tmp_path: Path) -> None:
    target = tmp_path / "mine.steer"
    half = len(TEXT) // 2
    states: list[TrainingState] = []
    found = archiver.train(
        [TEXT[:half], TEXT[: half // 2]], target, model="tiny", vectors=2, time_limit_s=4,
        report=states.append,
    )  # fmt: skip
    assert found.best_bits < found.plain_bits
    assert (states[-1].step, states[-1].best_bits) == (found.steps, found.best_bits)
    assert 1 < found.trained_s < 60
    assert found.vector_bytes == len(files.read_file(target).body)
    with_file, without = (
        # The model alone: context models learn what there is in this text in any case.
        archiver.compress(TEXT[half:], options=replace(options(steering), mixing=False))
        for steering in (str(target), "none")
    )
    assert len(with_file) < len(without)
    assert archiver.decompress(with_file, steering=target) == TEXT[half:]
    with pytest.raises(OutputError, match="exists already"):
        archiver.train([TEXT], target, model="tiny", time_limit_s=1)
    with pytest.raises(InputError, match="No such file"):
        archiver.train([tmp_path / "nothing"], target, model="tiny", overwrite=True)
