"""Training: it learns, goes on after any stop to the same result, and refuses what does not fit."""

from __future__ import annotations

import dataclasses
import hashlib
import json

import numpy as np
import pytest
import torch

from archiver.errors import InputError, UsageError
from archiver.predict.adapter import apply_adapter, read_adapter, write_adapter
from archiver.workshop.corpus import Corpus, parse_roots, read_mixture, single_file_mixture
from archiver.workshop.llama import FloatLlama
from archiver.workshop.measure import window_bits
from archiver.workshop.reshape import keep_layers
from archiver.workshop.settings import TrainSettings
from archiver.workshop.training import common_blocks
from archiver.workshop.tune import Measuring, open_run
from tests.workshop.conftest import TEXT

MEASURING = Measuring(every=4, windows=2, tokens=32)


def settings_of(**changes) -> TrainSettings:
    fields = {
        "steps": 8, "batch_tokens": 128, "sequences": (32, 64), "rank": 4, "rate": 5e-3,
        "warmup": 2, "seed": 3,
    } | changes  # fmt: skip
    return TrainSettings(**fields)


def run_in(folder, tiny, text_file, settings, **more):
    mixture, roots = single_file_mixture(text_file)
    return open_run(folder, tiny, mixture, roots, settings, measuring=MEASURING, **more)


def held_out(log):
    return [entry["held_out_bpb"] for entry in log if "held_out_bpb" in entry]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rank": 0, "targets": ("qkv", "o", "gate_up", "down", "norms", "embed"), "rate": 1e-3},
        {"optimizer": "muon", "rate": 2e-3, "cooldown": 3},
        {"rank": 0, "optimizer": "muon", "rate": 1e-3, "layers": (1, 3), "decay": 0.01},
    ],
)
def test_it_learns_and_pieces_give_what_one_run_gives(tiny, text_file, tmp_path, changes):
    settings = settings_of(**changes)
    whole = run_in(tmp_path / "whole", tiny, text_file, settings).trainer
    whole.run()
    assert whole.done
    measured = held_out(whole.log)
    assert len(measured) == 3
    assert measured[-1] < measured[0] - 0.05
    # A limit that is over at once: one step a call.
    calls = 0
    while True:
        pieces = run_in(tmp_path / "pieces", tiny, text_file, settings).trainer
        if pieces.done:
            break
        pieces.run(time_limit_s=1e-9)
        calls += 1
    assert calls == 8
    for name, parameter in whole.parameters.items():
        assert (parameter == pieces.parameters[name]).all(), name
    strip = [{k: v for k, v in entry.items() if k != "seconds"} for entry in whole.log]
    assert strip == [{k: v for k, v in entry.items() if k != "seconds"} for entry in pieces.log]
    assert len(list((tmp_path / "pieces").glob("checkpoint-*"))) == 1
    assert json.loads((tmp_path / "pieces" / "log.json").read_text()) == pieces.log


def test_a_short_text_is_measured_by_a_short_window(text_file):
    mixture, _ = single_file_mixture(text_file)
    ids = np.arange(90, dtype=np.int32)
    corpus = Corpus(mixture=mixture, train={"text.txt": ids}, held_out={"text.txt": ids[:5]})
    assert corpus.windows(3, 32)["text.txt"].tolist() == [[0, 1, 2, 3, 4]]
    nothing = Corpus(mixture=mixture, train={"text.txt": ids}, held_out={"text.txt": ids[:0]})
    with pytest.raises(InputError, match="too short to hold a part back"):
        nothing.windows(3, 32)


def test_the_adapter_is_what_was_trained(tiny, text_file, tmp_path):
    marks = tuple((layer % 2,) * tiny.config.kv_heads for layer in range(tiny.config.layers))
    marked = dataclasses.replace(tiny, config=dataclasses.replace(tiny.config, local_heads=marks))
    run = run_in(tmp_path / "run", marked, text_file, settings_of())
    run.trainer.run()
    adapter = run.adapter(60_000)
    write_adapter(tmp_path / "adapter", adapter)
    tuned = apply_adapter(tiny, read_adapter(tmp_path / "adapter"))
    assert (tmp_path / "adapter").stat().st_size < 70_000
    merged = run.model()
    assert tuned.config == merged.config
    for name in tiny.tensors:
        difference = np.abs(tuned.tensors[name] - merged.tensors[name]).max()
        assert difference <= 2e-3 * np.abs(merged.tensors[name]).max(), name
    windows = run.trainer.corpus.windows(4, 32)["text.txt"]
    bits = [window_bits(FloatLlama.from_source(m), windows, tiny.start_token_id).sum()
            for m in (tiny, tuned, merged)]  # fmt: skip
    assert bits[1] < bits[0] * 0.97
    assert bits[1] == pytest.approx(bits[2], rel=2e-3)
    assert tuned.history[-1] == merged.history[-1]
    assert "LoRA rank 4, adamw 0.005, 8 steps, 1024 tokens, seed 3" in tuned.history[-1]


def test_a_smaller_budget_gives_a_smaller_and_worse_adapter(tiny, text_file, tmp_path):
    run = run_in(tmp_path / "run", tiny, text_file, settings_of(steps=2))
    run.trainer.run()
    merged, errors = run.model(), []
    for budget in (60_000, 6_000):
        adapter = run.adapter(budget)
        write_adapter(tmp_path / str(budget), adapter)
        tuned = apply_adapter(tiny, adapter)
        errors.append(
            sum(np.square(tuned.tensors[n] - merged.tensors[n]).sum() for n in tiny.tensors)
        )
    sizes = [(tmp_path / str(budget)).stat().st_size for budget in (60_000, 6_000)]
    assert sizes[0] > 2 * sizes[1]
    assert errors[0] < errors[1] / 4
    with pytest.raises(UsageError, match="does not fit in 10 bytes"):
        run.adapter(10)


def test_healing_brings_a_pruned_model_back_to_its_teacher(tiny, text_file, tmp_path):
    pruned = keep_layers(tiny, [0, 1, 3], "pruned")
    settings = settings_of(
        rank=0, steps=10, rate=2e-3, teacher_share=1.0, written_share=0.3, sequences=(32,)
    )
    run = run_in(tmp_path / "run", pruned, text_file, settings, teacher=tiny)
    assert (tmp_path / "run" / "written.safetensors").is_file()
    teacher = FloatLlama.from_source(tiny)
    windows = run.trainer.corpus.windows(4, 32)["text.txt"]
    wanted = window_bits(teacher, windows, tiny.start_token_id)

    def distance():
        found = window_bits(run.trainer.model, windows, tiny.start_token_id)
        return np.square(found - wanted).mean()

    before = distance()
    run.trainer.run()
    assert distance() < 0.7 * before
    assert {entry["written"] for entry in run.trainer.log if "written" in entry} == {False, True}
    assert run.model().history[-1].startswith("healed: all weights, adamw 0.002, 10 steps")
    again = run_in(tmp_path / "run", pruned, text_file, settings, teacher=tiny).trainer
    assert again.done


@pytest.mark.parametrize(("rank", "teacher_share"), [(0, 1.0), (4, 0.5), (4, 0.0)])
def test_blocks_that_student_and_teacher_share_run_once(
    tiny, text_file, tmp_path, monkeypatch, rank, teacher_share
):
    pruned = keep_layers(tiny, [0, 1, 3], "pruned")
    settings = settings_of(rank=rank, layers=(2,), steps=3, teacher_share=teacher_share)
    trainer = run_in(tmp_path / "run", pruned, text_file, settings, teacher=tiny).trainer
    model, teacher = trainer.model, trainer.teacher
    assert common_blocks(model, teacher, trainer.parameters) == 2
    assert common_blocks(model, teacher, {"layers.1.norm1": model.weights["layers.1.norm1"]}) == 1
    assert common_blocks(model, teacher, {"layers.0.o.a": model.weights["layers.0.o"]}) == 0
    assert common_blocks(model, teacher, {"embed": model.weights["embed"]}) == 0
    trainer.run()
    monkeypatch.setattr("archiver.workshop.training.common_blocks", lambda *_: 0)
    apart = run_in(tmp_path / "apart", pruned, text_file, settings, teacher=tiny).trainer
    apart.run()
    for name, parameter in trainer.parameters.items():
        assert torch.equal(parameter, apart.parameters[name]), name
    assert held_out(trainer.log) == held_out(apart.log)


def test_the_rate_rises_stays_and_falls():
    level = settings_of(steps=100, warmup=4, cooldown=20, rate=1.0)
    rates = [level.rate_at(step) for step in range(100)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[5:81] == [1.0] * 76
    assert rates[90] == pytest.approx(0.5)
    assert 0 < rates[99] < 0.01
    cosine = settings_of(steps=100, warmup=0, rate=1.0)
    assert cosine.rate_at(50) == pytest.approx(0.5)


def test_steps_may_change_until_the_rate_falls(tiny, text_file, tmp_path):
    def run(steps, **changes):
        settings = settings_of(steps=steps, cooldown=2, warmup=0, **changes)
        return run_in(tmp_path / "run", tiny, text_file, settings).trainer

    run(6).run(time_limit_s=1e-9)
    run(5).run()
    with pytest.raises(UsageError, match=r"the rate falls since step 3; --steps is settled"):
        run(9)
    with pytest.raises(UsageError, match=r"another run \(differs in rate, seed\)"):
        run(5, rate=1e-4, seed=4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "at least 1"),
        ({"sequences": (1,)}, "2 to 65,536"),
        ({"targets": ("embed",)}, "targets have to be among"),
        ({"optimizer": "sgd"}, "one of adamw, muon"),
        ({"rate": float("nan")}, "positive"),
        ({"teacher_share": 1.5}, "0 to 1"),
        ({"cooldown": -1}, "cool-down"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        settings_of(**changes)


def test_layers_and_vocabularies_have_to_fit(tiny, text_file, tmp_path):
    with pytest.raises(UsageError, match="layers 0 to 3"):
        run_in(tmp_path / "one", tiny, text_file, settings_of(layers=(4,)))
    from archiver.predict.sources import read_source
    from tests.support.tiny_models import make_tiny_hf_folder

    other = read_source(make_tiny_hf_folder(tmp_path / "other", seed=1, vocab=380))
    with pytest.raises(UsageError, match="different vocabularies"):
        run_in(tmp_path / "two", tiny, text_file, settings_of(), teacher=other)


# --- mixtures -------------------------------------------------------------------------------------


def mixture_text(digest: str, joined: str, **changes) -> str:
    fields = {
        "name": '"one"', "kind": '"prose"', "path": '"here:text.txt"', "sha256": f'"{digest}"',
        "share": "1", "origin": '"a test"',
    } | changes  # fmt: skip
    entry = "\n".join(f"{key} = {value}" for key, value in fields.items() if value)
    return f"""held_out_share = 0.1
[[source]]
{entry}
[[source]]
name = "two"
kind = "code"
path = "here:code"
files = "**/*.py"
exclude = ["*skipped*"]
max_bytes = 30
sha256 = "{joined}"
share = 0
origin = "a test"
"""


@pytest.fixture
def mixture_file(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    (tmp_path / "code").mkdir()
    for name, text in (("b.py", "x = 1\n" * 9), ("a.py", "y = 2\n"), ("skipped.py", "no")):
        (tmp_path / "code" / name).write_text(text)
    path = tmp_path / "mixture.toml"
    joined = hashlib.sha256(("y = 2\n" + "x = 1\n" * 9).encode()[:30]).hexdigest()
    digest = hashlib.sha256(TEXT.encode()).hexdigest()

    def write(**changes):
        path.write_text(mixture_text(digest, joined, **changes))
        return path

    return write


def test_a_mixture_is_read_and_cut(tiny, mixture_file, tmp_path):
    mixture, roots = read_mixture(mixture_file()), parse_roots([f"here={tmp_path}"])
    run = open_run(
        tmp_path / "run", tiny, mixture, roots, settings_of(steps=1), measuring=MEASURING
    )
    corpus = run.trainer.corpus
    assert list(corpus.train) == ["one"]
    assert len(corpus.held_out["one"]) == pytest.approx(len(corpus.train["one"]) / 9, abs=1)
    assert run.trainer.tokens.byte_counts[corpus.held_out["two"]].sum() == 30
    batch = corpus.batch(1, 2, 3, 16)
    assert (batch == corpus.batch(1, 2, 3, 16)).all()
    assert (batch != corpus.batch(1, 3, 3, 16)).any()
    train = corpus.train["one"].tolist()
    assert any(train[i : i + 16] == batch[0].tolist() for i in range(len(train)))


def test_texts_that_changed_or_are_missing_are_refused(mixture_file, tmp_path):
    mixture, roots = read_mixture(mixture_file()), {"here": tmp_path}
    one, two = mixture.sources
    with pytest.raises(UsageError, match="give --root here=FOLDER"):
        one.read({})
    (tmp_path / "text.txt").write_text("other")
    with pytest.raises(InputError, match="not that of the mixture"):
        one.read(roots)
    (tmp_path / "text.txt").unlink()
    with pytest.raises(InputError, match="cannot be read"):
        one.read(roots)
    for file in (tmp_path / "code").iterdir():
        file.unlink()
    with pytest.raises(InputError, match="holds no text"):
        two.read(roots)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sha256": ""}, 'source "one" lacks sha256|source one lacks sha256'),
        ({"colour": '"red"'}, "unknown key colour"),
        ({"share": "-1"}, "negative"),
        ({"share": "0"}, "no source of the mixture has a share"),
        ({"name": '"two"'}, "same name"),
        ({"share": "="}, "not TOML"),
    ],
)
def test_malformed_mixtures_are_refused(mixture_file, changes, message):
    with pytest.raises(UsageError, match=message):
        read_mixture(mixture_file(**changes))


def test_roots_are_folders(tmp_path):
    for text in ("here", f"={tmp_path}", f"here={tmp_path}/none"):
        with pytest.raises(UsageError, match="expected NAME=FOLDER"):
            parse_roots([text])
