"""`theory`: the bits of an archive against those that its weights would need in float32.

    file ── llmzip ── archive ── decoded, compared ──> payload bits
      └── the same frames, symbols and streams ── float_llama ── -log2 p ──> ideal bits

The ideal probability of a token is the softmax over the whole vocabulary, as transformers has it;
llmzip leaves out ids that stand for no text (special tokens), so the second figure, softmax over
the tokens that it codes, is what its arithmetic alone is judged by.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.competitors import Llmzip
from benchmarks.environment import describe_environment, usable_cores
from benchmarks.inputs import beginning
from benchmarks.records import (
    SCHEMA_VERSION,
    Failed,
    InputFile,
    LlmzipSettings,
    input_record,
)
from benchmarks.runner import code_file, temporary_folder
from benchmarks.weights import check_same_model, find_weights, read_weights, transformers_model

if TYPE_CHECKING:
    import torch

    from archiver.predict.sources import SourceModel
    from archiver.summaries import ArchiveInfo
    from archiver.types import Int64Array
    from benchmarks.float_llama import FloatLlama

TARGET_EXCESS = 0.005
AGREEMENT = 1e-3  # largest difference between the logits of this forward pass and transformers'
_COMPARED_TOKENS = 256


class TheoryError(Exception):
    """The comparison cannot be made; the message is for the user."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamTokens:
    """One stream of a frame.

    Attributes:
        ids: int64 [symbols], the tokenizer's ids, -1 for an escape.
        escaped_bytes: what its escapes hold.
    """

    ids: Int64Array
    escaped_bytes: int


@dataclass(slots=True)
class IdealBits:
    """Sums over tokens: ideal bits by the whole vocabulary, and by the coded tokens alone."""

    tokens: int = 0
    whole: float = 0.0
    coded: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Theory:
    """What a comparison came to.

    Attributes:
        payload_bits: of the frames that the predictor coded, all of them.
        ideal: of the same frames' tokens.
        excess: payload bits / ideal bits (whole vocabulary) - 1.
        record: all of it for JSON.
    """

    payload_bits: int
    ideal: IdealBits
    excess: float
    record: dict[str, Any]


def compare_with_theory(
    file: InputFile,
    settings: LlmzipSettings,
    *,
    limit_bytes: int | None,
    weights: Path | None,
    progress: Callable[[str, int, int], None],
) -> Theory:
    """Compress a file, decode it, and compute the ideal bits of the same streams.

    Args:
        limit_bytes: how much of the file; None for all of it.
        weights: what the model was made from, where llmzip does not know.
        progress: told of stage, tokens done and tokens in all.

    Raises:
        TheoryError: the archive did not decode, or there is nothing to compare.
        WeightsError, ArchiverError: the weights cannot be had.
    """
    import archiver
    from archiver.options import DEFAULT_MODEL

    environment = describe_environment()
    with temporary_folder() as name:
        folder = Path(name)
        file = beginning(file, limit_bytes, folder)
        progress("compressing and decompressing", 0, 0)
        # The model alone is compared: context models and steering would hide its arithmetic.
        settings = dataclasses.replace(settings, mixing=False, steering="none")
        result = code_file(file, Llmzip(), settings, folder)
        if isinstance(result.outcome, Failed):
            raise TheoryError(f"llmzip failed: {result.outcome.reason}")
        info = archiver.info(folder / "archive")
        payload_bits = 8 * sum(
            frame.payload_bytes for frame in info.frames if frame.coding == "predictor"
        )
        if info.predictor is None or not payload_bits:
            raise TheoryError("no frame was coded by the model")
        model = settings.model or DEFAULT_MODEL
        source = read_weights(model, find_weights(model, weights))
        source, streams = prepare(file.path, info, source)
        agreement, ideal = _ideal_bits(source, streams, info, settings.threads, progress)
    excess = payload_bits / ideal.whole - 1
    record = {
        "schema": SCHEMA_VERSION,
        "benchmark": "theory",
        **environment,
        "config": {"llmzip": dataclasses.asdict(settings), "target_excess": TARGET_EXCESS},
        "inputs": [input_record(file)],
        "results": [result.as_dict()],
        "theory": {
            "window_tokens": info.predictor.window_tokens,
            "local_window_tokens": info.predictor.local_window_tokens,
            "sink_tokens": info.predictor.sink_tokens,
            "streams": len(streams),
            "tokens": ideal.tokens,
            "escapes": sum(int((stream.ids < 0).sum()) for stream in streams),
            "escaped_bytes": sum(stream.escaped_bytes for stream in streams),
            "payload_bits": payload_bits,
            "ideal_bits": ideal.whole,
            "ideal_bits_coded_tokens": ideal.coded,
            "excess": excess,
            "excess_over_coded_tokens": payload_bits / ideal.coded - 1,
            "largest_logit_difference": agreement,
        },
    }
    return Theory(payload_bits=payload_bits, ideal=ideal, excess=excess, record=record)


def prepare(
    path: Path, info: ArchiveInfo, source: SourceModel
) -> tuple[SourceModel, list[StreamTokens]]:
    """Return the weights with the package's local heads, and the streams of every frame of the
    archive that the model coded.

    Raises:
        TheoryError: the file is not cut into the archive's frames by the default settings.
        WeightsError: the weights are not the archive's model's.
    """
    from archiver.codec.streams import plan_streams
    from archiver.frames import cut_frames
    from archiver.levels import DEFAULT_LEVEL, LEVELS
    from archiver.options import DEFAULT_FRAME_BYTES
    from archiver.predict import registry
    from archiver.text.framing import symbols_of
    from archiver.text.tokenizer import TextTokenizer
    from archiver.text.vocabulary import Vocabulary

    assert info.predictor is not None
    package = registry.resolve_fingerprint(info.predictor.package_fingerprint)
    local_heads = tuple(map(tuple, package.arrays["local_heads"].tolist()))
    config = dataclasses.replace(source.config, local_heads=local_heads)
    source = dataclasses.replace(source, config=config)
    check_same_model(source, package)
    vocabulary = Vocabulary.build(
        *(np.array(package.arrays[f"tokens.{part}"]) for part in ("data", "offsets", "rank_of_id"))
    )
    tokenizer = TextTokenizer(package)
    id_of_rank = np.empty(vocabulary.size, np.int64)
    coded = np.flatnonzero(vocabulary.rank_of_id >= 0)
    id_of_rank[vocabulary.rank_of_id[coded]] = coded
    streams = []
    with path.open("rb") as opened:
        contents = list(cut_frames(opened, DEFAULT_FRAME_BYTES))
    if [len(content) for content in contents] != [frame.content_bytes for frame in info.frames]:
        raise TheoryError("the archive has other frames than this benchmark cuts")
    for content, frame in zip(contents, info.frames, strict=True):
        if frame.coding != "predictor":
            continue
        symbols = symbols_of(content, vocabulary, tokenizer)
        starts = plan_streams(len(symbols.ranks), LEVELS[DEFAULT_LEVEL].chunking).starts.tolist()
        ids = np.where(symbols.ranks < 0, -1, id_of_rank[symbols.ranks])
        runs = iter(symbols.escapes)
        for begin, end in pairwise(starts):
            escapes = int((ids[begin:end] < 0).sum())
            escaped_bytes = sum(len(next(runs)) for _ in range(escapes))
            streams.append(StreamTokens(ids=ids[begin:end], escaped_bytes=escaped_bytes))
    return source, streams


def _ideal_bits(
    source: SourceModel,
    streams: list[StreamTokens],
    info: ArchiveInfo,
    threads: int | None,
    progress: Callable[[str, int, int], None],
) -> tuple[float, IdealBits]:
    import torch

    from archiver.text.vocabulary import sort_tokens
    from benchmarks.float_llama import FloatLlama

    assert info.predictor is not None
    torch.set_num_threads(threads or usable_cores())
    window, sinks = info.predictor.window_tokens, info.predictor.sink_tokens
    coded = torch.from_numpy(sort_tokens(source.token_bytes)[2] >= 0)
    total = sum(len(stream.ids) for stream in streams)
    ideal = IdealBits()
    with torch.inference_mode():
        model = FloatLlama(
            source.config, source.tensors, window=window,
            local_window=info.predictor.local_window_tokens, sinks=sinks,
        )  # fmt: skip
        progress("comparing with transformers", 0, 0)
        inputs = stream_inputs(streams[0], source.start_token_id)
        inputs = inputs[: min(_COMPARED_TOKENS, window)]
        plain = FloatLlama(
            source.config, source.tensors, window=window, local_window=window, sinks=sinks
        )
        agreement = logit_difference(plain, source, inputs)
        if not agreement < AGREEMENT:
            raise TheoryError(f"logits differ from transformers' by {agreement:.2g}")
        for stream in streams:
            for tokens in stream_bits(model, stream, source.start_token_id, coded, ideal):
                progress("computing ideal bits", tokens, total)
    return agreement, ideal


def stream_inputs(stream: StreamTokens, start_token_id: int) -> torch.Tensor:
    """Return int64 [symbols], what the model has read before each symbol of the stream.

    The start token stands before the first symbol and in the place of escapes.
    """
    import torch

    inputs = np.empty_like(stream.ids)
    inputs[0] = start_token_id
    inputs[1:] = np.where(stream.ids[:-1] < 0, start_token_id, stream.ids[:-1])
    return torch.from_numpy(inputs)


def stream_bits(
    model: FloatLlama,
    stream: StreamTokens,
    start_token_id: int,
    coded: torch.Tensor,
    ideal: IdealBits,
) -> Iterator[int]:
    """Add a stream's ideal bits to `ideal`, block by block; escapes are left out.

    Args:
        coded: bool [vocabulary], the ids that llmzip codes.

    Yields:
        the symbols of each block.
    """
    import torch

    targets = torch.from_numpy(stream.ids)
    for block, states in model.blocks(stream_inputs(stream, start_token_id)):
        logits = model.logits(states)
        block_targets = targets[block]
        is_token = block_targets >= 0
        rows = torch.arange(len(logits))[is_token]
        hits = logits[rows, block_targets[is_token]].double()
        whole = torch.logsumexp(logits, -1)[is_token].double()
        among_coded = torch.logsumexp(logits.masked_fill(~coded, -torch.inf), -1)
        ideal.tokens += len(rows)
        ideal.whole += float((whole - hits).sum()) / math.log(2)
        ideal.coded += float((among_coded[is_token].double() - hits).sum()) / math.log(2)
        yield len(logits)


def logit_difference(model: FloatLlama, source: SourceModel, inputs: torch.Tensor) -> float:
    """Return the largest difference to transformers' logits on a text within the window."""
    import torch

    expected = transformers_model(source)(inputs[None]).logits[0]
    found = torch.cat([model.logits(states) for _, states in model.blocks(inputs)])
    return float((found - expected).abs().max())
