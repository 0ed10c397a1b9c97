"""Real vectors to codes, with the hyper-prior that then codes them.

    gaussian   uniform bins over all values, the prior a normal distribution
    empirical  uniform bins between the 1st and 99th percentile, their frequencies stored
    lloyd-max  centroids of a one-dimensional k-means, their frequencies stored
    scales     uniform steps, most codes near 0, sigma by vector and by group of dimensions

Everything here runs in the compressor only; what it decides is stored.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from archiver.errors import UsageError
from archiver.options import STEERING_PRIORS
from archiver.predict.soft_prompt import SoftPrompt
from archiver.steering.bodies import means
from archiver.steering.normal import SIGMA_MAX, SIGMA_UNIT
from archiver.steering.priors import (
    CODE_MAX,
    LEVELS,
    Base,
    EmpiricalPrior,
    GaussianPrior,
    LloydMaxPrior,
    Prior,
    ScalesPrior,
    scale_tables,
)
from archiver.steering.starts import storable_scale
from archiver.types import Float32Array, Float64Array, Int8Array, Int32Array

GROUP_DIMENSIONS = 64  # that share a level of ScalesPrior, about
BINS_MAX = 2 * CODE_MAX + 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Quantized:
    """Vectors as they can be stored: int8 codes [vectors, hidden], times scale, and their prior."""

    codes: Int8Array
    scale: float
    prior: Prior

    def values(self) -> Float32Array:
        """The vectors that the decoder will have."""
        return self.codes.astype(np.float32) * np.float32(self.scale)


def quantize(
    vectors: Float32Array,
    prior: str,
    bins: int,
    base: Base | None = None,
    base_prompt: SoftPrompt | None = None,
) -> Quantized:
    """Vectors as one of the priors stores them.

    Args:
        prior: one of STEERING_PRIORS.
        bins: how many values a coordinate may have; "scales" takes the same step as "gaussian".
        base, base_prompt: what the vectors started from; "scales" codes the difference.

    Raises:
        UsageError: no such prior, too many or too few bins, or a library is missing.
    """
    check(prior, bins)
    if prior == "scales":
        return scales(vectors, _step(vectors, bins), base, base_prompt)
    return {"gaussian": gaussian, "empirical": empirical, "lloyd-max": lloyd_max}[prior](
        vectors, bins
    )


def check(prior: str, bins: int) -> None:
    """Return when `quantize` takes these.

    Raises:
        UsageError: no such prior, or too many or too few bins.
    """
    if prior not in STEERING_PRIORS:
        raise UsageError(f"no prior {prior!r}; there are {', '.join(STEERING_PRIORS)}")
    _check_bins(bins)


def gaussian(vectors: Float32Array, bins: int) -> Quantized:
    """`bins` uniform bins over all values, under N(0, sigma^2)."""
    _check_bins(bins)
    scale = _step(vectors, bins)
    codes = np.rint(vectors / scale).clip(-CODE_MAX, CODE_MAX).astype(np.int8)
    sigma = round(float(np.sqrt(np.mean(np.square(vectors)))) / scale * SIGMA_UNIT)
    prior = GaussianPrior(
        sigma=min(max(sigma, 1), SIGMA_MAX), low=int(codes.min()), high=int(codes.max())
    )
    return Quantized(codes=codes, scale=scale, prior=prior)


def empirical(vectors: Float32Array, bins: int) -> Quantized:
    """`bins` uniform bins between the 1st and the 99th percentile; values beyond are clipped."""
    _check_bins(bins)
    clipped = vectors.clip(*np.percentile(vectors, [1, 99]))
    scale = _step(clipped, bins)
    codes = np.rint(clipped / scale).clip(-CODE_MAX, CODE_MAX).astype(np.int8)
    low = int(codes.min())
    counts = np.bincount(codes.reshape(-1).astype(np.int64) - low)
    # A bin that nothing falls into needs a frequency like any other.
    prior = EmpiricalPrior(low=low, counts=tuple(int(count) for count in np.maximum(counts, 1)))
    return Quantized(codes=codes, scale=scale, prior=prior)


def lloyd_max(vectors: Float32Array, bins: int, seed: int = 0) -> Quantized:
    """At most `bins` centroids where they make the square error least.

    Raises:
        UsageError: scikit-learn is not installed.
    """
    try:
        from sklearn.cluster import KMeans
    except ImportError as error:
        raise UsageError("the prior lloyd-max needs scikit-learn") from error

    _check_bins(bins)
    values = vectors.reshape(-1, 1).astype(np.float64)
    bins = min(bins, len(np.unique(values)))
    centroids = KMeans(n_clusters=bins, n_init=1, random_state=seed).fit(values).cluster_centers_
    scale = storable_scale(float(np.abs(centroids).max()) / CODE_MAX)
    places = np.unique(np.rint(centroids / scale).clip(-CODE_MAX, CODE_MAX).astype(np.int64))
    nearest = np.abs(vectors[..., None] / scale - places).argmin(axis=-1)
    counts = np.bincount(nearest.reshape(-1), minlength=len(places))
    prior = LloydMaxPrior(
        codes=tuple(int(place) for place in places),
        counts=tuple(int(count) for count in np.maximum(counts, 1)),
    )
    return Quantized(codes=places[nearest].astype(np.int8), scale=scale, prior=prior)


def scales(
    vectors: Float32Array,
    step: float,
    base: Base | None = None,
    base_prompt: SoftPrompt | None = None,
) -> Quantized:
    """Uniform steps from the means, with the levels that code them shortest.

    Args:
        base, base_prompt: what the vectors started from; without them the means are 0. Means are
            kept finer than a step, as fine as codes can be.
    """
    if base_prompt is None:
        scale, stride = storable_scale(step), 1
        mean = np.zeros(vectors.shape, np.int32)
    else:
        values = base_prompt.codes.astype(np.float32) * base_prompt.scales[:, None]
        greatest = max(float(np.abs(vectors).max()), float(np.abs(values).max()))
        scale = storable_scale(max(greatest / CODE_MAX, step / CODE_MAX))
        stride = min(max(round(step / scale), 1), CODE_MAX)
        mean = means(base_prompt, scale)
    rest = np.rint((vectors / scale - mean) / stride).astype(np.int32)
    # A code of more than 127 would be cut by the decoder: the symbol is one that is not.
    least, most = -((CODE_MAX + mean) // stride), (CODE_MAX - mean) // stride
    rest = rest.clip(least, most).clip(-CODE_MAX, CODE_MAX)
    vector_levels, group_levels = fit_levels(rest)
    prior = ScalesPrior(
        base=base, stride=stride, vector_levels=vector_levels, group_levels=group_levels
    )
    return Quantized(codes=(rest * stride + mean).astype(np.int8), scale=scale, prior=prior)


def fit_levels(rest: Int32Array) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The levels of ScalesPrior, by vector and by group, that make the codes' bits least.

    Alternates between the vectors and the groups until nothing changes. Groups come only where
    they save more than the byte that each costs.
    """
    costs = code_costs()
    hidden = rest.shape[1]
    groups = -(-hidden // GROUP_DIMENSIONS)
    group_of = np.arange(hidden) * groups // hidden
    # bits[vector, group, level]: of all the codes there
    by_code = costs[:, rest + CODE_MAX]  # [level, vector, dimension]
    bits = np.stack([by_code[:, :, group_of == g].sum(-1) for g in range(groups)], -1)
    bits = np.moveaxis(bits, 0, -1)
    vector_levels = bits.sum(1).argmin(-1)
    alone_bits = float(bits.sum(1).min(-1).sum())
    group_levels = np.zeros(groups, np.int64)
    steps = np.arange(-(LEVELS - 1), LEVELS)
    for _ in range(10):
        at = (vector_levels[:, None] + steps).clip(0, LEVELS - 1)  # [vector, step]
        sums = np.take_along_axis(bits, at[:, None, :].repeat(groups, 1), -1).sum(0)
        group_levels = steps[sums.argmin(-1)]
        at = (np.arange(LEVELS)[:, None] + group_levels).clip(0, LEVELS - 1)  # [level, group]
        sums = np.take_along_axis(bits, at.T[None].repeat(len(bits), 0), -1).sum(1)
        before, vector_levels = vector_levels, sums.argmin(-1)
        if (before == vector_levels).all():
            break
    together_bits = float(sums.min(-1).sum()) + 8 * groups
    if together_bits >= alone_bits:
        alone = bits.sum(1).argmin(-1)
        return tuple(int(level) for level in alone), ()
    return tuple(int(v) for v in vector_levels), tuple(int(g) for g in group_levels)


def code_costs() -> Float64Array:
    """Bits of each code under each level, float64 [LEVELS, 255]."""
    counts = np.diff(scale_tables(), axis=1).astype(np.float64)
    bits: Float64Array = np.log2(counts.sum(1, keepdims=True)) - np.log2(counts)
    return bits


def _step(values: Float32Array, bins: int) -> float:
    """A step with which the values' range is about `bins` codes wide, and none beyond 127."""
    low, high = float(values.min()), float(values.max())
    step = (high - low) / max(bins - 1, 1)
    return storable_scale(max(step, max(-low, high) / CODE_MAX, math.ldexp(1.0, -40)))


def _check_bins(bins: int) -> None:
    if not 2 <= bins <= BINS_MAX:
        raise UsageError(f"the number of bins must be 2 to {BINS_MAX}, not {bins}")
