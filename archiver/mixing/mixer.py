"""The stage between the model's probability of a decision and the coder.

Version 1 has the model as its only input: `predict` passes its probability on and `update` learns
nothing. Both are called once for every coded decision of a token, in coding order, by both
directions, so that predictors which learn can join here.

Source: FORMAT.md, "Predictor frame payload" (mixer).
"""

from __future__ import annotations

from numba import njit

MIXER_VERSION = 1


@njit(nogil=True, cache=True, inline="always")
def predict(probability):
    """P(1) of the next decision in units of 2^-22, given the model's."""
    return probability


@njit(nogil=True, cache=True, inline="always")
def update(bit):
    """Learn the decision's outcome."""
