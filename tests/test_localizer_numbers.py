"""The localizer's choices, each recomputed a second way: which map, which class, which place."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.ndimage import map_coordinates

from test_backbone import TOKENIZER, small_clip
from xaiclip.localizer.backbone import Backbone
from xaiclip.localizer.model import (
    Localizer,
    LocalizerSettings,
    full_size,
    load_localizer,
    predict,
    save_localizer,
)

#: Neither the alphabet's order nor its reverse.
CLASSES = ("background", "spleen", "liver", "right kidney")
SMALL = LocalizerSettings(context=4, width=32)


@pytest.fixture(scope="module")
def frozen() -> Backbone:
    return Backbone(small_clip(), TOKENIZER)


def noise(count: int, seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 28, 28), dtype=np.uint8)
    return np.stack([cv2.resize(one, (224, 224), interpolation=cv2.INTER_CUBIC) for one in coarse])


def upsampled(grid: np.ndarray, size: int) -> np.ndarray:
    """(…, g, g) bilinear to (…, size, size), half-pixel centres, edges repeated, by SciPy."""
    at = (np.arange(size) + 0.5) * grid.shape[-1] / size - 0.5
    where = np.meshgrid(at, at, indexing="ij")
    flat = grid.reshape(-1, *grid.shape[-2:])
    found = [map_coordinates(one, where, order=1, mode="nearest") for one in flat]
    return np.array(found).reshape(*grid.shape[:-2], size, size)


# ------------------------------------------------------------------------------------ the maps


@pytest.mark.parametrize("text", [True, False])
def test_what_the_map_maker_sees_and_what_is_added(frozen: Backbone, text: bool) -> None:
    """Unit tokens to unit variance, each block's cosines; the last block's cosines are added."""
    localizer = Localizer(frozen, CLASSES, LocalizerSettings(4, text=text, width=32)).eval()
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        localizer.sharpness.copy_(torch.tensor([2.0, 3.0, 5.0, 7.0]))
        for layer in localizer.adapter:
            layer.weight.add_(0.3 * torch.randn(layer.weight.shape, generator=rng))
            layer.bias.add_(torch.randn(layer.bias.shape, generator=rng))
    seen: list[torch.Tensor] = []

    class Nothing(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x)
            return torch.zeros(len(x), 4, 32, 32)

    localizer.maps = Nothing()
    tokens = [torch.randn(2, 32, 4, 4, generator=rng) for _ in range(3)]
    with torch.no_grad():
        found = localizer.decode(tokens, torch.empty(0)).numpy()
        names = localizer.prompts().numpy() if text else np.zeros((4, 24))
    units, cosines = [], []
    for layer, block in zip(localizer.adapter, tokens, strict=True):
        weight, bias = layer.weight.detach().numpy()[..., 0, 0], layer.bias.detach().numpy()
        adapted = np.tensordot(weight, block.numpy(), (1, 1)) + bias[:, None, None, None]
        adapted = adapted.swapaxes(0, 1)
        adapted /= np.sqrt((adapted**2).sum(1, keepdims=True))
        units.append(adapted * np.sqrt(24))
        cosines.append(np.tensordot(names, adapted, (1, 1)).swapaxes(0, 1))
    scaled = [c * s for c, s in zip(cosines, (2, 3, 5), strict=True)]
    np.testing.assert_allclose(seen[0], np.concatenate(units + scaled, 1), atol=1e-5)
    np.testing.assert_allclose(found, upsampled(cosines[-1] * 7, 32), atol=1e-4)
    assert (abs(found).max() > 0.1) == text


@pytest.mark.parametrize("mode", ["training", "prediction"])
@pytest.mark.parametrize("text", [True, False])
def test_text_acts_on_places_in_both_modes(frozen: Backbone, text: bool, mode: str) -> None:
    """Another prompt changes the maps differently at different places, or, without text, nothing.

    What was trained without text must not see it when it predicts.
    """
    images = noise(1)
    localizer = Localizer(frozen, CLASSES, LocalizerSettings(4, text=text, width=32))

    def maps() -> torch.Tensor:
        if mode == "prediction":
            return torch.from_numpy(predict(localizer, images))
        localizer.train()
        return localizer(torch.from_numpy(images)).detach()

    before = maps()
    with torch.no_grad():
        localizer.prompts.context.mul_(50)
    change = (maps() - before).flatten(2)
    if text:
        assert change.std(2).min() > 1e-3
    else:
        assert not change.any()


def test_the_mode_changes_no_number(frozen: Backbone) -> None:
    localizer = Localizer(frozen, CLASSES, LocalizerSettings(4, text=False, width=32))
    images = torch.from_numpy(noise(1))
    with torch.no_grad():
        assert torch.equal(localizer.train()(images), localizer.eval()(images))


def test_classes_keep_the_order_that_they_are_given_in(frozen: Backbone) -> None:
    """Channel k is class k: with real words as context, its prompt is open_clip's own text."""
    localizer = Localizer(frozen, CLASSES, SMALL)
    ids = TOKENIZER([f"a photo of the {name}" for name in CLASSES])
    with torch.no_grad():
        localizer.prompts.context.copy_(frozen.clip.token_embedding(ids)[:, 1:5])
        found = localizer.prompts()
        for k, name in enumerate(CLASSES):
            one = frozen.clip.encode_text(TOKENIZER([f"a photo of the {name}"]), normalize=True)
            torch.testing.assert_close(found[k], one[0], atol=1e-5, rtol=1e-5)
    assert localizer.classes == CLASSES


def test_logits_are_enlarged_bilinearly_about_pixel_centres() -> None:
    logits = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    np.testing.assert_allclose(full_size(logits), upsampled(logits.numpy(), 224), atol=1e-4)


def test_shifted_maps_come_back_to_their_place(frozen: Backbone) -> None:
    """A network that sees a patch's mean: the shifted grids mean over other patches.

    Recomputed pixel by pixel, with half a patch down and to the right (28 pixels of 56).
    """

    class Patches(Localizer):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            grid = F.avg_pool2d(images[:, None].float() / 255, 56)
            bright = F.interpolate(grid, scale_factor=56, mode="nearest")
            return torch.cat([0 * bright, 3 * bright, -2 * bright, 0 * bright], 1)

    images = noise(2, seed=3)
    images[0, 30:90, 120:210] = 255
    found = predict(Patches(frozen, CLASSES, SMALL), images)
    total, times = np.zeros((2, 4, 224, 224)), np.zeros((224, 224))
    for down in (0, 28):
        for right in (0, 28):
            moved = np.zeros((2, 224, 224))
            moved[:, down:, right:] = images[:, : 224 - down, : 224 - right]
            mean = moved.reshape(2, 4, 56, 4, 56).mean((2, 4)) / 255
            bright = mean.repeat(56, 1).repeat(56, 2)
            logits = np.stack([0 * bright, 3 * bright, -2 * bright, 0 * bright], 1)
            p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
            for row in range(0, 224 - down):
                total[:, :, row, : 224 - right] += p[:, :, row + down, right:]
            times[: 224 - down, : 224 - right] += 1
    np.testing.assert_allclose(found, total / times, atol=1e-5)


@pytest.mark.parametrize("options", [{"text": False}, {"class_specific": False}, {"context": 2}])
def test_a_saved_localizer_keeps_its_settings(
    frozen: Backbone, tmp_path: Path, options: dict[str, object]
) -> None:
    localizer = Localizer(frozen, CLASSES, LocalizerSettings(**({"width": 32} | options)), seed=4)
    save_localizer(tmp_path / "l.safetensors", localizer)
    loaded = load_localizer(tmp_path / "l.safetensors", frozen)
    assert loaded.settings == localizer.settings
    assert loaded.classes == CLASSES
    np.testing.assert_array_equal(predict(loaded, noise(1)), predict(localizer, noise(1)))


# ---------------------------------------------------------------------------------- the backbone


def test_images_are_resized_as_pillow_does_and_normalised() -> None:
    """Bicubic with antialiasing: a slice's fine grain must not fold into the tokens."""
    frozen = Backbone(small_clip(), TOKENIZER, (2,), mean=(0.2, 0.3, 0.4), std=(0.5, 0.6, 0.7))
    image = np.random.default_rng(0).integers(0, 256, (224, 224), dtype=np.uint8)
    image[50:140, 30:99] = 255
    grey = Image.fromarray(image.astype(np.float32) / 255)
    small = np.asarray(grey.resize((56, 56), Image.Resampling.BICUBIC)).clip(0, 1)
    channels = (small - np.array([0.2, 0.3, 0.4])[:, None, None]) / np.array([0.5, 0.6, 0.7])[
        :, None, None
    ]
    seen = []
    frozen.clip.visual.conv1.register_forward_hook(lambda m, x, out: seen.append(x[0]))
    frozen(torch.from_numpy(image)[None])
    np.testing.assert_allclose(seen[0][0], channels, atol=2e-3)


def test_the_projection_is_the_towers_own_direction() -> None:
    """Norm, then projection, as open_clip does with its last tokens; its norm's shift is zero."""
    clip = small_clip()
    torch.nn.init.normal_(clip.visual.ln_post.weight, 1, 0.5)
    torch.nn.init.zeros_(clip.visual.ln_post.bias)
    frozen = Backbone(clip, TOKENIZER)
    tokens = torch.randn(7, 32) * 3 + 1
    with torch.no_grad():
        wanted = F.normalize(clip.visual.ln_post(tokens) @ clip.visual.proj, dim=-1)
    found = F.normalize(tokens @ frozen.projection().T, dim=-1)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
