"""ROIs: from probabilities to masks and boxes, the body, the three sources, and their file."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from stored_maps import load_rois
from xaiclip.data.geometry import Geometry
from xaiclip.data.record import Slice
from xaiclip.errors import Skip
from xaiclip.masks.roi import (
    RoiSettings,
    body_mask,
    box_of,
    roi_mask,
    rois_of,
    save_rois,
)
from xaiclip.organs import SIX_CLASSES
from xaiclip.preprocess import Letterbox

SHAPE = (90, 120)
LETTERBOX = Letterbox.fit(SHAPE, 224)


def disk(shape, centre, radius):
    y, x = np.mgrid[: shape[0], : shape[1]]
    return np.hypot(y - centre[0], x - centre[1]) <= radius


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


# probabilities → mask


def test_a_sure_map_gives_its_organ():
    organ = disk(SHAPE, (40, 70), 15)
    probability = LETTERBOX.apply(organ.astype(np.float32), nearest=True)
    mask = roi_mask(probability, LETTERBOX, RoiSettings())
    assert mask.dtype == bool
    assert mask.shape == SHAPE
    assert dice(mask, organ) > 0.98


@pytest.mark.parametrize("highest", [0.0, 0.01, 0.49])
def test_no_roi_is_invented_where_the_organ_is_improbable(highest):
    probability = highest * LETTERBOX.apply(disk(SHAPE, (40, 70), 15).astype(np.float32))
    assert not roi_mask(probability, LETTERBOX, RoiSettings()).any()


def test_the_gaussian_removes_specks():
    probability = np.zeros((224, 224), np.float32)
    probability[100:102, 100:102] = 1
    assert not roi_mask(probability, LETTERBOX, RoiSettings(sigma=1)).any()
    assert roi_mask(probability, LETTERBOX, RoiSettings(sigma=0)).any()


@pytest.mark.parametrize("fraction", [0.05, 0.2, 0.5])
def test_top_fraction_is_a_share_of_the_image_without_the_padding(fraction):
    rng = np.random.default_rng(0)
    probability = ndimage.gaussian_filter(rng.random((224, 224)), 4).astype(np.float32)
    mask = roi_mask(probability, LETTERBOX, RoiSettings("top_fraction", top_fraction=fraction))
    assert mask.mean() == pytest.approx(fraction, abs=0.01)


def test_top_fraction_of_nothing_is_nothing():
    zero = np.zeros((224, 224), np.float32)
    assert not roi_mask(zero, LETTERBOX, RoiSettings("top_fraction")).any()


# recomputed, on slices that are not square


def by_hand(probability, shape, sigma, threshold, fraction=None):
    """Gaussian, cut, nearest pixel of the slice; the letterbox in its own words."""
    size = probability.shape[0]
    height, width = (round(side * size / max(shape)) for side in shape)
    top, left = (size - height) // 2, (size - width) // 2
    smooth = ndimage.gaussian_filter(probability, sigma)[top : top + height, left : left + width]
    if fraction is not None:
        threshold = np.quantile(smooth, 1 - fraction)
    rows = ((np.arange(shape[0]) + 0.5) * height / shape[0]).astype(int)
    columns = ((np.arange(shape[1]) + 0.5) * width / shape[1]).astype(int)
    return (smooth >= threshold)[np.ix_(rows, columns)]


def uneven(seed=0, size=57):
    """Blobs and specks about one half: what is cut first or smoothed first differs."""
    rng = np.random.default_rng(seed)
    blobs = ndimage.gaussian_filter(rng.standard_normal((size, size)), 3)
    noise = rng.standard_normal((size, size))
    return (0.5 + 1.2 * blobs + 0.25 * noise).clip(0, 1).astype(np.float32)


@pytest.mark.parametrize("shape", [(97, 60), (39, 130), (61, 59)])
@pytest.mark.parametrize("sigma", [0, 0.7, 2.5])
@pytest.mark.parametrize("threshold", [0.5, 0.4])
def test_gaussian_then_threshold_then_nearest(shape, sigma, threshold):
    probability = uneven()
    given_settings = RoiSettings(sigma=sigma, threshold=threshold)
    found = roi_mask(probability, Letterbox.fit(shape, 57), given_settings)
    np.testing.assert_array_equal(found, by_hand(probability, shape, sigma, threshold))
    assert 0.02 < found.mean() < 0.98


@pytest.mark.parametrize("fraction", [0.1, 0.7])
def test_top_fraction_recomputed(fraction):
    probability = uneven(1)
    probability[:10] = 1  # the padding of a wide slice must not count
    given_settings = RoiSettings("top_fraction", top_fraction=fraction)
    found = roi_mask(probability, Letterbox.fit((60, 101), 57), given_settings)
    np.testing.assert_array_equal(found, by_hand(probability, (60, 101), 1.0, None, fraction))


def test_one_half_is_in_the_roi():
    half = np.full((56, 56), 0.5, np.float32)
    assert roi_mask(half, Letterbox.fit((97, 61), 56), RoiSettings(sigma=0)).all()
    assert not roi_mask(half - 1e-4, Letterbox.fit((97, 61), 56), RoiSettings(sigma=0)).any()


def test_probabilities_are_not_stretched():
    """A map that hardly rises above one half gives the part that does, not its top half."""
    ramp = np.tile(np.linspace(0, 0.6, 60, dtype=np.float32), (60, 1))
    found = roi_mask(ramp, Letterbox.fit((60, 60), 60), RoiSettings(sigma=0))
    np.testing.assert_array_equal(found, ramp >= 0.5)


# boxes


@settings(deadline=None)
@given(hnp.arrays(np.bool_, st.tuples(st.integers(1, 20), st.integers(1, 20))), st.floats(0, 30))
def test_boxes_hold_the_mask_and_stay_in_the_image(mask, margin):
    box = box_of(mask, margin)
    if not mask.any():
        assert box is None
        return
    x0, y0, x1, y1 = box
    rows, columns = np.nonzero(mask)
    assert box.dtype == np.float32
    assert 0 <= x0 <= columns.min() < columns.max() + 1 <= x1 <= mask.shape[1]
    assert 0 <= y0 <= rows.min() < rows.max() + 1 <= y1 <= mask.shape[0]


def test_box_with_margin():
    mask = np.zeros(SHAPE, bool)
    mask[2:10, 50:60] = True
    assert box_of(mask).tolist() == [50, 2, 60, 10]
    assert box_of(mask, 5).tolist() == [45, 0, 65, 15]


@pytest.mark.parametrize("shape", [(40, 90), (90, 40)])
def test_boxes_are_xyxy_and_cut_at_each_side_of_its_own(shape):
    mask = np.zeros(shape, bool)
    mask[30:36, 4:17] = True
    assert box_of(mask).tolist() == [4, 30, 17, 36]
    assert box_of(mask, 2.5).tolist() == [1.5, 27.5, 19.5, 38.5]
    assert box_of(mask, 30).tolist() == [0, 0, min(47, shape[1]), min(66, shape[0])]


# body


def ct(shape=(200, 240)):
    """Windowed CT: fat around tissue, a lung full of air, and a thin table below."""
    rng = np.random.default_rng(0)
    body = disk(shape, (90, 120), 75)
    image = np.where(body, 38.0, 0)
    image[disk(shape, (90, 120), 62)] = 128
    image[disk(shape, (80, 100), 20)] = 0
    image[disk(shape, (110, 150), 8)] = 255
    image += (image > 0) * rng.normal(0, 8, shape)
    image[168:170, 20:220] = 70  # the table, under the back
    image[30:33, 10:14] = 200  # a wire
    return image.clip(0, 255).astype(np.uint8), body


def mr(noise, shape=(200, 240)):
    """MR: bright fat, darker organs, Rician noise in the air, and a coil that is brighter left."""
    rng = np.random.default_rng(0)
    body = disk(shape, (100, 120), 80)
    signal = np.where(body, 200.0, 0)
    signal[disk(shape, (100, 120), 66)] = 90
    signal *= np.linspace(1.2, 0.8, shape[1])
    image = np.hypot(signal + rng.normal(0, noise, shape), rng.normal(0, noise, shape))
    return image.clip(0, 255).astype(np.uint8), body


def test_body_of_a_ct_holds_fat_and_lung_but_no_table():
    image, body = ct()
    mask = body_mask(image)
    assert dice(mask, body) > 0.98
    assert mask[80, 100]
    assert not mask[168:170, :30].any()
    assert not mask[30:33, 10:14].any()


@pytest.mark.parametrize("noise", [0, 3, 10, 20, 30])
def test_body_of_an_mr_holds_no_noise(noise):
    image, body = mr(noise)
    assert dice(body_mask(image), body) > 0.97


@pytest.mark.parametrize("value", [0, 100, 255])
def test_a_constant_image_has_no_body(value):
    assert not body_mask(np.full((40, 50), value, np.uint8)).any()


@settings(deadline=None)
@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 30), st.integers(1, 30))))
def test_the_body_is_one_piece_in_any_image(image):
    mask = body_mask(image)
    assert mask.shape == image.shape
    assert ndimage.label(mask)[1] <= 1


# sources


def slice_and_maps(label=True):
    organ = disk(SHAPE, (40, 40), 14)
    image = np.where(disk(SHAPE, (45, 60), 42), 120, 0).astype(np.uint8)
    image[organ] = 180
    geometry = Geometry(np.eye(4), (SHAPE[1], SHAPE[0], 5))
    item = Slice("case", 3, "CT", image, organ.astype(np.uint8) if label else None, geometry)
    maps = np.zeros((len(SIX_CLASSES), 224, 224), np.float32)
    maps[1] = LETTERBOX.apply(organ.astype(np.float32))
    maps[0] = 1 - maps[1]
    return item, maps, organ


def test_rois_by_source():
    item, maps, organ = slice_and_maps()
    rois, skips = rois_of(item, maps, LETTERBOX, SIX_CLASSES, RoiSettings(margin=4))
    assert list(rois) == list(SIX_CLASSES[1:])
    liver = rois["liver"]
    np.testing.assert_array_equal(liver["reference"].mask, organ)
    assert liver["reference"].box.tolist() == [22, 22, 59, 59]
    assert dice(liver["localizer"].mask, organ) > 0.97
    np.testing.assert_array_equal(liver["body"].mask, body_mask(item.image))
    assert rois["spleen"]["localizer"].box is None
    assert rois["spleen"]["reference"].box is None
    assert [(skip.organ, skip.slice, skip.stage) for skip in skips] == [
        (name, 3, "roi") for name in SIX_CLASSES[2:]
    ]
    assert "does not find the spleen" in {skip.organ: skip for skip in skips}["spleen"].reason


ORDER = ("background", "spleen", "liver", "right kidney", "aorta")  # not the alphabet's


@pytest.mark.parametrize("shape", [(90, 150), (131, 77)])
def test_every_organ_has_its_own_map_label_and_box(shape):
    """Discs at different places, each with its own value; sources do not mix."""
    letterbox = Letterbox.fit(shape, 224)
    centres = {1: (20, 20), 2: (60, 25), 3: (25, 60), 4: (65, 62)}
    label = np.zeros(shape, np.uint8)
    maps = np.zeros((5, 224, 224), np.float32)
    organs = {}
    for index, (row, column) in centres.items():
        organs[ORDER[index]] = disk(shape, (row, column), 5 + index)
        # the reference lies two columns beside what the localizer finds
        label[disk(shape, (row, column + 2), 5 + index)] = index
        maps[index] = letterbox.apply(organs[ORDER[index]].astype(np.float32))
    geometry = Geometry(np.eye(4), (shape[1], shape[0], 5))
    item = Slice("case", 3, "CT", np.full(shape, 99, np.uint8), label, geometry)
    rois, skips = rois_of(item, maps, letterbox, ORDER, RoiSettings(margin=3, sigma=0.5))
    assert not skips
    assert list(rois) == list(ORDER[1:])
    for index, (row, column) in centres.items():
        roi = rois[ORDER[index]]
        assert dice(roi["localizer"].mask, organs[ORDER[index]]) > 0.95
        radius = 5 + index
        wanted = np.array([column - radius, row - radius, column + radius + 1, row + radius + 1])
        grown = wanted + [-3, -3, 3, 3]
        np.testing.assert_allclose(roi["localizer"].box, grown, atol=1)
        np.testing.assert_array_equal(roi["reference"].mask, label == index)
        np.testing.assert_array_equal(roi["reference"].box, grown + [2, 0, 2, 0])


def test_boxes_survive_the_file_as_they_are(tmp_path):
    item, maps, _ = slice_and_maps()
    rois, _ = rois_of(item, maps, LETTERBOX, SIX_CLASSES, RoiSettings(margin=2.25))
    save_rois(tmp_path / "rois.npz", {item.key: rois})
    got, _ = load_rois(tmp_path / "rois.npz")
    box = got[item.key]["liver"]["localizer"].box
    assert box.dtype == np.float32
    assert box.tolist() == rois["liver"]["localizer"].box.tolist()
    assert not (box == box.round()).all()


def test_without_label_there_is_no_reference():
    item, maps, _ = slice_and_maps(label=False)
    rois, _ = rois_of(item, maps, LETTERBOX, SIX_CLASSES, RoiSettings())
    assert set(rois["liver"]) == {"localizer", "body"}


def test_a_tiny_roi_counts_as_empty():
    item, maps, _ = slice_and_maps()
    count = int(
        rois_of(item, maps, LETTERBOX, SIX_CLASSES, RoiSettings())[0]["liver"][
            "localizer"
        ].mask.sum()
    )
    for least, empty in ((count, False), (count + 1, True)):
        rois, skips = rois_of(item, maps, LETTERBOX, SIX_CLASSES, RoiSettings(min_pixels=least))
        assert (rois["liver"]["localizer"].box is None) == empty
        assert ("liver" in {skip.organ for skip in skips}) == empty


def test_file_of_a_batch(tmp_path):
    item, maps, _ = slice_and_maps()
    rois, skips = rois_of(item, maps, LETTERBOX, SIX_CLASSES, RoiSettings())
    save_rois(tmp_path / "rois.npz", {item.key: rois, "empty/0": {}}, skips)
    got, got_skips = load_rois(tmp_path / "rois.npz")
    assert got_skips == skips
    assert got["empty/0"] == {}
    assert list(got[item.key]) == list(rois)
    for organ, sources in rois.items():
        assert list(got[item.key][organ]) == list(sources)
        for source, roi in sources.items():
            again = got[item.key][organ][source]
            assert again.mask.dtype == bool
            np.testing.assert_array_equal(again.mask, roi.mask)
            np.testing.assert_array_equal(again.box, roi.box)
    save_rois(tmp_path / "none.npz", {}, [Skip("a", "roi", "why")])
    assert load_rois(tmp_path / "none.npz") == ({}, [Skip("a", "roi", "why")])
