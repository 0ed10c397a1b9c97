"""The workshop's commands, from weights to archives that decode."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

import archiver
import cli
from archiver.predict import registry
from archiver.predict.package import load_package
from archiver.predict.sources import read_source
from tests.workshop.conftest import TEXT

TRAIN = ("--steps", "2", "--batch-tokens", "64", "--sequence", "32", "--eval-tokens", "32",
         "-T", "1")  # fmt: skip
LOOK = ("--windows", "2", "--window-tokens", "32", "-T", "1")


def run(*arguments) -> str:
    result = CliRunner().invoke(cli.commands, ["model", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.output


def fails(*arguments) -> tuple[int, str]:
    result = CliRunner().invoke(cli.commands, ["model", *map(str, arguments)])
    return result.exit_code, result.output


def round_trip(name: str) -> int:
    content = TEXT[:600].encode()
    options = archiver.CompressOptions(model=name, window_tokens=128)
    archive = archiver.compress(content, options=options)
    assert archiver.decompress(archive) == content
    return len(archive)


def test_a_tuned_model_is_the_same_from_its_run_and_from_its_adapter(
    own_home, tiny_folder, text_file, tmp_path
):
    folder = tmp_path / "run"
    command = ("tune", tiny_folder, text_file, "--run", folder, *TRAIN, "--rank", "2")
    output = run(*command, "--name", "tuned")
    assert "step 2: held-out" in output
    assert "tuned: ready" in output
    run("add", tiny_folder, "--adapter", folder / "adapter.safetensors", "--name", "again")
    assert registry.resolve("tuned").fingerprint == registry.resolve("again").fingerprint
    history = registry.resolve("tuned").history
    assert history[0].startswith("weights of model, SHA-256 ")
    assert history[1].startswith("tuned: LoRA rank 2")
    run("add", tiny_folder, "--name", "plain")
    assert registry.resolve("plain").fingerprint != registry.resolve("tuned").fingerprint
    round_trip("tuned")
    run(*command)  # all steps are taken: it only writes the adapter again


def test_a_run_stops_goes_on_and_can_be_finished_early(own_home, tiny_folder, text_file, tmp_path):
    folder = tmp_path / "run"
    command = ("tune", tiny_folder, text_file, "--run", folder, *TRAIN, "--rank", "0")
    output = run(*command, "--time-limit", "1e-9")
    assert "1 of 2 steps; the same command goes on" in output
    assert not (folder / "model").exists()
    run(*command, "--finish", "--name", "early")
    assert "1 steps" in registry.resolve("early").history[-2]
    assert fails(*command, "--time-limit", "0") == (
        2, "llmzip: model: --time-limit has to be positive\n",
    )  # fmt: skip


def test_pruned_healed_quantized_exported(own_home, tiny_folder, text_file, tmp_path):
    pruned, healing, packed = tmp_path / "pruned", tmp_path / "healing", tmp_path / "packed"
    output = run("prune", tiny_folder, "--layers", "1", *LOOK, "-o", pruned, "--name", "pruned")
    assert "angular distance over 1 blocks" in output
    run("heal", pruned, tiny_folder, text_file, "--run", healing, *TRAIN, "--rank", "2")
    output = run(
        "quantize", healing / "model", "--method", "gptq", "--bits", "3", "--group", "32", *LOOK,
        "-o", packed, "--name", "packed",
    )  # fmt: skip
    assert "4.000 bits a weight in the blocks" in output
    history = registry.resolve("packed").history
    assert [line.split(":")[0].split(" ")[0] for line in history] == [
        "weights", "pruned", "healed", "quantized", "converted",
    ]  # fmt: skip
    round_trip("packed")

    run("export", "packed", tmp_path / "package")
    package = load_package(tmp_path / "package", verify=True)
    assert package.fingerprint == registry.resolve("packed").fingerprint
    run("export", packed, tmp_path / "hf", "--format", "hf")
    weights, found = read_source(packed), read_source(tmp_path / "hf")
    assert all((weights.tensors[name] == found.tensors[name]).all() for name in weights.tensors)
    assert found.licence == weights.licence

    listed = {line["name"]: line for line in map(json.loads, run("list", "--json").splitlines())}
    assert listed["packed"]["layers"] == 3
    assert listed["packed"]["parameters"] < listed["packed"]["bytes"]


def test_localized_models_keep_their_heads(own_home, tiny_folder, text_file, tmp_path):
    measure = ("localize", tiny_folder, "--span", "8", *LOOK)
    output = run(*measure)
    assert output.splitlines()[-5].startswith("bits added by seeing 8 tokens only")
    assert "*" not in output
    folder = tmp_path / "marked"
    several = ("--calibrate", text_file, "--calibrate", text_file)
    output = run(*measure, *several, "--heads", "3", "-o", folder, "--name", "marked")
    assert "* local: 3 of 8" in output
    assert output.count("*") == 4
    marks = read_source(folder).config.local_heads
    assert sum(map(sum, marks)) == 3
    assert json.loads((folder / "localize.json").read_text())["local_heads"] == list(
        map(list, marks)
    )
    package = registry.resolve("marked")
    assert package.arrays["local_heads"].tolist() == list(map(list, marks))
    assert package.history[-2].startswith("localized: 3 of 8 key/value heads")
    round_trip("marked")
    found = json.loads(run(*measure, *several, "--heads", "3", "--name", "again", "--json",
                           "-q"))  # fmt: skip
    assert found["local_heads"] == list(map(list, marks))
    assert registry.resolve("again").fingerprint == package.fingerprint


def test_transformers_reads_what_is_exported(own_home, tiny_folder, tmp_path):
    transformers = pytest.importorskip("transformers")
    import torch

    run("export", tiny_folder, tmp_path / "hf", "--format", "hf")
    ours, theirs = (
        transformers.LlamaForCausalLM.from_pretrained(path, dtype=torch.float32)
        for path in (tmp_path / "hf", tiny_folder)
    )
    tokens = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert torch.equal(ours(tokens).logits, theirs(tokens).logits)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    expected = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(tiny_folder / "tokenizer.json")
    )
    text = "The quick brown fox, 1905."
    assert tokenizer(text)["input_ids"] == expected(text)["input_ids"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("prune", "nothing", "--layers", "1", "-o", "{tmp}/x"), 9, "neither a file or folder"),
        (("prune", "{tiny}", "-o", "{tmp}/x"), 2, "give --layers"),
        (("prune", "{tiny}", "--layers", "1", *LOOK, "-o", "{tiny}"), 4, "exists already"),
        (("prune", "{tiny}", "--remove", "1,b", "-o", "{tmp}/x"), 2, "not a list of numbers"),
        (("localize", "{tiny}", "-o", "{tmp}/x"), 2, "-o and --name need --heads"),
        (("localize", "{tiny}", *LOOK, "--span", "32"), 2, "--span has to be from 1 to 31"),
        (("localize", "{tiny}", *LOOK, "--span", "8", "--heads", "9"), 2, "1 to 8 heads"),
        (("localize", "{tiny}", *LOOK, "--span", "8", "--heads", "1", "-o", "{tiny}"), 4,
         "exists already"),
        (("quantize", "{tiny}", "--method", "rtn", "--group", "48", *LOOK, "-o", "{tmp}/x"), 2,
         "do not divide"),
        (("quantize", "{tiny}", "--method", "gptq", "--calibrate", "{tmp}/no", "-o", "{tmp}/x"), 3,
         "cannot be read"),
        (("export", "nothing", "{tmp}/x"), 9, "no model 'nothing'"),
        (("export", "{tiny}", "{tiny}", "--format", "hf"), 4, "exists already"),
        (("tune", "{tiny}", "{tmp}/no.txt", "--run", "{tmp}/r", *TRAIN), 3, "cannot be read"),
        (("add", "{tiny}", "--adapter", "{tmp}/no"), 12, "cannot be read"),
    ],
)  # fmt: skip
def test_errors_have_names_and_codes(own_home, tiny_folder, tmp_path, arguments, code, message):
    filled = [part.format(tmp=tmp_path, tiny=tiny_folder) for part in arguments]
    found, output = fails(*filled)
    assert (found, message in output) == (code, True), output


def test_the_command_line_loads_no_torch():
    heavy = "{'torch', 'numba', 'transformers'} & set(sys.modules)"
    script = f"import cli, sys; sys.exit(bool({heavy}))"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
