"""Preprocessing: the equations, the letterbox and its inverse, and nothing out of nothing."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from xaiclip import preprocess as preprocessing
from xaiclip.data.geometry import Geometry
from xaiclip.data.record import Slice
from xaiclip.preprocess import (
    Letterbox,
    PreprocessSettings,
    enhance,
    load_preprocessed,
    preprocess,
    preprocess_slices,
    save_preprocessed,
    to_grey,
)

SETTINGS = PreprocessSettings()
shapes = st.tuples(st.integers(1, 300), st.integers(1, 300))
small = st.tuples(st.integers(1, 64), st.integers(1, 64))
images = hnp.arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40)))


def scan(shape=(180, 240), seed=0):
    """A bright ellipse with structure on black."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]]
    inside = np.hypot((y / shape[0] - 0.5) / 0.4, (x / shape[1] - 0.5) / 0.45) < 1
    grey = 120 + 40 * np.sin(x / 9) + 20 * np.cos(y / 5) + rng.normal(0, 5, shape)
    return np.where(inside, grey, 0).clip(0, 255).astype(np.uint8)


# letterbox


@settings(deadline=None)
@given(shapes, st.integers(1, 256))
def test_letterbox_fits_and_keeps_the_aspect(shape, size):
    box = Letterbox.fit(shape, size)
    assert max(box.height, box.width) == size
    assert 0 <= box.top <= size - box.height - box.top <= box.top + 1
    assert 0 <= box.left <= size - box.width - box.left <= box.left + 1
    scale = size / max(shape)
    assert abs(box.height - max(1, shape[0] * scale)) <= 0.5
    assert abs(box.width - max(1, shape[1] * scale)) <= 0.5


@settings(deadline=None)
@given(st.data(), small, st.integers(64, 100))
def test_a_mask_that_is_enlarged_comes_back_as_it_was(data, shape, size):
    mask = data.draw(hnp.arrays(np.bool_, shape))
    box = Letterbox.fit(shape, size)
    square = box.apply(mask, nearest=True)
    assert square.dtype == bool
    assert square.shape == (size, size)
    np.testing.assert_array_equal(box.invert(square, nearest=True), mask)


@settings(deadline=None)
@given(st.integers(40, 300), st.integers(40, 300), st.data())
def test_a_mask_that_is_reduced_comes_back_to_a_pixel(height, width, data):
    box = Letterbox.fit((height, width), 64)
    pixel = max(height, width) / 64
    y0 = data.draw(st.integers(0, height - 10))
    x0 = data.draw(st.integers(0, width - 10))
    y1 = data.draw(st.integers(y0 + int(2 * pixel) + 1, max(height, y0 + int(2 * pixel) + 1)))
    x1 = data.draw(st.integers(x0 + int(2 * pixel) + 1, max(width, x0 + int(2 * pixel) + 1)))
    mask = np.zeros((height, width), bool)
    mask[y0:y1, x0:x1] = True
    back = box.invert(box.apply(mask, nearest=True), nearest=True)
    rows, columns = np.flatnonzero(back.any(1)), np.flatnonzero(back.any(0))
    found = [rows[0], rows[-1] + 1, columns[0], columns[-1] + 1]
    wanted = [y0, min(y1, height), x0, min(x1, width)]
    assert np.abs(np.subtract(found, wanted)).max() <= pixel + 1


def test_interpolation_and_padding():
    image = scan((400, 300))
    box = Letterbox.fit(image.shape, 200)
    square = box.apply(image)
    np.testing.assert_array_equal(
        box.crop(square), cv2.resize(image, (150, 200), interpolation=cv2.INTER_AREA)
    )
    assert not square[:, : box.left].any()
    assert not square[:, box.left + box.width :].any()
    assert (box.apply(image, fill=9)[:, 0] == 9).all()
    larger = Letterbox.fit((100, 100), 200).apply(image[:100, :100])
    np.testing.assert_array_equal(
        larger, cv2.resize(image[:100, :100], (200, 200), interpolation=cv2.INTER_LINEAR)
    )


@pytest.mark.parametrize("lead", [(), (3,), (2, 3), (0,)])
def test_stacks_of_maps_go_back(lead):
    maps = np.random.default_rng(0).random((*lead, 32, 32)).astype(np.float32)
    box = Letterbox.fit((48, 60), 32)
    back = box.invert(maps)
    assert back.shape == (*lead, 48, 60)
    assert back.dtype == np.float32
    assert back.size == 0 or 0 <= back.min() <= back.max() <= 1


# equations


def reference(image, background_threshold, low, high):
    """Equations 1 to 4, pixel by pixel, and OpenCV's CLAHE."""
    foreground = [int(v) for v in image.ravel() if not v < background_threshold]
    p_low, p_high = np.percentile(foreground, [low, high])
    stretched = np.zeros(image.shape)
    for at, value in np.ndenumerate(image):
        if value >= p_high:
            stretched[at] = 255
        elif value > p_low:
            stretched[at] = 255 * (value - p_low) / (p_high - p_low)
    clahe = cv2.createCLAHE(2.0, (8, 8)).apply(np.rint(stretched).astype(np.uint8))
    return np.where(image < background_threshold, image, clahe)


@pytest.mark.parametrize("threshold", [10, 100, 0])
def test_enhancement_is_equations_1_to_8(threshold):
    image = scan((64, 64))
    image[:4] = 7  # background that is not black
    settings = PreprocessSettings(background_threshold=threshold)
    np.testing.assert_array_equal(enhance(image, settings), reference(image, threshold, 5, 95))
    whole = replace(settings, foreground=False)
    np.testing.assert_array_equal(enhance(image, whole), reference(image, 0, 5, 95))


@settings(deadline=None)
@given(images)
def test_background_keeps_its_value_and_the_foreground_decides_alone(image):
    got = enhance(image)
    background = image < SETTINGS.background_threshold
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got[background], image[background])
    # other grey values in the background change nothing in the stretched foreground
    plain = PreprocessSettings(clip=0)
    other = np.where(background, 3, image).astype(np.uint8)
    np.testing.assert_array_equal(
        enhance(other, plain)[~background], enhance(image, plain)[~background]
    )


@settings(deadline=None)
@given(images)
def test_stretching_keeps_the_order(image):
    got = enhance(image, PreprocessSettings(clip=0, foreground=False))
    order = np.argsort(image, axis=None)
    assert (np.diff(got.ravel()[order].astype(int)) >= 0).all()


@settings(deadline=None)
@given(small, st.integers(0, 255))
def test_constant_slices_stay_constant(shape, value):
    image = np.full(shape, value, np.uint8)
    np.testing.assert_array_equal(enhance(image), image)
    square, box = preprocess(image)
    assert (box.crop(square) == value).all()
    assert set(np.unique(square)) <= {0, value}


@pytest.mark.parametrize("value", [0, 9, 10, 200])
def test_a_constant_body_on_black_is_left_alone(value):
    image = np.zeros((64, 64), np.uint8)
    image[16:48, 16:48] = value
    np.testing.assert_array_equal(enhance(image), image)


def test_contrast_rises():
    image = (scan() * 0.2 + (scan() > 0) * 90).astype(np.uint8)
    body = image > 10
    assert enhance(image)[body].std() > 2 * image[body].std()


# recomputed from the paper's words, on a small slice of odd sides


def odd_slice():
    """78 × 123 pixels in blocks of 3 × 3, with values at and beside the threshold; body at the rim.

    At 41 pixels a block is one pixel: the area's mean is the mean of nine numbers.
    """
    rng = np.random.default_rng(5)
    blocks = rng.integers(40, 230, (26, 41)).astype(float)
    blocks[:, 30:] = rng.integers(0, 12, (26, 11))  # dark, but not to the border on the left
    blocks[4:8, 31:35] = [[9, 10, 11, 8]] * 4
    image = np.kron(blocks, np.ones((3, 3))) + rng.integers(-6, 7, (78, 123))
    image[12:24, 93:105] = np.kron(blocks[4:8, 31:35], np.ones((3, 3)))  # exactly these
    return image.clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    "given",
    [
        PreprocessSettings(size=41),
        PreprocessSettings(41, True, 10, 2, 81, 9.0, 5),
        PreprocessSettings(41, False, 10, 10, 99, 4.0, 3),
        PreprocessSettings(41, clip=0),
    ],
)
def test_letterbox_first_and_then_equations_1_to_8(given):
    image = odd_slice()
    square = np.zeros((41, 41))
    square[7:33] = image.reshape(26, 3, 41, 3).mean((1, 3)).round()  # 15 rows of padding: 7 above
    assert (square == 10).any()
    assert (square == 9).any()
    background = square < 10 if given.foreground else square < 0  # (1), (2)
    values = np.sort(square[~background])
    at = np.array([given.low, given.high]) / 100 * (len(values) - 1)  # (3), linear between ranks
    low, high = np.interp(at, np.arange(len(values)), values)
    stretched = np.interp(square, [low, high], [0, 255]).round().astype(np.uint8)  # (4)
    if given.clip:  # (5)-(7)
        stretched = cv2.createCLAHE(given.clip, (given.tiles,) * 2).apply(stretched)
    wanted = np.where(background, square, stretched)  # (8)
    got, box = preprocess(image, given)
    np.testing.assert_array_equal(got, wanted)
    assert (box.top, box.left, box.height, box.width) == (7, 0, 26, 41)
    if given.foreground:
        assert (got[square == 9] == 9).all()
    turned, box = preprocess(image.T, replace(given, clip=0))
    np.testing.assert_array_equal(turned, preprocess(image, replace(given, clip=0))[0].T)
    assert (box.top, box.left, box.height, box.width) == (0, 7, 41, 26)


@pytest.mark.parametrize(("shape", "size"), [((101, 62), 47), ((33, 58), 80), ((151, 149), 63)])
def test_a_place_is_kept_in_the_letterbox_and_back(shape, size):
    """Ramps say where each value comes from: half a pixel would be seen."""
    rows, columns = (ramp.astype(np.float32) for ramp in np.mgrid[: shape[0], : shape[1]])
    box = Letterbox.fit(shape, size)
    scale = max(shape) / size
    for axis, ramp in ((0, rows), (1, columns)):
        inside = box.crop(box.apply(ramp))
        pixel = shape[axis] / inside.shape[axis]
        wanted = (np.arange(inside.shape[axis]) + 0.5) * pixel - 0.5
        found = inside.mean(1 - axis)
        np.testing.assert_allclose(found[2:-2], wanted[2:-2], atol=0.05 * max(1, scale))
        back = box.invert(box.apply(ramp))
        edge = int(2 * scale) + 2
        np.testing.assert_allclose(
            back[edge:-edge, edge:-edge], ramp[edge:-edge, edge:-edge], atol=0.05 * max(1, scale)
        )
        near = box.crop(box.apply(ramp, nearest=True)).astype(int)
        wanted = np.floor((np.arange(near.shape[axis]) + 0.5) * pixel).astype(int)
        np.testing.assert_array_equal(near.take(0, 1 - axis), wanted)
        square = np.zeros((size, size), np.float32)
        box.crop(square)[:] = (
            np.arange(inside.shape[axis])[:, None] if axis == 0 else np.arange(inside.shape[axis])
        )
        wanted = np.floor((np.arange(shape[axis]) + 0.5) / pixel + 1e-9)
        found = box.invert(square, nearest=True).take(0, 1 - axis)
        np.testing.assert_array_equal(found, wanted)


def test_a_strip_that_shrinks_in_one_direction_is_averaged():
    """Rounded to the same height, but narrower: area interpolation still."""
    image = np.random.default_rng(0).integers(0, 256, (3, 300), dtype=np.uint8)
    box = Letterbox.fit((3, 300), 224)
    assert (box.height, box.width) == (2, 224)
    one = Letterbox((1, 300), 100, 1, 100)
    wanted = image[:1].reshape(1, 100, 3).mean(2).round()
    np.testing.assert_array_equal(one.crop(one.apply(image[:1])), wanted)


def test_the_enhanced_slice_goes_back_smoothly():
    """As figures and the segmenter's ablation see it: linear, no repeated pixels."""
    geometry = Geometry(np.eye(4), (122, 79, 4))
    ramp = np.tile(np.linspace(60, 200, 122), (79, 1)).astype(np.uint8)
    item = Slice("case", 1, "CT", ramp, None, geometry)
    plain = PreprocessSettings(size=60, low=0, high=100, clip=0)
    back = preprocess_slices([item], plain)[0].on_slice_grid().astype(int)
    assert back.shape == (79, 122)
    steps = np.diff(back[40, 4:-4])
    assert (steps >= 0).all()
    assert steps.max() <= 4
    np.testing.assert_allclose(back[40, 4:-4], ((ramp[40, 4:-4] - 60.0) / 140 * 255), atol=3)


def test_labels_are_nearest_and_the_padding_is_background():
    label = np.random.default_rng(2).choice([0, 3, 5, 255], (31, 58)).astype(np.uint8)
    geometry = Geometry(np.eye(4), (58, 31, 4))
    image = np.full((31, 58), 90, np.uint8)
    (piece,) = preprocess_slices([Slice("c", 0, "CT", image, label, geometry)])
    box = piece.letterbox
    assert (box.height, box.width, box.top) == (120, 224, 52)
    rows = ((np.arange(120) + 0.5) * 31 / 120).astype(int)
    columns = ((np.arange(224) + 0.5) * 58 / 224).astype(int)
    np.testing.assert_array_equal(piece.label[52:172], label[np.ix_(rows, columns)])
    assert not piece.label[:52].any()
    assert not piece.label[172:].any()


# the whole


@pytest.mark.parametrize("shape", [(512, 512), (101, 122), (60, 400), (1, 1), (2, 500)])
def test_any_shape(shape):
    square, box = preprocess(scan(shape))
    assert square.shape == (224, 224)
    assert square.dtype == np.uint8
    assert box.shape == shape


def test_colour_becomes_grey_by_bt601():
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (40, 50, 3)).astype(np.uint8)
    luminance = rgb @ np.array([0.299, 0.587, 0.114])
    assert np.abs(to_grey(rgb) - luminance).max() <= 1
    grey = scan()
    np.testing.assert_array_equal(to_grey(np.dstack([grey] * 3)), grey)
    np.testing.assert_array_equal(preprocess(np.dstack([grey] * 3))[0], preprocess(grey)[0])


def slices(count=6):
    geometry = Geometry(np.eye(4), (240, 180, 20))
    label = (scan() > 0).astype(np.uint8) * 4
    return [
        Slice("case", k, "CT", scan(seed=k), label if k % 2 else None, geometry)
        for k in range(count)
    ]


def test_a_batch_does_not_depend_on_threads(tmp_path):
    one, four = preprocess_slices(slices(), threads=1), preprocess_slices(slices(), threads=4)
    assert [piece.key for piece in four] == [f"case/{k}" for k in range(6)]
    for a, b, item in zip(one, four, slices(), strict=True):
        np.testing.assert_array_equal(a.image, b.image)
        np.testing.assert_array_equal(a.image, preprocess(item.image)[0])
        assert a.on_slice_grid().shape == item.image.shape
        if item.label is not None:
            assert set(np.unique(a.label)) == {0, 4}
    save_preprocessed(tmp_path / "batch.npz", one)
    some = load_preprocessed(tmp_path / "batch.npz", {"case/4", "case/1", "other/2"})
    assert [piece.key for piece in some] == ["case/1", "case/4"]
    got = load_preprocessed(tmp_path / "batch.npz")
    for a, b in zip(got, one, strict=True):
        assert a.letterbox == b.letterbox
        assert (a.case, a.index, a.label is None) == (b.case, b.index, b.label is None)
        np.testing.assert_array_equal(a.image, b.image)


def test_slices_that_fail_are_told_in_their_order(monkeypatch):
    def planted(image, settings):
        raise RuntimeError("planted")

    monkeypatch.setattr(preprocessing, "preprocess", planted)
    skips = []
    places = [("b", 11), ("b", 3), ("a", 7), ("b", 4)]
    items = [replace(slices()[0], case=case, index=index) for case, index in places]
    assert preprocess_slices(items, threads=2, skips=skips) == []
    assert [(skip.case, skip.slice) for skip in skips] == [("a", 7), ("b", 3), ("b", 4), ("b", 11)]
