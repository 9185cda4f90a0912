"""The grid that is painted, and the implicit shapes that are painted on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import make_interp_spline
from scipy.ndimage import gaussian_filter

from compact.phantom.fields import Box, Float, Point, smooth_noise
from compact.phantom.settings import PhantomSettings
from compact.phantom.tissues import TEXTURE


class Canvas:
    """The grid being painted: patient-frame coordinates, grey values and labels (X, Y, Z)."""

    def __init__(
        self,
        rng: np.random.Generator,
        axes: Sequence[Float],
        spacing: Sequence[float],
        roll: float,
        settings: PhantomSettings,
        values: dict[str, float],
        unit: float,
        modality: str,
    ) -> None:
        self.rng, self.axes, self.values, self.unit = rng, axes, values, unit
        self.settings, self.modality = settings, modality
        self.shape = tuple(len(a) for a in axes)
        self.spacing = spacing
        self.soft = 0.5 * (spacing[0] + spacing[1])
        extent = [float(np.ptp(a)) + 1 for a in axes]
        x, y = axes[0][:, None, None], axes[1][None, :, None]
        c, s = np.cos(roll), np.sin(roll)
        still = (c * x - s * y, s * x + c * y, axes[2][None, None, :])
        cells = [e / 70 for e in extent]
        self.xyz: list[Float] = []
        self.pad: list[float] = []
        for base, straight, shape in zip(
            still, (x, y, axes[2][None, None, :]), [self.shape] * 3, strict=True
        ):
            moved = settings.warp * smooth_noise(rng, shape, cells)
            moved += base.astype(np.float32)
            self.xyz.append(moved)
            self.pad.append(float(np.abs(moved - straight).max()))
        self.image = np.full(self.shape, values["gas"], np.float32)
        self.label = np.zeros(self.shape, np.uint8)
        grain = rng.standard_normal(self.shape, dtype=np.float32)
        sigma = [2.0 / v for v in spacing]
        self.grain = gaussian_filter(grain, sigma, truncate=2)
        self.grain /= self.grain.std() + 1e-6
        self.drift = smooth_noise(rng, self.shape, [e / 22 for e in extent])

    @property
    def all(self) -> Box:
        """The box that covers the whole grid."""
        return (slice(None), slice(None), slice(None))

    def box(self, low: Point, high: Point) -> Box:
        """Index box that holds every voxel whose patient-frame position lies in low..high."""
        cuts = []
        for axis, lo, hi, pad in zip(self.axes, low, high, self.pad, strict=True):
            a, b = np.searchsorted(axis, [lo - pad - 3, hi + pad + 3])
            cuts.append(slice(int(a), int(b)))
        return (cuts[0], cuts[1], cuts[2])

    def at(self, box: Box) -> tuple[Float, Float, Float]:
        """Patient-frame coordinates inside a box."""
        return (self.xyz[0][box], self.xyz[1][box], self.xyz[2][box])

    def ellipsoid(
        self, centre: Point, radii: Point, turn: float = 0.0, box: Box | None = None
    ) -> tuple[Box, Float]:
        """Distance to an ellipsoid turned by ``turn`` degrees about z, and the box it is on."""
        if box is None:
            reach = max(radii[0], radii[1]) if turn else 0.0
            r = (max(radii[0], reach), max(radii[1], reach), radii[2])
            box = self.box(
                [c - e for c, e in zip(centre, r, strict=True)],
                [c + e for c, e in zip(centre, r, strict=True)],
            )
        x, y, z = (p - np.float32(c) for p, c in zip(self.at(box), centre, strict=True))
        if turn:
            c, s = np.float32(np.cos(np.deg2rad(turn))), np.float32(np.sin(np.deg2rad(turn)))
            x, y = c * x + s * y, c * y - s * x
        a, b, e = (np.float32(1 / r) for r in radii)
        x, y, z = x * a, y * b, z * e
        k0 = np.sqrt(x * x + y * y + z * z)
        k1 = np.sqrt((x * a) ** 2 + (y * b) ** 2 + (z * e) ** 2) + np.float32(1e-6)
        # at the very centre k0/k1 is 0/0-like; the floor keeps it safely inside
        return box, np.where(k0 < 0.05, -min(radii), k0 * (k0 - 1) / k1).astype(np.float32)

    def tube(
        self,
        points: Sequence[Point] | NDArray[Any],
        radii: Point | float,
        box: Box | None = None,
        steps: int = 3,
        flat: float = 1.0,
    ) -> tuple[Box, Float]:
        """Distance to a tube along a spline; ``flat`` > 1 squeezes it front to back."""
        pts = np.asarray(points, np.float64)
        rad = np.broadcast_to(np.asarray(radii, np.float64), (len(pts),))
        t = np.arange(len(pts))
        fine = np.linspace(0, len(pts) - 1, steps * (len(pts) - 1) + 1)
        pts = make_interp_spline(t, pts, k=min(3, len(pts) - 1))(fine)
        rad = np.interp(fine, t, rad)
        if box is None:
            r = rad.max()
            box = self.box(pts.min(0) - r, pts.max(0) + r)
        shape = [len(range(*s.indices(n))) for s, n in zip(box, self.shape, strict=True)]
        starts = [s.indices(n)[0] for s, n in zip(box, self.shape, strict=True)]
        out = np.full(shape, 60, np.float32)
        if not out.size:
            return box, out
        for p, q, rp, rq in zip(pts[:-1], pts[1:], rad[:-1], rad[1:], strict=True):
            r = max(rp, rq) + 4
            part = self.box(np.minimum(p, q) - r, np.maximum(p, q) + r)
            cut = tuple(
                slice(max(s.start, o), min(s.stop, o + n))
                for s, o, n in zip(part, starts, shape, strict=True)
            )
            if any(c.stop <= c.start for c in cut):
                continue
            local = tuple(slice(c.start - o, c.stop - o) for c, o in zip(cut, starts, strict=True))
            x, y, z = (
                v - np.float32(c) for v, c in zip(self.at((cut[0], cut[1], cut[2])), p, strict=True)
            )
            d = (q - p).astype(np.float32)
            h = np.clip((x * d[0] + y * d[1] + z * d[2]) / np.float32(d @ d + 1e-6), 0, 1)
            x, y, z = x - h * d[0], (y - h * d[1]) * np.float32(flat), z - h * d[2]
            dist = np.sqrt(x * x + y * y + z * z) - (np.float32(rp) + h * np.float32(rq - rp))
            out[local] = np.minimum(out[local], dist)
        return box, out

    def bump(self, box: Box, d: Float, amount: float, size: float) -> Float:
        """Roughen a distance field by smooth noise: ``amount`` mm high, ``size`` mm wide."""
        if not d.size:
            return d
        cells = [max(n * v / size, 1) for n, v in zip(d.shape, self.spacing, strict=True)]
        return d + np.float32(amount * self.settings.bumps) * smooth_noise(self.rng, d.shape, cells)

    def paint(
        self,
        box: Box,
        d: Float,
        tissue: str,
        label: int | None = 0,
        shift: float = 0.0,
        soft: float | None = None,
    ) -> None:
        """Lay a tissue over ``d`` < 0 with a soft rim; ``label`` None keeps the labels below."""
        if not d.size:
            return
        grain, drift = TEXTURE.get(tissue, (2.0, 2.0))
        if self.modality == "MR":  # no texture where there is no signal
            share = self.values[tissue] / 250
            grain, drift = min(grain, 60) * share, drift * share
        value = self.grain[box] * np.float32(grain)
        value += self.drift[box] * np.float32(drift)
        value += np.float32(self.values[tissue] + shift)
        alpha = np.clip(0.5 - d / np.float32(soft or self.soft), 0, 1)
        image = self.image[box]
        image += alpha * (value - image)
        if label is not None:
            self.label[box][d < 0] = label
