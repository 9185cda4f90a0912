"""What tests of gradient methods share."""

import numpy as np
import torch
from torch import Tensor

from explain_fakes import PROMPTS, FakeSegmenter, context, picture
from xaiclip.explain.gradients import differentiate
from xaiclip.explain.values import VALUES
from xaiclip.targets import SegmenterScorer

VALUE_NAMES = ("soft_dice", "in_mask_probability")
METHODS = {
    "integrated_gradients": {"steps": 6},
    "gradient_shap": {"samples": 10},
    "grad_cam": {"layer": "2"},
}


def scorer(model=None, values=VALUE_NAMES, prompts=PROMPTS):
    model = model or FakeSegmenter()
    return SegmenterScorer(model, prompts, model.prepare(picture()), values)


def asked(explainer, settings, *, mine=None, fill="mean", batch=4, **changes):
    mine = mine or scorer()
    known = {"explained": VALUE_NAMES, "settings": settings, **changes}
    return differentiate(explainer, mine, context(**known), fill, batch)


def by_hand(model, value, organ, mask):
    """The same score without any code of ours between the model and captum."""

    def score(images: Tensor) -> Tensor:
        probability = model.decode(model.encode(images), PROMPTS).sigmoid()
        return VALUES[value](probability, mask)[:, organ]

    return score


def seeded(attribute, seed=3):
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)
    return attribute()


def each(mine):
    """Every map of a scorer: its place, and the score by hand."""
    for o in range(2):
        for v, value in enumerate(VALUE_NAMES):
            yield o, v, by_hand(mine.segmenter, value, o, mine.mask)
