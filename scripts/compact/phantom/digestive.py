"""The hollow organs, the gallbladder and the pancreas, with the vessels along them."""

from __future__ import annotations

import numpy as np

from compact.phantom.patient import Patient
from compact.phantom.settings import ORGANS


def bowel(p: Patient) -> None:
    """Small bowel, colon and mesenteric vessels."""
    c, u, rng = p.c, p.u, p.rng
    loops = int(rng.integers(18, 48))
    small = {"collapsed": 2.0, "gut fluid": 3.0, "food": 1.0, "gas": 0.5}
    if rng.random() < 0.2:
        small["oral contrast"] = 4.0
    for _ in range(loops):
        start = np.array([u(-105, 75), u(30, 118), u(-115, 8)])
        step = rng.normal(0, 1, 3) * (18, 12, 9)
        turn = rng.normal(0, 1, 3) * (14, 12, 8)
        path = np.array([start, start + step, start + 1.6 * step + turn, start + step + 2 * turn])
        p.gut(path, [u(8, 14)] * 4, 0, small, (1.5, 3))
    r = u(0.7, 1.35)
    colon = [(102, 22, -110), (106, 20, -70), (100, 35, -38), (82, 70, -30), (48, 104, -34)]
    colon += [(0, 116, -38), (-48, 108, -24), (-84, 80, 0), (-104, 48, 26), (-112, 18, 6)]
    colon += [(-114, 6, -40), (-112, 10, -110)]
    path = p.move(colon, 7, 6)
    full = {"faeces": 3.0, "gas": 2.0, "gut fluid": 0.7, "collapsed": 0.6}
    for i in range(0, len(path) - 2, 2):
        radii = [r * u(13, 23) for _ in range(3)]
        p.gut(path[i : i + 3], radii, 0, full, (1.5, 3), bump=3)
    for _ in range(int(rng.integers(25, 80))):
        start = np.array([u(-80, 55), u(35, 95), u(-100, 20)])
        path = start + np.cumsum(rng.normal(0, 9, (3, 3)), 0)
        c.paint(*c.tube(path, u(1.0, 2.6)), "portal blood", 0)


def stomach(p: Patient) -> None:
    """A bent sack from the left dome to the pylorus."""
    f = p.size() * p.u(0.5, 1.15)
    path = [
        (-52, 14, 74),
        (-62, 42, 56),
        (-56, 74, 30),
        (-40, 96, 8),
        (-4, 98, -4),
        (32, 78, 2),
    ]
    radii = [26 * f, 33 * f, 29 * f, 24 * f, 18 * f, 10]
    pts = p.move(path, 6, 5)
    p.pylorus = pts[-1]
    if p.has("stomach"):
        kinds = {"gut fluid": 2.5, "food": 3.0, "gas": 0.8, "collapsed": 0.5}
        kinds["oral contrast"] = 0.5
        p.gut(pts, radii, ORGANS["stomach"], kinds, (3, 6), bump=2.5)


def gallbladder(p: Patient) -> None:
    """A sack under the liver, sometimes with a stone."""
    c, u = p.c, p.u
    if p.has("gallbladder"):
        f = p.size() * u(0.65, 1.3)
        at = np.array([66, 76, 2]) + p.rng.normal(0, (7, 8, 8))
        box, d = c.ellipsoid(at, (15 * f, 25 * f, 20 * f), u(-45, 10))
        d = np.maximum(c.bump(box, d, 1.2, 22), p.room[box])
        c.paint(box, d, "gut wall", ORGANS["gallbladder"])
        c.paint(box, d + np.float32(u(0.5, 2)), "bile", None)
        if p.rng.random() < 0.1:
            c.paint(*c.ellipsoid(at - (0, 8, 4), (u(2, 6),) * 3), "calcium", None)


def duodenum_and_pancreas(p: Patient) -> None:
    """The loop from the pylorus and the gland in it, with the portal and splenic veins."""
    c, u = p.c, p.u
    shift = p.rng.normal(0, 4, 3)
    if p.has("duodenum"):
        path = [
            (48, 66, 2),
            (57, 52, -12),
            (55, 42, -38),
            (32, 35, -56),
            (0, 38, -58),
            (-28, 44, -40),
        ]
        pts = np.vstack([p.pylorus, p.move(path, 2, 3) + shift])
        kinds = {"collapsed": 2.0, "gut fluid": 2.0, "food": 1.2, "gas": 0.5}
        kinds["oral contrast"] = 0.3
        radii = [u(8, 14) for _ in pts]
        p.gut(pts, radii, ORGANS["duodenum"], kinds, (2, 3.5))
    path = [
        (40, 50, -26),
        (38, 60, -8),
        (18, 68, 4),
        (-10, 68, 12),
        (-42, 50, 18),
        (-78, 20, 26),
    ]
    pts = p.move(path, 3, 3) + shift + (0, 0, u(-8, 8))
    vein = pts[2:] + (0, -u(9, 13), 0)
    c.paint(*c.tube(np.vstack([vein, (-88, 12, 30)]), u(3, 5)), "portal blood")
    c.paint(*c.tube([vein[0], (10, 45, -20), (4, 52, -70)], u(4, 6)), "portal blood")
    c.paint(*c.tube([(-8, 36, 8), (-6, 44, -20), (-4, 48, -70)], u(2.5, 4)), "arterial blood")
    if p.has("pancreas"):
        f = p.size() * u(0.65, 1.2)
        box, d = c.tube(pts, np.array([13, 15, 10, 11, 11, 9]) * f, flat=u(1.15, 1.6))
        d = c.bump(box, c.bump(box, d, u(1, 2), 18), u(1, 2.4), 8)
        c.paint(box, d, "pancreas", ORGANS["pancreas"], soft=c.soft * u(1, 2.5))
        c.paint(*c.tube(vein, u(3, 5)), "portal blood")


def oesophagus(p: Patient) -> None:
    """A tube before the spine, sometimes with gas."""
    c, u = p.c, p.u
    gullet = p.move([(-6, 34, 135), (-8, 36, 100), (-16, 40, 84), (-36, 38, 72)], 2, 2)
    box, d = c.tube(gullet, [u(7, 10)] * 4)
    c.paint(box, d, "gut wall", ORGANS["oesophagus"])
    if p.rng.random() < 0.5:
        c.paint(box, d + np.float32(u(4, 6)), "gas", None)
