"""Training text: a mixture file names the sources, their hashes and shares.

    held_out_share = 0.02

    [[source]]
    name = "dickens"
    kind = "prose"                    # held-out results are averaged by kind
    path = "training:dickens.txt"     # ROOT:PATH, with --root training=DIR
    sha256 = "..."                    # of the text that is read, in hexadecimal
    share = 10                        # of the tokens trained on, relative to the others'
    origin = "where it comes from, and its licence"

A path that names a folder takes ``files`` (a pattern such as ``**/*.py``), ``exclude`` (patterns)
and ``max_bytes``: the files are joined in the order of their names.  The end of every source is
held out; a source with share 0 is held out whole.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from archiver.errors import InputError, UsageError
from archiver.types import Int32Array, Int64Array

if TYPE_CHECKING:
    from archiver.predict.sources import SourceModel

_KEYS = {"name", "kind", "path", "sha256", "share", "origin", "files", "exclude", "max_bytes"}
_REQUIRED = {"name", "kind", "path", "sha256", "share", "origin"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSource:
    """One source of a mixture, as the module's text describes it."""

    name: str
    kind: str
    path: str
    sha256: str
    share: float
    origin: str
    files: str | None = None
    exclude: tuple[str, ...] = ()
    max_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.share < 0:
            raise UsageError(f"source {self.name}: the share is negative")

    def read(self, roots: Mapping[str, Path], *, check: bool = True) -> bytes:
        """The text.

        Args:
            roots: the folders that paths start from, by name.
            check: whether it has to have the hash that the mixture names.

        Raises:
            InputError: it is not there, or is another text. UsageError: no such root.
        """
        root, separator, rest = self.path.partition(":")
        if not separator or root not in roots:
            raise UsageError(f"source {self.name}: give --root {root}=FOLDER for {self.path}")
        path = roots[root] / rest
        try:
            text = self._joined(path) if path.is_dir() else path.read_bytes()
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from error
        text = text[: self.max_bytes]
        if not text:
            raise InputError(f"source {self.name}: {path} holds no text")
        found = hashlib.sha256(text).hexdigest()
        if check and found != self.sha256:
            raise InputError(
                f"source {self.name}: {path} has the SHA-256 {found}, not that of the mixture"
            )
        return text

    def _joined(self, folder: Path) -> bytes:
        names = sorted(
            file.relative_to(folder).as_posix()
            for file in folder.glob(self.files or "**/*")
            if file.is_file()
        )
        kept = [
            name
            for name in names
            if not any(fnmatch.fnmatch(name, pattern) for pattern in self.exclude)
        ]
        return b"".join((folder / name).read_bytes() for name in kept)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """The sources, and how much of each is held out (at the end)."""

    sources: tuple[TextSource, ...]
    held_out_share: float

    def __post_init__(self) -> None:
        names = [source.name for source in self.sources]
        if len(set(names)) != len(names):
            raise UsageError("two sources of the mixture have the same name")
        if not any(source.share for source in self.sources):
            raise UsageError("no source of the mixture has a share above 0")
        if not 0 < self.held_out_share < 1:
            raise UsageError("held_out_share has to be above 0 and below 1")

    @property
    def sha256(self) -> str:
        """Of names, hashes and shares: whatever decides what is trained on."""
        parts = [(source.name, source.sha256, source.share) for source in self.sources]
        text = json.dumps([self.held_out_share, parts], separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def read_mixture(path: Path) -> Mixture:
    """The mixture in a TOML file.

    Raises:
        InputError: it cannot be read. UsageError: it is not a mixture.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not TOML: {error}") from error
    try:
        return _mixture(table)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def _mixture(table: dict[str, Any]) -> Mixture:
    if set(table) != {"held_out_share", "source"} or not isinstance(table["source"], list):
        raise UsageError("a mixture has held_out_share and tables [[source]]")
    sources = []
    for entry in table["source"]:
        missing, unknown = _REQUIRED - set(entry), set(entry) - _KEYS
        if missing or unknown:
            wrong = f"lacks {min(missing)}" if missing else f"has the unknown key {min(unknown)}"
            raise UsageError(f"source {entry.get('name', '?')} {wrong}")
        sources.append(TextSource(**{**entry, "exclude": tuple(entry.get("exclude", ()))}))
    return Mixture(sources=tuple(sources), held_out_share=float(table["held_out_share"]))


def single_file_mixture(path: Path) -> tuple[Mixture, dict[str, Path]]:
    """The mixture of one file, with its root: what a text file given in place of one means."""
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    source = TextSource(
        name=path.name, kind="text", path=f"file:{path.name}", sha256=digest, share=1.0,
        origin="given",
    )  # fmt: skip
    return Mixture(sources=(source,), held_out_share=0.05), {"file": path.absolute().parent}


class Tokens:
    """Text as a model's token ids, the way the archiver would cut it.

    Bytes that no token carries are left out.
    """

    def __init__(self, model: SourceModel) -> None:
        from archiver.text.tokenizer import TextTokenizer
        from archiver.text.vocabulary import Vocabulary, sort_tokens

        class Owner:
            def read_tokenizer(self) -> str:
                return model.tokenizer_json

        data, offsets, rank_of_id = sort_tokens(model.token_bytes)
        self._vocabulary = Vocabulary.build(data, offsets, rank_of_id)
        self._tokenizer = TextTokenizer(Owner())
        self._id_of_rank = np.zeros(len(offsets) - 1, np.int32)
        coded = rank_of_id >= 0
        self._id_of_rank[rank_of_id[coded]] = np.flatnonzero(coded)
        self.byte_counts: Int64Array = np.array(
            [len(token or b"") for token in model.token_bytes], np.int64
        )

    def encode(self, text: bytes) -> Int32Array:
        """The ids of a text, int32."""
        from archiver.text.framing import symbols_of

        ranks = symbols_of(text, self._vocabulary, self._tokenizer).ranks
        ids: Int32Array = self._id_of_rank[ranks[ranks >= 0]]
        return ids


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Corpus:
    """A tokenized mixture.

    Attributes:
        mixture: what it is made of.
        train: the ids to train on by source, of those with a share.
        held_out: the ids to measure on, by source.
    """

    mixture: Mixture
    train: Mapping[str, Int32Array]
    held_out: Mapping[str, Int32Array]

    def batch(self, seed: int, step: int, streams: int, steps: int) -> Int64Array:
        """Windows of the training text, int64 [streams, steps]: a function of seed and step."""
        generator = np.random.default_rng((seed, step))
        names = list(self.train)
        shares = np.array([s.share for s in self.mixture.sources if s.name in self.train])
        rows = []
        for chosen in generator.choice(len(names), size=streams, p=shares / shares.sum()):
            ids = self.train[names[chosen]]
            start = int(generator.integers(max(1, len(ids) - steps + 1)))
            rows.append(np.resize(ids[start : start + steps], steps))
        return np.stack(rows).astype(np.int64)

    def windows(self, count: int, steps: int) -> dict[str, Int64Array]:
        """Held-out windows of each source, evenly spaced, int64 [at most count, steps].

        Windows are as short as the longest held-out text where no source has a whole one.

        Raises:
            InputError: nothing is held out.
        """
        longest = max(map(len, self.held_out.values()))
        if not longest:
            raise InputError("the text is too short to hold a part back for measuring")
        steps = min(steps, longest)
        found = {}
        for name, ids in self.held_out.items():
            usable = min(count, len(ids) // steps)
            starts = np.linspace(0, len(ids) - steps, usable).astype(np.int64)
            if usable:
                found[name] = np.stack([ids[s : s + steps] for s in starts]).astype(np.int64)
        return found


def tokenize(
    mixture: Mixture, roots: Mapping[str, Path], tokens: Tokens, cache: Path | None = None
) -> Corpus:
    """The tokenized mixture, kept in the file ``cache`` for the next time.

    Raises:
        InputError, UsageError: a source cannot be had.
    """
    from archiver.predict.tensor_file import open_tensor_file, write_tensor_file

    arrays: dict[str, Any] = {}
    if cache is not None and cache.is_file():
        file = open_tensor_file(cache)
        if file.metadata.get("mixture") == mixture.sha256:
            arrays = file.map()
    if not arrays:
        arrays = {source.name: tokens.encode(source.read(roots)) for source in mixture.sources}
        if cache is not None:
            write_tensor_file(cache, arrays, {"mixture": mixture.sha256})
    train, held_out = {}, {}
    for source in mixture.sources:
        ids = arrays[source.name]
        cut = round(len(ids) * (1 - mixture.held_out_share)) if source.share else 0
        held_out[source.name] = ids[cut:]
        if source.share:
            train[source.name] = ids[:cut]
    return Corpus(mixture=mixture, train=train, held_out=held_out)


def parse_roots(given: Sequence[str]) -> dict[str, Path]:
    """The folders of ``--root NAME=DIR`` options by name.

    Raises:
        UsageError: one has another form, or is no folder.
    """
    roots = {}
    for text in given:
        name, separator, folder = text.partition("=")
        if not separator or not name or not Path(folder).is_dir():
            raise UsageError(f"--root {text}: expected NAME=FOLDER, of a folder that exists")
        roots[name] = Path(folder)
    return roots
