"""`speed`: where llmzip's time goes, against the matrix products that nothing can do without.

    python -m benchmarks speed FILE [--bytes N] [--gguf WEIGHTS]

The floor is the time of the bare int8 matrix products for the text's tokens, at the row counts
that each direction has and with as many threads: what an engine without any other work would
take. Stages are timed on one thread over the text's beginning, each kernel by its own calls,
without start-up and without steering vectors; the whole text is then compressed and decompressed
in fresh processes, with both. transformers runs the same weights in float32 beside it, where they
can be had.

parts    stages and floor, in a fresh process
stages   seconds by stage, of one call of the codec each way
floor    the bare products, shape by shape, and what memory and arithmetic units give at most
record   the whole text, transformers, all of it together
tables   the record as text; charts: as a roofline
"""
