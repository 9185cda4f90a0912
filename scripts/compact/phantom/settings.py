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
