"""`steering`: what steering vectors save and cost, from one experiment file each.

experiment   an experiment file: texts, settings, and the plan of one kind
plans        the kinds of experiment: which archives each of them makes
cases        one archive: trained for, made, decoded in a fresh process
programs     llmzip as these archives are made by it, and what is known of their vectors
record       what is known so far; a rerun goes on where the record ends
tables       records as text; charts: as pictures
"""
