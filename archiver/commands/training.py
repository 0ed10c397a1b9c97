"""The command `llmzip train`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from archiver.commands.arguments import Duration, reporting_options, threads_option
from archiver.commands.console import Reporter
from archiver.options import (
    CHARGED_TOKENS_MAX,
    DEFAULT_BINS,
    DEFAULT_CHUNK_TOKENS,
    DEFAULT_MODEL,
    DEFAULT_PRIOR,
    LARGEST_FRAME_BYTES,
    LARGEST_SERVED_STREAMS,
    LARGEST_TRAINED_VECTORS,
    LARGEST_TRAINING_STEPS,
    STEERING_PRIORS,
    STEERING_SUFFIX,
)

if TYPE_CHECKING:
    from archiver.steering.fit import TrainingSummary
    from archiver.steering.train import TrainingState


@click.command()
@click.argument("corpus", nargs=-1, required=True, metavar="CORPUS...", type=click.Path())
@click.option(
    "-o", "--output", required=True, metavar="FILE.steer", help="The steering file to make."
)
@click.option("-f", "--force", is_flag=True, help="Overwrite FILE.steer.")
@click.option(
    "-m", "--model", default=DEFAULT_MODEL, show_default=True, help="Model to make it for."
)
@click.option(
    "-k", "--vectors", type=click.IntRange(1, LARGEST_TRAINED_VECTORS), default=8,
    show_default=True, help="How many vectors; each takes time in every stream.",
)  # fmt: skip
@click.option(
    "--time-limit", type=Duration(), show_default="15m, or none with --steps",
    help="How long to train, resumed runs included: 90s, 15m, 2h.",
)  # fmt: skip
@click.option(
    "--steps", type=click.IntRange(1, LARGEST_TRAINING_STEPS),
    help="How many steps to train: the same again on the same machine.",
)  # fmt: skip
@click.option(
    "--prior", type=click.Choice(STEERING_PRIORS), show_default=DEFAULT_PRIOR,
    help="How the vectors are stored.",
)  # fmt: skip
@click.option(
    "--bins", type=click.IntRange(2, 255), show_default=str(DEFAULT_BINS),
    help="In how many values a coordinate is stored.",
)  # fmt: skip
@click.option(
    "--chunk-tokens", type=click.IntRange(1, LARGEST_FRAME_BYTES), default=DEFAULT_CHUNK_TOKENS,
    show_default=True, metavar="TOKENS", help="How long the streams are that the vectors serve.",
)  # fmt: skip
@click.option(
    "--streams", type=click.IntRange(1, LARGEST_SERVED_STREAMS),
    help="Weigh the vectors' own bytes against what they save in so many such streams, for "
    "archives that hold them (--embed), instead of --prior and --bins; "
    f"{CHARGED_TOKENS_MAX:,} tokens count at most.",
)  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option(
    "--checkpoint", type=click.Path(), help="Where to keep the state; an interrupted run goes on."
)
@threads_option
@reporting_options
@click.pass_context
def train(
    ctx: click.Context,
    corpus: tuple[str, ...],
    output: str,
    force: bool,
    model: str,
    vectors: int,
    time_limit: float | None,
    steps: int | None,
    prior: str | None,
    bins: int | None,
    chunk_tokens: int,
    streams: int | None,
    seed: int,
    checkpoint: str | None,
    threads: int | None,
    quiet: bool,
    verbose: int,
) -> None:
    """Make a steering file that helps to compress texts like those of CORPUS.

    \b
    Example:
      llmzip train old/*.log -o log.steer
      llmzip compress --steer log.steer new.log
      llmzip decompress --steer log.steer new.log.llmz
    """
    from archiver import api

    reporter = Reporter(quiet=quiet, verbose=verbose)
    if not output.endswith(STEERING_SUFFIX):
        raise click.UsageError(f"the output's name must end in {STEERING_SUFFIX}")
    with reporter.errors_of(output), reporter.stages() as stages:
        summary = api.train(
            corpus,
            output,
            model=model,
            vectors=vectors,
            steps=steps,
            time_limit_s=time_limit,
            prior=prior,
            bins=bins,
            chunk_tokens=chunk_tokens,
            streams=streams,
            seed=seed,
            checkpoint=checkpoint,
            threads=threads or None,
            overwrite=force,
            report=lambda state: stages(_stage(state), int(1000 * state.part), 1000),
            model_progress=stages,
        )
        reporter.say(
            f"{output}: {_saved(summary):.2%} fewer of the model's bits in held-out windows; "
            f"{summary.vector_bytes:,} bytes of vectors, square error {summary.square_error:.1e}"
        )
    ctx.exit(reporter.exit_code)


def _stage(state: TrainingState) -> str:
    return f"training, {_saved(state):.1%} saved"


def _saved(found: TrainingState | TrainingSummary) -> float:
    return 1 - found.best_bits / found.plain_bits
