"""Makes the golden archives; says what each of them holds.

    python -m tests.golden.make

Once the format has been released, an archive that changes is a new engine, mixer or format
version: archives of the old one stay beside it, and none is made anew.  New ones may be added.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

import archiver
from archiver.options import CompressOptions
from archiver.predict import registry
from archiver.predict.package import ModelPackage
from archiver.steering.bodies import encode_body, mean_codes
from archiver.steering.files import SteeringFile
from archiver.steering.priors import (
    Base,
    EmpiricalPrior,
    GaussianPrior,
    LloydMaxPrior,
    Prior,
    ScalesPrior,
)
from tests.support.tiny_models import LOCAL_HEADS, make_tiny_hf_folder

FOLDER = Path(__file__).parent
MODEL = "tiny"
MODEL_SEED = 1
# The package that make_tiny_hf_folder's model of this seed converts to, on every machine.
FINGERPRINT = "eca37a7566d809792fdf7ca793bda95c0d1e873553bea627479b68cdc0703ec9"

TEXT = (
    b"The quick brown fox jumps over the lazy dog; it was the best of times.\n"
    b"All happy families are alike, said the traveller: every one in its own way.\n"
    b"def add(first, second):\n    return first + second\n"
    b"A program that predicts the next word, then the next letter, then 1905 bits.\n"
)
CHAT = (
    b"<|im_start|>user\r\nWas the weather fine?\r\n<|im_end|>\r\n\r"
    b"<|im_start|>assistant\r\n\tLes \xc3\xa9l\xc3\xa8ves \xc3\xa9taient l\xc3\xa0.\r\n<|im_end|>"
)
CYRILLIC = "Мы были там вчера; над землёй ветер.\n".encode()

LONG_TOKENS = [
    token.encode()
    for token in (
        " unhappy", " second", " times", "eginning", "raveller", "compresses", "redicts", "return",
        "rogram", "quick", "jumps", "every", "first", "ather", "etter", "efore", "lèves", "taient",
        "вчера", "были",
    )
]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Golden:
    """One golden archive.

    Attributes:
        holds: what is particular about it.
        codings: those of its frames, as FORMAT.md numbers them.
        options: settings of `CompressOptions` that are not the default.
    """

    name: str
    holds: str
    content: bytes
    codings: tuple[int, ...]
    options: dict[str, Any]

    @property
    def path(self) -> Path:
        return FOLDER / f"{self.name}.llmz"

    def compress(self) -> bytes:
        """The archive, as the program makes it now."""
        return archiver.compress(
            self.content, options=CompressOptions(model=MODEL, threads=1, **self.options)
        )


def scattered(count: int) -> bytes:
    """`count` bytes without any pattern, the same everywhere."""
    digests = (hashlib.sha256(bytes([number])).digest() for number in range(-(-count // 32)))
    return b"".join(digests)[:count]


def line_of(count: int, seed: int) -> bytes:
    """`count` bytes, a line, of the model's longest tokens in no order: zstd does worse."""
    line = bytearray()
    state = seed
    while len(line) < count - 1:
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        line += LONG_TOKENS[(state >> 33) % len(LONG_TOKENS)]
    return bytes(line[: count - 1]) + b"\n"


def broken_lines(count: int, seed: int) -> str:
    """About `count` bytes of tokens in no order, the lines ended by CR LF, all in KOI8-R."""
    text = line_of(count, seed).decode("utf-8", "ignore")
    return text.replace("è", "e").replace(" ", "\r\n ")


def _steering(package: ModelPackage, spread: int, scale: float, prior: Prior) -> bytes:
    """A steering file with two vectors without any pattern, or less: one code in `spread`."""
    hidden = package.arrays["embed.codes"].shape[1]
    shape = (2, hidden)
    numbers = np.frombuffer(scattered(4 * hidden), np.uint8).astype(np.int64)
    tables = prior.tables(*shape)
    symbols = numbers[: 2 * hidden] * len(tables.codes) // 256
    middle = int(np.abs(tables.codes).argmin())
    symbols = np.where(numbers[2 * hidden :] % spread == 0, symbols, middle)
    means = mean_codes(prior, scale, 2, package)
    codes = means + tables.codes[symbols].reshape(shape)
    body = encode_body(codes.clip(-127, 127).astype(np.int8), scale, prior, package)
    return SteeringFile(package_fingerprint=package.fingerprint_bytes, body=body).encode()


STEERING: dict[str, Callable[[ModelPackage], bytes]] = {
    "gaussian": lambda package: _steering(
        package, 1, 0.046875, GaussianPrior(sigma=300, low=-11, high=13)
    ),
    "empirical": lambda package: _steering(
        package, 1, 0.0625, EmpiricalPrior(low=-3, counts=(1, 5, 300, 70000, 256, 6, 1))
    ),
    "lloyd_max": lambda package: _steering(
        package, 1, 0.00390625, LloydMaxPrior(codes=(-127, -30, 5, 31, 127), counts=(1, 7, 9, 7, 1))
    ),
    "scales": lambda package: _steering(
        package,
        9,
        0.00390625,
        ScalesPrior(
            base=Base(ranks=(7, 300)), stride=1, vector_levels=(16, 30), group_levels=(-6, 0, 4)
        ),
    ),
}
STEERING_FILE = FOLDER / "gaussian.steer"

GOLDENS = [
    Golden(name="empty", holds="no content, no frame", content=b"", codings=(), options={}),
    Golden(name="one_byte", holds="one byte, stored", content=b"a", codings=(0,), options={}),
    Golden(
        name="raw",
        holds="bytes that nothing shortens",
        content=scattered(300),
        codings=(0,),
        options={},
    ),
    Golden(
        name="zstd",
        holds="repeats, which zstd shortens most",
        content=scattered(600) * 20,
        codings=(1,),
        options={},
    ),
    Golden(
        name="text",
        holds="English in one stream, longer than the window and the sinks",
        content=TEXT,
        codings=(2,),
        options={"window_tokens": 32},
    ),
    Golden(
        name="line_ends",
        holds="CRLF and lone CR, what looks like special tokens, other alphabets",
        content=CHAT + CYRILLIC,
        codings=(2,),
        options={},
    ),
    Golden(
        name="all_bytes",
        holds="each byte value once, among text: escapes of bytes and of invalid UTF-8",
        content=TEXT + bytes(range(256)) + b"\xff\xfe" + TEXT[:90] + b"\x04\xe2\x82",
        codings=(2,),
        options={"window_tokens": 32},
    ),
    Golden(
        name="streams",
        holds="streams of two lengths, each longer than the smallest window and the sinks",
        content=TEXT + b"\xf5" + CHAT + b"\r\n" + CYRILLIC + line_of(300, 3),
        codings=(2,),
        options={"window_tokens": 16, "chunk_tokens": 60},
    ),
    Golden(
        name="frames",
        holds="two frames of the predictor, one stored",
        content=line_of(2100, 1) + line_of(4050, 2) + scattered(150),
        codings=(2, 2, 0),
        options={"frame_bytes": 4096, "window_tokens": 64, "chunk_tokens": 100},
    ),
    Golden(
        name="koi8",
        holds="KOI8-R with CRLF: one segment and a swap, three streams",
        content=broken_lines(900, 6).encode("koi8-r"),
        codings=(2,),
        options={"chunk_tokens": 100},
    ),
    Golden(
        name="utf_16",
        holds="UTF-16 cut in the middle of a unit at both ends: three segments, CRLF",
        content=broken_lines(600, 8).encode("utf-16-be")[1:-1],
        codings=(2,),
        options={"chunk_tokens": 100},
    ),
    Golden(
        name="shift_jis",
        holds="Shift-JIS with half-width katakana, a user's character and stray bytes",
        content=(broken_lines(600, 10) + "猫である。ﾃｽﾄ\ue000").encode("cp932", "ignore")
        + b"\x82 \xfd \xed\x40\n\x88",
        codings=(2,),
        options={"chunk_tokens": 100},
    ),
    Golden(
        name="gb18030",
        holds="GB18030 with characters of four bytes, the first and last character cut",
        content=("不" + broken_lines(600, 11) + "觉\xf1\ue7c7\U0001f600一").encode("gb18030")[1:-1]
        + b"\xff\x84\x31\xa4\x38\x81\x30\x81",
        codings=(2,),
        options={"chunk_tokens": 100},
    ),
    Golden(
        name="euc_jp",
        holds="EUC-JP with characters of NEC and JIS X 0212, which has no cells",
        content=(broken_lines(600, 12) + "±÷°§" * 7 + "猫である。ﾃｽﾄ").encode("euc_jp", "ignore")
        + b"\xad\xe2\xf9\xa1\x8f\xb0\xa1",
        codings=(2,),
        options={"chunk_tokens": 100},
    ),
    Golden(
        name="big5",
        holds="Big5 with a character that has two cells",
        content=(broken_lines(600, 13) + "寶玉聽了心中").encode("cp950", "ignore")
        + b"\xf9\xf9\xa2\xa4 \xfe",
        codings=(2,),
        options={"chunk_tokens": 100},
    ),
    Golden(
        name="euc_kr",
        holds="EUC-KR with a syllable of code page 949",
        content=(broken_lines(600, 14) + "모든 인간은 똠방각하").encode("cp949", "ignore"),
        codings=(2,),
        options={"chunk_tokens": 100},
    ),
    Golden(
        name="swaps",
        holds="escapes of JSON, percent-encoding, CRLF: three swaps",
        content=json.dumps(line_of(200, 9).decode("utf-8", "ignore")).encode()
        + b"\r\n"
        + quote(broken_lines(200, 8), safe=" \r\n").lower().encode(),
        codings=(2,),
        options={"chunk_tokens": 100},
    ),
    Golden(
        name="widest",
        holds="the widest window",
        content=TEXT,
        codings=(2,),
        options={"window_tokens": 12288},
    ),
    Golden(
        name="steered_tokens",
        holds="the embeddings of a text before every stream",
        content=TEXT,
        codings=(2,),
        options={"steering": "fixed:The best of times", "window_tokens": 16, "chunk_tokens": 40},
    ),
    Golden(
        name="steered_random",
        holds="more random vectors than the window is wide",
        content=TEXT,
        codings=(2,),
        options={"steering": "random:20:18446744073709551615", "window_tokens": 16},
    ),
    Golden(
        name="steered_file",
        holds="the fingerprint of a steering file",
        content=TEXT,
        codings=(2,),
        options={"steering": str(STEERING_FILE), "chunk_tokens": 60},
    ),
    *(
        Golden(
            name=f"steered_{name}",
            holds=f"vectors coded by the prior {name}",
            content=TEXT,
            codings=(2,),
            options={"steering": str(FOLDER / f"{name}.steer"), "embed_steering": True},
        )
        for name in STEERING
    ),
]


def add_model(scratch: Path) -> ModelPackage:
    """The model of the golden archives, added to LLMZIP_HOME."""
    folder = make_tiny_hf_folder(scratch / MODEL, seed=MODEL_SEED)
    package = registry.add(folder, name=MODEL, local_heads=LOCAL_HEADS)
    assert package.fingerprint == FINGERPRINT
    return package


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["LLMZIP_HOME"] = str(Path(scratch) / "home")
        package = add_model(Path(scratch))
        for name, steering_file in STEERING.items():
            (FOLDER / f"{name}.steer").write_bytes(steering_file(package))
        for golden in GOLDENS:
            golden.path.write_bytes(golden.compress())


if __name__ == "__main__":
    main()
