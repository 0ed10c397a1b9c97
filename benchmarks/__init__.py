"""Measurements of llmzip: against other programs, against theory, against stepwise inference.

    __main__     the command line
    runner       a file through a program and back, each way in a fresh process ── job
    competitors  the programs
    compare      `files`: every program on every file ── table, chart
    theory       `theory`: ideal bits in float32 ── float_llama, weights
    stepwise     `stepwise`: llmzip's speed against token-by-token inference
    speed/       `speed`: by stage, against the bare products; a roofline
    sweep/       `sweep`: over sizes, levels, windows, ... ── experiment_file, resumable
    steering/    `steering`: what steering vectors save ── experiment_file, resumable
    predictors/  `predictors`: pruned, quantized, healed models ── experiment_file, resumable
    readme       tables of records in the README
    records      what is written down; environment: on what machine and by which versions

Needs the extra `bench`. Importing these modules loads neither torch nor transformers, so that the
process which starts the jobs stays small.
"""
