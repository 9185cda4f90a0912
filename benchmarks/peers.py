"""Each system as a function that explains one slice: ours, the floor, and the peers.

All call the same segmenter on the same input, with the same boxes, fill and batch size, and explain
the soft Dice with the unperturbed mask. Each peer stands in its best mode first: one run that
shares all it can among the organs. A second row (``, one run an organ``) is how it is mostly
called, as its interface explains one number.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import distribution
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from xaiclip.clock import PHASES, Clock
from xaiclip.explain import engine, lime, occlusion, rise
from xaiclip.explain.attribution import to_canonical_image
from xaiclip.explain.engine import ScoreTable, fill_image
from xaiclip.explain.plan import Context, Plan
from xaiclip.explain.values import soft_dice
from xaiclip.models.segmenters.base import Prompts, Segmenter
from xaiclip.targets import SegmenterScorer


@dataclass
class Bench:
    """One slice, its prompts, and the model; counts the images that are encoded."""

    segmenter: Segmenter
    image: NDArray[np.uint8]
    prompts: Prompts
    batch: int = 8
    parts: int = 8  # windows are this share of the image wide, and overlap by half
    encoded: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.name, self.precision = self.segmenter.name, self.segmenter.precision
        self.device, self.input_size = self.segmenter.device, self.segmenter.input_size
        self.inputs = self.prepare(self.image)
        self.scorer = SegmenterScorer(self, self.prompts, self.inputs)
        self.mask = self.scorer.mask
        self.grey = self.inputs.mean((1, 2))

    # the scorer's Segmenter
    def prepare(self, image: NDArray[np.uint8]) -> Tensor:
        return self.segmenter.prepare(image)

    def encode(self, inputs: Tensor) -> Tensor:
        self.encoded += len(inputs)
        return self.segmenter.encode(inputs)

    def decode(self, embeddings: Tensor, prompts: Prompts) -> Tensor:
        return self.segmenter.decode(embeddings, prompts)

    @property
    def organs(self) -> range:
        return range(len(self.prompts.organs))

    def alone(self, organ: int) -> Prompts:
        """One organ's prompt."""
        at = slice(organ, organ + 1)
        return Prompts(self.prompts.organs[at], self.prompts.boxes[at])

    def scores(self, images: Tensor, organ: int | None = None) -> Tensor:
        """Soft Dice (B, O) of perturbed inputs (B, 3, S, S), of all organs or one."""
        prompts = self.prompts if organ is None else self.alone(organ)
        mask = self.mask if organ is None else self.mask[organ : organ + 1]
        probability = self.decode(self.encode(images), prompts).sigmoid()
        return soft_dice(probability, mask)

    def context(self, settings: Mapping[str, object]) -> Context:
        return Context(
            image=to_canonical_image(self.image),
            organs=self.prompts.organs,
            masks=self.scorer.masks,
            rois=None,
            seed=0,
            settings=settings,
        )

    def batches(self, count: int) -> Iterator[int]:
        for start in range(0, count, self.batch):
            yield min(self.batch, count - start)


System = Callable[[Bench], object]


def floor(count: int) -> System:
    """``count`` bare batched encodes and decodes for all organs, of the same tensor."""

    def run(bench: Bench) -> None:
        images = bench.inputs.expand(bench.batch, -1, -1, -1).contiguous()
        for size in bench.batches(count):
            bench.decode(bench.encode(images[:size]), bench.prompts)

    return run


def ours(method: str, settings: Mapping[str, object]) -> System:
    """Plan, score and aggregate; the phases' seconds are kept in ``bench.seconds``."""
    module = {"occlusion": occlusion, "lime": lime, "rise": rise}[method]

    def run(bench: Bench) -> object:
        clock = Clock()
        context = bench.context(settings)
        with clock("total"):
            # the unperturbed forward is part of an explanation
            scorer = SegmenterScorer(bench, bench.prompts, bench.inputs, clock=clock)
            with clock("perturb"):
                plans: dict[str, Plan] = module.plans(context)
            tables: dict[str, ScoreTable] = {
                name: engine.score(plan, scorer, batch_size=bench.batch)
                for name, plan in plans.items()
            }
            with clock("aggregate"):
                maps = module.aggregate(plans, tables, context)
        parts = [clock.seconds, *(table.seconds for table in tables.values())]
        bench.seconds = {phase: sum(part.get(phase, 0.0) for part in parts) for phase in PHASES}
        bench.seconds["total"] = clock.seconds["total"]
        return maps

    return run


# ----------------------------------------------------------------------------------- occlusion


def captum(together: bool) -> System:
    """captum's Occlusion: a run for each organ, or one for all of them.

    One run gives the maps of all outputs (O, 3, S, S) where it encodes one image at a time
    (``perturbations_per_eval=1``); with more, it takes the outputs for those of a batch.
    """

    def run(bench: Bench) -> list[Tensor]:
        from captum.attr import Occlusion

        def maps(organ: int | None) -> Tensor:
            return Occlusion(lambda x: bench.scores(x, organ)).attribute(
                bench.inputs[None],
                sliding_window_shapes=(3, side, side),
                strides=(3, side // 2, side // 2),
                baselines=fill_image("mean", bench.inputs).expand_as(bench.inputs)[None],
                perturbations_per_eval=1 if organ is None else bench.batch,
            )

        side = bench.input_size // bench.parts
        return [maps(organ) for organ in ([None] if together else bench.organs)]

    return run


def monai(bench: Bench) -> object:
    """MONAI's OcclusionSensitivity, the organs being its classes."""
    from monai.visualize.occlusion_sensitivity import OcclusionSensitivity

    class Classes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return bench.scores(x.as_subclass(Tensor))

    return OcclusionSensitivity(
        Classes(),
        mask_size=bench.input_size // bench.parts,
        overlap=0.5,
        n_batch=bench.batch,
        mode="mean_img",
        activate=False,
        verbose=False,
    )(bench.inputs[None])


def xaitk(bench: Bench) -> object:
    """xaitk-saliency's sliding windows, the organs being its labels; its grid has 256 windows."""
    # 0.7, the last release that takes NumPy 2, asks pkg_resources, which setuptools 82 dropped,
    # for its own version
    vars(sys.modules.setdefault("pkg_resources", ModuleType("pkg_resources"))).setdefault(
        "get_distribution", distribution
    )
    from smqtk_classifier.interfaces.classify_image import ClassifyImage
    from xaitk_saliency.impls.gen_image_classifier_blackbox_sal.slidingwindow import (
        SlidingWindowStack,
    )

    class Organs(ClassifyImage):
        def get_labels(self):
            return list(bench.prompts.organs)

        def classify_images(self, img_iter):
            batch = []
            for image in img_iter:
                batch.append(image)
                if len(batch) == bench.batch:
                    yield from self.flush(batch)
                    batch = []
            if batch:
                yield from self.flush(batch)

        def flush(self, batch):
            images = torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2).float() / 255
            for row in bench.scores(images).tolist():
                yield dict(zip(bench.prompts.organs, row, strict=True))

        def get_config(self):
            return {}

    side = bench.input_size // bench.parts
    stack = SlidingWindowStack((side, side), (side // 2, side // 2))
    stack.fill = [round(255 * float(grey)) for grey in bench.grey]
    pixels = (bench.inputs * 255).round().byte().permute(1, 2, 0).numpy()
    return stack(np.ascontiguousarray(pixels), Organs())


# ------------------------------------------------------------------------------------ LIME, RISE


def lime_package(samples: int, together: bool) -> System:
    """lime_image on the superpixels of ours: a run for each organ, or one that labels them all."""

    def run(bench: Bench) -> object:
        from lime.lime_image import LimeImageExplainer

        found = lime.superpixels("slic", to_canonical_image(bench.image), lime.PlanSettings())
        step = 512 // bench.input_size
        segments = found[step // 2 :: step, step // 2 :: step]
        pixels = bench.inputs.permute(1, 2, 0).numpy().astype(np.float64)

        def classify(organ: int | None) -> Callable[[NDArray[np.floating]], NDArray[np.float32]]:
            def scores(images: NDArray[np.floating]) -> NDArray[np.float32]:
                batch = torch.from_numpy(np.asarray(images)).permute(0, 3, 1, 2).float()
                return bench.scores(batch, organ).numpy()

            return scores

        runs = [None] if together else list(bench.organs)
        return [
            LimeImageExplainer(random_state=0).explain_instance(
                pixels,
                classify(organ),
                labels=tuple(bench.organs) if organ is None else (0,),
                top_labels=None,
                hide_color=float(bench.grey.mean()),
                num_samples=samples,
                batch_size=bench.batch,
                segmentation_fn=lambda _: segments,
            )
            for organ in runs
        ]

    return run


def rise_formula(masks: int, together: bool) -> System:
    """Petsiuk et al.'s published procedure: N full masks and N masked images in memory."""

    def run(bench: Bench) -> object:
        from skimage.transform import resize

        size, cells, keep = bench.input_size, 7, 0.5
        cell = -(-size // cells)
        rng = np.random.default_rng(0)
        grid = (rng.random((masks, cells, cells)) < keep).astype(np.float32)
        stack = np.empty((masks, 1, size, size), np.float32)
        for k in range(masks):
            x, y = rng.integers(0, cell, 2)
            up = ((cells + 1) * cell,) * 2
            large = resize(grid[k], up, order=1, mode="reflect", anti_aliasing=False)
            stack[k, 0] = large[x : x + size, y : y + size]
        every = torch.from_numpy(stack)
        fill = fill_image("mean", bench.inputs)
        maps = []
        for organ in [None] if together else list(bench.organs):
            perturbed = torch.lerp(fill, bench.inputs, every)
            scores = torch.cat([bench.scores(some, organ) for some in perturbed.split(bench.batch)])
            maps.append(scores.T @ every.flatten(1) / masks / keep)
            del perturbed
        return maps

    return run
