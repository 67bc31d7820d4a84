"""What the lessons with networks share: the network, and how a trained one is judged."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from scripts.learn.lesson import CART_POLE, environments

HIDDEN = 64
JUDGED = 100  # episodes
APART = 1_000_000  # what the seed of these episodes is above that of training


def network(outputs: int) -> nn.Module:
    """Two hidden layers over CartPole's state: position and speed of the cart, angle and speed of the pole."""
    layers = [nn.Linear(4, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, outputs)]
    return nn.Sequential(*layers)


@torch.no_grad()
def evaluated(act: Callable[[torch.Tensor], torch.Tensor], seed: int) -> NDArray[np.float64]:
    """The returns of new episodes, [JUDGED], of whoever takes the actions `act(states)`."""
    games = environments(CART_POLE, JUDGED, seed + APART)
    states, _ = games.reset()
    totals, going = np.zeros(JUDGED), np.ones(JUDGED, bool)
    while going.any():
        states, rewards, terminated, truncated, _ = games.step(act(torch.from_numpy(states)).numpy())
        totals += rewards * going
        going &= ~(terminated | truncated)
    return totals
