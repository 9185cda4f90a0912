"""What shorter plans would have saved and lost, from a study's stored score tables."""

from typing import TYPE_CHECKING

from _job import job

if TYPE_CHECKING:
    from _job import snakemake

with job(snakemake) as log:
    from xaiclip.explain.store import load_scores
    from xaiclip.files import atomic
    from xaiclip.metrics.savings import savings, summarise
    from xaiclip.report.markdown import pipe_table

    cfg = snakemake.params.cfg
    rows = []
    for path in snakemake.input.scores:
        for one in load_scores(path)[0]:
            rows += savings(one, cfg["shares"], cfg["stops"], cfg["maps"][one.method], cfg["value"])
        log.info("%s", path)
    table = summarise(rows)
    with atomic(snakemake.output.csv) as temporary:
        table.to_csv(temporary, index=False)
    with atomic(snakemake.output.md) as temporary:
        temporary.write_text(pipe_table(table), encoding="utf-8")
