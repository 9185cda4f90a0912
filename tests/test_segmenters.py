"""One interface over segment_anything; weights from files in all the forms they come in."""

import copy
import hashlib
import json
import os
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.torch import save_file
from segment_anything.modeling import (
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)
from torch import nn

from xaiclip.errors import ConfigError
from xaiclip.models.segmenters import loading
from xaiclip.models.segmenters.base import Prompts, Segmenter, to_mask
from xaiclip.models.segmenters.decoder import box_masks, decode_pairs
from xaiclip.models.segmenters.encoder import encode_images
from xaiclip.models.segmenters.predict import segment_slice
from xaiclip.models.segmenters.sam import SamSegmenter, fit_input


def tiny(patch: int = 16) -> Sam:
    """segment_anything's own structure (relative positions, windows, three masks), small."""
    return Sam(
        ImageEncoderViT(
            img_size=64,
            patch_size=patch,
            embed_dim=32,
            depth=2,
            num_heads=2,
            out_chans=32,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=3,
            global_attn_indexes=(1,),
        ),
        PromptEncoder(32, (64 // patch,) * 2, (64, 64), mask_in_chans=16),
        MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(2, 32, 4, 64),
            transformer_dim=32,
            iou_head_depth=3,
            iou_head_hidden_dim=32,
        ),
    )


@pytest.fixture(scope="module")
def sam() -> Sam:
    torch.manual_seed(0)
    model = tiny().eval()
    for parameter in model.parameters():  # zeros (positions) would hide what they do
        nn.init.normal_(parameter, std=0.2)
    return model


@pytest.fixture(scope="module")
def segmenter(sam: Sam) -> SamSegmenter:
    return SamSegmenter(sam, "tiny")


def some_prompts(organs: int, seed: int = 0) -> Prompts:
    rng = np.random.default_rng(seed)
    low, extent = rng.uniform(0, 0.5, (organs, 2)), rng.uniform(0.1, 0.5, (organs, 2))
    boxes = torch.from_numpy(np.concatenate([low, low + extent], 1).astype(np.float32))
    return Prompts(tuple(f"organ {i}" for i in range(organs)), boxes)


# ------------------------------------------------------------------------------------- prompts


@pytest.mark.parametrize(
    "box",
    [
        (0.2, 0.2, 0.2, 0.5),
        (0.5, 0.2, 0.4, 0.5),
        (-0.1, 0, 0.5, 0.5),
        (0, 0, 0.5, 1.1),
        (0, 0, float("nan"), 1),
    ],
)
def test_a_bad_box_is_named(box: tuple[float, ...]) -> None:
    good = (0.1, 0.1, 0.9, 0.9)
    with pytest.raises(ValueError, match="box of spleen"):
        Prompts(("liver", "spleen"), torch.tensor([good, box]))


def test_organs_and_boxes_must_pair() -> None:
    with pytest.raises(ValueError, match="shape"):
        Prompts(("liver", "spleen"), torch.tensor([[0.1, 0.1, 0.9, 0.9]]))


def test_boxes_from_pixels_scale_each_axis_and_are_clipped() -> None:
    prompts = Prompts.from_pixels(["a", "b"], [(10, 20, 40, 60), (-5, 0, 50, 300)], (100, 50))
    expected = torch.tensor([[0.2, 0.2, 0.8, 0.6], [0, 0, 1, 1]])
    torch.testing.assert_close(prompts.boxes, expected)


# --------------------------------------------------------------------------------------- input


@settings(max_examples=12, deadline=None)
@given(arrays(np.uint8, st.tuples(st.integers(8, 90), st.integers(8, 90))))
def test_the_input_fills_the_square_from_zero_to_one(image: np.ndarray) -> None:
    x = fit_input(image, 64)
    assert x.shape == (64, 64)
    assert x.dtype == torch.float32
    if x.any():
        assert (x.min(), x.max()) == (0, 1)
    if image.min() == image.max():
        assert not x.any()


def test_the_input_keeps_no_aspect_and_is_antialiased(segmenter: SamSegmenter) -> None:
    image = np.zeros((32, 128), np.uint8)
    image[:, 64:] = 200
    x = segmenter.prepare(image)
    assert x.shape == (3, 64, 64)
    assert (x[0] == x[1]).all()
    assert (x[0] == x[2]).all()
    assert x[:, :, :30].max() < 0.02
    assert x[:, :, 34:].min() > 0.98
    stripes = np.zeros((256, 256), np.uint8)
    stripes[:, ::2] = 255
    stripes[:128] = 0  # without antialiasing the stripes below would be all or nothing
    fine = fit_input(stripes, 64)
    assert fine[40:, 8:-8].std() < 0.02


# ------------------------------------------------------------------------- equality with the source


@pytest.mark.parametrize("stock", [False, True])
def test_equal_to_segment_anything_called_one_image_and_box_at_a_time(
    sam: Sam, stock: bool
) -> None:
    mine = SamSegmenter(sam, "tiny", stock=stock)
    x, prompts = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(1)), None
    prompts = some_prompts(4)
    embeddings = mine.encode(x)
    logits = mine.decode(embeddings, prompts)
    assert logits.shape == (3, 4, 16, 16)
    assert logits.dtype == torch.float32
    for b in range(3):
        with torch.no_grad():
            one = sam.preprocess(x[b] * 255) if stock else x[b]
            embedding = sam.image_encoder(one[None])
            torch.testing.assert_close(embeddings[b : b + 1], embedding, atol=1e-5, rtol=1e-5)
            for o in range(4):
                sparse, dense = sam.prompt_encoder(
                    points=None, boxes=prompts.boxes[o : o + 1] * 64, masks=None
                )
                expected, _ = sam.mask_decoder(
                    image_embeddings=embedding,
                    image_pe=sam.prompt_encoder.get_dense_pe(),
                    sparse_prompt_embeddings=sparse,
                    dense_prompt_embeddings=dense,
                    multimask_output=False,
                )
                torch.testing.assert_close(logits[b, o], expected[0, 0], atol=1e-5, rtol=1e-5)


def test_boxes_as_mask_prompts_are_segment_anythings_mask_prompts(sam: Sam) -> None:
    mine = SamSegmenter(sam, "tiny", box_masks=True)
    prompts = some_prompts(3, seed=2)
    embeddings = mine.encode(torch.rand(2, 3, 64, 64))
    logits = mine.decode(embeddings, prompts)
    boxes = prompts.boxes * 64
    with torch.no_grad():
        sparse, dense = sam.prompt_encoder(points=None, boxes=boxes, masks=box_masks(boxes, 64, 16))
        for b in range(2):
            expected, _ = sam.mask_decoder(
                image_embeddings=embeddings[b : b + 1],
                image_pe=sam.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=False,
            )
            torch.testing.assert_close(logits[b], expected[:, 0], atol=1e-5, rtol=1e-5)


@settings(max_examples=8, deadline=None)
@given(images=st.integers(1, 4), organs=st.integers(1, 4), seed=st.integers(0, 99))
def test_decoding_is_the_outer_product(
    segmenter: SamSegmenter, images: int, organs: int, seed: int
) -> None:
    """Any batch equals its images and boxes one by one: nothing is paired by position."""
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(images, 32, 4, 4, generator=generator)
    prompts = some_prompts(organs, seed)
    together = segmenter.decode(embeddings, prompts)
    assert together.shape == (images, organs, 16, 16)
    for b in range(images):
        for o in range(organs):
            alone = Prompts(prompts.organs[o : o + 1], prompts.boxes[o : o + 1])
            one = segmenter.decode(embeddings[b : b + 1], alone)[0, 0]
            torch.testing.assert_close(together[b, o], one, atol=1e-5, rtol=1e-5)


def test_box_masks_hold_the_covered_share() -> None:
    fine = torch.zeros(64, 64)
    fine[10:37, 5:50] = 1
    share = fine.view(16, 4, 16, 4).mean((1, 3))
    mine = box_masks(torch.tensor([[5.0, 10, 50, 37]]), 64, 16)
    assert mine.shape == (1, 1, 16, 16)
    torch.testing.assert_close(mine[0, 0], share)


def test_bf16_is_close_and_gives_float32(sam: Sam, segmenter: SamSegmenter) -> None:
    half = SamSegmenter(copy.deepcopy(sam), "tiny", precision="bf16")
    x, prompts = torch.rand(2, 3, 64, 64), some_prompts(2)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        expected = encode_images(sam.image_encoder, x).float()
    assert torch.equal(half.encode(x), expected)  # weights rounded once, not for each batch
    full, rough = (s.decode(s.encode(x), prompts) for s in (segmenter, half))
    assert rough.dtype == torch.float32
    assert torch.corrcoef(torch.stack([full.flatten(), rough.flatten()]))[0, 1] > 0.98


def test_segmenters_have_the_interface(segmenter: SamSegmenter) -> None:
    assert isinstance(segmenter, Segmenter)
    assert (segmenter.input_size, segmenter.device.type, segmenter.precision) == (64, "cpu", "fp32")
    assert not any(p.requires_grad for p in segmenter.sam.parameters())


def test_gradients_through_the_pairs_are_segment_anythings(sam: Sam) -> None:
    """Training uses the same decoding: every parameter gets what the stock decoder would give."""
    generator = torch.Generator().manual_seed(4)
    x = torch.rand(2, 3, 64, 64, generator=generator)
    weights = torch.randn(2, 3, 16, 16, generator=generator)
    boxes = some_prompts(3, seed=5).boxes * 64

    def pairs(model: Sam) -> torch.Tensor:
        found = decode_pairs(model, model.image_encoder(x), boxes.expand(2, -1, -1), as_masks=True)
        return found

    def stock(model: Sam) -> torch.Tensor:
        embeddings = model.image_encoder(x)
        sparse, dense = model.prompt_encoder(
            points=None, boxes=boxes, masks=box_masks(boxes, 64, 16)
        )
        masks = [
            model.mask_decoder(
                image_embeddings=one[None],
                image_pe=model.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=False,
            )[0][:, 0]
            for one in embeddings
        ]
        return torch.stack(masks)

    gradients = []
    for decode in (pairs, stock):
        model = copy.deepcopy(sam).requires_grad_(True)
        model.zero_grad()
        (decode(model) * weights).sum().backward()
        gradients.append(
            {
                name: torch.zeros_like(p) if p.grad is None else p.grad
                for name, p in model.named_parameters()
            }
        )
    mine, theirs = gradients
    reached = [name for name, grad in theirs.items() if grad.any()]
    for part in ("image_encoder.patch_embed", "prompt_encoder.mask_downscaling", "mask_decoder"):
        assert any(name.startswith(part) for name in reached), part
    for name, grad in theirs.items():
        size = float(grad.abs().max())
        torch.testing.assert_close(mine[name], grad, atol=2e-4 * max(size, 1), rtol=2e-3)


# --------------------------------------------------------------------------------------- masks


def test_masks_are_probabilities_resized_then_cut() -> None:
    logits = torch.full((2, 3, 4, 4), -8.0)
    logits[..., 2:] = 8
    mask = to_mask(logits, (10, 20))
    assert mask.shape == (2, 3, 10, 20)
    assert mask.dtype == torch.bool
    assert mask[..., 10:].all()
    assert not mask[..., :10].any()


def test_a_slice_without_boxes_has_no_masks(segmenter: SamSegmenter) -> None:
    image = np.random.default_rng(0).integers(0, 255, (40, 30), dtype=np.uint8)
    assert segment_slice(segmenter, image, {"liver": None}) == {}
    box = np.array([2, 3, 20, 30], np.float32)
    found = segment_slice(segmenter, image, {"liver": None, "spleen": box})
    assert list(found) == ["spleen"]
    assert found["spleen"].shape == (40, 30)
    assert found["spleen"].dtype == np.bool_


# ------------------------------------------------------------------------------------- weights


@pytest.fixture
def as_vit_b(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("medsam", "sam_vit_b"):
        monkeypatch.setitem(loading.BUILDERS, name, tiny)


def test_vit_b_has_the_published_314_tensors() -> None:
    with torch.device("meta"):
        assert len(loading.BUILDERS["medsam"]().state_dict()) == 314


FORMS: dict[str, Any] = {
    "plain": lambda state: state,
    "nested": lambda state: {"model": state, "optimizer": {"step": 3}, "epoch": 7},
    "parallel": lambda state: {f"module.{k}": v for k, v in state.items()},
    "nested parallel": lambda state: {"model": {f"module.{k}": v for k, v in state.items()}},
    "half": lambda state: {k: v.half() for k, v in state.items()},
}


@pytest.mark.usefixtures("as_vit_b")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("model", ["medsam", "sam_vit_b"])
def test_every_form_of_file_gives_the_same_model(
    form: str, model: str, sam: Sam, tmp_path: Path
) -> None:
    path = tmp_path / "w.pth"
    torch.save(FORMS[form](sam.state_dict()), path)
    loaded = loading.load_segmenter({"model": model, "checkpoint": str(path)}, "cpu")
    assert isinstance(loaded, SamSegmenter)
    assert loaded.name == model
    # stock SAM was trained on normalised colours, MedSAM on 0…1
    expected = SamSegmenter(sam, model, stock=model == "sam_vit_b")
    x, prompts = torch.rand(1, 3, 64, 64), some_prompts(2)
    tolerance = 2e-2 if form == "half" else 1e-6
    torch.testing.assert_close(
        loaded.decode(loaded.encode(x), prompts),
        expected.decode(expected.encode(x), prompts),
        atol=tolerance,
        rtol=tolerance,
    )


@pytest.mark.usefixtures("as_vit_b")
def test_safetensors_are_read_too(sam: Sam, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(sam.state_dict(), path)
    loaded = loading.load_segmenter({"model": "medsam", "checkpoint": path}, "cpu")
    x = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(loaded.encode(x), SamSegmenter(sam, "x").encode(x))


class Evil:
    def __reduce__(self) -> Any:
        return (exec, ("raise SystemExit('this code ran')",))


def _write(kind: str, state: dict[str, torch.Tensor], path: Path) -> None:
    first, second = list(state)[:2]
    match kind:
        case "missing key":
            torch.save({k: v for k, v in state.items() if k != first}, path)
        case "unexpected key":
            torch.save(state | {"extra.weight": torch.zeros(1)}, path)
        case "other shape":
            torch.save(state | {second: torch.zeros(2, 2)}, path)
        case "pickled object":
            torch.save({"model": state, "args": Evil()}, path)
        case "old pickle":
            path.write_bytes(pickle.dumps(Evil(), protocol=2))
        case "web page":
            path.write_text("\n<!DOCTYPE html><html><title>Zenodo</title></html>")
        case "lfs pointer":
            path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
        case "empty":
            path.write_bytes(b"")
        case "truncated":
            torch.save(state, path)
            path.write_bytes(path.read_bytes()[:5000])
        case "noise":
            path.write_bytes(bytes(range(256)) * 8)
        case "list":
            torch.save([torch.zeros(2)], path)
        case "no tensors":
            torch.save({"epoch": 3}, path)


@pytest.mark.usefixtures("as_vit_b")
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing key", r"lacks image_encoder\.pos_embed:"),
        ("unexpected key", r"holds unexpected extra\.weight:"),
        ("other shape", r"in another shape, image_encoder\.patch_embed\.proj\.weight:"),
        ("pickled object", "pickled objects besides tensors"),
        ("web page", "web page"),
        ("lfs pointer", "git lfs pull"),
        ("empty", "is empty"),
        ("truncated", "cut off or belongs to another model"),
        ("noise", "cut off or belongs to another model"),
        ("absent", "does not exist"),
    ],
)
def test_a_bad_file_is_explained(kind: str, message: str, sam: Sam, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    _write(kind, dict(sam.state_dict()), path)
    with pytest.raises(ConfigError, match=message) as caught:
        loading.load_segmenter({"model": "medsam", "checkpoint": str(path)}, "cpu")
    assert "weights.pth" in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("old pickle", "pickled objects besides tensors"),
        ("truncated", "damaged"),
        ("noise", "damaged"),
        ("list", "no tensors by name"),
        ("no tensors", "no tensors by name"),
    ],
)
def test_reading_explains_too(kind: str, message: str, sam: Sam, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    _write(kind, dict(sam.state_dict()), path)
    with pytest.raises(ConfigError, match=message):
        loading.read_weights(path)


@pytest.mark.usefixtures("as_vit_b")
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: {}, "cut off|no tensors"),
        (lambda w: {f"x.{k}": v for k, v in w.items()}, "holds no weights of this model"),
        (lambda w: {k: torch.full_like(v, torch.nan) for k, v in w.items()}, "NaN or infinity"),
        (lambda w: {k: torch.zeros_like(v) for k, v in w.items()}, "nothing but zeros"),
        (lambda w: {k: v.to(torch.int16) for k, v in w.items()}, "another kind of number"),
    ],
)
def test_weights_that_are_none_never_load(
    change: Any, message: str, suffix: str, sam: Sam, tmp_path: Path
) -> None:
    path = tmp_path / f"w.{suffix}"
    weights = {k: v.contiguous() for k, v in change(sam.state_dict()).items()}
    torch.save(weights, path) if suffix == "pth" else save_file(weights, path)
    with pytest.raises(ConfigError, match=message):
        loading.load_segmenter({"model": "medsam", "checkpoint": str(path)}, "cpu")


@pytest.mark.usefixtures("as_vit_b")
@pytest.mark.parametrize("checksum", [None, f"sha256:{'0' * 64}"])
@pytest.mark.parametrize("kind", ["/dev/zero", "pipe", "folder", "hole"])
def test_only_files_of_a_models_size_are_read(
    kind: str, checksum: str | None, tmp_path: Path
) -> None:
    path = Path(kind) if kind.startswith("/") else tmp_path / "w.pth"
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "hole":
            path.write_bytes(b"x")
            os.truncate(path, 1 << 37)
    settings = {"model": "medsam", "checkpoint": str(path), "checksum": checksum}
    with pytest.raises(ConfigError, match="weights file"):
        loading.load_segmenter(settings, "cpu")


def test_torchscript_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), path)
    with pytest.raises(ConfigError, match=r"TorchScript archive.*safetensors"):
        loading.read_weights(path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("embed_dim", 1 << 19, "cut off|describes no model"),
        ("depth", 10**9, "none that a model can have"),
        ("stem", "x", "describes no model"),
        ("num_heads", 0, "describes no model"),
        ("more", 1, "not read here"),
    ],
)
def test_a_compact_folder_is_read_with_care(
    key: str, value: Any, message: str, tmp_path: Path
) -> None:
    for name in ("sam.json", "sam.safetensors"):
        (tmp_path / name).write_bytes((loading.COMPACT / name).read_bytes())
    loading.load_compact(tmp_path)
    config = json.loads((tmp_path / "sam.json").read_text())
    config["model"][key] = value
    (tmp_path / "sam.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=message):
        loading.load_compact(tmp_path)


def test_damaged_safetensors_are_explained(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{broken}")
    with pytest.raises(ConfigError, match="damaged"):
        loading.read_weights(path)


@pytest.mark.usefixtures("as_vit_b")
@pytest.mark.parametrize("kind", ["sha256", "md5"])
def test_checksums(kind: str, sam: Sam, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(sam.state_dict(), path)
    good = hashlib.new(kind, path.read_bytes()).hexdigest()
    settings = {"model": "medsam", "checkpoint": str(path)}
    loading.load_segmenter(settings | {"checksum": f"{kind}:{good}"}, "cpu")
    with pytest.raises(ConfigError, match="fetch it again"):
        loading.load_segmenter(settings | {"checksum": f"{kind}:{'0' * len(good)}"}, "cpu")
    with pytest.raises(ConfigError, match="should be"):
        loading.load_segmenter(settings | {"checksum": good}, "cpu")


@pytest.mark.usefixtures("as_vit_b")
def test_other_than_the_published_medsam_is_only_remarked(
    sam: Sam, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "tuned.pth"
    torch.save(sam.state_dict(), path)
    loading.load_segmenter({"model": "medsam", "checkpoint": str(path)}, "cpu")
    assert "not MedSAM's published weights" in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "unet"}, "'unet' is unknown"),
        ({"model": "medsam", "checkpoint": None}, "needs a weights file"),
        ({"model": "compact", "checkpoint": "nowhere"}, "make compact"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        loading.load_segmenter(settings, "cpu")
