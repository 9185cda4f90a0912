"""Figures of slices, organs and occlusion. Each function gives a figure's data."""

from __future__ import annotations

import numpy as np
from matplotlib.colors import Normalize

from xaiclip.data.record import Slice, SliceName
from xaiclip.errors import CaseError
from xaiclip.explain.attribution import Attribution
from xaiclip.organs import BACKGROUND
from xaiclip.preprocess import load_preprocessed
from xaiclip.report import colours, panels, style
from xaiclip.report import sources as files
from xaiclip.report.catalogue import makes_figure
from xaiclip.report.picture import (
    Boxes,
    ColourBar,
    Entry,
    Fill,
    Heat,
    Layer,
    Note,
    Outline,
    Panel,
    Picture,
    Words,
)
from xaiclip.report.sources import Settings, Sources

_SHARE = Normalize(0, 1)


@makes_figure(
    "figure02_preprocessing",
    ["slices", "preprocessed"],
    "Slices as the CT window or the MR percentiles give them (top) and after equations 1 "
    "to 8 (bottom). The paper's figure 2.",
)
def preprocessing(sources: Sources, settings: Settings) -> Picture:
    """Up to three cases: slices before (top) and after (bottom) equations 1 to 8."""
    items = _one_per_case(sources, settings, 3)
    keys = {item.key for item in items}
    enhanced = {one.key: one for one in load_preprocessed(sources["preprocessed"], keys)}
    before = [Panel(f"{item.case} ({item.modality}), slice {item.index}", item) for item in items]
    after = [Panel("enhanced", item, image=enhanced[item.key].on_slice_grid()) for item in items]
    every = tuple(range(2 * len(items)))
    bar = ColourBar("grey level (0 to 255)", len(items) - 1, every)
    return Picture("Preprocessing for the localizer", [*before, *after], len(items), [bar])


@makes_figure(
    "figure05_occlusion",
    ["slices", "segmentation", "attributions/occlusion/full"],
    "Occlusion over the whole image: slice, segmentation, and drop of the score where the "
    "window lay. The paper's figure 5.",
)
def occlusion(sources: Sources, settings: Settings) -> Picture:
    """Slice, segmentation, and the drop of the score where the window lay."""
    subject, maps = panels.subject_and_maps(sources, settings, "occlusion/full")
    one = files.primary(maps)
    shown, entry = panels.map_and_segmentation(subject, one, sources, settings)
    return Picture(
        f"Occlusion of the whole slice: {subject.words}",
        [
            Panel("slice", subject.item),
            panels.segmentation_panel(subject, sources, settings),
            shown,
        ],
        3,
        [panels.own_bar(2, panels.importance(one))],
        [entry],
    )


@makes_figure(
    "figure06_selective_occlusion",
    [
        "slices",
        "roi",
        "scores/occlusion/full",
        "scores/occlusion/roi",
        "attributions/occlusion/full",
        "attributions/occlusion/roi",
    ],
    "The same windows over the whole image (left) and those that meet the ROI (right). "
    "The paper's figure 6.",
)
def selective_occlusion(sources: Sources, settings: Settings) -> Picture:
    """Windows (top) and maps (bottom), over the whole slice and where they meet the ROI."""
    subject = files.choose_subject(sources, settings)
    both = {
        guidance: files.primary(
            files.attributions(
                sources[f"attributions/occlusion/{guidance}"], subject.item, subject.organ
            )
        )
        for guidance in ("full", "roi")
    }
    region = files.roi(sources["roi"], subject).mask
    norm = style.symmetric(one.map for one in both.values())
    above, below = [], []
    for guidance, one in both.items():
        plan = files.plan(sources[f"scores/occlusion/{guidance}"], subject)
        title = f"{colours.GUIDANCES[guidance][2]}: {panels.windows_words(plan)}"
        above.append(panels.windows_panel(title, subject, plan, region))
        layers = (Heat(one.map, norm), panels.roi_outline(region))
        below.append(Panel("importance", subject.item, layers))
    return Picture(
        f"Selective occlusion: {subject.words}",
        [*above, *below],
        2,
        [ColourBar(panels.importance(both["roi"]), 3, (2, 3))],
        [panels.ROI_ENTRY, panels.WINDOW_ENTRY],
    )


@makes_figure(
    "figure07_occlusion_overview",
    [
        "slices",
        "localization/text",
        "roi",
        "segmentation",
        "scores/occlusion/roi",
        "attributions/occlusion/roi",
    ],
    "From the localizer's map to the ROI, to the windows that meet it, to the map. The "
    "paper's figure 7.",
)
def occlusion_overview(sources: Sources, settings: Settings) -> Picture:
    """The way of guided occlusion: localizer, ROI, segmentation, windows, map."""
    subject, maps = panels.subject_and_maps(sources, settings, "occlusion/roi")
    item, one = subject.item, files.primary(maps)
    region = files.roi(sources["roi"], subject)
    probability = files.probabilities(sources["localization/text"], item)
    plan = files.plan(sources["scores/occlusion/roi"], subject)
    box: tuple[Layer, ...] = ()
    if region.box is not None:
        box = (Boxes(region.box[None], item.image.shape, panels.BOX),)
    of_organ = probability[list(settings.classes).index(subject.organ)]
    heat = Heat(one.map, style.symmetric([one.map]))
    return Picture(
        f"From the localizer to the map: {subject.words}",
        [
            Panel("slice", item),
            Panel("the localizer's map", item, (Heat(of_organ, _SHARE),)),
            Panel("ROI and box", item, (panels.roi_outline(region.mask), *box)),
            panels.segmentation_panel(subject, sources, settings),
            panels.windows_panel(panels.windows_words(plan), subject, plan, region.mask),
            Panel("importance", item, (heat,)),
        ],
        3,
        [
            panels.own_bar(1, "probability (0 to 1)"),
            panels.own_bar(5, panels.importance(one)),
        ],
        [panels.ROI_ENTRY, Entry("box (the prompt)", panels.BOX), panels.WINDOW_ENTRY],
        extra=0.15,
    )


@makes_figure(
    "figure09_localization",
    ["slices", "localization/text"],
    "Reference, the localizer's map, and both over the slice. The paper's figure 9.",
)
def localization(sources: Sources, settings: Settings) -> Picture:
    """Up to three cases: reference, the localizer's map, and both over the slice."""
    items = _one_per_case(sources, settings, 3)
    organs = colours.Organs(settings.classes)
    shown: list[Panel] = []
    found: set[str] = set()
    for item in items:
        probability = files.probabilities(sources["localization/text"], item)
        winner = probability.argmax(0)
        any_organ = 1 - probability[list(settings.classes).index(BACKGROUND)]
        left: list[Layer] = []
        middle: list[Layer] = [Heat(any_organ, _SHARE, alpha=1)]
        right: list[Layer] = []
        for organ in organs.names:
            index = list(settings.classes).index(organ)
            colour, line, short = organs.colour(organ), organs.line(organ), organs.short(organ)
            if (mask := winner == index).any():
                found.add(organ)
                middle.append(Outline(mask, colour, line))
                right.append(Fill(mask, colour))
                middle.append(Words(mask, short))
            if item.label is not None and (mask := item.label == index).any():
                found.add(organ)
                left += [Fill(mask, colour), Outline(mask, colour, line)]
                right.append(Outline(mask, colour, line))
                left.append(Words(mask, short))
        if item.label is None:
            left.append(Note("This case has no reference."))
        shown += [
            Panel(f"reference: {item.case}, slice {item.index}", item, tuple(left)),
            Panel("the localizer's map", item, tuple(middle)),
            Panel("map (filled), reference (lines)", item, tuple(right)),
        ]
    every = tuple(range(len(shown)))
    return Picture(
        "Localization of the organs",
        shown,
        3,
        [ColourBar("probability of any organ (0 to 1)", len(shown) - 2, every)],
        _organ_entries(organs, [organ for organ in organs.names if organ in found]),
        extra=0.25,
    )


@makes_figure(
    "figure10_occlusion_maps",
    ["slices", "segmentation", "attributions/occlusion/full", "attributions/occlusion/roi"],
    "Occlusion maps of every organ, without and with guidance. The paper's figure 10.",
)
def occlusion_maps(sources: Sources, settings: Settings) -> Picture:
    """Every organ's occlusion map, without (top) and with (bottom) guidance."""
    prefix = "attributions/occlusion/"
    guidances = [key.removeprefix(prefix) for key in sources if key.startswith(prefix)]
    item, maps = _best_explained(sources, settings, guidances)
    organs = colours.Organs(settings.classes)
    norms = {organ: style.symmetric(one.map for one in of.values()) for organ, of in maps.items()}
    masks = {
        organ: files.segmentation(sources["segmentation"], item, organ, settings.prompt)
        for organ in organs.names
    }
    shown: list[Panel] = []
    for guidance in guidances:
        for organ in organs.names:
            layers: tuple[Layer, ...] = (Note("not explained"),)
            if guidance in maps[organ]:
                colour, line = organs.colour(organ), organs.line(organ)
                layers = (
                    Heat(maps[organ][guidance].map, norms[organ]),
                    Outline(masks[organ], colour, line, width=0.9),
                )
            side = "" if organ != organs.names[0] else colours.GUIDANCES[guidance][2]
            shown.append(Panel(organ, item, layers, marks=not shown, side=side))
    bars = []
    for column, organ in enumerate(organs.names):
        rows = [row for row, guidance in enumerate(guidances) if guidance in maps[organ]]
        if rows:
            of_organ = tuple(range(column, len(shown), len(organs.names)))
            bars.append(ColourBar("drop", of_organ[rows[-1]], of_organ, below=True))
    value = next(one.value for of in maps.values() for one in of.values())
    return Picture(
        f"Occlusion, every organ: {files.slice_words(item)}",
        shown,
        len(organs.names),
        bars,
        _organ_entries(organs, organs.names),
        f"lines: segmentation; colours: drop of {panels.VALUES.get(value, value)}, "
        "a scale for each organ",
        extra=0.55,
    )


def _best_explained(
    sources: Sources, settings: Settings, guidances: list[str]
) -> tuple[Slice, dict[str, dict[str, Attribution]]]:
    """The first slice with the most maps, and these by organ and guidance."""
    best: tuple[int, SliceName, dict[str, dict[str, Attribution]]] | None = None
    for name in files.shown_names(sources, settings):
        maps = {
            organ: {
                guidance: one
                for guidance in guidances
                for one in files.attributions(
                    sources[f"attributions/occlusion/{guidance}"], name, organ
                )
                if one.primary
            }
            for organ in settings.organs
        }
        count = sum(map(len, maps.values()))
        if count and (best is None or count > best[0]):
            best = count, name, maps
            if count == len(guidances) * len(settings.organs):
                break
    if best is None:
        raise CaseError("No organ of this batch is explained by occlusion.")
    return files.slice_of(sources, best[1]), best[2]


def _organ_entries(organs: colours.Organs, names: list[str]) -> list[Entry]:
    return [
        Entry(f"{organ} ({organs.short(organ)})", organs.colour(organ), organs.line(organ))
        for organ in names
    ]


def _one_per_case(sources: Sources, settings: Settings, count: int) -> list[Slice]:
    """The chosen case first, then others of the batch, spread evenly."""
    chosen = files.shown_names(sources, settings)[0]
    every = {name.case: name for name in reversed(files.slice_names(sources))}
    others = [every[case] for case in sorted(every) if case != chosen.case]
    at = np.linspace(len(others) - 1, 0, min(count - 1, len(others))).round().astype(int)
    return [files.slice_of(sources, name) for name in (chosen, *(others[i] for i in sorted(at)))]
