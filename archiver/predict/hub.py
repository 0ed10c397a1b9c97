"""Weights from the Hugging Face Hub, through huggingface_hub: safetensors, never pickle or code.

Only config.json, tokenizer.json and the safetensors files that make up the model are downloaded,
at one commit, the small files first: what is refused is refused before the weights travel.
HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE and proxies are honoured, because that library honours them.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from archiver.errors import (
    InvalidModelError,
    MissingLibraryError,
    ModelUnavailableError,
    RepositoryClosedError,
    RepositoryMissingError,
    UsageError,
)
from archiver.predict import home
from archiver.predict.sources import SourceModel
from archiver.predict.sources_hf import (
    CONFIG_FILE,
    INDEX_FILE,
    MAX_JSON_BYTES,
    TOKENIZER_FILE,
    check_hf_settings,
    choose_weights,
    read_hf_folder,
    read_json,
)

_PREFIX = "hf:"
_POLL_S = 0.2
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_ADDRESS = re.compile(r"hf:([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40,64}")


def is_hub_address(path: str | os.PathLike[str]) -> bool:
    """Return whether `path` stands for a repository of the hub, and not for a file."""
    return isinstance(path, str) and path.startswith(_PREFIX)


@dataclass(frozen=True, slots=True, kw_only=True)
class HubAddress:
    """A repository on the hub, and a branch, tag or commit of it; None for its main branch."""

    repository: str
    revision: str | None

    @classmethod
    def parse(cls, text: str) -> HubAddress:
        """Return the address that hf:OWNER/NAME[@REVISION] stands for.

        Raises:
            UsageError: it is not written so.
        """
        match = _ADDRESS.fullmatch(text)
        if match is None:
            raise UsageError(f"{text!r} is not written hf:OWNER/NAME or hf:OWNER/NAME@REVISION")
        return cls(repository=match[1], revision=match[2])

    def __str__(self) -> str:
        at = "" if self.revision is None else f"@{self.revision}"
        return f"{_PREFIX}{self.repository}{at}"


@dataclass(frozen=True, slots=True, kw_only=True)
class HubModel:
    """A model from the hub: its weights, and which commit they are of, in hexadecimal."""

    source: SourceModel
    commit: str


def fetch_hub_model(
    address: HubAddress, scratch: Path, progress: home.Progress = home.no_progress
) -> HubModel:
    """Return a model whose files are fetched into a folder, where they have to stay.

    Args:
        scratch: an empty folder.
        progress: told of the stage "downloading", in bytes, perhaps by another thread.

    Raises:
        MissingLibraryError: huggingface_hub is not installed.
        ModelUnavailableError: the hub cannot be reached, or fails.
        RepositoryMissingError: there is no such repository or revision.
        RepositoryClosedError: its files are for those whom its owners let in.
        InvalidModelError: there are no safetensors, or it is no model that can be read.
    """
    folder = scratch / "model"
    folder.mkdir()
    with _errors_of(address) as hub:
        info = hub.model_info(address.repository, revision=address.revision, files_metadata=True)
    commit = str(info.sha)
    if not _COMMIT.fullmatch(commit):
        raise ModelUnavailableError(f"{address}: the hub names no commit of it")
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}

    def fetch(name: str) -> None:
        with _errors_of(address) as hub:
            hub.hf_hub_download(address.repository, name, revision=commit, local_dir=folder)

    def fetch_small(name: str) -> None:
        if name not in sizes:
            raise InvalidModelError(f"{name} is missing")
        if sizes[name] > MAX_JSON_BYTES:
            raise InvalidModelError(f"{name} is larger than {MAX_JSON_BYTES >> 20} MiB")
        fetch(name)

    def read_index() -> Mapping[str, object]:
        fetch_small(INDEX_FILE)
        return read_json(folder / INDEX_FILE)

    with _named(address):
        weights = choose_weights([name for name in sizes if "/" not in name], read_index)
        for name in (CONFIG_FILE, TOKENIZER_FILE):
            fetch_small(name)
        check_hf_settings(folder)
        total = home.size_under(folder) + sum(sizes[name] for name in weights)
        with _watched(folder, total, progress):
            for name in weights:
                fetch(name)
        source = read_hf_folder(folder)
    name = address.repository.partition("/")[2]
    source = dataclasses.replace(source, name=name, licence=_licence(info.tags or ()))
    return HubModel(source=source, commit=commit)


def _licence(tags: Sequence[str]) -> str:
    """Return the licence that a repository's tags name, or an empty string."""
    found = [tag.partition(":")[2] for tag in tags if tag.startswith("license:")]
    return found[0] if found else ""


@contextmanager
def _watched(folder: Path, total: int, progress: home.Progress) -> Iterator[None]:
    """Report, from a thread, how a folder grows to `total` bytes inside the block."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(_POLL_S):
            progress("downloading", min(home.size_under(folder), total), total)

    progress("downloading", 0, total)
    thread = threading.Thread(target=watch, name="llmzip-download", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    progress("downloading", total, total)


@contextmanager
def _named(address: HubAddress) -> Iterator[None]:
    """Let refusals inside the block say what is refused."""
    try:
        yield
    except InvalidModelError as error:
        raise InvalidModelError(f"{address}: {error}") from error


@contextmanager
def _errors_of(address: HubAddress) -> Iterator[Any]:
    """Give huggingface_hub, silenced; what it raises inside the block becomes our errors."""
    try:
        import huggingface_hub as hub
        from huggingface_hub import errors
        from huggingface_hub.utils.tqdm import (
            are_progress_bars_disabled,
            disable_progress_bars,
            enable_progress_bars,
        )
    except ImportError as error:
        raise MissingLibraryError(
            f"{address}: this needs the Python package huggingface_hub, from version 0.25"
            " (`pip install huggingface-hub`)"
        ) from error
    loud = not are_progress_bars_disabled()
    if loud:
        disable_progress_bars()
    try:
        yield hub
    except errors.GatedRepoError as error:
        raise RepositoryClosedError(
            f"{address}: its owners ask for consent; give it at"
            f" https://huggingface.co/{address.repository} and set HF_TOKEN to a token of yours"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise RepositoryMissingError(
            f"{address}: no such repository, or a private one (set HF_TOKEN to a token that may"
            " read it)"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise RepositoryMissingError(
            f"{address}: the repository has no such branch, tag or commit"
        ) from error
    except Exception as error:
        # Without a network, each version of the library raises what its HTTP client does.
        if isinstance(error, OSError) and (error.filename or error.errno in _DISK_ERRORS):
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0][:300]
        raise ModelUnavailableError(
            f"{address}: could not be fetched: {reason}\nWithout a network, bring the folder with"
            " its config.json, tokenizer.json and *.safetensors, and use `llmzip model add FOLDER`."
        ) from error
    finally:
        if loud:
            enable_progress_bars()
