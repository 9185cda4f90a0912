"""From a batch's score tables to maps and their metrics; no model is needed."""

from typing import TYPE_CHECKING

from _job import job

if TYPE_CHECKING:
    from _job import snakemake

with job(snakemake) as log:
    import json
    from pathlib import Path

    from xaiclip.data.record import load_slices
    from xaiclip.errors import Skip, left_out
    from xaiclip.explain.attribution import Attribution, save_attributions, to_canonical_mask
    from xaiclip.explain.runner import attribute_slice
    from xaiclip.explain.store import open_scores
    from xaiclip.explain.values import explained
    from xaiclip.localizer.probabilities import open_probabilities
    from xaiclip.masks.segmented import open_masks
    from xaiclip.metrics.rows import GUIDANCES, explanation_rows, unreached
    from xaiclip.metrics.schema import EXPLANATIONS, write_table

    cfg = snakemake.params.cfg
    slices, missing = load_slices(snakemake.input.slices)
    with open_probabilities(snakemake.input.localization) as localization:
        seconds_roi = localization.seconds
    cost = json.loads(Path(snakemake.input.cost).read_text())
    values = explained(tuple(cfg["values"]))
    rows = []

    def rows_of(item, one, skips, attributions=(), seconds=0.0):
        """The rows of a slice, explained or not."""
        shown = cfg["organs"] if attributions else ()
        return explanation_rows(
            item,
            one,
            attributions,
            skips,
            organs=cfg["organs"],
            method=cfg["method"],
            guidance=cfg["guidance"],
            prompt=cfg["prompt"],
            seed=cfg["seed"],
            segmented={organ: segmented.of(item, organ, cfg["prompt"]) for organ in shown},
            reference={
                organ: None
                if item.label is None
                else to_canonical_mask(item.label == 1 + cfg["organs"].index(organ))
                for organ in shown
            },
            seconds_aggregate=seconds,
            seconds_roi=seconds_roi.get(item.key),
            cost=cost,
        )

    def maps():
        """The maps of one slice after the other; their rows are kept."""
        for item in slices:
            number = stored.numbers.get((item.case, item.index))
            earlier = [s for s in stored.skips if (s.case, s.slice) == (item.case, item.index)]
            failed: list[Skip] = []
            attributions: list[Attribution] = []
            with left_out(failed, item.case, "attribute", item.index):
                if number is not None:
                    one = stored.read(number)
                    attributions, seconds = attribute_slice(one, cfg["settings"], values)
                    rows.extend(rows_of(item, one, earlier, attributions, seconds))
            if failed or number is None:
                rows.extend(rows_of(item, None, earlier + failed))
            else:
                for attribution in attributions:
                    yield item.case, item.index, attribution

    with (
        open_scores(snakemake.input.scores) as stored,
        open_masks(snakemake.input.segmentation) as segmented,
    ):
        save_attributions(snakemake.output.maps, maps())
    guidance, source = GUIDANCES[cfg["guidance"]]
    rows += [
        {
            **case,
            "organ": organ,
            "method": cfg["method"],
            "guidance": guidance,
            "roi_source": source,
            "primary": True,
        }
        for case in unreached(cfg["cases"], slices, missing)
        for organ in cfg["organs"]
    ]
    write_table(snakemake.output.rows, rows, EXPLANATIONS)
