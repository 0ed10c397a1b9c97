"""Soft prompts: how they are stored, chosen and trained.

normal, priors   hyper-priors: integer tables of how often each coordinate occurs
starts, bodies   vectors to bytes and back, by one of the priors
files            steering files, and the built-in ones
sections         the header's section; sources: the vectors that it speaks of
quantizers       real vectors to codes, with a prior that suits them
llama, train     vectors that suit a text, by gradient descent
choice           which steering an archive gets
"""
