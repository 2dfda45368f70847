"""What compare_layouts found: as files, on the terminal, as a page."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.table import Table as RichTable

from jobs.display import console, server_lines, summary, truncated_line
from jobs.stage import Stage, read_json, write_json, write_text
from ramo_ray.core.comparison import WayComparison
from ramo_ray.core.resampling import Estimate
from ramo_ray.core.rules import RulePool
from ramo_ray.evaluation.comparison_page import ComparisonData, render
from ramo_ray.evaluation.comparison_text import READING, Table, conclusions, tables
from ramo_ray.evaluation.report_data import Judge

ESTIMATES = ("correlation", "overlap", "flips", "ties", "human_agreement", "label_mass", "calls_a_second", "speed")
PAGE = "comparison.html"
PLAIN = ("overlap_by_chance", "flipped")


def write_results(folder: Path, ways: Sequence[WayComparison], pool: RulePool) -> None:
    """Write `per_rule.parquet` (way, rule_id, correlation, low, high; null where not defined) and `comparison.json`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {"way": way.name, "rule_id": rule, **_bounds(found, "correlation")}
        for way in ways
        for rule, found in zip(pool.ids, way.rule_correlations, strict=True)
    ]
    numbers = [(key, pa.float64()) for key in ("correlation", "low", "high")]
    schema = pa.schema([("way", pa.string()), ("rule_id", pa.string()), *numbers])
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / "per_rule.parquet")
    write_json(folder / "comparison.json", {"reference": ways[0].name, "ways": [_as_json(way) for way in ways]})


def _as_json(way: WayComparison) -> dict[str, Any]:
    estimates = {key: getattr(way, key) for key in ESTIMATES}
    return {
        **{key: getattr(way, key) for key in ("name", *PLAIN)},
        **{key: None if found is None else found._asdict() for key, found in estimates.items()},
        "rules_without_correlation": sum(found is None for found in way.rule_correlations),
    }


def _bounds(found: Estimate | None, key: str) -> dict[str, float | None]:
    value, low, high = found or (None, None, None)
    return {key: value, "low": low, "high": high}


def read_results(folder: Path) -> list[WayComparison]:
    """Read what `write_results` wrote, the reference first."""
    import pyarrow.parquet as pq

    by_way: dict[str, list[Estimate | None]] = {}
    for row in pq.read_table(folder / "per_rule.parquet").to_pylist():
        found = None if row["correlation"] is None else Estimate(row["correlation"], row["low"], row["high"])
        by_way.setdefault(row["way"], []).append(found)
    return [
        WayComparison(**_from_json(way), rule_correlations=by_way[way["name"]])
        for way in read_json(folder / "comparison.json")["ways"]
    ]


def _from_json(way: dict[str, Any]) -> dict[str, Any]:
    estimates = {key: None if way[key] is None else Estimate(**way[key]) for key in ESTIMATES}
    return estimates | {key: way[key] for key in ("name", *PLAIN)}


def show(stage: Stage) -> None:
    """Print what was compared, the tables, then a sentence a way and how to read them."""
    ways, counts, judge = read_results(stage.folder), stage.manifest["counts"], stage.manifest["judge"]
    summary(
        f"comparison in {stage.folder}",
        {
            "trios": counts["rows_out"],
            "prompts": counts["prompts"],
            "conversations": counts["conversations"],
            "judge calls": judge["calls"],
            "quarantined trios": counts["quarantined"],
            **truncated_line(counts),
            **server_lines(judge),
        },
    )
    for table in tables(ways):
        console.print(_terminal_table(table))
    for sentence in conclusions(ways, counts["rows_out"]):
        console.print(sentence, markup=False)
    console.print(READING[0], style="dim", markup=False)


def _terminal_table(table: Table) -> RichTable:
    shown = RichTable(title=table.title, title_justify="left", show_lines=True)
    shown.add_column("way", no_wrap=True)
    for heading in table.headings:
        shown.add_column(heading, justify="right")
    for name, cells in table.rows:
        shown.add_row(
            name, *(f"{cell.value}\n[dim]{cell.interval}[/dim]" if cell.interval else cell.value for cell in cells)
        )
    return shown


def write_page(stage: Stage) -> None:
    """Write `comparison.html`."""
    config, counts = read_json(stage.folder / "config.json"), stage.manifest["counts"]
    judge, selection = config["judge"], config["selection"]
    facts = {
        "source": config["trios"] or config["run"],
        "judge": f"{judge['model']} on {judge['engine']}",
        "trios, prompts, conversations": f"{counts['rows_out']}, {counts['prompts']}, {counts['conversations']}",
        "rules": config["rules"] or "the paper's 100",
        "r, γ": f"{selection['r']}, {selection['gamma']:g}",
        "embedder": config["embedder"]["model"],
        **{name: str(count) for name, count in truncated_line(counts).items()},
    }
    page = ComparisonData(
        title="Ways to rate, compared",
        output=str(stage.folder),
        ways=read_results(stage.folder),
        trios=counts["rows_out"],
        created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        facts=facts,
        judge=Judge(engine=judge["engine"], model=judge["model"]),
        versions=stage.manifest["versions"],
        fingerprints=stage.manifest["fingerprints"],
        config=config,
    )
    write_text(stage.folder / PAGE, render(page))
