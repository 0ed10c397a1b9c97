"""Texts as a package's tokens, without its engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from archiver.text.detection import charset_spans
from archiver.text.framing import Symbols, symbols_of
from archiver.text.tokenizer import TextTokenizer
from archiver.text.transforms import transform
from archiver.text.vocabulary import Vocabulary
from archiver.types import Int32Array

if TYPE_CHECKING:
    from archiver.predict.package import ModelPackage


class TextReader:
    """Reads texts as the codec does."""

    def __init__(self, package: ModelPackage) -> None:
        names = ("tokens.data", "tokens.offsets", "tokens.rank_of_id")
        self._vocabulary = Vocabulary.build(*(package.arrays[name] for name in names))
        self._tokenizer = TextTokenizer(package)

    def symbols(self, text: bytes) -> Symbols:
        """The symbols of a text as it is."""
        return symbols_of(text, self._vocabulary, self._tokenizer)

    def ranks(self, content: bytes) -> Int32Array:
        """The symbols of a content after the transforms that suit it, int32, escapes negative."""
        spans = charset_spans(content, self._vocabulary, self._tokenizer)
        text, _ = transform(content, spans)
        return self.symbols(text).ranks
