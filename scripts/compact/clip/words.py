"""What the compact CLIP reads: its vocabulary, the captions of crops, the names of regions."""

from __future__ import annotations

import gzip
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from open_clip.tokenizer import SimpleTokenizer, default_bpe

from xaiclip.files import atomic
from xaiclip.organs import BACKGROUND, FLARE22

#: Region classes: label id → name, background included.
REGIONS: Mapping[int, str] = {0: BACKGROUND, **FLARE22}

_ROWS = ("upper", "middle", "lower")
_COLUMNS = ("left", "centre", "right")
_HEADS = (
    "{m}", "{m} scan", "axial {m}", "axial {m} slice", "{m} image", "a {m} slice of the abdomen",
)  # fmt: skip
_EMPTY = ("no organ", "without any organ", "body wall", "background only", "muscle, bone and fat")
REGION_PROMPTS = (
    "{c}", "{c}", "{c}", "the {c}", "{c} tissue", "a part of the {c}", "a scan of the {c}",
    "an axial slice showing the {c}", "a ct of the {c}", "an mr image of the {c}",
)  # fmt: skip
_CAPTION_WORDS = """ct mr mri non contrast arterial portal venous late phase suppressed enhanced no
without and with at in on the of image slice whole close view small large only"""
# general words, so that prompts of other studies are not spelled out letter by letter
_MORE_WORDS = """abdominal abnormal anatomy area body bone bowel brain bright cancer cell chest
colon computed dark disease fat fluid gas healthy heart hepatic human image inside intestine large
lesion lung magnetic mass medical muscle normal organ outside patient photo picture pelvis region
renal resonance rib shape side skin small spine stomach structure surface t1 t2 tissue tomography
tumour tumor vein vertebra vessel weighted x ray"""


def _domain_words() -> list[str]:
    sources = (*REGIONS.values(), *_HEADS, *_EMPTY, *REGION_PROMPTS, *_ROWS, *_COLUMNS)
    text = " ".join([*sources, _CAPTION_WORDS, _MORE_WORDS])
    for mark in ("{m}", "{c}", ","):
        text = text.replace(mark, " ")
    return list(dict.fromkeys(text.split()))


def write_vocabulary(path: Path, general: int = 256) -> int:
    """Write a truncated byte-pair merges file and return the vocabulary's size.

    Kept are open_clip's first ``general`` merges and those that build the words of this domain,
    in their original order: so these words become the same single tokens as in open_clip's own
    tokenizer, and any other text is still encoded, in shorter pieces.
    """
    with gzip.open(default_bpe()) as stream:
        header, *lines = stream.read().decode("utf-8").split("\n")
    full = SimpleTokenizer()
    wanted = set(range(general))
    for word in _domain_words():
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            pairs = list(pairwise(pieces))
            rank, at = min((full.bpe_ranks.get(p, 1 << 30), i) for i, p in enumerate(pairs))
            if rank == 1 << 30:
                break
            wanted.add(rank)
            pieces[at : at + 2] = ["".join(pairs[at])]
    # no newline at the end: SimpleTokenizer would read an empty merge
    text = "\n".join([header, *(lines[i] for i in sorted(wanted))])
    with (
        atomic(path) as temporary,
        open(temporary, "wb") as raw,
        gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as stream,
    ):
        stream.write(text.encode())
    return int(SimpleTokenizer(bpe_path=str(path)).vocab_size)


def _place(x: float, y: float) -> str:
    """``upper left`` … ``centre`` for a point in fractions of width and height."""
    row, column = _ROWS[min(int(y * 3), 2)], _COLUMNS[min(int(x * 3), 2)]
    if row == "middle":
        return column
    return row if column == "centre" else f"{row} {column}"


def caption(
    label: NDArray[np.uint8],
    visible: NDArray[np.float64],
    rng: np.random.Generator,
    *,
    modality: str,
    detail: str = "",
    crop: tuple[float, float, float] | None = None,
) -> str:
    """Say in words what a crop shows.

    ``label`` holds FLARE22 ids on the crop, ``visible`` for each id the share of the organ's area
    in the slice that lies in the crop. ``detail`` is a contrast phase or MR weighting; ``random``
    says nothing. ``crop`` is centre x, centre y and width in fractions of the slice. An organ
    counts if it fills 0.1 % of the crop and 30 % of it is visible, or if it fills 2 %.
    """

    def maybe(p: float) -> bool:
        return bool(rng.random() < p)

    def pick(options: Sequence[str]) -> str:
        return options[int(rng.integers(len(options)))]

    name = pick(("mr", "mri")) if modality == "MR" else "ct"
    detail = detail.replace("-", " ").replace("random", "").strip()
    if detail and maybe(0.6):
        name = f"{detail} {name}"
    area = np.bincount(label.ravel(), minlength=len(visible)) / label.size
    shown = [i for i in REGIONS if i and (area[i] > 0.02 or (area[i] > 1e-3 and visible[i] > 0.3))]
    rng.shuffle(shown)
    parts = []
    for organ in shown[: int(rng.integers(2, 7))]:
        phrase = ("the " if maybe(0.2) else "") + REGIONS[organ]
        if maybe(0.15) and (area[organ] > 0.12 or area[organ] < 0.004):
            phrase = ("large " if area[organ] > 0.12 else "small ") + REGIONS[organ]
        if maybe(0.65):
            ys, xs = np.nonzero(label == organ)
            place = _place((xs.mean() + 0.5) / label.shape[1], (ys.mean() + 0.5) / label.shape[0])
            phrase += pick((" {p}", " at the {p}", " in the {p}")).format(p=place)
        parts.append(phrase)
    if not shown:
        parts.append(pick(_EMPTY))
    elif maybe(0.25):
        missing = [n for i, n in REGIONS.items() if i and area[i] == 0]
        if missing:
            parts.append(pick(("no ", "without ")) + pick(missing))
    if crop is not None and (maybe(0.5) or not shown):
        x, y, width = crop
        parts.append("whole slice" if width > 0.8 else f"close view {_place(x, y)}")
    head = pick(_HEADS).format(m=name)
    if maybe(0.15):
        return pick((", ", " and ")).join(parts)
    return head + pick((": ", ", ", " of ", " with ", " ")) + pick((", ", " and ")).join(parts)
