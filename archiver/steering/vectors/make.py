"""Trains one of the built-in steering files; says what each was made from.

    python -m archiver.steering.vectors.make NAME TRAINING_FOLDER --checkpoint FILE [--pause S]

Without --pause it runs to the end; with it, it stops after so many seconds, and the same command
goes on. "wiki-instruct", for the published weights, was made from its texts as they are, all
others from what the codec's transforms leave of them. The texts are public (their names in the
training folder, sources and hashes in its SOURCES.tsv) and apart from every benchmark text. A
file that is made once stays; see BUILT_IN in `archiver.steering.files`.

None are for code: trained on code_libzpaq.cpp and code_brotli_decode.js, they saved 0.04 % of the
bits of held-out windows after 20 steps, and no more in 100 others.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from archiver.options import DEFAULT_MODEL
from archiver.predict import registry
from archiver.steering import quantizers
from archiver.steering.bodies import encode_body
from archiver.steering.files import SUFFIX, SteeringFile
from archiver.steering.llama import TrainingModel
from archiver.steering.texts import TextReader
from archiver.steering.train import Trainer, TrainingSettings, TrainingState

VECTORS = 16
BINS = 63  # 5 bits a coordinate; rounding costs less than 0.01 % of the text's bits
FOLDER = Path(__file__).parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What a built-in file was made from: texts of the training folder, model, steps, seed."""

    texts: tuple[str, ...]
    model: str = DEFAULT_MODEL
    steps: int = 160
    seed: int = 0


_WIKI = (
    "wiki_enwik8_1100000_800000",
    "wiki_enwik8_3000000_1000000",
    "wiki_mars_en.txt",
)

RECIPES = {
    "prose": Recipe(
        texts=(
            "prose_dickens_4m",
            "prose_moby_dick_700k.txt",
            "prose_war_and_peace_800k.txt",
            "prose_bible_400k.txt",
        )
    ),
    "wiki": Recipe(texts=_WIKI),
    "wiki-instruct": Recipe(texts=_WIKI, model="smollm2-135m-instruct"),
    "logs": Recipe(
        texts=(
            "logs_Apache_2k.log",
            "logs_Hadoop_2k.log",
            "logs_Zookeeper_2k.log",
            "logs_apache_access_400k.log",
        )
    ),
    "russian": Recipe(texts=("russian_wiki_sentences_800k.txt",)),
}


def main() -> None:
    """Train, and write the file when done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=RECIPES)
    parser.add_argument("training", type=Path)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--pause", type=float, default=float("inf"))
    arguments = parser.parse_args()
    recipe = RECIPES[arguments.name]
    package = registry.resolve(recipe.model)
    reader = TextReader(package)
    trainer = Trainer(
        TrainingModel(package),
        [reader.ranks((arguments.training / text).read_bytes()) for text in recipe.texts],
        TrainingSettings(vectors=VECTORS, steps=recipe.steps, seed=recipe.seed),
        checkpoint=arguments.checkpoint,
    )

    def report(state: TrainingState) -> None:
        if state.step % 10 == 0:
            saved = 1 - state.best_bits / state.plain_bits
            print(f"{state.step}: {saved:.2%} of held-out windows", file=sys.stderr, flush=True)

    found = trainer.run(report, arguments.pause)
    if not trainer.done:
        return
    quantized = quantizers.gaussian(found.values, BINS)
    body = encode_body(quantized.codes, quantized.scale, quantized.prior, package)
    file = SteeringFile(package_fingerprint=package.fingerprint_bytes, body=body)
    (FOLDER / f"{arguments.name}{SUFFIX}").write_bytes(file.encode())
    print(f'"{arguments.name}": (number, 0x{file.fingerprint:016X}),')


if __name__ == "__main__":
    main()
