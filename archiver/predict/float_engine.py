"""Any causal language model of transformers as a predictor, in the floats of this machine.

    tokens ── ids ── transformers, key/value cache, float32 ── logits ── by rank

Other machines, versions or numbers of threads round otherwise, and so do other shapes. So both
directions do the same: one stream at a time, one token at a time, with as many threads. What comes
out becomes integer weights like the exact engine's products.

Where a stream reaches the window, or the last place that the model has, its cache is dropped and
the last half of what it held is read again at once: right for every way of telling positions
(learned, rotary, ALiBi), and each token is read twice at most.

Source: FORMAT.md, "Float engine".
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from archiver.errors import InvalidModelError, MissingLibraryError
from archiver.predict.float_models import FloatModel
from archiver.predict.predictor import Scaled
from archiver.predict.sources_hf import read_tokenizer
from archiver.predict.team import SoloTeam
from archiver.text.vocabulary import Vocabulary, sort_tokens
from archiver.types import Float32Array, Int32Array, Int64Array

LOG2_E = np.float32(math.log2(math.e))
LOGIT_MAX = float(1 << 20)


class FloatEngine:
    """A model folder ready to run; holds no state of any stream.

    Attributes:
        vocabulary: the tokens that the tokenizer has, by rank; start_token: their number.
        segment: tokens after which a stream's cache is dropped.
    """

    serial = True
    state_entries = 0
    block_tokens = 1
    lead = 0

    def __init__(self, model: FloatModel, *, window: int, threads: int) -> None:
        """Load the weights.

        Args:
            window: the most tokens that a position sees, itself included.
            threads: how many multiply matrices.

        Raises:
            MissingLibraryError: transformers is not installed.
            InvalidModelError: the model cannot be loaded, its tokenizer is not byte-level BPE, or
                it has another cache than one of keys and values.
        """
        self.threads = threads
        self._name = str(model.folder)
        self.network: Any = _load(model)
        config: Any = self.network.config.get_text_config()
        try:
            _, token_bytes, start_id = read_tokenizer(
                model.folder, model.settings, config.vocab_size
            )
        except InvalidModelError as error:
            raise InvalidModelError(f"{self._name}: {error}") from error
        data, offsets, rank_of_id = sort_tokens(token_bytes)
        self.vocabulary = Vocabulary.build(data, offsets, rank_of_id)
        self.start_token = self.vocabulary.size
        self._id_of_rank: Int64Array = np.empty(self.vocabulary.size + 1, np.int64)
        coded = np.flatnonzero(rank_of_id >= 0)
        self._id_of_rank[rank_of_id[coded]] = coded
        self._id_of_rank[self.start_token] = start_id
        places = getattr(config, "max_position_embeddings", None)
        self.segment: int = min(window, places) if isinstance(places, int) else window
        if self.segment < 2:
            raise InvalidModelError(f"{self._name}: a model with {self.segment} places")
        self._position_bytes = _position_bytes(config)
        self._rank_scales: Float32Array = np.full(self.vocabulary.size, LOG2_E, np.float32)
        parameters = inspect.signature(self.network.forward).parameters
        self._options = {"logits_to_keep": 1} if "logits_to_keep" in parameters else {}
        cache_name = cache_argument(self.network)
        if cache_name is None:
            raise self._without_cache()
        self._cache_name = cache_name

    def prepare_thread(self) -> None:
        """Make the calling thread ready to run sessions."""
        import torch

        torch.set_num_threads(self.threads)

    def cache_bytes(self, streams: int, steps: int) -> int:
        """Memory that so many streams of so many tokens take, about."""
        return streams * min(steps, self.segment) * self._position_bytes

    def session(self, *, streams: int, tokens: int, steps: int) -> FloatSession:
        """A stream at its beginning."""
        assert streams == steps == 1
        return FloatSession(self)

    def team(self, *, streams: int, tokens: int, threads: int) -> SoloTeam:
        """Streams at their beginning, each apart from the others."""
        return SoloTeam(self, streams=streams, tokens=tokens, members=streams)

    def head(
        self, codes: NDArray[Any], scales: Float32Array, room: Float32Array | None = None
    ) -> Scaled:
        """Logits as `FloatSession.advance` gives them; their values are in bits."""
        return codes, scales, self._rank_scales

    def ids(self, ranks: list[int]) -> list[int]:
        """The tokenizer's ids of ranks."""
        found: list[int] = self._id_of_rank[ranks].tolist()
        return found

    def read(self, ids: list[int], cache: Any) -> tuple[Float32Array, Any]:
        """What the model says after some tokens of one stream.

        Args:
            ids: the tokens that follow on those in the cache; cache: None for an empty one.

        Returns:
            the last token's logits by rank, float32 [vocabulary], and the cache with the tokens.

        Raises:
            InvalidModelError: the model has no such cache, or computes what is no number.
        """
        import torch

        # Others may have set it since; where torch has OpenMP it is the thread's own.
        if torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)
        with torch.inference_mode():
            output = self.network(
                input_ids=torch.tensor([ids]), use_cache=True, **{self._cache_name: cache},
                **self._options,
            )  # fmt: skip
        cache = getattr(output, self._cache_name, None)
        if cache is None:
            raise self._without_cache()
        logits = output.logits[0, -1].numpy()[self._id_of_rank[:-1]]
        # NaN fails this comparison, too.
        if not (np.abs(logits) <= LOGIT_MAX).all():
            raise InvalidModelError(f"{self._name}: the model computes logits that are no numbers")
        return logits, cache

    def _without_cache(self) -> InvalidModelError:
        return InvalidModelError(
            f"{self._name}: the model cannot go on from token to token with keys and values"
        )


class FloatSession:
    """The state of one stream: its keys and values, and the tokens that they are of."""

    def __init__(self, engine: FloatEngine) -> None:
        """Args: engine, whose thread this is used in."""
        self._engine = engine
        self._cache: Any = None
        self._held: list[int] = []

    def advance(self, tokens: Int32Array) -> tuple[Float32Array, Float32Array]:
        """The stream is one token further.

        Args:
            tokens: int32 [1, 1], its rank.

        Returns:
            logits by rank, float32 [1, vocabulary], and their scale, 1.
        """
        engine = self._engine
        if len(self._held) == engine.segment:
            self._held = self._held[engine.segment - engine.segment // 2 :]
            _, self._cache = engine.read(self._held, None)
        ids = engine.ids(tokens[0].tolist())
        logits, self._cache = engine.read(ids, self._cache)
        self._held += ids
        return logits[None], np.ones(1, np.float32)


def cache_argument(network: Any) -> str | None:
    """How a network of transformers calls what it keeps of the tokens that it has read.

    Version 5.24 gave it another name; None for networks that have no such argument.
    """
    parameters = inspect.signature(network.forward).parameters
    names = [name for name in ("cache", "past_key_values") if name in parameters]
    return names[0] if names else None


def _position_bytes(config: Any) -> int:
    """Return what a position takes in a cache, by what configurations usually call their sizes."""
    heads = getattr(config, "num_attention_heads", None) or 1
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    dim = getattr(config, "head_dim", None) or getattr(config, "hidden_size", heads) // heads
    layers = getattr(config, "num_hidden_layers", None) or 1
    return int(2 * np.dtype(np.float32).itemsize * layers * kv_heads * dim)


def _load(model: FloatModel) -> Any:
    """Return the network in float32, with every weight from safetensors, and no code of its own.

    Raises:
        MissingLibraryError: transformers is not installed.
        InvalidModelError: it cannot load the folder, or a weight is missing there.
    """
    try:
        import torch
        import transformers
    except ImportError as error:
        raise MissingLibraryError(
            "the float engine needs the Python package transformers (`pip install 'llmzip[float]'`)"
        ) from error
    with _quiet():
        try:
            network, report = transformers.AutoModelForCausalLM.from_pretrained(
                model.folder, dtype=torch.float32, attn_implementation="eager",
                use_safetensors=True, trust_remote_code=False, local_files_only=True,
                output_loading_info=True,
            )  # fmt: skip
        except Exception as error:  # whatever the model's own class raises
            reason = (str(error) or type(error).__name__).strip().splitlines()[0][:300]
            raise InvalidModelError(
                f"{model.folder}: transformers cannot load it: {reason}"
            ) from error
    if report["missing_keys"]:
        name = sorted(report["missing_keys"])[0]
        raise InvalidModelError(f"{model.folder}: tensor {name} is missing")
    network.eval()
    # Matrix products may depend on how their operands are aligned; fresh tensors all are alike.
    for parameter in network.parameters():
        parameter.data = parameter.data.clone()
    return network


@contextmanager
def _quiet() -> Iterator[None]:
    """Let transformers neither print nor draw inside the block."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
