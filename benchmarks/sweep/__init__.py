"""`sweep`: one setting of llmzip at a time, over a range of values: bytes, seconds and memory.

    python -m benchmarks sweep benchmarks/experiments/sweep_speed.toml --texts FOLDER

FOLDER holds the texts that the experiment names. Every archive is decoded in a fresh process. The
record is written after every archive; the same command goes on where it ends, and `--show` shows
it as it is.

experiment   an experiment file: texts, settings, series of values ── cases
programs     llmzip, which also says how many tokens and streams it made; chunks for streams
record       what is known so far; a rerun goes on where the record ends
tables       a table a series and text; charts: a picture a series
"""
