import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from xaiclip.metrics.localization import PooledAuc, localizer_scores

CLASSES = ["background", "liver", "spleen"]


def example(seed: int, shape: tuple[int, int] = (12, 10), noise: float = 1.0):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, len(CLASSES), shape).astype(np.uint8)
    logits = noise * rng.standard_normal((len(CLASSES), *shape))
    logits += 2.0 * (label == np.arange(len(CLASSES))[:, None, None])
    prob = np.exp(logits) / np.exp(logits).sum(axis=0)
    return prob.astype(np.float32), label


def test_rows_of_a_slice() -> None:
    prob, label = example(0)
    rows = localizer_scores(prob, label, CLASSES)
    assert [row["class"] for row in rows] == CLASSES
    for index, row in enumerate(rows):
        truth, found = label == index, prob.argmax(0) == index
        assert row["n_pixels"] == truth.sum()
        assert row["auc_roc"] == pytest.approx(roc_auc_score(truth.ravel(), prob[index].ravel()))
        assert row["dice"] == pytest.approx(2 * (truth & found).sum() / (truth.sum() + found.sum()))


def test_a_perfect_map() -> None:
    label = np.array([[0, 1], [2, 2]], np.uint8)
    prob = (label == np.arange(3)[:, None, None]).astype(np.float32)
    assert all(row["dice"] == row["auc_roc"] == 1 for row in localizer_scores(prob, label, CLASSES))


def test_dice_is_of_the_most_probable_class_and_auc_of_the_probability() -> None:
    """By hand: a class can win below one half, and be ranked right where it never wins."""
    label = np.array([[1, 1, 0, 2]], np.uint8)
    prob = np.array(
        [[[0.30, 0.41, 0.60, 0.4]], [[0.40, 0.39, 0.30, 0.4]], [[0.30, 0.20, 0.10, 0.2]]],
        np.float32,
    )  # winners: liver, background, background, background
    background, liver, spleen = localizer_scores(prob, label, CLASSES)
    assert [row["dice"] for row in (background, liver, spleen)] == pytest.approx([1 / 2, 2 / 3, 0])
    # liver: 0.40 and 0.39 against 0.30 and 0.4 (a tie); spleen: 0.2 against 0.3, 0.2 (tie), 0.1
    assert liver["auc_roc"] == pytest.approx((1 + 0.5 + 1 + 0) / 4)
    assert spleen["auc_roc"] == pytest.approx((0 + 0.5 + 1) / 3)


def test_absent_and_omnipresent_classes_have_no_score() -> None:
    prob, _ = example(1)
    rows = localizer_scores(prob, np.zeros(prob.shape[1:], np.uint8), CLASSES)
    assert math.isnan(rows[0]["auc_roc"])
    assert not math.isnan(rows[0]["dice"])
    assert math.isnan(rows[1]["dice"])  # predicted somewhere, yet not in the reference
    assert math.isnan(rows[1]["auc_roc"])


def test_unlabelled_pixels_count_nowhere() -> None:
    prob, label = example(2)
    hidden = label.copy()
    hidden[:, 5:] = 255
    assert localizer_scores(prob, hidden, CLASSES) == localizer_scores(
        prob[:, :, :5], label[:, :5], CLASSES
    )
    nothing = localizer_scores(prob, np.full_like(label, 255), CLASSES)
    assert all(math.isnan(row["dice"]) and math.isnan(row["auc_roc"]) for row in nothing)


def test_shapes_that_do_not_fit_are_refused() -> None:
    prob, label = example(3)
    with pytest.raises(ValueError, match="do not fit"):
        localizer_scores(prob[:2], label, CLASSES)
    with pytest.raises(ValueError, match="do not fit"):
        PooledAuc(CLASSES).update(prob, label[:-1])


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 1000), st.sampled_from([0.1, 1.0, 6.0]))
def test_pooled_auc_is_that_of_all_pixels(seed: int, noise: float) -> None:
    # as the maps are stored
    parts = [
        (prob.astype(np.float16), label)
        for prob, label in (example(seed + k, noise=noise) for k in range(3))
    ]
    pooled = PooledAuc(CLASSES)
    for prob, label in parts:
        pooled.update(prob, label)
    scores = np.concatenate([prob.reshape(3, -1) for prob, _ in parts], axis=1)
    labels = np.concatenate([label.ravel() for _, label in parts])
    for index, name in enumerate(CLASSES):
        exact = roc_auc_score(labels == index, scores[index])
        assert pooled.auc()[name] == pytest.approx(exact, abs=1e-3)


def test_pooled_auc_adds_up_and_round_trips() -> None:
    one, two, both = PooledAuc(CLASSES), PooledAuc(CLASSES), PooledAuc(CLASSES)
    for part, seed in ((one, 1), (two, 2)):
        part.update(*example(seed))
        both.update(*example(seed))
    assert (one + two).auc() == both.auc()
    assert PooledAuc(CLASSES, both.counts).auc() == both.auc()
    with pytest.raises(ValueError, match="other classes"):
        one + PooledAuc(CLASSES[:2])
    with pytest.raises(ValueError, match="shape"):
        PooledAuc(CLASSES[:2], both.counts)


def test_pooled_auc_of_nothing_and_of_certainties() -> None:
    pooled = PooledAuc(CLASSES)
    assert all(map(math.isnan, pooled.auc().values()))
    label = np.array([[0, 1], [2, 2]], np.uint8)
    pooled.update((label == np.arange(3)[:, None, None]).astype(np.float32), label)
    assert set(pooled.auc().values()) == {1.0}
