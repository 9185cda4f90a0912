"""MedSAM at its real size: 314 tensors of a ViT-B, one slice of 1024 × 1024, on a CPU."""

import numpy as np
import pytest
import torch
from segment_anything import sam_model_registry

from explain_fakes import run_of
from xaiclip.explain.runner import Request, score_slice
from xaiclip.models.segmenters.loading import load_segmenter
from xaiclip.models.segmenters.sam import SamSegmenter

pytestmark = pytest.mark.slow

BOX = (200.0, 300.0, 700.0, 800.0)


@pytest.fixture(scope="module")
def state():
    """Random weights under the published names; positions too, which begin as zeros."""
    with torch.device("meta"):
        model = sam_model_registry["vit_b"]()
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: torch.empty(value.shape).normal_(0, 0.02, generator=generator)
        for name, value in model.state_dict().items()
    }
    assert len(weights) == 314
    return weights


def load(state, path):
    """As somebody tuned it on several devices; test_segmenters.py has the other forms, small."""
    torch.save({"model": {f"module.{name}": value for name, value in state.items()}}, path)
    segmenter = load_segmenter({"model": "medsam", "checkpoint": str(path)}, "cpu", "fp32")
    path.unlink()
    assert isinstance(segmenter, SamSegmenter)
    return segmenter


@pytest.mark.slow
def test_its_weights_load_and_explain_as_segment_anything_would(state, tmp_path):
    segmenter = load(state, tmp_path / "medsam.pth")
    loaded = segmenter.sam.state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], value) for name, value in state.items())

    seen = []

    class Spy:
        """The segmenter, with what went in and came out."""

        name, device, precision = segmenter.name, segmenter.device, segmenter.precision
        input_size = segmenter.input_size
        prepare = staticmethod(segmenter.prepare)

        def encode(self, inputs):
            seen.append([inputs])
            return segmenter.encode(inputs)

        def decode(self, embeddings, prompts):
            logits = segmenter.decode(embeddings, prompts)
            seen[-1].append(logits)
            # random weights may leave the mask empty; a shift fills half of it
            return logits - seen[0][1].median()

    image = np.random.default_rng(0).integers(0, 256, (1024, 1024), dtype=np.uint8)
    corner = np.zeros((1024, 1024), bool)
    corner[:400, :300] = True  # meets one of the four windows
    target = Request("case", 0, image, {"liver": np.array(BOX)}, {"liver": corner}, "roi")
    windows = run_of("occlusion", {"window": 256, "stride": 256, "min_overlap": 0.0}, batch_size=1)
    scores, skips = score_slice(Spy(), target, windows)
    assert not skips
    (table,) = scores.tables.values()
    assert table.scores.shape[:2] == (1, 1)
    assert np.isfinite(table.scores).all()

    (whole, _), (inputs, logits) = seen  # the slice, then the window
    assert inputs.shape == (1, 3, 1024, 1024)
    changed = (inputs != whole)[0].any(0)
    assert changed[:512, :512].float().mean() > 0.99
    assert not changed[512:].any()
    assert not changed[:, 512:].any()
    with torch.device("meta"):
        sam = sam_model_registry["vit_b"]()
    sam.load_state_dict(state, assign=True)
    sam.prompt_encoder.pe_layer.to("cpu")
    with torch.inference_mode():
        sparse, dense = sam.prompt_encoder(points=None, boxes=torch.tensor([BOX]), masks=None)
        expected, _ = sam.mask_decoder(
            image_embeddings=sam.image_encoder(inputs),
            image_pe=sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=False,
        )
    assert (logits - expected).abs().max() <= 1e-4
