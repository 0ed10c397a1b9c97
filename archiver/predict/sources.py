"""Weights as their publishers ship them, read into one shape that the converter understands.

    GGUF file ────────── sources_gguf ─┐
                                       ├── SourceModel ── convert ── store_package
    Hugging Face folder ─ sources_hf ──┤
    workshop folder ───── sources_workshop

Whatever the file format, a ``SourceModel`` holds the same names, the same orientation
([out, in]) and the same row order of queries and keys (Hugging Face's, halves rotated
together), so that equal weights give equal packages.  Nothing in a source is ever executed:
no pickle, no remote code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from archiver.errors import InvalidModelError
from archiver.predict.architectures import JOINED, architecture_of
from archiver.types import LocalHeads

# Bounds on what a configuration may ask for.  They are generous (the largest Llama has
# 126 layers and hidden size 16,384) and exist so that a forged file cannot ask for arrays
# that were never there.
MAX_LAYERS = 1024
MAX_WIDTH = 1 << 18
MAX_VOCAB = 1 << 20
MAX_CONTEXT_TOKENS = 1 << 24

Tensor = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sliding:
    """Layers that see fewer tokens and turn queries and keys by angles of their own.

    Attributes:
        tokens: that a position sees there, itself included.
        layers: 1 for each layer that slides, 0 for each other.
        rope_theta: the base of their rotation, a binary32 value.
    """

    tokens: int
    layers: tuple[int, ...]
    rope_theta: float

    def __post_init__(self) -> None:
        if type(self.tokens) is not int or not 1 <= self.tokens <= MAX_CONTEXT_TOKENS:
            raise InvalidModelError(f"a sliding window of {self.tokens!r} tokens")
        if not all(type(layer) is int and layer in (0, 1) for layer in self.layers):
            raise InvalidModelError("sliding layers must be 0 or 1")
        object.__setattr__(self, "layers", tuple(self.layers))  # JSON gives lists
        object.__setattr__(self, "rope_theta", _checked_float("rope_theta", self.rope_theta))


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceConfig:
    """The shape of a transformer of one of the families in `architectures`.

    ``rotary_dims`` are the first dimensions of a head that are turned by the position; None: all.
    ``sliding`` tells of sliding layers, in the families that have them.
    ``context_length`` is what the model was trained for; where it has vectors of positions, their
    number.
    ``local_heads`` marks the key/value heads that lose little when they look back over a short
    window only; None: there are no such heads.

    ``rope_theta`` and ``norm_eps`` are binary32 values (held in Python floats), whatever
    precision the source wrote them in, so that a GGUF and a folder of the same model agree.
    """

    architecture: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    rope_theta: float
    norm_eps: float
    context_length: int
    tied: bool
    local_heads: LocalHeads | None = None
    rotary_dims: int | None = None
    sliding: Sliding | None = None

    def __post_init__(self) -> None:
        family = architecture_of(self.architecture)
        bounds = {
            "hidden": MAX_WIDTH,
            "layers": MAX_LAYERS,
            "heads": MAX_WIDTH,
            "kv_heads": MAX_WIDTH,
            "head_dim": MAX_WIDTH,
            "ffn": MAX_WIDTH,
            "vocab": MAX_VOCAB,
            "context_length": MAX_CONTEXT_TOKENS,
        }
        for name, largest in bounds.items():
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= largest:
                raise InvalidModelError(f"{name} is {value!r}, not a number from 1 to {largest}")
        if self.heads % self.kv_heads:
            raise InvalidModelError(
                f"{self.heads} heads cannot share {self.kv_heads} key/value heads evenly"
            )
        if self.head_dim % 2:
            raise InvalidModelError(f"head_dim is {self.head_dim}; rotation needs an even number")
        dims = self.head_dim if self.rotary_dims is None else self.rotary_dims
        if type(dims) is not int or not 0 <= dims <= self.head_dim or dims % 2:
            raise InvalidModelError(f"rotary_dims is {dims!r}, not an even number up to head_dim")
        if isinstance(self.sliding, dict):  # as JSON gives it
            object.__setattr__(self, "sliding", Sliding(**self.sliding))
        if (self.sliding is not None) != family.sliding:
            raise InvalidModelError(f"sliding layers are a matter of {self.architecture} or not")
        if self.sliding is not None and len(self.sliding.layers) != self.layers:
            raise InvalidModelError("sliding layers have not the number of the layers")
        if self.heads * self.head_dim > MAX_WIDTH:
            raise InvalidModelError("heads x head_dim is too large")
        if self.local_heads is not None:
            self._check_local_heads(self.local_heads)
        for name in ("rope_theta", "norm_eps"):
            object.__setattr__(self, name, _checked_float(name, getattr(self, name)))

    def _check_local_heads(self, local_heads: LocalHeads) -> None:
        rows = tuple(map(tuple, local_heads))  # JSON gives lists
        if len(rows) != self.layers or any(len(row) != self.kv_heads for row in rows):
            raise InvalidModelError("local_heads has not the shape [layers, kv_heads]")
        if not all(type(local) is int and local in (0, 1) for row in rows for local in row):
            raise InvalidModelError("local_heads must hold 0 or 1")
        object.__setattr__(self, "local_heads", rows)


def _checked_float(name: str, value: object) -> float:
    """Return ``value`` rounded to binary32, which must leave it a positive normal number."""
    if not isinstance(value, float) or not math.isfinite(value) or value <= 0:
        raise InvalidModelError(f"{name} is {value!r}, not a positive number")
    if not 2.0**-126 <= value < 2.0**127:
        raise InvalidModelError(f"{name} is {value!r}, out of range")
    return float(np.float32(value))


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceModel:
    """A model as published: exact weights, the bytes of each token, the tokenizer.

    Attributes:
        config: the shape.
        tensors: float32 arrays by canonical name (``expected_shapes``); each is read,
            dequantized and checked for NaN and infinity when it is asked for, and not kept.
        token_bytes: the bytes of each token by id, ``config.vocab`` of them; None where the id
            stands for no bytes (special, unused, padding).
        tokenizer_json: the tokenizer in the format of the ``tokenizers`` library, reduced to
            what turns text into ids.
        name: what the publisher calls it.
        licence: the licence as the source states it; empty when it does not.
        start_token_id: the id after which the model expects a text to start.
        history: what was done to the weights since they were published, oldest first.
    """

    config: SourceConfig
    tensors: Mapping[str, Tensor]
    token_bytes: list[bytes | None]
    tokenizer_json: str
    name: str
    licence: str
    start_token_id: int
    history: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        expected = expected_shapes(self.config)
        if set(self.tensors) != set(expected):
            raise InvalidModelError("the tensors are not those of the architecture")
        if len(self.token_bytes) != self.config.vocab:
            raise InvalidModelError("there must be one entry of token_bytes per row of embed")
        if not any(self.token_bytes):
            raise InvalidModelError("the tokenizer has no token that stands for bytes")
        if not 0 <= self.start_token_id < self.config.vocab:
            raise InvalidModelError(f"start token {self.start_token_id} is not in the vocabulary")


def expected_shapes(config: SourceConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor that a model of this shape has, by canonical name.

    Matrices are [out, in]; the bias of a matrix or norm is named after it.  ``head`` is there only
    when it is not tied to ``embed``.
    """
    family = architecture_of(config.architecture)
    hidden, ffn = config.hidden, config.ffn
    query, key = config.heads * config.head_dim, config.kv_heads * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {"embed": (config.vocab, hidden), "norm": (hidden,)}
    if not config.tied:
        shapes["head"] = (config.vocab, hidden)
    if family.positions:
        shapes["positions"] = (config.context_length, hidden)
    if family.centred:
        shapes["norm.bias"] = (hidden,)
    for layer in range(config.layers):
        parts: dict[str, tuple[int, ...]] = {
            "norm1": (hidden,),
            "q": (query, hidden),
            "k": (key, hidden),
            "v": (key, hidden),
            "o": (hidden, query),
            "norm2": (hidden,),
            "gate": (ffn, hidden),
            "up": (ffn, hidden),
            "down": (hidden, ffn),
        }
        if not family.gated:
            del parts["gate"]
        if family.head_norms:
            parts |= {"q_norm": (config.head_dim,), "k_norm": (config.head_dim,)}
        if family.output_norms:
            parts |= {"o_norm": (hidden,), "down_norm": (hidden,)}
        biased = {part for matrix in family.biased for part in JOINED.get(matrix, (matrix,))}
        if family.centred:
            biased |= {"norm1", "norm2"}
        parts |= {f"{part}.bias": parts[part][:1] for part in parts if part in biased}
        shapes |= {f"layers.{layer}.{part}": shape for part, shape in parts.items()}
    return shapes


class LazyTensors(Mapping[str, Tensor]):
    """Tensors by canonical name, read from the source each time they are asked for.

    A tensor comes out as a C-ordered, writable float32 array of its own, and all finite;
    anything else raises InvalidModelError.
    """

    def __init__(
        self, shapes: Mapping[str, tuple[int, ...]], read: Callable[[str], NDArray[np.float32]]
    ) -> None:
        self._shapes = dict(shapes)
        self._read = read

    def __getitem__(self, name: str) -> Tensor:
        shape = self._shapes[name]
        tensor = np.array(self._read(name), dtype=np.float32, order="C", copy=True)
        if tensor.shape != shape:
            raise InvalidModelError(f"tensor {name} has shape {tensor.shape}, not {shape}")
        if not np.isfinite(tensor).all():
            raise InvalidModelError(f"tensor {name} holds NaN or infinity")
        return tensor

    def __contains__(self, name: object) -> bool:
        return name in self._shapes

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


def check_shapes(
    config: SourceConfig, found: Mapping[str, tuple[int, ...]], ignored: frozenset[str]
) -> dict[str, tuple[int, ...]]:
    """Return the expected shapes once every expected tensor was found with its shape.

    Args:
        config: what the model claims to be.
        found: shapes of the source's tensors by canonical name; names that have no canonical
            form are kept as the source has them.
        ignored: names that may be there and are of no use.

    Raises:
        InvalidModelError: a tensor is missing, has another shape, or is one that the
            architecture does not have (a bias, say), whose effect would be lost.
    """
    expected = expected_shapes(config)
    for name, shape in expected.items():
        if name not in found:
            raise InvalidModelError(f"tensor {name} is missing")
        if tuple(found[name]) != shape:
            raise InvalidModelError(f"tensor {name} has shape {tuple(found[name])}, not {shape}")
    unknown = sorted(set(found) - set(expected) - ignored)
    if unknown:
        raise InvalidModelError(
            f"tensor {unknown[0]} is not one that a {config.architecture} model has"
        )
    return expected


def start_token_of(
    contents: Mapping[str, int], bos_token_id: int | None, eos_token_id: int | None
) -> int:
    """Return the id that stands before a fresh text.

    Models of the GPT-2 kind separate documents with ``<|endoftext|>``, also where chat
    tuning later made another token the "bos"; after that token they expect a new text.

    Args:
        contents: ids of the special tokens by their text.
        bos_token_id: the source's "beginning of sequence", when it names one.
        eos_token_id: the source's "end of sequence", when it names one.
    """
    for candidate in (contents.get("<|endoftext|>"), bos_token_id, eos_token_id):
        if candidate is not None:
            return candidate
    raise InvalidModelError("the tokenizer names no token for the start of a text")


def read_source(path: Path) -> SourceModel:
    """Return the model in a GGUF file, a Hugging Face folder or one of the workshop's.

    Raises:
        InvalidModelError: there is nothing at ``path``, or it is refused; the message says why.
    """
    from archiver.predict import sources_gguf, sources_hf, sources_workshop

    try:
        if sources_workshop.is_workshop_folder(path):
            return sources_workshop.read_workshop_folder(path)
        if path.is_dir():
            return sources_hf.read_hf_folder(path)
        if path.is_file():
            return sources_gguf.read_gguf(path)
    except OSError as error:
        raise InvalidModelError(f"{path}: cannot be read: {error.strerror}") from error
    except InvalidModelError as error:
        raise InvalidModelError(f"{path}: {error}") from error
    raise InvalidModelError(f"{path}: no such file or folder")
