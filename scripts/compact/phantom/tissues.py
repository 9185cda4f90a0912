"""What each tissue looks like in CT and MR, and a draw of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from compact.phantom.settings import MR_STYLES, PHASES, PhantomSettings

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


#: Tissues that look alike in everybody.
_PLAIN = ("gas", "lung", "fat", "visceral fat", "cortical bone", "calcium", "table")


def _odd(
    rng: np.random.Generator, values: dict[str, float], unit: float, settings: PhantomSettings
) -> dict[str, float]:
    """Grey values that depart from their ranges; nothing is drawn where none may."""
    if not settings.odd:
        return values
    spread = rng.uniform(0, settings.odd) * unit
    lowest = 0.01 if unit < 1 else -60.0
    return {
        name: value if name in _PLAIN else max(lowest, value + float(rng.normal(0, spread)))
        for name, value in values.items()
    }


def intensities(
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
        return _odd(rng, values, 1.0, settings), 1.0, PHASES[phase]
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
    values = _odd(rng, values, 1 / 250, settings)
    scale = float(np.exp(rng.uniform(np.log(150), np.log(1500))))
    return {n: v * scale for n, v in values.items()}, scale / 400, style
