"""Text to token ids, cut and merged as the model was trained with it.

Only the compressor tokenizes.  Whatever ids it chooses, the archive holds their bytes' path
through the vocabulary, so a decoder needs no tokenizer and no version of one can spoil it.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from archiver.errors import InvalidModelError


class TokenizerOwner(Protocol):
    """What a tokenizer is made from: in practice a ModelPackage."""

    def read_tokenizer(self) -> str:
        """Return tokenizer.json, checked against the manifest."""
        ...


class TextTokenizer:
    """A package's tokenizer.

    The names of special tokens in a text (``<|im_start|>``) are text like any other.  The
    result is what the tokenizer makes of the text, which may be lossy: a character with a byte
    that has no token vanishes.  ``framing`` compares and repairs.
    """

    def __init__(self, package: TokenizerOwner) -> None:
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_str(package.read_tokenizer())
        except InvalidModelError:
            raise
        except Exception as error:  # the library raises bare Exception on a malformed file
            raise InvalidModelError(f"the tokenizer cannot be used: {error}") from error
        self._tokenizer.encode_special_tokens = True

    def encode(self, text: str) -> NDArray[np.int32]:
        """Return the ids, int32[tokens], of a text without lone surrogates.

        One thread, whatever the library's settings: a batch would start its own threads, and
        nothing is known to be shorter than the time that they take.
        """
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return np.array(encoding.ids, dtype=np.int32)
