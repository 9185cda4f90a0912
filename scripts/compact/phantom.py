"""Procedural abdomen phantoms: labelled CT-like and MR-like volumes drawn from a seed.

The anatomy is written down once, in millimetres, in the frame of a standard patient: x towards the
patient's right, y anterior, z superior, origin in the first lumbar vertebra. Every voxel of the
output grid is mapped into that frame through a random affine and a smooth warp, and implicit
shapes (ellipsoids, tubes, polar outlines) are painted there in order, back to front. Nothing is
resampled, so the label map agrees with the image by construction.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import make_interp_spline
from scipy.ndimage import gaussian_filter, gaussian_filter1d

from xaiclip.data.volumes import write_volume
from xaiclip.organs import FLARE22

Float = NDArray[np.float32]
Box = tuple[slice, slice, slice]
Point = Sequence[float] | NDArray[Any]

ORGANS: dict[str, int] = {organ: number for number, organ in FLARE22.items()}
MODALITIES = ("CT", "MR")
PHASES = ("non-contrast", "arterial", "portal venous", "late")
MR_STYLES = ("T1", "T1 fat-suppressed", "T2", "T2 fat-suppressed", "random")

# tissue: HU range in each phase of PHASES, then relative MR signal on T1 and on T2
TISSUES: dict[str, tuple[tuple[float, float], ...]] = {
    "gas": ((-1000, -930),) * 4 + ((0, 0.02), (0, 0.02)),
    "lung": ((-900, -780),) * 4 + ((0, 0.05), (0, 0.05)),
    "fat": ((-118, -92),) * 4 + ((0.7, 1.0), (0.45, 0.9)),
    "visceral fat": ((-112, -82),) * 4 + ((0.6, 0.95), (0.4, 0.8)),
    "skin": ((-20, 50),) * 4 + ((0.2, 0.7), (0.1, 0.4)),
    "muscle": ((42, 64), (48, 70), (52, 76), (52, 76), (0.04, 0.32), (0.05, 0.25)),
    "marrow": ((110, 240),) * 4 + ((0.1, 0.6), (0.1, 0.5)),
    "cortical bone": ((350, 800),) * 4 + ((0, 0.06), (0, 0.06)),
    "disc": ((60, 110),) * 4 + ((0.08, 0.3), (0.1, 0.7)),
    "cord": ((10, 45),) * 4 + ((0.05, 0.25), (0.5, 1.0)),
    "arterial blood": ((34, 50), (210, 380), (120, 180), (90, 125), (0.02, 0.2), (0.02, 0.15)),
    "venous blood": ((34, 50), (45, 120), (105, 165), (90, 125), (0.02, 0.2), (0.02, 0.2)),
    "portal blood": ((30, 48), (60, 120), (135, 190), (95, 125), (0.02, 0.25), (0.02, 0.2)),
    "liver": ((30, 68), (52, 88), (80, 128), (75, 112), (0.13, 0.5), (0.1, 0.35)),
    "spleen": ((30, 55), (85, 145), (95, 140), (82, 112), (0.04, 0.3), (0.2, 0.7)),
    "renal cortex": ((14, 40), (130, 210), (140, 210), (115, 165), (0.04, 0.35), (0.3, 0.8)),
    "renal medulla": ((12, 38), (45, 90), (110, 180), (115, 165), (0.03, 0.28), (0.35, 0.95)),
    "urine": ((-2, 14), (0, 15), (0, 40), (250, 900), (0.02, 0.12), (0.7, 1.0)),
    "pancreas": ((-8, 46), (75, 125), (70, 112), (55, 90), (0.12, 0.55), (0.15, 0.5)),
    "adrenal": ((5, 36), (45, 90), (50, 85), (35, 65), (0.08, 0.4), (0.12, 0.4)),
    "bile": ((-4, 22),) * 4 + ((0.02, 0.35), (0.6, 1.0)),
    "gut wall": ((24, 46), (40, 95), (50, 95), (45, 80), (0.08, 0.35), (0.12, 0.4)),
    "gut fluid": ((-2, 40),) * 4 + ((0.02, 0.2), (0.4, 1.0)),
    "food": ((10, 65),) * 4 + ((0.05, 0.5), (0.1, 0.7)),
    "oral contrast": ((120, 420),) * 4 + ((0.3, 0.9), (0.02, 0.3)),
    "faeces": ((-140, 60),) * 4 + ((0.05, 0.6), (0.05, 0.5)),
    "heart": ((34, 52), (120, 260), (100, 150), (85, 120), (0.05, 0.3), (0.05, 0.3)),
    "calcium": ((250, 1100),) * 4 + ((0, 0.03), (0, 0.03)),
    "table": ((-500, 60),) * 4 + ((0, 0), (0, 0)),
}
# spread inside a tissue: fine grain, slow drift (HU; in MR, 1/250 of the tissue's own signal)
TEXTURE: dict[str, tuple[float, float]] = {
    "liver": (3, 4),
    "spleen": (2, 3),
    "pancreas": (13, 6),
    "visceral fat": (6, 8),
    "fat": (4, 4),
    "muscle": (11, 7),
    "marrow": (35, 30),
    "cortical bone": (90, 60),
    "food": (25, 12),
    "faeces": (110, 60),
    "gut fluid": (3, 6),
    "gut wall": (6, 5),
    "lung": (40, 25),
    "renal cortex": (3, 3),
    "adrenal": (5, 4),
    "table": (20, 10),
}


@dataclass(frozen=True)
class PhantomSettings:
    """What may vary between phantoms; ranges are (low, high), probabilities in 0..1, lengths in mm.

    ``missing`` maps organ names (keys of ``ORGANS``) to the probability that the organ is absent.
    ``phases`` and ``mr_styles`` weigh the entries of ``PHASES`` and ``MR_STYLES``.
    ``orientations`` are the axis codes, such as ``"RAS"``, that a volume may be stored in.
    """

    spacing: tuple[float, float] = (1.2, 3.0)
    thickness: tuple[float, float] = (2.5, 6.0)
    slices: tuple[int, int] = (24, 40)
    max_inplane: int = 320
    margin: tuple[float, float] = (4.0, 45.0)
    truncated: float = 0.12
    habitus: tuple[float, float] = (0.85, 1.15)
    organ_size: tuple[float, float] = (0.86, 1.14)
    fat: tuple[float, float] = (4.0, 42.0)
    warp: float = 5.0
    bumps: float = 1.0
    noise: tuple[float, float] = (5.0, 26.0)
    mr_noise: tuple[float, float] = (0.006, 0.05)
    blur: tuple[float, float] = (0.4, 1.1)
    bias: tuple[float, float] = (0.05, 0.4)
    ghosting: float = 0.25
    streaks: float = 0.25
    lesions: float = 0.35
    arms: float = 0.2
    phases: tuple[float, float, float, float] = (0.4, 0.18, 0.3, 0.12)
    mr_styles: tuple[float, float, float, float, float] = (0.4, 0.15, 0.15, 0.1, 0.2)
    orientations: tuple[str, ...] = ("RAS", "LPS", "LAS", "RPI", "LPI", "RPS")
    missing: dict[str, float] = field(
        default_factory=lambda: {
            "gallbladder": 0.12,
            "spleen": 0.03,
            "right kidney": 0.03,
            "left kidney": 0.03,
            "pancreas": 0.04,
            "right adrenal gland": 0.05,
            "left adrenal gland": 0.05,
            "duodenum": 0.04,
            "stomach": 0.02,
        }
    )


DEFAULTS = PhantomSettings()


@dataclass(frozen=True)
class PhantomVolume:
    """One phantom as it would be stored on disk.

    ``image`` is int16 (X, Y, Z): HU of -1024..3071 for CT, arbitrary units >= 0 for MR.
    ``label`` is uint8 on the same grid, ids of ``ORGANS`` and 0 for background.
    ``affine`` maps voxel indices to RAS millimetres; ``description`` can be written as JSON.
    """

    image: NDArray[np.int16]
    label: NDArray[np.uint8]
    affine: NDArray[np.float64]
    modality: str
    description: dict[str, Any]


def _basis(size: int, cells: int) -> Float:
    """(size, cells) weights that spread ``cells`` control values smoothly over ``size`` samples."""
    t = np.linspace(0.5, cells - 1.5, size)[:, None] - np.arange(cells)[None]
    w = np.exp(-0.5 * (t / 0.55) ** 2)
    return (w / np.sqrt((w**2).sum(1, keepdims=True))).astype(np.float32)


def _smooth_noise(rng: np.random.Generator, shape: Sequence[int], cells: Sequence[float]) -> Float:
    """Unit-variance smooth noise of ``shape``, with about ``cells`` independent bumps per axis."""
    counts = [max(3, round(c) + 2) for c in cells]
    out = rng.standard_normal(counts, dtype=np.float32)
    for axis, (size, count) in enumerate(zip(shape, counts, strict=True)):
        out = np.moveaxis(np.tensordot(_basis(size, count), out, axes=(1, axis)), 0, axis)
    return np.ascontiguousarray(out)


def _smooth_union(a: Float, b: Float, k: float) -> Float:
    """Union of two distance fields with a fillet of about ``k`` mm where they meet."""
    h = np.clip(0.5 + 0.5 * (b - a) / k, 0, 1)
    return b + (a - b) * h - k * h * (1 - h)


class _Canvas:
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
            moved = settings.warp * _smooth_noise(rng, shape, cells)
            moved += base.astype(np.float32)
            self.xyz.append(moved)
            self.pad.append(float(np.abs(moved - straight).max()))
        self.image = np.full(self.shape, values["gas"], np.float32)
        self.label = np.zeros(self.shape, np.uint8)
        grain = rng.standard_normal(self.shape, dtype=np.float32)
        sigma = [2.0 / v for v in spacing]
        self.grain = gaussian_filter(grain, sigma, truncate=2)
        self.grain /= self.grain.std() + 1e-6
        self.drift = _smooth_noise(rng, self.shape, [e / 22 for e in extent])

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
        return d + np.float32(amount * self.settings.bumps) * _smooth_noise(
            self.rng, d.shape, cells
        )

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


def _intensities(
    rng: np.random.Generator, modality: str, settings: PhantomSettings
) -> tuple[dict[str, float], float, str]:
    """Draw one grey value per tissue; also the texture unit and the phase or MR style."""

    def pick(ranges: Sequence[float]) -> float:
        return float(rng.uniform(ranges[0], ranges[1]))

    phase = int(rng.choice(4, p=np.asarray(settings.phases) / np.sum(settings.phases)))
    if modality == "CT":
        values = {name: pick(row[phase]) for name, row in TISSUES.items()}
        if phase == 0 and rng.random() < 0.2:
            values["liver"] -= rng.uniform(10, 35)  # steatosis
        values["renal medulla"] = min(values["renal medulla"], values["renal cortex"])
        return values, 1.0, PHASES[phase]
    weights = np.asarray(settings.mr_styles)
    style = MR_STYLES[int(rng.choice(len(MR_STYLES), p=weights / weights.sum()))]
    column = 5 if style.startswith("T2") else 4
    values = {name: pick(row[column]) for name, row in TISSUES.items()}
    dark = {"gas", "lung", "cortical bone", "calcium", "table"}
    if style == "random":
        values = {n: v if n in dark else pick((0.03, 1.0)) for n, v in values.items()}
        values["visceral fat"] = values["fat"] * pick((0.85, 1.1))
        values["renal medulla"] = values["renal cortex"] * pick((0.7, 1.3))
    if "suppressed" in style:
        for name in ("fat", "visceral fat"):
            values[name] *= pick((0.08, 0.3))
        if column == 4:  # an enhanced scan: borrow the uptake of the CT phase
            for name, row in TISSUES.items():
                values[name] += max(0.0, float(np.mean(row[phase]) - np.mean(row[0]))) / 260
    scale = float(np.exp(rng.uniform(np.log(150), np.log(1500))))
    return {n: v * scale for n, v in values.items()}, scale / 400, style


class _Patient:
    """Paints one patient; methods run in the order of :meth:`paint`."""

    def __init__(
        self,
        canvas: _Canvas,
        rng: np.random.Generator,
        settings: PhantomSettings,
        outline: dict[str, Float],
        modality: str,
    ) -> None:
        self.c, self.rng, self.settings, self.modality = canvas, rng, settings, modality
        self.outline = outline
        # distance fields that later organs are clipped to, filled in by torso()
        self.rho = self.cavity = self.wall = self.room = canvas.drift
        self.missing = sorted(
            name for name, p in settings.missing.items() if rng.random() < p and name in ORGANS
        )
        self.lesion_count = 0
        self.kidney_at = {
            side: np.array([side * 71, 0, height]) + rng.normal(0, (5, 5, 9))
            for side, height in ((1, -16.0), (-1, -3.0))
        }

    # -- helpers -----------------------------------------------------------------------------

    def u(self, low: float, high: float) -> float:
        """A uniform number."""
        return float(self.rng.uniform(low, high))

    def size(self) -> float:
        """One organ's random size factor."""
        return self.u(*self.settings.organ_size)

    def move(self, points: Iterable[Point], common: float = 4.0, each: float = 2.5) -> np.ndarray:
        """Shift points together and one by one (standard deviations in mm)."""
        p = np.asarray(list(points), np.float64)
        return p + self.rng.normal(0, common, 3) + self.rng.normal(0, each, p.shape)

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

    # -- regions -----------------------------------------------------------------------------

    def torso(self) -> None:
        """Table, arms, skin, fat, muscle wall, cavity, diaphragm, lungs and heart."""
        c, u = self.c, self.u
        x, y, z = c.at(c.all)
        if self.modality == "CT" and self.rng.random() < 0.85:
            back = CENTRE_Y - float(self.outline["skin"][256]) - u(4, 20)
            curve = np.float32(u(0.0004, 0.0016))
            for depth in (0.0, u(18, 60)):
                d = np.abs(y - np.float32(back - depth) - curve * x * x) - np.float32(u(1, 2.5))
                c.paint(c.all, np.maximum(d, np.abs(x) - np.float32(u(180, 240))), "table")
        if self.rng.random() < self.settings.arms:
            wide = float(self.outline["skin"][0])
            for side in (1, -1):
                r = u(32, 48)
                place = (side * (wide + r + u(2, 10)), u(-30, 60), u(-40, 40))
                for tissue, q in (
                    ("fat", r),
                    ("muscle", r - u(4, 14)),
                    ("cortical bone", 11),
                    ("marrow", 7),
                ):
                    c.paint(*c.ellipsoid(place, (q, q, 400)), tissue)
        rho = np.hypot(x, y - np.float32(CENTRE_Y))
        self.rho = rho
        angle = np.arctan2(y - np.float32(CENTRE_Y), x)
        index = ((angle + np.float32(np.pi)) * np.float32(1023.99 / (2 * np.pi))).astype(np.int32)
        # table entry 0 is the left side (-x), 256 the back, 512 the right, 768 the front
        waist = 1 - np.float32(u(0.0, 0.09)) * ((z - np.float32(u(-10, 50))) / 100) ** 2
        muscle = rho - self.outline["muscle"][index] * waist
        thick = np.clip(1 - np.float32(u(0, 0.005)) * z, 0.45, 1.6)
        skin = muscle - (self.outline["skin"] - self.outline["muscle"])[index] * thick
        self.cavity = rho - self.outline["cavity"][index] * waist
        c.paint(c.all, skin, "skin")
        c.paint(c.all, skin + np.float32(u(1.6, 3.0)), "fat")
        wall = self.wall = c.bump(c.all, muscle, 1.5, 40)
        c.paint(c.all, wall, "muscle")
        # fat planes between the layers of the wall, most visible at the flanks
        mid = c.bump(c.all, 0.5 * (wall + self.cavity), 1.5, 30)
        planes = c.bump(c.all, np.abs(mid) + np.float32(u(-0.5, 3)), 1.5, 45)
        c.paint(c.all, planes, "fat", soft=c.soft * 2)
        c.paint(c.all, self.cavity, "visceral fat")
        self.ribs(0.5 * (wall + self.cavity), angle)

        # the diaphragm: everything in the chest that is not under one of its domes is lung
        top = u(-12, 12)
        dome = None
        for centre, radii in (
            ((62, 48, -10), (86, 104, 104 + top + u(-6, 6))),
            ((-62, 48, -10), (86, 104, 96 + top + u(-8, 8))),
            ((0, 70, -10), (90, 90, 94 + top)),
        ):
            _, d = c.ellipsoid(centre, radii, box=c.all)
            dome = d if dome is None else _smooth_union(dome, d, 14)
        assert dome is not None
        dome = np.where(z < 0, np.float32(-30), c.bump(c.all, dome, 2.0, 50))
        self.room = np.maximum(self.cavity + np.float32(u(0.5, 3)), dome + 2)
        column = np.hypot(x * np.float32(0.9), y - 14) - np.float32(u(26, 36))
        lung = np.maximum(np.maximum(self.cavity + 1, -dome), -column)
        c.paint(c.all, np.maximum(np.maximum(self.cavity, -dome), -column) - 1, "muscle")
        c.paint(c.all, lung, "lung")
        c.paint(*c.ellipsoid((u(-35, -10), u(70, 90), u(112, 128)), (58, 45, 38)), "visceral fat")
        c.paint(*c.ellipsoid((u(-35, -10), u(70, 90), u(116, 130)), (50, 38, 34)), "heart")

    def ribs(self, mid: Float, angle: Float) -> None:
        """Every rib at once: periodic along z, dropping from the spine to the flank."""
        c, u = self.c, self.u
        z = c.xyz[2]
        # 0 at the spine, 1 at the flank, 2 in front
        around = np.abs(np.abs(angle + np.float32(np.pi / 2)) / np.float32(np.pi / 2))
        around = np.where(around > 2, 4 - around, around)
        pitch = np.float32(u(24, 30))
        drop = np.float32(u(75, 125))
        # shear differs with x so that the two sides do not mirror each other
        height = z + drop * around - np.float32(u(-6, 6)) * np.sign(c.xyz[0])
        phase = np.float32(u(0, 1))
        number = np.floor(height / pitch + phase)
        across = (height / pitch + phase - number - np.float32(0.5)) * pitch * np.float32(0.8)
        d = np.hypot(across * np.float32(u(0.8, 1.2)), mid) - np.float32(u(2.6, 4.2))
        lowest = np.float32(round(u(0.5, 2.5)))
        tip = np.float32(u(1.25, 1.75)) - np.float32(0.3) * (number < lowest + 1)
        d = np.maximum(d, np.maximum((around - tip) * 60, (lowest - number) * 20))
        c.paint(c.all, d, "cortical bone")
        c.paint(c.all, d + np.float32(u(1.0, 2.0)), "marrow")

    def spine(self) -> None:
        """Vertebrae, discs, canal and the muscles along them."""
        c, u = self.c, self.u
        low, high = float(c.axes[2][0]), float(c.axes[2][-1])
        for side in (1, -1):
            r = u(0.85, 1.2)
            box, d = c.ellipsoid((side * 34, -48, 10), (31 * r, 23 * r, 500), side * 8)
            d = np.maximum(d, self.wall[box])
            c.paint(box, d, "muscle")
            # fatty strands between the bundles, more in some patients than in others
            strands = c.bump(box, np.full_like(d, u(1.6, 3.0)), 1.0, 11)
            c.paint(box, np.maximum(strands, d), "fat", soft=u(1, 3))
            psoas = [(side * 17, 4, 30), (side * 26, 2, -10), (side * 40, 5, -60)]
            psoas += [(side * 50, 8, -130)]
            box, d = c.tube(self.move(psoas, 2), [3, 11 * r, 19 * r, 24 * r])
            c.paint(box, c.bump(box, d, 1.5, 25), "muscle")
            c.paint(*c.ellipsoid((side * 64, -34, -70), (20 * r, 9 * r, 85), side * 15), "muscle")
            crus = [(side * 8 - 8, 30, 70), (side * 14 - 5, 24, 35), (side * 18 - 3, 14, -5)]
            c.paint(*c.tube(self.move(crus, 1), [5, 4, 3], flat=0.6), "muscle")
        box = c.box((-50, -80, low), (50, 32, high))
        x, y, z = c.at(box)
        pitch, phase = np.float32(u(31, 38)), np.float32(u(0, 1))
        level = (z / pitch + phase) % 1 - np.float32(0.5)  # -0.5..0.5, disc at the ends
        half, deep = u(21, 29), u(15, 21)
        waist = 1 - np.float32(0.35) * np.clip(0.25 - level * level, 0, 1)
        body = np.hypot(x / half, (y + 1) / deep)
        body = (body - waist) * np.float32(deep)
        body = c.bump(box, np.where(y < -1, np.maximum(body, -y - 15), body), 0.7, 12)
        ring = np.hypot(x, (y + 24) * np.float32(1.1)) - np.float32(u(13, 16))
        spine = np.maximum(np.abs(x + level * 4) - np.float32(u(2.5, 4.5)), np.abs(y + 46) - 20)
        spine = np.maximum(spine, (np.abs(level) - np.float32(0.36)) * pitch)
        wing = np.hypot((y + 22 + np.abs(x) * np.float32(0.2)) / 5, (level - 0.05) * pitch / 7) - 1
        wing = np.maximum(wing * 5, np.abs(x) - np.float32(u(30, 42)))
        facet = np.hypot((np.abs(x) - 16) / 8, (y + 31) / 8) - 1
        arch = np.minimum(np.minimum(ring, spine), np.minimum(wing, facet * 8))
        arch = c.bump(box, arch, 0.9, 9)
        c.paint(box, arch, "cortical bone")
        c.paint(box, arch + np.float32(2.5), "marrow")
        c.paint(box, body, "cortical bone")
        c.paint(box, body + np.float32(u(1.2, 2.6)), "marrow")
        disc = np.maximum(body, np.float32(0.5 * pitch - 4) - np.abs(level) * pitch)
        c.paint(box, disc - np.float32(0.5), "disc")
        canal = np.hypot(x, (y + 24) * np.float32(1.1)) - np.float32(u(7, 9.5))
        c.paint(box, canal, "cord")

    def bowel(self) -> None:
        """Small bowel, colon and mesenteric vessels."""
        c, u, rng = self.c, self.u, self.rng
        loops = int(rng.integers(18, 48))
        small = {"collapsed": 2.0, "gut fluid": 3.0, "food": 1.0, "gas": 0.5}
        if rng.random() < 0.2:
            small["oral contrast"] = 4.0
        for _ in range(loops):
            start = np.array([u(-105, 75), u(30, 118), u(-115, 8)])
            step = rng.normal(0, 1, 3) * (18, 12, 9)
            turn = rng.normal(0, 1, 3) * (14, 12, 8)
            path = np.array(
                [start, start + step, start + 1.6 * step + turn, start + step + 2 * turn]
            )
            self.gut(path, [u(8, 14)] * 4, 0, small, (1.5, 3))
        r = u(0.7, 1.35)
        colon = [(102, 22, -110), (106, 20, -70), (100, 35, -38), (82, 70, -30), (48, 104, -34)]
        colon += [(0, 116, -38), (-48, 108, -24), (-84, 80, 0), (-104, 48, 26), (-112, 18, 6)]
        colon += [(-114, 6, -40), (-112, 10, -110)]
        path = self.move(colon, 7, 6)
        full = {"faeces": 3.0, "gas": 2.0, "gut fluid": 0.7, "collapsed": 0.6}
        for i in range(0, len(path) - 2, 2):
            radii = [r * u(13, 23) for _ in range(3)]
            self.gut(path[i : i + 3], radii, 0, full, (1.5, 3), bump=3)
        for _ in range(int(rng.integers(25, 80))):
            start = np.array([u(-80, 55), u(35, 95), u(-100, 20)])
            path = start + np.cumsum(rng.normal(0, 9, (3, 3)), 0)
            c.paint(*c.tube(path, u(1.0, 2.6)), "portal blood", 0)

    def liver(self) -> None:
        """Both lobes and the caudate, hollowed below, with hepatic and portal veins."""
        c, u = self.c, self.u
        f = self.size()
        ox, oy, oz = self.rng.normal(0, (4, 5, 7))
        box = c.box((-115, -60, -105), (150, 150, 115))
        _, d = c.ellipsoid((82 + ox, 42 + oy, 42 + oz), (72 * f, 100 * f, 74 * f), u(-6, 6), box)
        reach = u(0.7, 1.35)  # how low the right lobe hangs
        _, slab = c.ellipsoid(
            (118 + ox, 42 + oy, 0 + oz), (30 * f, u(48, 68), 68 * reach), u(-10, 5), box
        )
        d = _smooth_union(d, slab, 20)
        span = u(0.65, 1.25)  # how far the left lobe crosses the midline
        _, left = c.ellipsoid(
            (12 + ox, 92 + oy, 52 + oz), (80 * span, 34 * f, 44 * f), u(-14, 8), box
        )
        d = _smooth_union(d, left, 24)
        _, caudate = c.ellipsoid((24, 42, 48 + oz), (20, 16, 26), 0, box)
        # the visceral surface is hollowed by the hilum, the kidney and the stomach
        for centre, radii in (
            ((8, 30, 2 + oz), (44, 58, 46)),
            ((60, 30, -45 + oz), (44, 85, 52)),
            (self.kidney_at[1] + (-4, -6, -4), (36, 38, 62)),
            ((36, -25, 0), (44, 38, 75)),
            ((-62, 28, 40), (60, 62, 80)),
            ((0, 0, 40), (38, 30, 130)),
        ):
            _, hole = c.ellipsoid(centre, radii, u(-8, 8), box)
            d = np.maximum(d, -hole)
        d = np.minimum(d, caudate)
        d = c.bump(box, c.bump(box, d, 2.6, 45), 0.8, 16)
        if self.rng.random() < 0.7:  # the fissure of the round ligament
            x, y, z = c.at(box)
            slit = x - np.float32(u(5, 28)) - np.float32(u(-0.3, 0.5)) * (y - 90)
            slit = np.abs(c.bump(box, slit, 3, 35))
            slit = slit - np.float32(u(1, 3.5)) + np.maximum(z - np.float32(u(25, 60)), 0) * 0.2
            slit = np.maximum(slit, np.float32(u(60, 100)) - y)
            d = np.maximum(d, -slit)
        d = np.maximum(d, self.room[box])
        c.paint(box, d, "liver", ORGANS["liver"])
        veins = [
            [(22, 46, 78), (55, 30, 68), (100, 8, 52)],
            [(22, 46, 78), (50, 65, 66), (80, 95, 48)],
            [(20, 48, 78), (14, 72, 66), (-10, 98, 56)],
        ]
        portal = [
            [(20, 52, 12), (42, 52, 26), (72, 38, 34), (104, 14, 32)],
            [(42, 52, 26), (80, 62, 26), (106, 78, 16)],
            [(36, 55, 26), (22, 76, 36), (0, 96, 44)],
        ]
        for paths, tissue in ((veins, "venous blood"), (portal, "portal blood")):
            for path in paths:
                pts = self.move(path, 4, 4)
                part, v = c.tube(pts, np.linspace(u(4, 6.5), 2, len(pts)))
                v = np.where(c.label[part] == ORGANS["liver"], v, np.float32(9))
                c.paint(part, v, tissue, None)
        self.lesions("liver")

    def stomach(self) -> None:
        """A bent sack from the left dome to the pylorus."""
        f = self.size() * self.u(0.5, 1.15)
        path = [
            (-52, 14, 74),
            (-62, 42, 56),
            (-56, 74, 30),
            (-40, 96, 8),
            (-4, 98, -4),
            (32, 78, 2),
        ]
        radii = [26 * f, 33 * f, 29 * f, 24 * f, 18 * f, 10]
        pts = self.move(path, 6, 5)
        self.pylorus = pts[-1]
        if self.has("stomach"):
            kinds = {"gut fluid": 2.5, "food": 3.0, "gas": 0.8, "collapsed": 0.5}
            kinds["oral contrast"] = 0.5
            self.gut(pts, radii, ORGANS["stomach"], kinds, (3, 6), bump=2.5)

    def spleen(self) -> None:
        """A crescent against the left posterior wall."""
        if not self.has("spleen"):
            return
        c, u = self.c, self.u
        f = self.size() * u(0.85, 1.25)
        at = np.array([-102, -6, 28]) + self.rng.normal(0, (4, 7, 9))
        box, d = c.ellipsoid(at, (42 * f, 62 * f, 56 * f), u(-35, -8))
        hollow = at + (u(38, 50), u(18, 28), 0)
        _, hole = c.ellipsoid(hollow, (38, 56, 60), u(-35, -10), box)
        d = _smooth_union(-d, hole, 6)
        d = np.maximum(c.bump(box, -d, 2.2, 28), self.room[box])
        c.paint(box, d, "spleen", ORGANS["spleen"])
        self.lesions("spleen")

    def kidneys(self) -> None:
        """Cortex, medulla, sinus fat, pelvis, ureter and renal vessels."""
        c, u = self.c, self.u
        for side, organ in ((1, "right kidney"), (-1, "left kidney")):
            if not self.has(organ):
                continue
            label, f = ORGANS[organ], self.size()
            at = self.kidney_at[side]
            # a kidney is a short fat tube, upper pole medial and posterior
            long = 30 * f * u(0.9, 1.15)
            axis = np.array([-side * u(5, 13), -u(2, 9), long])
            r = 25.5 * f
            box, d = c.tube(
                [at - axis, at, at + axis], [r * 0.92, r * 1.08, r * 0.9], flat=u(0.85, 1)
            )
            d = c.bump(box, d, 1.2, 20)
            gap = np.float32(u(0, 9))
            c.paint(box, np.maximum(d - gap, self.cavity[box]), "visceral fat")
            d = np.maximum(d, self.cavity[box])
            inward = np.array([-side * 0.8, 0.6, 0.0])
            hilum = at + inward * (r - 7)
            span = u(13, 22)
            _, sinus = c.ellipsoid(hilum, (u(16, 22), u(7, 12), span), -side * 36, box)
            sinus = c.bump(box, sinus, 2.5, 12)
            solid = np.maximum(d, -sinus)
            c.paint(box, d, "visceral fat")
            c.paint(box, solid, "renal cortex", label)
            pyramid = c.bump(box, solid + np.float32(u(6, 9)), 2.5, 11)
            c.paint(box, pyramid, "renal medulla", None)
            root = at + inward * (r * 0.45)
            out = at + inward * (r + 4) - (0, 0, 8)
            ureter = out + (-side * u(4, 12), -2, -60)
            collecting: tuple[tuple[list[Any], float], ...] = (
                ([root + (0, 0, 8), root, root - (0, 0, 8)], u(2.5, 5)),
                ([root, out], u(2, 6)),
                ([out, 0.5 * (out + ureter), ureter], u(1.5, 2.5)),
            )
            for pts, rad in collecting:
                part, v = c.tube(pts, rad)
                c.paint(part, v, "urine", None)
            for tissue, offset in (("venous blood", 5.0), ("arterial blood", 0.0)):
                path: list[Any] = [hilum + (0, 2, offset), (side * 40, 14 + offset, at[2] + offset)]
                path += [(side * 12, 32, at[2] + 4 + offset)]
                c.paint(*c.tube(path, u(2, 4)), tissue, None)
            if self.rng.random() < 0.12 and self.modality == "CT":
                c.paint(
                    *c.ellipsoid(root + self.rng.normal(0, 4, 3), (u(1.5, 4),) * 3), "calcium", None
                )
            self.lesions(organ)

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

    def midline(self) -> None:
        """Gallbladder, duodenum, pancreas, great vessels, adrenal glands and oesophagus."""
        c, u = self.c, self.u
        if self.has("gallbladder"):
            f = self.size() * u(0.65, 1.3)
            at = np.array([66, 76, 2]) + self.rng.normal(0, (7, 8, 8))
            box, d = c.ellipsoid(at, (15 * f, 25 * f, 20 * f), u(-45, 10))
            d = np.maximum(c.bump(box, d, 1.2, 22), self.room[box])
            c.paint(box, d, "gut wall", ORGANS["gallbladder"])
            c.paint(box, d + np.float32(u(0.5, 2)), "bile", None)
            if self.rng.random() < 0.1:
                c.paint(*c.ellipsoid(at - (0, 8, 4), (u(2, 6),) * 3), "calcium", None)
        shift = self.rng.normal(0, 4, 3)
        if self.has("duodenum"):
            path = [
                (48, 66, 2),
                (57, 52, -12),
                (55, 42, -38),
                (32, 35, -56),
                (0, 38, -58),
                (-28, 44, -40),
            ]
            pts = np.vstack([self.pylorus, self.move(path, 2, 3) + shift])
            kinds = {"collapsed": 2.0, "gut fluid": 2.0, "food": 1.2, "gas": 0.5}
            kinds["oral contrast"] = 0.3
            radii = [u(8, 14) for _ in pts]
            self.gut(pts, radii, ORGANS["duodenum"], kinds, (2, 3.5))
        path = [
            (40, 50, -26),
            (38, 60, -8),
            (18, 68, 4),
            (-10, 68, 12),
            (-42, 50, 18),
            (-78, 20, 26),
        ]
        pts = self.move(path, 3, 3) + shift + (0, 0, u(-8, 8))
        vein = pts[2:] + (0, -u(9, 13), 0)
        c.paint(*c.tube(np.vstack([vein, (-88, 12, 30)]), u(3, 5)), "portal blood")
        c.paint(*c.tube([vein[0], (10, 45, -20), (4, 52, -70)], u(4, 6)), "portal blood")
        c.paint(*c.tube([(-8, 36, 8), (-6, 44, -20), (-4, 48, -70)], u(2.5, 4)), "arterial blood")
        if self.has("pancreas"):
            f = self.size() * u(0.65, 1.2)
            box, d = c.tube(pts, np.array([13, 15, 10, 11, 11, 9]) * f, flat=u(1.15, 1.6))
            d = c.bump(box, c.bump(box, d, u(1, 2), 18), u(1, 2.4), 8)
            c.paint(box, d, "pancreas", ORGANS["pancreas"], soft=c.soft * u(1, 2.5))
            c.paint(*c.tube(vein, u(3, 5)), "portal blood")

        sway = self.rng.normal(0, 2.5, 4)
        r = u(8.5, 13)
        spots = [(-14, 28, -130), (-12, 29, -60), (-11, 29, 0), (-12, 22, 70), (-16, 18, 140)]
        aorta = np.asarray(spots, float) + np.array([sway[0], sway[1], 0])
        box, d = c.tube(aorta, [r * 0.85, r * 0.9, r, r * 1.1, r * 1.15])
        c.paint(box, d, "gut wall", ORGANS["aorta"])
        c.paint(box, d + 1, "arterial blood", None)
        if self.rng.random() < 0.4:
            _, patch = c.tube(aorta, r - 1, box=box)
            rim = np.abs(patch) - np.float32(1.3)
            speckle = _smooth_noise(
                self.rng, d.shape, [n * v / 9 for n, v in zip(d.shape, c.spacing, strict=True)]
            )
            c.paint(box, np.maximum(rim, np.float32(u(1.2, 2)) - speckle), "calcium", None)
        r = u(8, 15)
        cava = [
            (17, 26, -130),
            (18, 32, -60),
            (20, 39, 0),
            (22, 40, 50),
            (20, 46, 85),
            (16, 50, 120),
        ]
        pts = np.asarray(cava, float) + np.array([sway[2], sway[3], 0])
        box, d = c.tube(pts, r, flat=u(1.0, 1.7))
        c.paint(box, d, "venous blood", ORGANS["inferior vena cava"])

        for side, organ, place in (
            (1, "right adrenal gland", (33, 25, 42)),
            (-1, "left adrenal gland", (-38, 25, 38)),
        ):
            if not self.has(organ):
                continue
            top = np.asarray(place, float) + self.rng.normal(0, 3, 3)
            thick = u(2.4, 4)
            for dx, dy in ((4 * side, -18), (14 * side, -12)):
                foot = top + (dx, dy, -14)
                box, d = c.tube([top + (0, 3, 12), top, foot], [thick, thick * 1.2, thick * 0.8])
                c.paint(box, c.bump(box, d, 0.6, 8), "adrenal", ORGANS[organ])
        gullet = self.move([(-6, 34, 135), (-8, 36, 100), (-16, 40, 84), (-36, 38, 72)], 2, 2)
        box, d = c.tube(gullet, [u(7, 10)] * 4)
        c.paint(box, d, "gut wall", ORGANS["oesophagus"])
        if self.rng.random() < 0.5:
            c.paint(box, d + np.float32(u(4, 6)), "gas", None)

    def paint(self) -> None:
        """Paint everything, deepest layers first."""
        self.torso()
        self.bowel()
        self.liver()
        self.stomach()
        self.spleen()
        self.kidneys()
        self.midline()
        self.spine()


CENTRE_Y = 40.0  # of the polar outlines, mm in front of the vertebra


def _outlines(rng: np.random.Generator, settings: PhantomSettings) -> dict[str, Float]:
    """Radius (mm) against angle (1024 steps from -pi) of the cavity, muscle and skin outlines."""
    t = np.linspace(-np.pi, np.pi, 1024, endpoint=False)

    def wave(amount: float, order: int = 5) -> np.ndarray:
        k = np.arange(1, order)[:, None]
        a, b = rng.normal(0, 1, (2, order - 1, 1))
        return amount * ((a * np.cos(k * t) + b * np.sin(k * t)) / k).sum(0)

    deep = np.where(t > 0, rng.uniform(84, 108), rng.uniform(84, 92))
    n = rng.uniform(2.1, 2.8)
    wide = rng.uniform(126, 142)
    polar = (np.abs(np.cos(t) / wide) ** n + np.abs(np.sin(t) / deep) ** n) ** (-1 / n)
    wall, deep = rng.uniform(9, 17), np.where(t > 0, deep - 2, rng.uniform(98, 110) - 12)
    outer = (np.abs(np.cos(t) / wide) ** 2.3 + np.abs(np.sin(t) / deep) ** 2.3) ** (-1 / 2.3)
    back = np.exp(-0.5 * ((t + np.pi / 2) / 0.55) ** 2)
    front = np.exp(-0.5 * ((t - np.pi / 2) / 0.6) ** 2)
    cavity = polar + wave(1.5)
    muscle = np.maximum(np.maximum(outer, polar) + wall, cavity + 7) + wave(0.6)
    depth = rng.uniform(*settings.fat)
    fat = depth * (1 + rng.uniform(-0.3, 0.5) * front + rng.uniform(-0.4, 0.4) * back)
    skin = muscle + np.maximum(fat + wave(0.12 * fat.mean()), 2.5)
    # a shallow groove over the spine
    skin -= rng.uniform(0, 6) * np.exp(-0.5 * ((t + np.pi / 2) / 0.1) ** 2)
    tables = {"cavity": cavity, "muscle": muscle, "skin": skin}
    return {name: table.astype(np.float32) for name, table in tables.items()}


def _finish_ct(
    rng: np.random.Generator, image: Float, rho: Float, spacing: Point, settings: PhantomSettings
) -> Float:
    """Blur, add correlated noise and streaks, and crop to the scanner's value range."""
    blur = rng.uniform(*settings.blur)
    image = gaussian_filter(image, [blur / spacing[0], blur / spacing[1], 0.35], truncate=2.5)
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    grain = min(rng.uniform(0.4, 1.5) / spacing[0], 1.2)  # the kernel is set in mm
    noise = gaussian_filter(noise, [grain, grain, rng.uniform(0, 0.5)], truncate=2.5)
    noise *= np.float32(rng.uniform(*settings.noise)) / noise.std()
    # photons are scarcest in the middle of the body
    noise *= np.float32(1.25) - np.clip(rho / 350, 0, np.float32(0.6))
    image += noise
    if rng.random() < settings.streaks:
        lines = rng.standard_normal((1, *image.shape[1:]), dtype=np.float32)
        lines = np.repeat(lines, image.shape[0], axis=0)
        lines += 2 * gaussian_filter1d(
            rng.standard_normal(image.shape, dtype=np.float32), 14, axis=0
        )
        image += lines / lines.std() * np.float32(rng.uniform(1, 5)) * (rho < 170)
    if rng.random() < 0.25:  # reconstruction circle
        i, j = (np.linspace(-1, 1, n)[:, None] for n in image.shape[:2])
        image[(i**2 + (j.T) ** 2) > 1.05] = -1024
    return np.clip(image, -1024, 3071)


def _finish_mr(
    rng: np.random.Generator, image: Float, spacing: Point, settings: PhantomSettings
) -> Float:
    """Blur, shade by a coil profile, optionally ghost, and add Rician noise."""
    blur = 1.5 * rng.uniform(*settings.blur)
    image = gaussian_filter(image, [blur / spacing[0], blur / spacing[1], 0.35], truncate=2.5)
    top = float(np.percentile(image[::4, ::4], 98))
    bias = _smooth_noise(rng, image.shape, (2, 2, 1))
    image *= np.exp(np.float32(rng.uniform(*settings.bias)) * bias)
    if rng.random() < settings.ghosting:
        shift = int(rng.integers(8, max(9, image.shape[1] // 3)))
        image += np.float32(rng.uniform(0.01, 0.06)) * np.roll(image, shift, axis=1)
    sigma = np.float32(rng.uniform(*settings.mr_noise) * top)
    noise = rng.standard_normal((2, *image.shape), dtype=np.float32) * sigma
    if rng.random() < 0.5:
        noise = gaussian_filter(noise, [0, 0.5, 0.5, 0])
    return np.clip(np.hypot(image + noise[0], noise[1]), 0, 32767)


def generate(seed: int, modality: str, settings: PhantomSettings = DEFAULTS) -> PhantomVolume:
    """Draw one phantom.

    Args:
        seed: non-negative; the same seed, modality and settings give identical arrays.
        modality: ``"CT"`` or ``"MR"``.
        settings: ranges to draw from.

    Returns:
        The volume in a randomly chosen stored orientation, with the affine that belongs to it.

    Raises:
        ValueError: unknown modality, or an unknown organ name in ``settings.missing``.
    """
    if modality not in MODALITIES:
        raise ValueError(f"Unknown modality {modality!r}: use one of {', '.join(MODALITIES)}.")
    unknown = sorted(set(settings.missing) - set(ORGANS))
    if unknown:
        raise ValueError(f"Unknown organs in settings.missing: {unknown}; known: {list(ORGANS)}.")
    rng = np.random.default_rng((seed, MODALITIES.index(modality)))
    values, unit, protocol = _intensities(rng, modality, settings)
    outline = _outlines(rng, settings)

    scale = rng.uniform(*settings.habitus) * rng.uniform(0.95, 1.05, 3)
    t = np.linspace(-np.pi, np.pi, 1024, endpoint=False)
    skin = outline["skin"]
    span_x = np.array([(skin * np.cos(t)).min(), (skin * np.cos(t)).max()]) * scale[0]
    span_y = (np.array([(skin * np.sin(t)).min(), (skin * np.sin(t)).max()]) + CENTRE_Y) * scale[1]
    margin = rng.uniform(*settings.margin)
    truncated = bool(rng.random() < settings.truncated)
    if truncated:
        margin = -rng.uniform(5, 25)
    grow = np.array([-margin, margin])
    lift = rng.normal(0, 8, 2)
    fov_x, fov_y = span_x + grow + lift[0], span_y + grow + lift[1]
    if rng.random() < 0.5:  # many scanners reconstruct square images
        half = np.ptp(fov_x) / 2
        fov_y = fov_y.mean() + np.array([-half, half])
    step = max(rng.uniform(*settings.spacing), np.ptp(fov_x) / settings.max_inplane)
    count = int(rng.integers(settings.slices[0], settings.slices[1] + 1))
    thick = float(np.clip(rng.uniform(125, 195) * scale[2] / count, *settings.thickness))
    middle = rng.normal(4, 9) * scale[2]  # the kidneys' hila: most organs meet there
    sizes = (int(np.ptp(fov_x) / step) + 1, int(np.ptp(fov_y) / step) + 1, count)
    spacing = (float(step), float(step), thick)
    starts = (float(fov_x[0]), float(fov_y[0]), middle - 0.5 * thick * (count - 1))
    axes = [
        ((s + v * np.arange(n)) / k).astype(np.float32)
        for s, v, n, k in zip(starts, spacing, sizes, scale, strict=True)
    ]
    roll = float(np.deg2rad(np.clip(rng.normal(0, 1.5), -5, 5)))
    frame = [v / k for v, k in zip(spacing, scale, strict=True)]
    canvas = _Canvas(rng, axes, frame, roll, settings, values, unit, modality)
    patient = _Patient(canvas, rng, settings, outline, modality)
    patient.paint()
    if modality == "CT":
        image = _finish_ct(rng, canvas.image, patient.rho, spacing, settings)
    else:
        image = _finish_mr(rng, canvas.image, spacing, settings)

    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = np.asarray(starts) + rng.uniform(-150, 150, 3)
    code = str(rng.choice(settings.orientations))
    turn = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(code)
    )
    affine = affine @ nib.orientations.inv_ornt_aff(turn, sizes)

    def store(array: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(nib.orientations.apply_orientation(array, turn))

    present = [name for name, label in ORGANS.items() if (canvas.label == label).any()]
    return PhantomVolume(
        image=store(np.rint(image).astype(np.int16)),
        label=store(canvas.label),
        affine=affine,
        modality=modality,
        description={
            "seed": int(seed),
            "protocol": protocol,
            "orientation": code,
            "spacing_mm": [round(v, 4) for v in spacing],
            "truncated": truncated,
            "missing": patient.missing,
            "present": present,
            "lesions": patient.lesion_count,
        },
    )


def write(
    volume: PhantomVolume, image_path: str | os.PathLike[str], label_path: str | os.PathLike[str]
) -> None:
    """Write image (int16) and label (uint8) as ``.nii.gz``, byte for byte reproducible.

    Files appear only when complete; parent folders are created.

    Raises:
        ValueError: a path does not end in ``.nii.gz``.
    """
    for data, target in ((volume.image, Path(image_path)), (volume.label, Path(label_path))):
        if not target.name.endswith(".nii.gz"):
            raise ValueError(f"{target} should end in .nii.gz.")
        write_volume(target, data, volume.affine)
