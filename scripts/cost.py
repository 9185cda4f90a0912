"""Operations of one forward: encoder, decoder for all organs, localizer."""

from typing import TYPE_CHECKING

from _job import job

if TYPE_CHECKING:
    from _job import snakemake

with job(snakemake) as log:
    from dataclasses import asdict
    from pathlib import Path

    import torch

    from xaiclip.device import set_threads
    from xaiclip.files import write_json
    from xaiclip.localizer.backbone import BackboneSettings
    from xaiclip.localizer.model import load_localizer
    from xaiclip.metrics.cost import localizer_cost, segmenter_cost
    from xaiclip.models.segmenters.base import Prompts
    from xaiclip.models.segmenters.loading import load_segmenter

    cfg = snakemake.params.cfg
    set_threads(snakemake.threads)
    organs = tuple(cfg["organs"])
    boxes = torch.tensor([[0.25, 0.25, 0.75, 0.75]]).repeat(len(organs), 1)
    # the model's own operations, not those that a faster way to compute it takes
    stock = {**cfg["segmenter"], "attention": "stock"}
    segmenter = load_segmenter(stock, cfg["device"], cfg["precision"])
    forward = segmenter_cost(segmenter, Prompts(organs, boxes))
    backbone = BackboneSettings(cfg["backbone"], cfg["pretrained"])
    localizer = load_localizer(Path(snakemake.input.localizer), backbone)
    cost = {
        "encode": asdict(forward.encode),
        "decode": asdict(forward.decode),
        "decoded_organs": len(organs),
        "localizer": asdict(localizer_cost(localizer)),
        "backbone": {
            "fingerprint": localizer.backbone.fingerprint,
            "revision": localizer.backbone.revision,
        },
        "device": str(segmenter.device),
        "precision": segmenter.precision,
    }
    log.info("GFLOPs: %s", {key: cost[key] for key in ("encode", "decode", "localizer")})
    write_json(snakemake.output[0], cost)
