"""`predictors`: what pruned, quantized and healed models cost in bits per byte, side by side.

    python -m benchmarks predictors benchmarks/experiments/predictors.toml --texts FOLDER

FOLDER holds the texts that the experiment names. Every predictor is made by commands of
`llmzip model`; the weights that a command made are kept beside the record and not made again. The
record is written after every archive; the same command goes on where it ends, and `--show` shows
it as it is.

experiment   an experiment file: texts, settings, predictors
steps        a command of the workshop, without what goes in and what comes out
facts        sizes and shapes of what was made
workbench    carries steps out, keeps what they made, makes packages
record       what is known so far; a rerun goes on where the record ends
tables       records as text, for a terminal and for the README; charts: as pictures
"""
