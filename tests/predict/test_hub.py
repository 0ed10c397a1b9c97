"""Models of the Hugging Face Hub: what is fetched, what is kept, what is refused; no network."""

from __future__ import annotations

import errno
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from click.testing import CliRunner
from huggingface_hub import errors as hub_errors
from safetensors.numpy import load_file, save_file

import cli
from archiver.errors import (
    ArchiverError,
    InvalidModelError,
    MissingLibraryError,
    ModelUnavailableError,
    OutputError,
    RepositoryClosedError,
    RepositoryMissingError,
    UsageError,
)
from archiver.predict import registry
from archiver.predict.hub import HubAddress, fetch_hub_model
from archiver.predict.names import read_names
from tests.support.tiny_models import make_tiny_hf_folder

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ADDRESS = "hf:someone/Tiny-Model"


class FakeHub:
    """The two functions of huggingface_hub that are called, over a folder.

    Attributes:
        downloaded: the files asked for, in order; revisions: what they were asked of.
        error: what asking raises; where: by which of the two functions.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.downloaded: list[str] = []
        self.revisions: set[str] = set()
        self.asked: list[tuple[str, str | None]] = []
        self.error: Exception | None = None
        self.where = "model_info"
        self.tags = ["text-generation", "license:mit"]

    def model_info(
        self, repository: str, *, revision: str | None, files_metadata: bool
    ) -> SimpleNamespace:
        assert files_metadata
        self._fail("model_info")
        self.asked.append((repository, revision))
        files = [path for path in sorted(self.folder.rglob("*")) if path.is_file()]
        siblings = [
            SimpleNamespace(rfilename=str(path.relative_to(self.folder)), size=path.stat().st_size)
            for path in files
        ]
        return SimpleNamespace(sha=COMMIT, siblings=siblings, tags=self.tags)

    def hf_hub_download(self, repository: str, name: str, *, revision: str, local_dir: Path) -> str:
        self._fail("hf_hub_download")
        self.downloaded.append(name)
        self.revisions.add(revision)
        return str(shutil.copy(self.folder / name, local_dir / name))

    def _fail(self, where: str) -> None:
        if self.error is not None and self.where == where:
            raise self.error


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    """A hub with one repository, that of a tiny random model."""
    monkeypatch.setenv("LLMZIP_HOME", str(tmp_path / "home"))
    folder = make_tiny_hf_folder(tmp_path / "repository", seed=3)
    for name in ("pytorch_model.bin", "modeling_tiny.py", "README.md", "onnx/model.safetensors"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"not to be fetched")
    hub = FakeHub(folder)
    monkeypatch.setattr(huggingface_hub, "model_info", hub.model_info)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hub.hf_hub_download)
    return hub


def _edit_config(hub: FakeHub, **changes: object) -> None:
    path = hub.folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _http_error(kind: type[Exception], message: str = "the server's answer") -> Exception:
    """An error of the library's, whose constructor wants the answer of a server."""
    error = kind.__new__(kind)
    Exception.__init__(error, message)
    return error


def test_a_repository_becomes_a_package_with_its_commit(hub: FakeHub, tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    package = registry.add(ADDRESS, progress=lambda *call: calls.append(call))
    assert hub.asked == [("someone/Tiny-Model", None)]
    assert hub.downloaded == ["config.json", "tokenizer.json", "model.safetensors"]
    assert hub.revisions == {COMMIT}
    assert package.name == "tiny-model"
    assert package.licence == "mit"
    assert package.history == (f"converted from {ADDRESS} (commit {COMMIT})",)
    assert read_names() == {"tiny-model": package.fingerprint}
    sizes = [(hub.folder / name).stat().st_size for name in hub.downloaded]
    amounts = [call[1:] for call in calls if call[0] == "downloading"]
    assert amounts[0] == (0, sum(sizes))
    assert amounts[-1] == (sum(sizes), sum(sizes))
    shutil.rmtree(tmp_path / "home")
    (hub.folder / "onnx/model.safetensors").unlink()
    assert registry.add(hub.folder).fingerprint == package.fingerprint
    assert list((tmp_path / "home" / "scratch").glob("*")) == []


def test_a_revision_is_asked_for_and_kept_in_the_history(hub: FakeHub) -> None:
    package = registry.add(f"{ADDRESS}@refs/pr/1", "mine")
    assert hub.asked == [("someone/Tiny-Model", "refs/pr/1")]
    assert package.history == (f"converted from {ADDRESS}@refs/pr/1 (commit {COMMIT})",)
    assert set(read_names()) == {"mine"}


def test_weights_in_parts_are_those_of_the_index(hub: FakeHub) -> None:
    weights = load_file(hub.folder / "model.safetensors")
    (hub.folder / "model.safetensors").rename(hub.folder / "consolidated.safetensors")
    names = sorted(weights)
    table = {}
    for number, part in enumerate((names[::2], names[1::2])):
        file = f"model-{number}.safetensors"
        save_file({name: weights[name] for name in part}, hub.folder / file)
        table |= dict.fromkeys(part, file)
    index = hub.folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": table}))
    assert registry.add(ADDRESS).name == "tiny-model"
    assert hub.downloaded == [
        index.name, "config.json", "tokenizer.json", "model-0.safetensors", "model-1.safetensors",
    ]  # fmt: skip
    index.write_text(json.dumps({"weight_map": dict.fromkeys(names, "../../outside.safetensors")}))
    with pytest.raises(InvalidModelError, match=r"names the file '\.\./\.\./outside"):
        registry.add(ADDRESS)


@pytest.mark.parametrize(
    ("text", "repository", "revision"),
    [
        ("hf:EleutherAI/pythia-70m", "EleutherAI/pythia-70m", None),
        ("hf:a.b/c_d-1.2@v1.0/x", "a.b/c_d-1.2", "v1.0/x"),
    ],
)
def test_addresses(text: str, repository: str, revision: str | None) -> None:
    address = HubAddress.parse(text)
    assert (address.repository, address.revision) == (repository, revision)
    assert str(address) == text


@pytest.mark.parametrize(
    "text", ["hf:", "hf:name", "hf:a/b/c", "hf:a/b@", "hf:a b/c", "hf:/b", "hf:a/", "hf:a/ü"]
)
def test_what_is_no_address_is_refused(hub: FakeHub, text: str) -> None:
    with pytest.raises(UsageError, match="hf:OWNER/NAME"):
        registry.add(text)
    assert hub.asked == []


def _remove(*names: str) -> Callable[[FakeHub], None]:
    def change(hub: FakeHub) -> None:
        for name in names:
            (hub.folder / name).unlink()

    return change


def _spoil_tokenizer(hub: FakeHub) -> None:
    path = hub.folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    tokenizer["model"]["byte_fallback"] = True
    path.write_text(json.dumps(tokenizer), encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_remove("model.safetensors"), "the weights are pickles, which can run code"),
        (_remove("model.safetensors", "pytorch_model.bin"), "no safetensors file"),
        (_remove("config.json"), "config.json is missing"),
        (_remove("tokenizer.json"), "tokenizer.json is missing"),
        (lambda hub: _edit_config(hub, model_type="opt"), "architecture 'opt' is not supported"),
        (_spoil_tokenizer, "not byte-level BPE .* with byte fallback"),
    ],
)
def test_what_cannot_be_read_is_refused_before_the_weights_travel(
    hub: FakeHub, change: Callable[[FakeHub], None], reason: str
) -> None:
    change(hub)
    with pytest.raises(InvalidModelError, match=f"^{ADDRESS}: .*{reason}"):
        registry.add(ADDRESS)
    assert set(hub.downloaded) <= {"config.json", "tokenizer.json"}
    assert read_names() == {}


def test_broken_weights_are_refused_by_the_address(hub: FakeHub) -> None:
    weights = load_file(hub.folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, hub.folder / "model.safetensors")
    with pytest.raises(InvalidModelError, match=f"^{ADDRESS}: tensor norm is missing"):
        registry.add(ADDRESS)


def test_a_huge_configuration_is_not_fetched(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("archiver.predict.hub.MAX_JSON_BYTES", 1000)
    with pytest.raises(InvalidModelError, match=r"tokenizer\.json is larger than"):
        registry.add(ADDRESS)
    assert hub.downloaded == ["config.json"]


@pytest.mark.parametrize("where", ["model_info", "hf_hub_download"])
@pytest.mark.parametrize(
    ("raised", "expected", "reason"),
    [
        (
            _http_error(hub_errors.GatedRepoError), RepositoryClosedError,
            "ask for consent; give it at https://huggingface.co/someone/Tiny-Model and set HF_TOKEN"
        ),
        (
            _http_error(hub_errors.RepositoryNotFoundError), RepositoryMissingError,
            "no such repository, or a private one",
        ),
        (
            _http_error(hub_errors.RevisionNotFoundError), RepositoryMissingError,
            "no such branch, tag or commit",
        ),
        (
            _http_error(hub_errors.HfHubHTTPError, "503 Server Error\nmore"),
            ModelUnavailableError, "could not be fetched: 503 Server Error\nWithout a network",
        ),
        (
            hub_errors.OfflineModeIsEnabled("HF_HUB_OFFLINE=1"), ModelUnavailableError,
            "could not be fetched: HF_HUB_OFFLINE=1",
        ),
        (
            hub_errors.LocalEntryNotFoundError("no connection"), ModelUnavailableError,
            "could not be fetched: no connection",
        ),
        (ConnectionError(errno.ECONNREFUSED, "refused"), ModelUnavailableError, "refused"),
        (RuntimeError(), ModelUnavailableError, "could not be fetched: RuntimeError"),
        (OSError(errno.ENOSPC, "No space left on device"), OutputError, "No space left"),
    ],
)  # fmt: skip
def test_each_failure_of_the_hub_has_its_error(
    hub: FakeHub, where: str, raised: Exception, expected: type[ArchiverError], reason: str
) -> None:
    hub.error, hub.where = raised, where
    with pytest.raises(expected, match=reason.replace(".", r"\.")) as caught:
        registry.add(ADDRESS)
    if expected is not OutputError:
        assert str(caught.value).startswith(f"{ADDRESS}: ")
    assert read_names() == {}


def test_errors_have_exit_codes_of_their_own() -> None:
    kinds = (
        MissingLibraryError, ModelUnavailableError, RepositoryMissingError, RepositoryClosedError,
        InvalidModelError,
    )  # fmt: skip
    assert [kind.exit_code for kind in kinds] == [15, 11, 16, 17, 12]


def test_without_the_library_the_error_names_it(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingLibraryError, match="pip install huggingface-hub"):
        registry.add(ADDRESS)


def test_a_hub_that_names_no_commit_is_not_believed(hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()

    def model_info(*arguments: Any, **options: Any) -> SimpleNamespace:
        return SimpleNamespace(sha=None, siblings=[], tags=[])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub, "model_info", model_info)
        with pytest.raises(ModelUnavailableError, match="names no commit"):
            fetch_hub_model(HubAddress.parse(ADDRESS), tmp_path / "scratch")


def test_the_library_s_own_bars_are_as_before(hub: FakeHub) -> None:
    from huggingface_hub.utils import are_progress_bars_disabled

    before = are_progress_bars_disabled()
    registry.add(ADDRESS)
    assert are_progress_bars_disabled() == before


def test_the_command_pulls_from_the_hub(hub: FakeHub) -> None:
    def run(*arguments: str) -> Any:
        return CliRunner().invoke(cli.commands, ["model", *arguments])

    pulled = run("pull", ADDRESS, "--name", "mine")
    assert pulled.exit_code == 0, pulled.output
    assert "mine: ready, fingerprint " in pulled.stderr
    added = run("add", ADDRESS)
    assert added.exit_code == 0, added.output
    shown = run("show", "mine", "--json")
    assert json.loads(shown.stdout)["history"] == [f"converted from {ADDRESS} (commit {COMMIT})"]
    hub.error = _http_error(hub_errors.GatedRepoError)
    assert run("pull", ADDRESS).exit_code == 17
    refused = run("pull", "default", "--name", "mine")
    assert refused.exit_code == 2
    assert "not of the hub" in refused.stderr
