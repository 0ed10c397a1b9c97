"""`mixer`: what mixing saves, and what each of its parts is worth.

    file ── frames ── model ── probabilities ──┬── the model alone ──> payload bytes
      │    (kept, if asked for)                ├── mixed           ──> payload bytes, time
      │                                        └── without a part  ──> payload bytes, part by part
      └── without a transform ── model ── probabilities ── mixed   ──> payload bytes

The model runs once a file; the mixers then code the same symbols with its probabilities. These are
the payloads that archives would have, but nothing is decoded here: `files` measures archives.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from archiver.codec.encoder import PredictedText, encode_text
from archiver.codec.frame import open_codec, settings_for
from archiver.codec.streams import StreamPlan
from archiver.codec.transform_fields import decode_transforms, encode_transforms
from archiver.frames import cut_frames
from archiver.mixing.layout import CONTEXTS, MAPS, MATCHES, SETS
from archiver.mixing.parameters import MIXER_VERSION, MixerParameters
from archiver.options import CompressOptions
from archiver.predict import registry
from archiver.text.transforms import ALL_SWAPS, NONE, Swap, Transforms
from archiver.text.vocabulary import Vocabulary
from benchmarks.environment import describe_environment
from benchmarks.records import SCHEMA_VERSION, InputFile, LlmzipSettings, input_record
from benchmarks.table import change, markdown

CONTEXT_NAMES = (
    "order 0", "order 1", "order 2", "order 3", "order 4", "order 6", "bytes 2 and 4 back",
    "word", "two words", "word and the one before the last", "symbol", "two symbols",
    "three symbols", "four symbols", "column and byte above", "bytes above and before",
    "two fields", "expected byte",
)  # fmt: skip
MATCH_NAMES = ("matches of 12 bytes", "matches of 5 bytes")
MAP_NAMES = (
    "order 0", "order 1", "order 2", "order 3", "symbol", "two symbols", "three symbols",
    "column and byte above", "two fields", "expected byte",
)  # fmt: skip
SET_NAMES = (
    "column",
    "byte before",
    "match lengths",
    "symbol's length",
    "nearest states",
    "symbol",
)
assert (len(CONTEXT_NAMES), len(MATCH_NAMES)) == (CONTEXTS, MATCHES)
assert (len(MAP_NAMES), len(SET_NAMES)) == (MAPS, SETS)

Row = tuple[str, ...]


class Report(Protocol):
    """Told what is being done, and of how much since the last call or of how many in all."""

    def __call__(self, stage: str, done: int, total: int = 0) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Coded:
    """A file's payloads with one mixer: their bytes, and the processor time of coding them."""

    payload_bytes: int
    cpu_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MixedFile:
    """What came of one file.

    Attributes:
        decisions: of tokens, and nine for each escaped byte.
        alone: with the model's probabilities as they are; mixed: with all parts.
        without: payload bytes by the part left out, or the transform of the text; transforms that
            the text does not need are not among them.
    """

    file: InputFile
    decisions: int
    alone: Coded
    mixed: Coded
    without: Mapping[str, int]

    @property
    def change(self) -> float:
        """Payload bytes mixed / alone - 1."""
        return self.mixed.payload_bytes / self.alone.payload_bytes - 1


@dataclass(frozen=True, slots=True)
class _Allowed:
    """Transforms of a text that are tried: those of character sets, and swaps."""

    charsets: bool = True
    swaps: Swap = ALL_SWAPS

    def is_missed_by(self, transforms: Transforms) -> bool:
        """Whether the text would be another with no more than these."""
        recoded = transforms.charsets != NONE.charsets
        return bool(transforms.swaps & ~self.swaps) or (recoded and not self.charsets)


_ALL = _Allowed()
TRANSFORMS = {
    "transform: character set": _Allowed(charsets=False),
    "transform: JSON escapes": _Allowed(swaps=ALL_SWAPS & ~(Swap.JSON_SMALL | Swap.JSON_CAPITAL)),
    "transform: percent escapes": _Allowed(
        swaps=ALL_SWAPS & ~(Swap.PERCENT_SMALL | Swap.PERCENT_CAPITAL)
    ),
    "transform: line ends": _Allowed(swaps=ALL_SWAPS & ~Swap.LINE_ENDS),
}


_FULL = MixerParameters()
_KINDS_LEFT_OUT = {
    "nearest states": dataclasses.replace(_FULL, nearest=False),
    "all contexts": dataclasses.replace(_FULL, contexts=0),
    "all matches": dataclasses.replace(_FULL, matches=0),
    "all maps": dataclasses.replace(_FULL, maps=0),
    "all weight sets but that of nearest states": dataclasses.replace(
        _FULL, sets=1 << SET_NAMES.index("nearest states")
    ),
}


def variants() -> dict[str, MixerParameters]:
    """Mixers that each lack one part, by what they lack."""
    found = {}
    for kind, field, names in (
        ("context", "contexts", CONTEXT_NAMES), ("match model", "matches", MATCH_NAMES),
        ("map", "maps", MAP_NAMES), ("weight set", "sets", SET_NAMES),
    ):  # fmt: skip
        mask = getattr(_FULL, field)
        for number, name in enumerate(names):
            lacking = dataclasses.replace(_FULL, **{field: mask & ~(1 << number)})
            found[f"{kind}: {name}"] = lacking
    return found | _KINDS_LEFT_OUT


def measure(
    files: Sequence[InputFile],
    settings: LlmzipSettings,
    *,
    ablate: bool,
    limit_bytes: int | None,
    kept: Path | None,
    report: Report,
) -> tuple[list[MixedFile], dict[str, Any]]:
    """Code each file with and without mixing.

    Args:
        ablate: whether also without each part.
        limit_bytes: only the files' beginnings.
        kept: folder where the model's probabilities are kept, so that the next run has them.

    Returns:
        what came of the files, and a record of it for JSON.

    Raises:
        ArchiverError: the model cannot be had.
    """
    environment = describe_environment()
    options = CompressOptions(
        **{
            name: value
            for name in ("model", "threads", "level", "window_tokens")
            if (value := getattr(settings, name)) is not None
        }
    )
    source = _Predictions(options, kept)
    found = []
    for file in files:
        content = file.path.read_bytes()[:limit_bytes]
        texts = source.of(content, partial(report, file.name))
        result = _code(file, texts, source.vocabulary, ablate, report)
        for name, allowed in TRANSFORMS.items() if ablate else ():
            if any(allowed.is_missed_by(text.transforms) for text in texts):
                plain = source.of(content, partial(report, f"{file.name} without {name}"), allowed)
                payload_bytes = _payload_bytes(plain, MixerParameters(), source.vocabulary)
                result = dataclasses.replace(
                    result, without={**result.without, name: payload_bytes}
                )
        found.append(result)
    record = {
        "schema": SCHEMA_VERSION,
        "benchmark": "mixer",
        **environment,
        "mixer_version": MIXER_VERSION,
        "level": options.level,
        "window_tokens": options.window_tokens,
        "limit_bytes": limit_bytes,
        "inputs": [input_record(file) for file in files],
        "results": [
            {
                "file": result.file.name,
                "decisions": result.decisions,
                "alone": dataclasses.asdict(result.alone),
                "mixed": dataclasses.asdict(result.mixed),
                "change": result.change,
                "us_per_decision": 1e6 * result.mixed.cpu_s / result.decisions,
                "without": dict(result.without),
            }
            for result in found
        ],
    }
    return found, record


def _code(
    file: InputFile,
    texts: Sequence[PredictedText],
    vocabulary: Vocabulary,
    ablate: bool,
    report: Report,
) -> MixedFile:
    def coded(mixer: MixerParameters) -> Coded:
        began_s = time.process_time()
        payload_bytes = _payload_bytes(texts, mixer, vocabulary)
        return Coded(payload_bytes=payload_bytes, cpu_s=time.process_time() - began_s)

    alone = coded(MixerParameters(tokens_mixed=False))
    coded(MixerParameters())  # so that compiling is not timed
    mixed = coded(MixerParameters())
    without = {}
    lacking = variants() if ablate else {}
    for number, (name, mixer) in enumerate(lacking.items()):
        report(f"{file.name} without {name}", number, len(lacking))
        without[name] = coded(mixer).payload_bytes
    return MixedFile(
        file=file,
        decisions=sum(len(text.probabilities) + 9 * len(text.runs) for text in texts),
        alone=alone,
        mixed=mixed,
        without=without,
    )


def _payload_bytes(
    texts: Sequence[PredictedText], mixer: MixerParameters, vocabulary: Vocabulary
) -> int:
    return sum(len(encode_text(text, mixer, vocabulary)) for text in texts)


class _Predictions:
    """The model's probabilities of contents, computed or read from a folder."""

    def __init__(self, options: CompressOptions, kept: Path | None) -> None:
        self._options = options
        self._kept = kept
        self._package = registry.resolve(options.model)
        predictor, mixer = settings_for(self._package, options)
        self._codec = open_codec(
            predictor,
            mixer,
            package=self._package,
            threads=options.threads,
            chunking=options.chunking,
        )

    @property
    def vocabulary(self) -> Vocabulary:
        return self._codec.vocabulary

    def of(
        self, content: bytes, progress: Callable[[int], None], allowed: _Allowed = _ALL
    ) -> list[PredictedText]:
        """Those of each frame that a compression would make of the content."""
        stream = io.BytesIO(content)
        return [self._of_frame(frame, progress, allowed)
                for frame in cut_frames(stream, self._options.frame_bytes)]  # fmt: skip

    def _of_frame(
        self, frame: bytes, progress: Callable[[int], None], allowed: _Allowed
    ) -> PredictedText:
        def predicted() -> PredictedText:
            return self._codec.predict_text(
                frame, progress, charsets=allowed.charsets, swaps=allowed.swaps
            )

        if self._kept is None:
            return predicted()
        options = self._options
        settings = f"{self._package.fingerprint} {options.window} {options.chunking} "
        if allowed != _ALL:
            settings += f"{allowed} "
        key = settings.encode() + frame
        path = self._kept / f"{hashlib.sha256(key).hexdigest()[:32]}.npz"
        if path.is_file():
            with np.load(path) as arrays:
                fields = dict(arrays)
            written = fields.pop("transforms").tobytes()
            transforms, text_bytes = NONE, len(frame)
            if written:
                transforms, text_bytes, _ = decode_transforms(written, 0, len(frame))
            return PredictedText(
                text_bytes=text_bytes,
                transforms=transforms,
                plan=StreamPlan(symbols=len(fields["ranks"]), streams=int(fields.pop("streams"))),
                signature_bits=int(fields.pop("signature_bits")),
                **fields,
            )
        text = predicted()
        written = b""
        if text.transforms != NONE:
            written = encode_transforms(text.transforms, text.text_bytes)
        self._kept.mkdir(parents=True, exist_ok=True)
        np.savez(
            path, transforms=np.frombuffer(written, np.uint8), streams=text.plan.streams,
            ranks=text.ranks, probabilities=text.probabilities, firsts=text.firsts,
            runs=text.runs, run_offsets=text.run_offsets, guesses=text.guesses,
            signatures=text.signatures, signature_bits=text.signature_bits,
        )  # fmt: skip
        return text


def tables(results: Sequence[MixedFile]) -> tuple[list[Row], list[Row]]:
    """Rows of two tables: the files' payloads, and the parts' worth in per cent of the payload."""
    rows: list[Row] = [("file", "bytes", "alone", "mixed", "change", "us a decision")]
    for result in results:
        rows.append(
            (
                result.file.name, f"{result.file.content_bytes:,}",
                f"{result.alone.payload_bytes:,}", f"{result.mixed.payload_bytes:,}",
                f"{100 * result.change:+.2f} %",
                f"{1e6 * result.mixed.cpu_s / result.decisions:.2f}",
            )
        )  # fmt: skip
    parts: list[Row] = [("without", *(result.file.name for result in results))]
    for name in dict.fromkeys(name for result in results for name in result.without):
        parts.append((name, *(_share(result, name) for result in results)))
    return rows, parts


def _share(result: MixedFile, name: str) -> str:
    if name not in result.without:
        return ""
    return f"{100 * (result.without[name] / result.mixed.payload_bytes - 1):+.2f}"


def excerpt(records: Sequence[Mapping[str, Any]]) -> str:
    """Return records as Markdown: what mixing saves by file, then what kinds of parts save.

    Of a file that two records measured, the later one counts.
    """
    whole: dict[str, Mapping[str, Any]] = {}
    ablated: dict[str, Mapping[str, Any]] = {}
    limits = set()
    for record in records:
        for result in record["results"]:
            if result["without"]:
                ablated[result["file"]] = result
                limits.add(record["limit_bytes"])
            else:
                whole[result["file"]] = result
    blocks = []
    if whole:
        rows = [["file", "model alone", "mixed", "change"]]
        for name, result in sorted(whole.items()):
            alone, mixed = (result[key]["payload_bytes"] for key in ("alone", "mixed"))
            rows.append([name, f"{alone:,}", f"{mixed:,}", change(mixed, alone)])
        blocks.append(markdown(rows))
    if ablated:
        said = " or ".join("whole files" if n is None else f"first {n:,} bytes" for n in limits)
        blocks.append(f"Without one kind of parts, {said}.\n\n{_parts(ablated)}")
    return "\n\n".join(blocks)


def _parts(results: Mapping[str, Mapping[str, Any]]) -> str:
    """By what the payloads grow without them: the mean of the files they are for, the most."""
    growths: dict[str, dict[str, float]] = {}
    kinds = {*_KINDS_LEFT_OUT, *TRANSFORMS}
    for file, result in results.items():
        for part, payload_bytes in result["without"].items():
            if part not in kinds:
                continue
            growth = 100 * (payload_bytes / result["mixed"]["payload_bytes"] - 1)
            growths.setdefault(part, {})[file] = growth
    rows = [["without", "files", "mean", "most", "of"]]
    for part, by_file in growths.items():
        most = max(by_file, key=by_file.__getitem__)
        mean = sum(by_file.values()) / len(by_file)
        rows.append([part, str(len(by_file)), f"{mean:+.2f} %", f"{by_file[most]:+.2f} %", most])
    return markdown(rows)
