"""Pruning: distances by their definition, searches, and what is left afterwards."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from archiver.errors import UsageError
from archiver.predict.sources import read_source
from archiver.workshop.base import store_result
from archiver.workshop.calibration import Calibration, read_calibration
from archiver.workshop.importance import (
    block_distances,
    input_sizes,
    least_block,
    least_needed_layers,
    passthrough_yaml,
)
from archiver.workshop.llama import FloatLlama
from archiver.workshop.measure import window_bits
from archiver.workshop.prune import Pruning, prune_model
from archiver.workshop.refit import refit
from archiver.workshop.reshape import keep_layers, with_weights
from archiver.workshop.training import with_start


@pytest.fixture(scope="module")
def calibration(tiny):
    return read_calibration(tiny, None, windows=3, steps=40)


@pytest.fixture(scope="module")
def long_calibration(tiny):
    """More tokens than a matrix has inputs."""
    return read_calibration(tiny, None, windows=24, steps=40)


@pytest.fixture
def lazy(tiny):
    """The tiny model with blocks 1 and 2 doing next to nothing."""
    tensors = {name: np.array(tiny.tensors[name]) for name in tiny.tensors}
    for layer in (1, 2):
        for kind in ("o", "down"):
            tensors[f"layers.{layer}.{kind}"] *= np.float32(1e-4)
    return with_weights(tiny, tensors, "made lazy")


def test_distances_are_angles_between_last_hidden_states(tiny, tiny_folder, calibration):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.LlamaForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    windows = calibration.windows
    inputs = np.concatenate([np.full((len(windows), 1), tiny.start_token_id), windows[:, :-1]], 1)
    with torch.no_grad():
        states = theirs(torch.from_numpy(inputs), output_hidden_states=True).hidden_states
    model = FloatLlama.from_source(tiny, dtype=torch.float32)
    found = block_distances(model, windows, tiny.start_token_id)
    assert [len(row) for row in found] == [4, 3, 2, 1]
    # transformers' last state comes after the last norm, ours before it.
    for span in (1, 2, 3):
        for first in range(4 - span):
            one, two = (states[at][:, -1].double() for at in (first, first + span))
            cosines = torch.nn.functional.cosine_similarity(one, two)
            expected = float((cosines.clamp(-1, 1).arccos() / torch.pi).mean())
            assert found[span - 1][first] == pytest.approx(expected, abs=1e-4)


def test_the_least_block_is_found(lazy, calibration):
    distances = block_distances(FloatLlama.from_source(lazy), calibration.windows, 0)
    assert least_block(distances, 2) == [1, 2]
    assert distances[1][1] < 0.01
    for count in (0, 4):
        with pytest.raises(UsageError, match="1 to 3 layers"):
            least_block(distances, count)


def test_the_search_removes_what_costs_least(lazy, calibration):
    model = FloatLlama.from_source(lazy)
    windows = calibration.windows
    removed, tables = least_needed_layers(model, windows, 0, 2)
    everything = window_bits(model, windows, 0).mean()
    assert tables[0][1] == pytest.approx(everything, abs=1e-2)
    assert tables[0][2] == pytest.approx(everything, abs=1e-2)
    assert max(tables[0].values()) > everything + 0.05
    assert [set(table) for table in tables] == [{0, 1, 2, 3}, {0, 1, 2, 3} - {removed[0]}]
    for layer, table in zip(removed, tables, strict=True):
        assert table[layer] == min(table.values())
    left = [layer for layer in range(4) if layer not in removed]
    without = window_bits(model, windows, 0, layers=left).mean()
    assert tables[1][removed[1]] == pytest.approx(without)
    with pytest.raises(UsageError, match="1 to 3 layers"):
        least_needed_layers(model, calibration.windows, 0, 4)


def test_input_sizes_are_root_mean_squares(tiny, calibration):
    model = FloatLlama.from_source(tiny, dtype=torch.float32)
    seen = []
    windows = torch.from_numpy(calibration.windows)
    start = torch.full((len(windows), 1), tiny.start_token_id)
    model.hidden(
        torch.cat([start, windows[:, :-1]], dim=1),
        observe=lambda name, vectors: seen.append(vectors) if name == "layers.2.down" else None,
    )
    expected = torch.cat(seen).square().mean(dim=0).sqrt().numpy()
    found = input_sizes(model, calibration.windows, tiny.start_token_id)
    assert np.allclose(found["layers.2.down"], expected, rtol=1e-4)


def test_kept_layers_are_those_of_the_source(tiny):
    found = keep_layers(tiny, [0, 3], "pruned")
    assert found.config.layers == 2
    assert (found.tensors["layers.1.up"] == tiny.tensors["layers.3.up"]).all()
    assert found.history == (*tiny.history, "pruned")
    with pytest.raises(UsageError, match="layers 0 to 3"):
        keep_layers(tiny, [0, 4], "pruned")


def test_refitting_finds_the_matrix_that_was(tiny, long_calibration):
    tensors = {name: np.array(tiny.tensors[name]) for name in tiny.tensors}
    for kind in ("o", "down"):
        tensors[f"layers.2.{kind}"][:] = 0
    source = with_weights(tiny, tensors, "block 2 silent")
    whole = FloatLlama.from_source(source, dtype=torch.float32)
    model = FloatLlama.from_source(keep_layers(source, [0, 1, 3], ""), dtype=torch.float32)
    original = model.weights["layers.1.down"]
    model.weights["layers.1.down"] = original / 2
    start, windows = tiny.start_token_id, long_calibration.windows
    refit(model, whole, [0, 1, 3], windows, start, damping=1e-9)
    assert torch.allclose(model.weights["layers.1.down"], original, atol=2e-3)
    assert torch.equal(
        model.weights["layers.0.down"], torch.from_numpy(tensors["layers.0.down"])
    )  # no block is missing before it
    expected = window_bits(whole, windows, start)
    assert np.allclose(window_bits(model, windows, start), expected, atol=1e-2)


def test_refitted_blocks_come_closer_to_what_all_did(tiny, long_calibration):
    def hidden(source):
        model = FloatLlama.from_source(source, dtype=torch.float32)
        inputs = with_start(torch.from_numpy(long_calibration.windows), source.start_token_id)
        return model.hidden(inputs)

    plain, _ = prune_model(tiny, Pruning(remove=(1, 2)), long_calibration)
    refitted, report = prune_model(tiny, Pruning(remove=(1, 2), refit=True), long_calibration)
    wanted = hidden(tiny)
    errors = [float((hidden(source) - wanted).square().mean()) for source in (plain, refitted)]
    assert errors[1] < 0.8 * errors[0]
    assert refitted.history[-1].startswith("pruned: other blocks refitted, calibrated on")
    assert refitted.history[:-1] == plain.history
    assert report.removed == (1, 2)


def test_mergekit_ranges_are_half_open():
    text = passthrough_yaml("model", [0, 1, 2, 5, 7, 8])
    ranges = [line.strip() for line in text.splitlines() if "layer_range" in line]
    assert ranges == ["layer_range: [0, 3]", "layer_range: [5, 6]", "layer_range: [7, 9]"]


def test_a_pruned_model_comes_back_from_its_folder(lazy, calibration, tmp_path):
    result, report = prune_model(lazy, Pruning(layers=2), calibration)
    store_result(tmp_path / "p", result)
    report.write(tmp_path / "p")
    found = read_source(tmp_path / "p")
    assert found.config.layers == 2
    assert "blocks 1, 2 of 4, by distance, calibrated on 3 x 40 tokens" in found.history[-1]
    assert report.bpb_after == pytest.approx(report.bpb_before, rel=1e-3)
    table = json.loads((tmp_path / "p" / "prune.json").read_text())
    assert table["removed_layers"] == [1, 2]
    assert [len(row) for row in table["angular_distances"]] == [4, 3, 2, 1]
    assert "[3, 4]" in (tmp_path / "p" / "mergekit.yaml").read_text()
    chart = list(report.lines())
    assert chart[0] == "angular distance over 2 blocks, by the first of them"
    assert [line[0] for line in chart[1:4]] == [" ", "*", " "]


def test_several_texts_are_calibrated_on_alike(tiny, calibration, text_file):
    other = read_calibration(tiny, text_file, windows=2, steps=40)
    both = Calibration.joined([calibration, other])
    assert (both.windows == np.concatenate([calibration.windows, other.windows])).all()
    assert both.byte_count == calibration.byte_count + other.byte_count
    assert len({both.sha256, calibration.sha256, other.sha256}) == 3
    assert Calibration.joined([other]) is other


def test_dead_channels_heads_and_weights_go_first(tiny, calibration):
    tensors = {name: np.array(tiny.tensors[name]) for name in tiny.tensors}
    for layer in range(4):
        tensors[f"layers.{layer}.down"][:, 16:32] = 0
        tensors[f"layers.{layer}.o"].reshape(64, 4, 32)[:, [1, 2]] = 0
    source = with_weights(tiny, tensors, "dead parts")
    plan = Pruning(channels=112, heads=2, smallest=0.05)
    result, report = prune_model(source, plan, calibration)
    assert (result.config.ffn, result.config.heads, result.config.kv_heads) == (112, 2, 2)
    kept = [*range(16), *range(32, 128)]
    up = result.tensors["layers.1.up"]
    removed = round(64 * 0.05)
    assert ((up == 0).sum(axis=1) == removed).all()
    assert (up[up != 0] == source.tensors["layers.1.up"][kept][up != 0]).all()
    query = source.tensors["layers.1.q"].reshape(4, 32, 64)[[0, 3]].reshape(64, 64)
    found = result.tensors["layers.1.q"]
    assert (found[found != 0] == query[found != 0]).all()
    assert abs(report.bpb_after / report.bpb_before - 1) < 0.05
    assert len(result.history) == len(source.history) + 3


def test_wanda_judges_by_inputs_too(tiny, calibration):
    by_size, _ = prune_model(tiny, Pruning(smallest=0.5), calibration)
    by_both, _ = prune_model(tiny, Pruning(smallest=0.5, weigh_inputs=True), calibration)
    magnitudes = np.abs(tiny.tensors["layers.0.q"])
    zero = by_size.tensors["layers.0.q"] == 0
    assert (zero.sum(axis=1) == 32).all()
    ranks = np.argsort(np.argsort(magnitudes, axis=1, kind="stable"), axis=1, kind="stable")
    assert (zero == (ranks < 32)).all()
    assert ((by_both.tensors["layers.0.q"] == 0) != zero).any()


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({}, "give --layers"),
        ({"layers": 1, "remove": (2,)}, "either --layers or --remove"),
        ({"smallest": 1.0}, "--smallest"),
        ({"smallest": 0.1, "refit": True}, "--refit needs --layers or --remove"),
        ({"channels": 100}, "multiple of 16"),
        ({"heads": 3}, "multiple of 2"),
        ({"remove": (4,)}, "layers 0 to 3"),
    ],
)
def test_impossible_plans_are_refused(tiny, calibration, plan, message):
    with pytest.raises(UsageError, match=message):
        prune_model(tiny, Pruning(**plan), calibration)
