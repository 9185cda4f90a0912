"""The solid organs and the great vessels."""

from __future__ import annotations

from typing import Any

import numpy as np

from compact.phantom.fields import smooth_noise, smooth_union
from compact.phantom.patient import Patient
from compact.phantom.settings import ORGANS


def liver(p: Patient) -> None:
    """Both lobes and the caudate, hollowed below, with hepatic and portal veins."""
    c, u = p.c, p.u
    f = p.size()
    ox, oy, oz = p.settings.place * p.rng.normal(0, (4, 5, 7))
    box = c.box((-115, -60, -105), (150, 150, 115))
    _, d = c.ellipsoid((82 + ox, 42 + oy, 42 + oz), (72 * f, 100 * f, 74 * f), u(-6, 6), box)
    reach = u(0.7, 1.35)  # how low the right lobe hangs
    _, slab = c.ellipsoid(
        (118 + ox, 42 + oy, 0 + oz), (30 * f, u(48, 68), 68 * reach), u(-10, 5), box
    )
    d = smooth_union(d, slab, 20)
    span = u(0.65, 1.25)  # how far the left lobe crosses the midline
    _, left = c.ellipsoid((12 + ox, 92 + oy, 52 + oz), (80 * span, 34 * f, 44 * f), u(-14, 8), box)
    d = smooth_union(d, left, 24)
    _, caudate = c.ellipsoid((24, 42, 48 + oz), (20, 16, 26), 0, box)
    # the visceral surface is hollowed by the hilum, the kidney and the stomach
    for centre, radii in (
        ((8, 30, 2 + oz), (44, 58, 46)),
        ((60, 30, -45 + oz), (44, 85, 52)),
        (p.kidney_at[1] + (-4, -6, -4), (36, 38, 62)),
        ((36, -25, 0), (44, 38, 75)),
        ((-62, 28, 40), (60, 62, 80)),
        ((0, 0, 40), (38, 30, 130)),
    ):
        _, hole = c.ellipsoid(centre, radii, u(-8, 8), box)
        d = np.maximum(d, -hole)
    d = np.minimum(d, caudate)
    d = c.bump(box, c.bump(box, d, 2.6, 45), 0.8, 16)
    if p.rng.random() < 0.7:  # the fissure of the round ligament
        x, y, z = c.at(box)
        slit = x - np.float32(u(5, 28)) - np.float32(u(-0.3, 0.5)) * (y - 90)
        slit = np.abs(c.bump(box, slit, 3, 35))
        slit = slit - np.float32(u(1, 3.5)) + np.maximum(z - np.float32(u(25, 60)), 0) * 0.2
        slit = np.maximum(slit, np.float32(u(60, 100)) - y)
        d = np.maximum(d, -slit)
    d = np.maximum(d, p.room[box])
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
            pts = p.move(path, 4, 4)
            part, v = c.tube(pts, np.linspace(u(4, 6.5), 2, len(pts)))
            v = np.where(c.label[part] == ORGANS["liver"], v, np.float32(9))
            c.paint(part, v, tissue, None)
    p.lesions("liver")


def spleen(p: Patient) -> None:
    """A crescent against the left posterior wall."""
    if not p.has("spleen"):
        return
    c, u = p.c, p.u
    f = p.size() * u(0.85, 1.25)
    at = np.array([-102, -6, 28]) + p.settings.place * p.rng.normal(0, (4, 7, 9))
    box, d = c.ellipsoid(at, (42 * f, 62 * f, 56 * f), u(-35, -8))
    hollow = at + (u(38, 50), u(18, 28), 0)
    _, hole = c.ellipsoid(hollow, (38, 56, 60), u(-35, -10), box)
    d = smooth_union(-d, hole, 6)
    d = np.maximum(c.bump(box, -d, 2.2, 28), p.room[box])
    c.paint(box, d, "spleen", ORGANS["spleen"])
    p.lesions("spleen")


def kidneys(p: Patient) -> None:
    """Cortex, medulla, sinus fat, pelvis, ureter and renal vessels."""
    c, u = p.c, p.u
    for side, organ in ((1, "right kidney"), (-1, "left kidney")):
        if not p.has(organ):
            continue
        label, f = ORGANS[organ], p.size()
        at = p.kidney_at[side]
        # a kidney is a short fat tube, upper pole medial and posterior
        long = 30 * f * u(0.9, 1.15)
        axis = np.array([-side * u(5, 13), -u(2, 9), long])
        r = 25.5 * f
        box, d = c.tube([at - axis, at, at + axis], [r * 0.92, r * 1.08, r * 0.9], flat=u(0.85, 1))
        d = c.bump(box, d, 1.2, 20)
        gap = np.float32(u(0, 9))
        c.paint(box, np.maximum(d - gap, p.cavity[box]), "visceral fat")
        d = np.maximum(d, p.cavity[box])
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
        if p.rng.random() < 0.12 and p.modality == "CT":
            c.paint(*c.ellipsoid(root + p.rng.normal(0, 4, 3), (u(1.5, 4),) * 3), "calcium", None)
        p.lesions(organ)


def great_vessels(p: Patient) -> None:
    """Aorta, sometimes calcified, and inferior vena cava."""
    c, u = p.c, p.u
    sway = p.rng.normal(0, 2.5, 4)
    r = u(8.5, 13)
    spots = [(-14, 28, -130), (-12, 29, -60), (-11, 29, 0), (-12, 22, 70), (-16, 18, 140)]
    aorta = np.asarray(spots, float) + np.array([sway[0], sway[1], 0])
    box, d = c.tube(aorta, [r * 0.85, r * 0.9, r, r * 1.1, r * 1.15])
    c.paint(box, d, "gut wall", ORGANS["aorta"])
    c.paint(box, d + 1, "arterial blood", None)
    if p.rng.random() < 0.4:
        _, patch = c.tube(aorta, r - 1, box=box)
        rim = np.abs(patch) - np.float32(1.3)
        speckle = smooth_noise(
            p.rng, d.shape, [n * v / 9 for n, v in zip(d.shape, c.spacing, strict=True)]
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


def adrenal_glands(p: Patient) -> None:
    """A body with two limbs above each kidney."""
    c, u = p.c, p.u
    for side, organ, place in (
        (1, "right adrenal gland", (33, 25, 42)),
        (-1, "left adrenal gland", (-38, 25, 38)),
    ):
        if not p.has(organ):
            continue
        top = np.asarray(place, float) + p.rng.normal(0, 3, 3)
        thick = u(2.4, 4)
        for dx, dy in ((4 * side, -18), (14 * side, -12)):
            foot = top + (dx, dy, -14)
            box, d = c.tube([top + (0, 3, 12), top, foot], [thick, thick * 1.2, thick * 0.8])
            c.paint(box, c.bump(box, d, 0.6, 8), "adrenal", ORGANS[organ])
