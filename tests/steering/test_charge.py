"""What storing vectors costs while they are trained, and which coordinates go back."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from archiver.steering.charge import NOISES, SIGMA_MIN, WORTH_BITS, Charge, ChargedVectors

BASE = torch.tensor([[0.03, -0.11, 0.25, 0.0], [1.0, 0.5, -0.5, 0.07]])
MOVES = torch.tensor([[1.0, -2.0, 0.0, 3.0], [0.0, 1.0, 1.0, -1.0]])  # in steps
STEP = 0.2


def charged(streams: float = 50.0, sigmas: tuple[float, float] = (1.0, 1.0)) -> ChargedVectors:
    """All coordinates are free."""
    return ChargedVectors(
        Charge(streams=streams, step=STEP),
        BASE,
        free=torch.ones_like(BASE),
        log_sigma=torch.tensor(sigmas)[:, None].log(),
    )


def of_moves(curvature: Tensor, moves: Tensor = MOVES) -> ChargedVectors:
    return ChargedVectors.of_moves(
        Charge(streams=50.0, step=STEP), BASE, BASE + STEP * moves, curvature
    )


def phi(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2))


def bits_of(steps: float, sigma: float) -> float:
    return -math.log2(max(phi((steps + 0.5) / sigma) - phi((steps - 0.5) / sigma), 2.0**-22))


def test_vectors_are_rounded_to_steps_from_where_they_began() -> None:
    found = charged().rounded(BASE + STEP * (MOVES + 0.4))
    assert torch.allclose(found, BASE + STEP * MOVES)


def test_the_share_is_that_of_a_normal_distribution() -> None:
    sigmas = (1.6, 0.4)
    vectors = charged(streams=50, sigmas=sigmas)
    for noises in ((0.0,), NOISES):
        expected = sum(
            bits_of(float(move) + noise, sigma)
            for row, sigma in zip(MOVES, sigmas, strict=True)
            for move in row
            for noise in noises
        ) / (50 * len(noises))
        share = vectors.share if noises == (0.0,) else vectors.expected_share
        found = float(share(BASE + STEP * MOVES).detach())
        assert found == pytest.approx(expected, rel=1e-3)


def test_what_stays_costs_next_to_nothing() -> None:
    vectors = charged(streams=1, sigmas=(SIGMA_MIN, SIGMA_MIN))
    assert float(vectors.share(BASE).detach()) < 0.04 * BASE.numel()


def test_coordinates_go_back_whose_move_does_not_save_what_it_costs() -> None:
    """Half of the curvature times the rounded move's square, in all streams, against WORTH_BITS."""
    worth = 2 * WORTH_BITS / (50 * STEP**2)  # the curvature at which a move of one step just pays
    curvature = worth * torch.tensor([[1.01, 0.24, 9.0, 0.12], [9.0, 0.99, 1.01, 1.5]])
    vectors = of_moves(curvature, MOVES + 0.4)
    kept = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 1.0, 1.0]])
    later = BASE + STEP * (MOVES + torch.ones(2, 4))
    assert vectors.any_free
    assert torch.allclose(vectors.rounded(later), BASE + kept * (later - BASE))
    noisy = vectors.noisy(later, torch.Generator().manual_seed(0))
    assert torch.equal(noisy != BASE, kept != 0)
    assert ((noisy - BASE - kept * (later - BASE)).abs() <= STEP / 2 + 1e-6).all()
    sigmas = [math.sqrt((1 + 9) / 2), 1.0]  # of the moves that are left
    expected = sum(
        bits_of(steps, sigma)
        for steps, sigma in ((2, sigmas[0]), (4, sigmas[0]), (2, sigmas[1]), (0, sigmas[1]))
    )
    places = BASE.numel()  # a bit each where half of them are free
    assert float(vectors.share(later).detach()) == pytest.approx((expected + places) / 50, rel=1e-3)


def test_nothing_is_free_where_nothing_pays() -> None:
    vectors = of_moves(torch.zeros_like(BASE))
    assert not vectors.any_free
    assert torch.equal(vectors.rounded(BASE + STEP * MOVES), BASE)
    assert vectors.log_sigma.exp().flatten().tolist() == pytest.approx([SIGMA_MIN] * 2)


def test_a_state_is_gone_on_with() -> None:
    first = of_moves(torch.ones_like(BASE))
    with torch.no_grad():
        first.log_sigma.fill_(0.25)
    second = ChargedVectors(Charge(streams=50.0, step=STEP), BASE, **first.state())
    later = BASE + STEP * MOVES.flip(1)
    assert torch.equal(second.rounded(later), first.rounded(later))
    assert float(second.share(later).detach()) == float(first.share(later).detach())
