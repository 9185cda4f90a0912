"""What may vary between phantoms."""

from __future__ import annotations

from dataclasses import dataclass, field

from xaiclip.organs import FLARE22

ORGANS: dict[str, int] = {organ: number for number, organ in FLARE22.items()}
MODALITIES = ("CT", "MR")
PHASES = ("non-contrast", "arterial", "portal venous", "late")
MR_STYLES = ("T1", "T1 fat-suppressed", "T2", "T2 fat-suppressed", "random")


@dataclass(frozen=True)
class PhantomSettings:
    """What may vary between phantoms; ranges are (low, high), probabilities in 0..1, lengths in mm.

    ``missing`` maps organ names (keys of ``ORGANS``) to the probability that the organ is absent.
    ``phases`` and ``mr_styles`` weigh the entries of ``PHASES`` and ``MR_STYLES``.
    ``orientations`` are the axis codes, such as ``"RAS"``, that a volume may be stored in.
    ``extent`` is how much of a body of standard size lies between first and last slice. ``place``
    multiplies how far organs lie from where they are on average. ``odd`` lets each tissue's grey
    value depart from its range: a standard deviation of up to this many HU (in MR, 250 is the
    brightest tissue).
    """

    spacing: tuple[float, float] = (1.2, 3.0)
    thickness: tuple[float, float] = (2.5, 6.0)
    slices: tuple[int, int] = (24, 40)
    extent: tuple[float, float] = (125.0, 195.0)
    max_inplane: int = 320
    margin: tuple[float, float] = (4.0, 45.0)
    truncated: float = 0.12
    habitus: tuple[float, float] = (0.85, 1.15)
    organ_size: tuple[float, float] = (0.86, 1.14)
    place: float = 1.0
    odd: float = 0.0
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

#: Far more than patients vary: what is learned from these has to carry over.
WIDE = PhantomSettings(
    spacing=(0.9, 3.2),
    thickness=(2.5, 8.0),
    extent=(120.0, 260.0),
    margin=(1.0, 70.0),
    truncated=0.2,
    habitus=(0.75, 1.25),
    organ_size=(0.74, 1.28),
    place=1.7,
    odd=20.0,
    fat=(2.0, 55.0),
    warp=7.0,
    bumps=1.3,
    noise=(3.0, 40.0),
    mr_noise=(0.004, 0.07),
    bias=(0.05, 0.55),
    lesions=0.5,
    arms=0.3,
    phases=(0.3, 0.2, 0.35, 0.15),
    mr_styles=(0.3, 0.15, 0.15, 0.15, 0.25),
    missing={
        "gallbladder": 0.2,
        "spleen": 0.07,
        "right kidney": 0.06,
        "left kidney": 0.06,
        "pancreas": 0.06,
        "duodenum": 0.1,
        "stomach": 0.08,
        "right adrenal gland": 0.1,
        "left adrenal gland": 0.1,
    },
)
