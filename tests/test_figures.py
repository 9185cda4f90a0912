"""Every figure, from a made-up study, from studies with nothing in them, and in grey."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text
from skimage.color import rgb2lab

import table_study
from figure_study import (
    ATTRIBUTIONS,
    BATCH,
    CLASSES,
    drawn_slice,
    files_of,
    make_study,
    settings_of,
)
from stored_maps import load_attributions
from xaiclip.errors import CaseError, Skip
from xaiclip.explain.store import load_scores
from xaiclip.metrics.schema import EXPLANATIONS, write_table
from xaiclip.report import colours, figures_stages, sources, style
from xaiclip.report.figures import DATA, FIGURES, draw
from xaiclip.report.picture import ColourBar, Entry, Note, Panel, Picture, Words
from xaiclip.report.sources import sources_of
from xaiclip.report.words import plain

pytestmark = pytest.mark.slow

LIVER = settings_of(CLASSES)


def words_of(figure: Figure) -> str:
    texts = [text.get_text() for text in figure.findobj(match=Text)]
    return " ".join(" ".join(texts).split())


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two explained cases; the second has no spleen and no reference."""
    first = drawn_slice("a", 1)
    second = drawn_slice("b", 2, without="spleen")
    root = tmp_path_factory.mktemp("runs") / "results" / "demo"
    return make_study(root, [first, replace(second, label=None)], truth=[first, second])


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slice in which nothing is found: no mask, no map."""
    blank = drawn_slice("a", 1)
    assert blank.label is not None
    nothing = replace(blank, label=np.zeros_like(blank.label))
    root = tmp_path_factory.mktemp("runs") / "results" / "demo"
    return make_study(root, [blank], truth=[nothing])


#: Panels, colour bars and entries of the legend.
PARTS = {
    "figure02_preprocessing": (4, 1, 0),
    "figure03_lime_superpixels": (4, 1, 0),
    "figure04_rise": (2, 1, 1),
    "figure05_occlusion": (3, 1, 1),
    "figure06_selective_occlusion": (4, 1, 2),
    "figure07_occlusion_overview": (6, 2, 3),
    "figure08_comparison": (4, 0, 2),
    "figure09_localization": (6, 1, 5),
    "figure10_occlusion_maps": (10, 5, 5),
    "figure11_lime_distributions": (2, 0, 6),
    "figure12_lime_stages": (6, 1, 2),
    "figure13_rise_stages": (6, 5, 1),
    "shapley_matrix": (2, 1, 0),
    "slices": (3, 0, 0),
    "training_curves": (3, 0, 0),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_drawn_and_saved(study: Path, name: str, tmp_path: Path) -> None:
    figure = FIGURES[name](files_of(study, name), LIVER)
    panels, bars, entries = PARTS[name]
    assert len(figure.axes) == panels + bars
    titles = [axes.get_title(loc="left") for axes in figure.axes[:panels]]
    assert all(f"({letter})" in title for letter, title in zip("abcdefghij", titles, strict=False))
    assert sum(len(legend.get_texts()) for legend in figure.legends) == entries
    assert figure.get_suptitle()
    path = tmp_path / "out" / f"{name}.png"
    style.save(figure, path, 40)
    pixels = imread(path)
    assert 200 < pixels.shape[1] < 300
    assert 60 < pixels.shape[0] < 400
    # each panel has ink, and not of one tone
    figure.canvas.draw()
    whole = np.asarray(figure.canvas.buffer_rgba())[..., :3]
    for axes in figure.axes[:panels]:
        box = axes.get_window_extent()
        rows = slice(round(whole.shape[0] - box.y1), round(whole.shape[0] - box.y0))
        inside = whole[rows, round(box.x0) : round(box.x1)]
        assert len(np.unique(inside.reshape(-1, 3), axis=0)) > 5


def test_the_same_files_give_the_same_bytes(study: Path, tmp_path: Path) -> None:
    name = "figure04_rise"
    for path in ("one.png", "two.png"):
        style.save(FIGURES[name](files_of(study, name), LIVER), tmp_path / path, 40)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTRIBUTIONS)
def test_titles_name_the_case_and_axes_have_units(study: Path, name: str) -> None:
    words = words_of(FIGURES[name](files_of(study, name), replace(LIVER, case="b")))
    assert "case b (CT), slice 7" in words
    assert "5 cm" in words
    assert "soft Dice" in words
    if name != "figure10_occlusion_maps":
        assert "liver" in words


# --- nothing to show ---


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        *((name, "The liver is not explained in this batch. Left out: a: the unperturbed")
          for name in ATTRIBUTIONS if name != "figure10_occlusion_maps"),
        ("figure10_occlusion_maps", "No organ of this batch is explained by occlusion."),
        ("figure08_comparison", "No organ of any case is explained: see skipped.tsv"),
        ("figure11_lime_distributions", "No organ of any case is explained"),
        ("shapley_matrix", "No organ of any case is explained"),
        ("slices", "No organ of the case is explained: see skipped.tsv"),
    ],
)  # fmt: skip
def test_an_empty_study_gets_a_sentence(empty: Path, name: str, sentence: str) -> None:
    files = {key: path for key, path in files_of(empty, name).items() if key != "localizer"}
    figure = FIGURES[name](files, LIVER)
    assert sentence in words_of(figure)
    assert not figure.axes


@pytest.mark.parametrize("name", ["figure02_preprocessing", "figure09_localization"])
def test_images_are_shown_though_nothing_is_explained(empty: Path, name: str) -> None:
    data = DATA[name](files_of(empty, name), LIVER)
    grey = drawn_slice("a", 1).image
    assert {panel.item.case for panel in data.panels} == {"a"}
    for panel in data.panels:
        np.testing.assert_array_equal(panel.item.image, grey)
    layers = [type(layer).__name__ for panel in data.panels for layer in panel.layers]
    # the reference is there, and nothing was found
    reference = ["Fill", "Outline", "Words"] * 5 + ["Heat"] + ["Outline"] * 5
    assert layers == ([] if name == "figure02_preprocessing" else reference)


def test_no_slice_at_all(tmp_path: Path) -> None:
    make_study(tmp_path, [], skips=[Skip("a", "slices", "a.nii.gz: is truncated; copy it again.")])
    for name in [*ATTRIBUTIONS, "figure02_preprocessing", "figure09_localization"]:
        words = words_of(FIGURES[name](files_of(tmp_path, name), LIVER))
        assert "No slice of this batch could be used. Left out: a: a.nii.gz: is truncated" in words


def test_an_organ_or_a_case_that_is_missing(study: Path) -> None:
    name = "figure05_occlusion"
    settings = replace(LIVER, organ="spleen", case="b")
    words = words_of(FIGURES[name](files_of(study, name), settings))
    assert "The spleen is not explained in case b. Left out: b: the unperturbed seg" in words
    words = words_of(FIGURES[name](files_of(study, name), replace(LIVER, case="none")))
    assert "No slice of case none could be used." in words


def test_an_organ_without_a_map_leaves_its_panels(study: Path) -> None:
    name = "figure10_occlusion_maps"
    words = words_of(FIGURES[name](files_of(study, name), replace(LIVER, case="b")))
    assert words.count("not explained") == 2


def test_a_case_without_a_reference_says_so(study: Path) -> None:
    name = "figure09_localization"
    assert "This case has no reference." in words_of(FIGURES[name](files_of(study, name), LIVER))


@pytest.mark.slow
def test_an_estimator_that_is_switched_off(tmp_path: Path) -> None:
    settings = {"rise": {"masks": 12, "estimators": ["covariance"]}}
    make_study(tmp_path, [drawn_slice("a")], settings=settings)
    name = "figure13_rise_stages"
    assert "'paper' is switched off" in words_of(FIGURES[name](files_of(tmp_path, name), LIVER))


# --- names that hold anything ---

NASTY = ["$\\frac{1}{2$", "cost $5$ each", "two\nlines", "<script>", "a\x1b[31mb", "\u202eevil",
         "\\$x", "100%", "{0}", "$"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", NASTY)
def test_names_are_shown_letter_by_letter(tmp_path: Path, name: str) -> None:
    """As names of a case and of an organ; figures are drawn, saved, and read no mathematics."""
    shown = plain(name)
    classes = ["background", name]
    item = replace(drawn_slice("x", 1), case=name)
    mask = np.zeros(item.image.shape, bool)
    mask[30:60, 40:80] = True
    picture = Picture(
        f"case {name}",
        [Panel(name, item, (Words(mask, name), Note(name)), side=name), Panel(name, item)],
        2,
        [ColourBar(name, 0, (0, 1))],
        [Entry(name, "#000000")],
        name,
    )
    with rc_context(style.STYLE):
        figure = draw(picture)
        sentence = style.sentence_figure(name, f"{name}: {name}.")
        style.legend(sentence, colours.Organs(classes).handles([name]))
    for one in (figure, sentence):
        style.save(one, tmp_path / "x.png", 40)
        for text in one.findobj(match=Text):
            words = text.get_text()
            if "$" in words:
                assert text.get_parse_math() == words.startswith("$\\bf{("), words
            assert words.replace("\n", "").isprintable()
    titles = [axes.get_title(loc="left") for axes in figure.axes[:2]]
    # what stands behind the letter is no mathematics: each dollar is escaped
    for letter, title in zip("ab", titles, strict=True):
        assert title == f"$\\bf{{({letter})}}$ " + shown.replace("$", "\\$")
    assert figure.get_suptitle() == f"case {shown}"
    assert figure.axes[2].get_ylabel() == shown
    assert figure.legends[0].get_texts()[0].get_text() == shown
    assert figure.legends[0].get_title().get_text() == shown
    words = [" ".join(text.get_text().split()) for text in figure.axes[0].texts]
    assert words.count(shown) == 3  # the word, the note, and the side


@pytest.mark.slow
def test_a_method_of_a_nasty_name_is_drawn(tmp_path: Path) -> None:
    rows = [
        {**row, "method": "$m|\n$"} if row["method"] == "gradient" else row
        for row in table_study.explanation_rows()
        if row["case"] == "abe"
    ]
    write_table(tmp_path / "x.parquet", rows, EXPLANATIONS)
    figure = FIGURES["figure08_comparison"]({"metrics": tmp_path / "x.parquet"}, LIVER)
    style.save(figure, tmp_path / "x.png", 40)
    ticks = [text.get_text() for text in figure.axes[0].get_xticklabels()]
    assert ticks == ["occlusion", "LIME", "RISE", "$m| $"]


# --- reading ---


def test_one_organ_is_read_as_the_whole_file_is(study: Path) -> None:
    path = study / f"attributions/lime/roi/{BATCH}.npz"
    subject = sources.choose_subject({"slices": study / f"slices/{BATCH}.npz"}, LIVER)
    found = sources.attributions(path, subject.item, "pancreas")
    whole = [
        one for case, _, one in load_attributions(path) if (case, one.organ) == ("a", "pancreas")
    ]
    assert len(found) == len(whole) > 1
    for one, other in zip(found, whole, strict=True):
        np.testing.assert_array_equal(one.map, other.map)
        arrays = {"map": 0, "error": 0}  # no figure shows the error
        assert vars(one) | arrays == vars(other) | arrays


def test_a_stored_mask_is_drawn_as_the_plan_draws_it(study: Path) -> None:
    path = study / f"scores/rise/roi/{BATCH}.npz"
    subject = sources.choose_subject({"slices": study / f"slices/{BATCH}.npz"}, LIVER)
    stored = sources.plan(path, subject)
    plan = load_scores(path)[0][0].plans["masks"]
    for k in (0, 5):
        expected = plan.keep(k, k + 1, 512, torch.device("cpu"))[0, 0].numpy()
        np.testing.assert_allclose(figures_stages.draw_mask(stored, k), expected, atol=1e-5)
    assert stored["members"].shape == (plan.n_forwards,)
    with pytest.raises(CaseError, match="no perturbations"):
        sources.plan(path, replace(subject, organ="gallbladder"))


def test_files_are_keyed_by_their_folder() -> None:
    paths = ["results/roi/scores/lime/roi/test-0.npz", "results/roi/localizer/text/training.csv"]
    assert list(sources_of(paths, "results/roi")) == ["scores/lime/roi", "localizer/text"]


# --- colours ---


@pytest.mark.parametrize("colours", [colours.SIGNED, colours.UNSIGNED])
def test_brighter_is_more(colours: object) -> None:
    light = rgb2lab(colours(np.linspace(0, 1, 256))[None, :, :3])[0, :, 0]
    assert (np.diff(light) > -0.05).all()
    assert light[-1] - light[0] > 50


def test_zero_is_grey_and_scales_are_symmetric() -> None:
    middle = colours.SIGNED(0.5)[:3]
    assert np.ptp(middle) < 0.02
    norm = style.symmetric([np.array([[-1.0, np.nan], [3.0, 0.0]])])
    assert norm.vmin == -norm.vmax
    assert 2.9 < norm.vmax <= 3
    for maps in ([], [np.full((2, 2), np.nan)], [np.zeros((2, 2))]):
        assert style.symmetric(maps).vmax == 1
        assert style.spread(maps).vmax > style.spread(maps).vmin


def test_undefined_pixels_show_the_plain_slice() -> None:
    item = drawn_slice("a")
    values = np.full((512, 512), np.nan)
    values[:, 256:] = 0.5

    def pixels(with_map: bool) -> np.ndarray:
        figure, axes = style.picture_grid("", 1, 1, item)
        style.show_slice(axes[0, 0], item, marks=False)
        if with_map:
            style.show_map(axes[0, 0], item, values, norm=style.symmetric([values]))
        figure.canvas.draw()
        return np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(int)

    changed = (pixels(True) != pixels(False)).any(-1)
    columns = np.flatnonzero(changed.any(0))
    assert len(columns) < 0.55 * changed.any(0).size
    assert columns.min() > 0.4 * changed.shape[1]


def test_pictures_keep_the_shape_of_their_pixels() -> None:
    item = drawn_slice("a")
    figure, axes = style.picture_grid("", 1, 1, item)
    style.show_slice(axes[0, 0], item)
    figure.canvas.draw()
    box = axes[0, 0].get_window_extent()
    assert box.height / box.width == pytest.approx(96 * 3.0 / (128 * 2.5), rel=0.01)


def test_organs_can_be_told_apart_without_colour() -> None:
    organs = colours.Organs(CLASSES)
    for look in (organs.line, organs.marker, organs.short, organs.colour):
        assert len({str(look(organ)) for organ in organs.names}) == len(organs.names)
