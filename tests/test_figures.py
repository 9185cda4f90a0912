"""Every figure, from a made-up study, from studies with nothing in them, and in grey."""

import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text
from skimage.color import rgb2lab

from figure_study import BATCH, CLASSES, drawn_slice, make_study
from xaiclip.errors import CaseError, Skip
from xaiclip.explain.attribution import load_attributions
from xaiclip.explain.store import load_scores
from xaiclip.report import colours, figures_stages, sources, style
from xaiclip.report.figures import FIGURES
from xaiclip.report.sources import Settings, sources_of

LIVER = Settings(CLASSES)
ONE_BATCH = ("slices", "preprocessed", "localization/text", "roi", "segmentation")
METHODS = [f"{m}/{g}" for m in ("occlusion", "lime", "rise") for g in ("full", "roi")]
FOLDERS = [
    *ONE_BATCH,
    *(f"{kind}/{name}" for kind in ("scores", "attributions") for name in METHODS),
]
ATTRIBUTIONS = {
    "figure03_lime_superpixels": ["lime/full"],
    "figure04_rise": ["rise/roi"],
    "figure05_occlusion": ["occlusion/full"],
    "figure06_selective_occlusion": ["occlusion/full", "occlusion/roi"],
    "figure07_occlusion_overview": ["occlusion/roi"],
    "figure10_occlusion_maps": ["occlusion/full", "occlusion/roi"],
    "figure12_lime_stages": ["lime/full", "lime/roi"],
    "figure13_rise_stages": ["rise/full", "rise/roi"],
}  # fmt: skip


def files_of(root: Path, name: str) -> dict[str, Path]:
    """What a figure is given: its own attributions and every other file."""
    own = ATTRIBUTIONS.get(name, [])
    paths = [
        root / folder / f"{BATCH}.npz"
        for folder in FOLDERS
        if not folder.startswith("attributions/") or folder.removeprefix("attributions/") in own
    ]
    paths += [root / f"localizer/{variant}/training.csv" for variant in ("text", "no_text")]
    return sources_of([*paths, root / "metrics/explanations.parquet"], root)


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


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_drawn(study: Path, name: str, tmp_path: Path) -> None:
    figure = FIGURES[name](files_of(study, name), LIVER)
    path = tmp_path / "out" / f"{name}.png"
    style.save(figure, path, 40)
    assert len(figure.axes) > 1
    data = path.read_bytes()
    width, height = struct.unpack(">II", data[16:24])
    assert 200 < width < 300
    assert 60 < height < 400


def test_the_same_files_give_the_same_bytes(study: Path, tmp_path: Path) -> None:
    name = "figure04_rise"
    for path in ("one.png", "two.png"):
        style.save(FIGURES[name](files_of(study, name), LIVER), tmp_path / path, 40)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


@pytest.mark.parametrize("name", ATTRIBUTIONS)
def test_titles_name_the_case_and_axes_have_units(study: Path, name: str) -> None:
    words = words_of(FIGURES[name](files_of(study, name), replace(LIVER, case="b")))
    assert "case b (CT), slice 7" in words
    assert "5 cm" in words
    assert "soft Dice" in words
    if name != "figure10_occlusion_maps":
        assert "liver" in words


def test_numbers_of_the_comparison_are_those_of_the_table(study: Path) -> None:
    figure = FIGURES["figure08_comparison"](files_of(study, "figure08_comparison"), LIVER)
    rows = pd.read_parquet(study / "metrics/explanations.parquet")
    rows = rows[rows.primary & rows.skipped.isna() & (rows.method == "rise")]
    expected = [
        rows[rows.guidance == guidance].groupby("case").fidelity_dice.mean().mean()
        for guidance in ("full", "roi")
    ]
    bars = [patch for patch in figure.axes[0].patches if patch.get_width() > 0]
    np.testing.assert_allclose([bar.get_height() for bar in bars[-2:]], expected)
    assert [text.get_text() for text in figure.axes[0].texts] == ["2"] * 6


def test_costs_that_differ_much_get_a_logarithmic_axis(study: Path, tmp_path: Path) -> None:
    name = "figure08_comparison"
    rows = pd.read_parquet(study / "metrics/explanations.parquet")
    rows.loc[rows.method == "rise", "gflops_total"] *= 100
    rows.to_parquet(tmp_path / "explanations.parquet")
    figure = FIGURES[name]({"metrics": tmp_path / "explanations.parquet"}, LIVER)
    assert [axes.get_yscale() for axes in figure.axes[:3]] == ["linear", "linear", "log"]
    assert "GFLOPs" in figure.axes[2].get_ylabel()


# --- nothing to show ---


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        *((name, "The liver is not explained in this batch. Left out: a: the unperturbed")
          for name in ATTRIBUTIONS if name != "figure10_occlusion_maps"),
        ("figure10_occlusion_maps", "No organ of this batch is explained by occlusion."),
        ("figure08_comparison", "No organ of any case is explained: see skipped.tsv"),
        ("figure11_lime_distributions", "No organ of any case is explained"),
    ],
)  # fmt: skip
def test_an_empty_study_gets_a_sentence(empty: Path, name: str, sentence: str) -> None:
    files = {key: path for key, path in files_of(empty, name).items() if key != "localizer"}
    figure = FIGURES[name](files, LIVER)
    assert sentence in words_of(figure)
    assert not figure.axes


@pytest.mark.parametrize("name", ["figure02_preprocessing", "figure09_localization"])
def test_images_are_shown_though_nothing_is_explained(empty: Path, name: str) -> None:
    assert len(FIGURES[name](files_of(empty, name), LIVER).axes) > 1


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


@pytest.mark.parametrize("text", ["epoch,train_loss,selected\n1,2.5,0\n2,2.1,1\n", "epoch\n"])
def test_training_without_validation_or_epochs(tmp_path: Path, text: str) -> None:
    (tmp_path / "training.csv").write_text(text)
    figure = FIGURES["training_curves"]({"localizer/text": tmp_path / "training.csv"}, LIVER)
    words = words_of(figure)
    assert "no validation case" in words or "not trained for a single epoch" in words


def test_an_estimator_that_is_switched_off(tmp_path: Path) -> None:
    settings = {"rise": {"masks": 12, "estimators": ["covariance"]}}
    make_study(tmp_path, [drawn_slice("a")], settings=settings)
    name = "figure13_rise_stages"
    assert "'paper' is switched off" in words_of(FIGURES[name](files_of(tmp_path, name), LIVER))


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
