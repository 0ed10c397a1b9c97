"""`steering`: what steering vectors save and cost, from one experiment file each.

    python -m benchmarks steering benchmarks/experiments/steering_priors.toml --texts FOLDER

FOLDER holds the texts that the experiment names. The record is written after every archive; the
same command goes on where it ends, and `--show` shows it as it is.

experiment   an experiment file: texts, settings, and the plan of one kind
plans        the kinds of experiment: which archives each of them makes
cases        one archive: trained for, made, decoded in a fresh process
programs     llmzip as these archives are made by it, and what is known of their vectors
record       what is known so far; a rerun goes on where the record ends
tables       records as text; charts: as pictures
"""
