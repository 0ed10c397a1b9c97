"""The command `llmzip train`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from archiver.commands.arguments import Duration, reporting_options, threads_option
from archiver.commands.console import Reporter
from archiver.options import (
    DEFAULT_MODEL,
    DEFAULT_TRAINING_S,
    LARGEST_TRAINED_VECTORS,
    STEERING_SUFFIX,
)

if TYPE_CHECKING:
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
    "--time-limit", type=Duration(), default=DEFAULT_TRAINING_S, show_default="15m",
    help="How long to train, resumed runs included: 90s, 15m, 2h.",
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
    time_limit: float,
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
        state = api.train(
            corpus,
            output,
            model=model,
            vectors=vectors,
            time_limit_s=time_limit,
            seed=seed,
            checkpoint=checkpoint,
            threads=threads or None,
            overwrite=force,
            report=lambda state: stages(_stage(state), int(1000 * state.part), 1000),
            model_progress=stages,
        )
        reporter.say(f"{output}: {_saved(state):.2%} fewer bits in windows that were held out")
    ctx.exit(reporter.exit_code)


def _stage(state: TrainingState) -> str:
    return f"training, {_saved(state):.1%} saved"


def _saved(state: TrainingState) -> float:
    return 1 - state.best_bits / state.plain_bits
