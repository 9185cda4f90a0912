"""The trunk: its outlines, wall, lungs and bones."""

from __future__ import annotations

import numpy as np

from compact.phantom.fields import Float, smooth_union
from compact.phantom.patient import Patient
from compact.phantom.settings import PhantomSettings

CENTRE_Y = 40.0  # of the polar outlines, mm in front of the vertebra


def outlines(rng: np.random.Generator, settings: PhantomSettings) -> dict[str, Float]:
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


def torso(p: Patient) -> None:
    """Table, arms, skin, fat, muscle wall, cavity, diaphragm, lungs and heart."""
    c, u = p.c, p.u
    x, y, z = c.at(c.all)
    if p.modality == "CT" and p.rng.random() < 0.85:
        back = CENTRE_Y - float(p.outline["skin"][256]) - u(4, 20)
        curve = np.float32(u(0.0004, 0.0016))
        for depth in (0.0, u(18, 60)):
            d = np.abs(y - np.float32(back - depth) - curve * x * x) - np.float32(u(1, 2.5))
            c.paint(c.all, np.maximum(d, np.abs(x) - np.float32(u(180, 240))), "table")
    if p.rng.random() < p.settings.arms:
        wide = float(p.outline["skin"][0])
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
    p.rho = rho
    angle = np.arctan2(y - np.float32(CENTRE_Y), x)
    index = ((angle + np.float32(np.pi)) * np.float32(1023.99 / (2 * np.pi))).astype(np.int32)
    # table entry 0 is the left side (-x), 256 the back, 512 the right, 768 the front
    waist = 1 - np.float32(u(0.0, 0.09)) * ((z - np.float32(u(-10, 50))) / 100) ** 2
    muscle = rho - p.outline["muscle"][index] * waist
    thick = np.clip(1 - np.float32(u(0, 0.005)) * z, 0.45, 1.6)
    skin = muscle - (p.outline["skin"] - p.outline["muscle"])[index] * thick
    p.cavity = rho - p.outline["cavity"][index] * waist
    c.paint(c.all, skin, "skin")
    c.paint(c.all, skin + np.float32(u(1.6, 3.0)), "fat")
    wall = p.wall = c.bump(c.all, muscle, 1.5, 40)
    c.paint(c.all, wall, "muscle")
    # fat planes between the layers of the wall, most visible at the flanks
    mid = c.bump(c.all, 0.5 * (wall + p.cavity), 1.5, 30)
    planes = c.bump(c.all, np.abs(mid) + np.float32(u(-0.5, 3)), 1.5, 45)
    c.paint(c.all, planes, "fat", soft=c.soft * 2)
    c.paint(c.all, p.cavity, "visceral fat")
    ribs(p, 0.5 * (wall + p.cavity), angle)

    # the diaphragm: everything in the chest that is not under one of its domes is lung
    top = u(-12, 12)
    dome = None
    for centre, radii in (
        ((62, 48, -10), (86, 104, 104 + top + u(-6, 6))),
        ((-62, 48, -10), (86, 104, 96 + top + u(-8, 8))),
        ((0, 70, -10), (90, 90, 94 + top)),
    ):
        _, d = c.ellipsoid(centre, radii, box=c.all)
        dome = d if dome is None else smooth_union(dome, d, 14)
    assert dome is not None
    dome = np.where(z < 0, np.float32(-30), c.bump(c.all, dome, 2.0, 50))
    p.room = np.maximum(p.cavity + np.float32(u(0.5, 3)), dome + 2)
    column = np.hypot(x * np.float32(0.9), y - 14) - np.float32(u(26, 36))
    lung = np.maximum(np.maximum(p.cavity + 1, -dome), -column)
    c.paint(c.all, np.maximum(np.maximum(p.cavity, -dome), -column) - 1, "muscle")
    c.paint(c.all, lung, "lung")
    c.paint(*c.ellipsoid((u(-35, -10), u(70, 90), u(112, 128)), (58, 45, 38)), "visceral fat")
    c.paint(*c.ellipsoid((u(-35, -10), u(70, 90), u(116, 130)), (50, 38, 34)), "heart")


def ribs(p: Patient, mid: Float, angle: Float) -> None:
    """Every rib at once: periodic along z, dropping from the spine to the flank."""
    c, u = p.c, p.u
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


def spine(p: Patient) -> None:
    """Vertebrae, discs, canal and the muscles along them."""
    c, u = p.c, p.u
    low, high = float(c.axes[2][0]), float(c.axes[2][-1])
    for side in (1, -1):
        r = u(0.85, 1.2)
        box, d = c.ellipsoid((side * 34, -48, 10), (31 * r, 23 * r, 500), side * 8)
        d = np.maximum(d, p.wall[box])
        c.paint(box, d, "muscle")
        # fatty strands between the bundles, more in some patients than in others
        strands = c.bump(box, np.full_like(d, u(1.6, 3.0)), 1.0, 11)
        c.paint(box, np.maximum(strands, d), "fat", soft=u(1, 3))
        psoas = [(side * 17, 4, 30), (side * 26, 2, -10), (side * 40, 5, -60)]
        psoas += [(side * 50, 8, -130)]
        box, d = c.tube(p.move(psoas, 2), [3, 11 * r, 19 * r, 24 * r])
        c.paint(box, c.bump(box, d, 1.5, 25), "muscle")
        c.paint(*c.ellipsoid((side * 64, -34, -70), (20 * r, 9 * r, 85), side * 15), "muscle")
        crus = [(side * 8 - 8, 30, 70), (side * 14 - 5, 24, 35), (side * 18 - 3, 14, -5)]
        c.paint(*c.tube(p.move(crus, 1), [5, 4, 3], flat=0.6), "muscle")
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
