"""Soft prompts: how they are stored, chosen and trained.

normal        the normal distribution in integers
priors        hyper-priors: how many bits each coordinate takes
bodies        vectors to bytes and back, by one of the priors
files         steering files, and the built-in ones
sources       the vectors that an archive's header speaks of
quantizers    real vectors to codes, by each prior
choice        which steering suits a text
llama, train  vectors that suit a text by gradient descent
"""
