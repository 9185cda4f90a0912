"""Games, slices and regions that tests of Shapley values share."""

from itertools import permutations

import numpy as np

from explain_fakes import context
from xaiclip.explain.plan import Context
from xaiclip.explain.shapley import (
    shapley_values,
)

VALUES = ("soft_dice", "in_mask_probability", "hard_dice", "hard_iou")
#: Not in the alphabet's order, of different sizes; the last two overlap.
REGIONS = {
    "spleen": (slice(60, 200), slice(50, 190)),
    "liver": (slice(220, 420), slice(60, 300)),
    "pancreas": (slice(400, 440), slice(250, 350)),
}


def masks() -> np.ndarray:
    found = np.zeros((3, 512, 512), bool)
    for one, place in zip(found, REGIONS.values(), strict=True):
        one[place] = True
    return found


def body() -> np.ndarray:
    """A grey disc in air: what the body's mask is made of."""
    rows, columns = np.mgrid[:512, :512]
    return (120 * (np.hypot(rows - 256, columns - 256) < 240)).astype(np.uint8)


def sliced(guided=None, **changes) -> Context:
    known = {"image": body(), "organs": tuple(REGIONS), "masks": masks(), "rois": guided,
             "settings": {}}  # fmt: skip
    return context(**{**known, **changes})


class Game:
    """A made-up game of M units with interactions of up to three of them; two scores."""

    def __init__(self, units: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.units = units
        self.single = rng.normal(size=(units, 2)) * np.linspace(0.2, 1, units)[:, None]
        self.pairs = rng.normal(size=(units, units, 2)) * 0.15
        self.triple = rng.integers(0, units, (60, 3))
        self.weight = rng.normal(size=(60, 2)) * 0.2

    def __call__(self, on: np.ndarray) -> np.ndarray:
        """(N, M) → (N, 1, 2)."""
        kept = on.astype(float)
        linear = kept @ self.single + np.einsum("ni,nj,ijk->nk", kept, kept, self.pairs)
        return np.tanh(linear + kept[:, self.triple].prod(2) @ self.weight + 0.3)[:, None]

    def solve(self, on: np.ndarray):
        return shapley_values(on, self(on), self(np.ones((1, self.units), bool))[0])


def by_definition(game: Game) -> np.ndarray:
    """The mean gain over all orders: (1, 2, M)."""
    gains = np.zeros((game.units, 2))
    orders = list(permutations(range(game.units)))
    for order in orders:
        on = np.zeros((game.units + 1, game.units), bool)
        for place, unit in enumerate(order, 1):
            on[place:, unit] = True
        gains[list(order)] += np.diff(game(on)[:, 0], axis=0)
    return (gains / len(orders)).T[None]
