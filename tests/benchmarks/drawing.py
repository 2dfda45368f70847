"""The judge's benchmark as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from workload import Way

from ramo_ray.evaluation.svg import BLUE, GREY, INK, MUTED

TITLES = {
    False: "a prompt with two responses",
    True: "a prompt with six responses, the paper's layout",
}
INCHES = (9.0, 3.6)


def draw(ways: dict[str, Way], ceiling: float, stem: Path) -> None:
    """Write bars of calls/s and of the ceiling's share, one panel for each kind of prompt group, as SVG and PNG."""
    import matplotlib.style
    from matplotlib.figure import Figure

    with matplotlib.style.context({"svg.hashsalt": "judge", "font.size": 9, "axes.titlelocation": "left"}):
        figure = Figure(figsize=INCHES, layout="constrained")
        panels = figure.subplots(2, 1, sharex=True, height_ratios=[sum("six" not in n for n in ways), 3])
        for six, panel in zip((False, True), panels, strict=True):
            _bars(panel, {name: way for name, way in ways.items() if ("six" in name) == six}, ceiling)
            panel.set_title(TITLES[six], color=INK)
        panels[-1].set_xlabel("judge calls a second (share of the machine's ceiling for distinct tokens)", color=MUTED)
        figure.savefig(stem.with_suffix(".svg"), metadata={"Date": None})
        figure.savefig(stem.with_suffix(".png"), dpi=160)


def _bars(panel: Any, ways: dict[str, Way], ceiling: float) -> None:
    ordered = sorted(ways.items(), key=lambda item: item[1].calls)
    bars = panel.barh(
        [name.replace("_six", "").replace("_", " ") for name, _ in ordered],
        [way.calls for _, way in ordered],
        color=[GREY if "naive" in name else BLUE for name, _ in ordered],
    )
    labels = [f" {way.calls:.1f} ({way.tokens / ceiling:.0%})" for _, way in ordered]
    panel.bar_label(bars, labels)
    panel.spines[["top", "right", "left"]].set_visible(False)
    panel.tick_params(left=False)
    panel.margins(x=0.12)
