"""One patient: what was drawn of them, and how the painters of the organs draw more."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from compact.phantom.canvas import Canvas
from compact.phantom.fields import Float, Point
from compact.phantom.settings import ORGANS, PhantomSettings
from compact.phantom.tissues import TISSUES


class Patient:
    """One patient, whose parts the functions of the anatomy paint, deepest first."""

    def __init__(
        self,
        canvas: Canvas,
        rng: np.random.Generator,
        settings: PhantomSettings,
        outline: dict[str, Float],
        modality: str,
    ) -> None:
        self.c, self.rng, self.settings, self.modality = canvas, rng, settings, modality
        self.outline = outline
        # distance fields that later organs are clipped to, filled in by torso()
        self.rho = self.cavity = self.wall = self.room = canvas.drift
        self.pylorus = np.zeros(3)  # where the stomach ends and the duodenum begins
        self.missing = sorted(
            name for name, p in settings.missing.items() if rng.random() < p and name in ORGANS
        )
        self.lesion_count = 0
        self.kidney_at = {
            side: np.array([side * 71, 0, height]) + settings.place * rng.normal(0, (5, 5, 9))
            for side, height in ((1, -16.0), (-1, -3.0))
        }

    def u(self, low: float, high: float) -> float:
        """A uniform number."""
        return float(self.rng.uniform(low, high))

    def size(self) -> float:
        """One organ's random size factor."""
        return self.u(*self.settings.organ_size)

    def move(self, points: Iterable[Point], common: float = 4.0, each: float = 2.5) -> np.ndarray:
        """Shift points together and one by one (standard deviations in mm)."""
        p, place = np.asarray(list(points), np.float64), self.settings.place
        return p + self.rng.normal(0, common, 3) * place + self.rng.normal(0, each, p.shape)

    def has(self, organ: str) -> bool:
        """Whether the patient has this organ."""
        return organ not in self.missing

    def gut(
        self,
        points: np.ndarray,
        radii: Sequence[float],
        label: int,
        contents: dict[str, float],
        wall: tuple[float, float] = (1.8, 3.5),
        bump: float = 1.5,
    ) -> None:
        """A hollow organ: wall, content chosen by weight, sometimes gas above the fluid level."""
        c = self.c
        box, d = c.tube(points, radii)
        d = np.maximum(c.bump(box, d, bump, 22), self.room[box])
        c.paint(box, d, "gut wall", label)
        names = list(contents)
        weights = np.asarray([contents[n] for n in names])
        content = names[int(self.rng.choice(len(names), p=weights / weights.sum()))]
        if content == "collapsed":
            return
        inner = d + np.float32(self.u(*wall))
        gas = self.u(-0.9, 0.9) if content == "gas" else self.u(-0.2, 3.0)
        base = content if content != "gas" else "gut fluid"
        c.paint(box, inner, base, None, shift=self.u(-8, 8) * c.unit)
        level = float(np.mean(points[:, 1])) + gas * float(np.mean(radii))
        if content == "gas" or gas < 0.8:
            c.paint(box, np.maximum(inner, np.float32(level) - c.xyz[1][box]), "gas", None)

    def lesions(self, organ: str) -> None:
        """Sometimes a few round cysts, metastases or bright spots, labelled as the organ."""
        if self.rng.random() > self.settings.lesions * 0.5:
            return
        c = self.c
        where = np.argwhere(c.label == ORGANS[organ])
        if not len(where):
            return
        for _ in range(int(self.rng.integers(1, 5))):
            i, j, k = where[int(self.rng.integers(len(where)))]
            centre = [float(a[i, j, k]) for a in c.xyz]
            radius = float(np.exp(self.u(np.log(3), np.log(15))))
            box, d = c.ellipsoid(centre, (radius, radius * self.u(0.8, 1.2), radius))
            d = c.bump(box, d, 1, 10)
            inside = np.where(c.label[box] == ORGANS[organ], d, np.float32(9))
            tissue = str(self.rng.choice(["bile", organ if organ in TISSUES else "renal cortex"]))
            shift = 0.0 if tissue == "bile" else self.u(-30, 25) * c.unit
            c.paint(box, inside, tissue, None, shift, soft=self.u(1, 5))
            self.lesion_count += 1
