"""The localizer: adapted tokens, their likeness to the prompts, and a U-Net that maps organs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from xaiclip.device import in_batches
from xaiclip.errors import ConfigError
from xaiclip.explain.settings import setting
from xaiclip.files import atomic
from xaiclip.localizer.backbone import Backbone, BackboneSettings, load_backbone
from xaiclip.localizer.fine import ImageMapMaker
from xaiclip.localizer.prompts import Prompts
from xaiclip.localizer.unet import Convolution, SubpixelUpsample, UNet
from xaiclip.weights import check_sums, check_values, check_weights

SIZE = 224
#: Largest number of blocks, context vectors or channels that a file may speak of.
_MOST = 4096


@dataclass(frozen=True)
class LocalizerSettings:
    """What is trained on top of the frozen backbone.

    ``text=False`` is the ablation that feeds zeros for everything that comes from the text.
    ``width`` (a multiple of 32) is the channel count of the map maker on the token grid.
    With ``image``, the map maker sees the slice itself, too (`ImageMapMaker`).
    """

    context: int = setting(8, "M, the number of learnable context vectors.", minimum=1, maximum=64)
    class_specific: bool = setting(True, "One context per class instead of a shared one.")
    text: bool = True
    width: int = 64
    image: bool = False


DEFAULTS = LocalizerSettings()


class MapMaker(nn.Module):
    """A U-Net on the token grid, then learned upsampling by eight; what the blocks say of a patch
    is mixed first.

    A patch's channels hold what is inside it. Beside the U-Net, 1×1 convolutions unfold them
    directly to two and four times the grid, as a U-Net's skip connections would bring the detail.
    """

    def __init__(self, in_channels: int, classes: int, width: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(in_channels, 2 * width, 1)
        self.unet = UNet(2 * width, width, (width, width * 3 // 2, width * 2))
        self.skips, self.ups, self.mixes = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        wide = width
        for factor, narrow, detail in ((2, width * 3 // 4, 16), (4, width * 3 // 8, 16)):
            skip = nn.Conv2d(2 * width, detail * factor**2, 1)
            self.skips.append(nn.Sequential(skip, nn.PixelShuffle(factor)))
            self.ups.append(nn.ConvTranspose2d(wide, narrow, 2, stride=2))
            self.mixes.append(Convolution(narrow + detail, narrow, act=nn.ReLU))
            wide = narrow
        self.head = SubpixelUpsample(wide, classes, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, g, g) → (B, classes, 8g, 8g)."""
        x = self.mix(x)
        found = self.unet(x)
        for skip, up, mix in zip(self.skips, self.ups, self.mixes, strict=True):
            found = mix(torch.cat([up(found), skip(x)], dim=1))
        logits: Tensor = self.head(found)
        return logits


class Localizer(nn.Module):
    """Per-class logits at 224×224 from a preprocessed slice.

    For each chosen block a 1×1 convolution adapts the tokens to the text space, followed by L2
    norm; their cosine with each class's prompt is a map. The map maker sees the adapted tokens
    and all cosine maps, so the text acts on every place by itself; the last block's cosine map
    is also added to the class's logits. Only prompts, adapter and map maker have gradients.
    """

    def __init__(
        self,
        backbone: Backbone,
        classes: Sequence[str],
        settings: LocalizerSettings = DEFAULTS,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.settings, self.classes = settings, tuple(classes)
        self.backbone = backbone
        generator = torch.Generator().manual_seed(seed)
        self.prompts = Prompts(
            backbone, classes, settings.context, settings.class_specific, generator
        )
        blocks, dim = len(backbone.blocks), backbone.embed_dim
        with torch.random.fork_rng(devices=[]):  # layers draw their weights from the global state
            torch.manual_seed(seed)
            layers = [nn.Conv2d(backbone.width, dim, 1) for _ in range(blocks)]
            own = backbone.projection()
            if own is not None:
                # begin where the frozen model ends: the cosine maps start as its zero-shot maps
                for layer in layers:
                    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
                    layer.weight.data.copy_(own[..., None, None])
            self.adapter = nn.ModuleList(layers)
            self.sharpness = nn.Parameter(torch.full((blocks + 1,), 10.0))
            maker = ImageMapMaker if settings.image else MapMaker
            self.maps = maker(blocks * (dim + len(classes)), len(classes), settings.width)
        # the layout that convolutions and their norms are fastest in on a CPU
        self.maps.to(memory_format=torch.channels_last)

    def trainable(self) -> dict[str, Tensor]:
        """The parameters that train, by name; the frozen model is not among them."""
        return {k: p for k, p in self.named_parameters() if not k.startswith("backbone.")}

    def decode(self, tokens: Sequence[Tensor], images: Tensor) -> Tensor:
        """Tokens of the backbone, one (B, C, g, g) per block, and the uint8 (B, S, S) slices that
        they are of → logits (B, classes, 8g, 8g), or (B, classes, S, S) with ``image``."""
        adapted = [
            F.normalize(layer(t.float()), dim=1)
            for layer, t in zip(self.adapter, tokens, strict=True)
        ]
        if self.settings.text:
            text = self.prompts()
            cosines = [torch.einsum("bdhw,kd->bkhw", a, text) for a in adapted]
        else:
            cosines = [a.new_zeros(len(a), len(self.classes), *a.shape[2:]) for a in adapted]
        scaled = [c * s for c, s in zip(cosines, self.sharpness[:-1], strict=True)]
        unit = self.backbone.embed_dim**0.5  # unit vectors to unit variance
        said = torch.cat([a * unit for a in adapted] + scaled, dim=1)
        logits = self.maps(said, images) if self.settings.image else self.maps(said)
        direct = F.interpolate(cosines[-1] * self.sharpness[-1], logits.shape[2:], mode="bilinear")
        return logits + direct

    def forward(self, images: Tensor) -> Tensor:
        """uint8 (B, 224, 224) → logits (B, classes, 224, 224)."""
        return full_size(self.decode(self.backbone(images), images))


def full_size(logits: Tensor) -> Tensor:
    """Logits of any size, bilinear to 224 × 224."""
    return F.interpolate(logits, (SIZE, SIZE), mode="bilinear")


#: By how much `predict` moves the slice on the patch grid, down and right, in patches.
SHIFTS = tuple(product((0.0, 0.5), repeat=2))


@torch.inference_mode()
def predict(
    localizer: Localizer,
    images: NDArray,
    batch_size: int = 16,
    shifts: Sequence[tuple[float, ...]] = SHIFTS,
) -> NDArray:
    """Probability maps of preprocessed slices.

    The mean over ``shifts``, one forward each: a patch's borders lie elsewhere on the organ each
    time, so the mean is finer than the grid.

    Args:
        localizer: trained.
        images: uint8 (B, 224, 224) on the letterbox grid.
        batch_size: slices at a time; halved when memory runs out.
        shifts: of `SHIFTS`, the first of which moves nothing.

    Returns:
        float32 (B, classes, 224, 224); the classes sum to 1 in each pixel.
    """
    localizer.eval()
    device = localizer.sharpness.device

    def maps(part: Tensor) -> Tensor:
        found: Tensor = localizer(part.to(device)).softmax(1).float().cpu()
        return found

    pixels = torch.from_numpy(images)
    total = torch.zeros(len(images), len(localizer.classes), SIZE, SIZE)
    times = torch.zeros(SIZE, SIZE)
    for shift in shifts:
        down, right = (int(part * SIZE / localizer.backbone.grid) for part in shift)
        moved = F.pad(pixels, (right, 0, down, 0))[:, :SIZE, :SIZE]
        found = torch.cat(in_batches(maps, moved, batch_size))
        total[..., : SIZE - down, : SIZE - right] += found[..., down:, right:]
        times[: SIZE - down, : SIZE - right] += 1
    return (total / times).numpy()


def predict_slice(localizer: Localizer, image: NDArray) -> NDArray:
    """What is kept of one slice's maps: uint8 (224, 224) → float16 (classes, 224, 224)."""
    maps: NDArray = predict(localizer, image[None])[0].astype(np.float16)
    return maps


def save_localizer(path: Path, localizer: Localizer, half: bool = False) -> None:
    """Write the trained parameters, and in the file's header what they belong to.

    ``half`` writes them in half precision, which the shipped localizer has.
    """
    backbone = localizer.backbone
    about = {
        "classes": list(localizer.classes),
        "settings": asdict(localizer.settings),
        "backbone": {
            "model": backbone.name,
            "blocks": list(backbone.blocks),
            "revisions": list(backbone.revisions),
        },
        "fingerprint": backbone.fingerprint,
    }
    tensors = {k: p.detach().cpu().contiguous() for k, p in localizer.trainable().items()}
    if half:
        tensors = {k: value.half() for k, value in tensors.items()}
    with atomic(path) as temporary:
        save_file(tensors, temporary, metadata={"localizer": json.dumps(about)})


def load_localizer(path: Path, backbone: BackboneSettings | Backbone | None = None) -> Localizer:
    """Read what `save_localizer` wrote, with the same backbone.

    Args:
        path: the .safetensors file.
        backbone: which backbone it was trained on, or a loaded one; None for the one that the file
            names, if it lies here: nothing is fetched on a file's word.

    Raises:
        ConfigError: not such a file, or the backbone's weights are others than at training.
    """
    about, tensors = _read(path)
    trained_on = about["backbone"]["model"]
    if backbone is None:
        if trained_on != "compact" and not Path(trained_on).is_dir():
            raise ConfigError(
                f"{path} was trained on backbone {trained_on!r:.200}, which lies elsewhere: say "
                "where with the argument 'backbone'."
            )
        backbone = BackboneSettings(trained_on)
    if not isinstance(backbone, Backbone):
        blocks = tuple(about["backbone"]["blocks"])
        backbone = load_backbone(BackboneSettings(backbone.model, backbone.pretrained, blocks))
    if backbone.fingerprint != about["fingerprint"]:
        raise ConfigError(
            f"{path} was trained on other weights of backbone {trained_on!r:.200}: "
            "use those, or train the localizer again."
        )
    try:
        settings = LocalizerSettings(**about["settings"])
        localizer = Localizer(backbone, about["classes"], settings)
    except (TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"{path} comes from another version: train the localizer again."
        ) from error
    # compared by hand: load_state_dict raises a RuntimeError of many lines for another shape
    wanted = {name: value.shape for name, value in localizer.trainable().items()}
    if wanted != {name: value.shape for name, value in tensors.items()}:
        raise ConfigError(f"{path} comes from another version: train the localizer again.")
    check_values(tensors, path)
    localizer.load_state_dict(tensors, strict=False)
    return localizer.eval()


def check_classes(localizer: Localizer, path: Path, classes: Sequence[str]) -> None:
    """Refuse a localizer that was trained for other classes than the study's.

    Raises:
        ConfigError: one sentence.
    """
    if list(localizer.classes) != list(classes):
        raise ConfigError(
            f"{path} was trained for {', '.join(localizer.classes)}: "
            "set 'classes' to these, or train another localizer."
        )


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What a file says of itself, and its tensors.

    Raises:
        ConfigError: it is not a trained localizer, or differs from its ``SHA256SUMS``.
    """
    check_sums(path.parent, (path.name,))  # of the shipped one
    try:
        check_weights(path)
        with safe_open(path, framework="pt") as stored:
            about = json.loads(stored.metadata()["localizer"])
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        backbone, settings, classes = (about[key] for key in ("backbone", "settings", "classes"))
        blocks, context = backbone["blocks"], tensors["prompts.context"]
        counts = (*blocks, *(value for value in settings.values() if type(value) is int))
        # sizes that the file's own tensors do not bear out would only take memory
        fits = (
            isinstance(backbone["model"], str)
            and isinstance(about["fingerprint"], str)
            and all(isinstance(name, str) for name in classes)
            and all(type(count) is int and 1 <= count <= _MOST for count in counts)
            and context.shape[:2] in ((1, settings["context"]), (len(classes), settings["context"]))
            and len(tensors["maps.mix.weight"]) == 2 * settings["width"]
        )
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"{path} is not a trained localizer: give the .safetensors file of another run."
        ) from error
    if not fits:
        raise ConfigError(f"{path} comes from another version: train the localizer again.")
    return about, tensors
