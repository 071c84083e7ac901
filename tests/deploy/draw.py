"""Draws the dashboard from its own JSON: each panel where Grafana puts it, with the data that its queries return."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.figure import Figure

from tests.deploy.files import panels

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from matplotlib.axes import Axes

    Series = list[tuple[dict[str, str], list[tuple[float, float]]]]

_COLUMNS, _ROW_INCHES, _WIDTH = 24, 0.28, 15.0
_BACKGROUND, _PANEL, _TEXT = "#111217", "#181b1f", "#ccccdc"
_COLORS = {"green": "#3d9a50", "yellow": "#c99a1a", "red": "#d0413f"}
_UNITS: dict[str, tuple[float, str]] = {"percentunit": (100, "%"), "s": (1, " s"), "reqps": (1, "/s"), "ops": (1, "/s")}


def draw(query: Callable[[str], Series], path: Path) -> None:
    """Draw all panels with what `query` returns for their expressions."""
    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels())
    figure = Figure(figsize=(_WIDTH, height * _ROW_INCHES), facecolor=_BACKGROUND)
    with mpl.rc_context({"text.color": _TEXT, "xtick.color": _TEXT, "ytick.color": _TEXT, "font.size": 7}):
        for panel in panels():
            at = panel["gridPos"]
            box = (at["x"] / _COLUMNS, 1 - (at["y"] + at["h"]) / height, at["w"] / _COLUMNS, at["h"] / height)
            if panel["type"] == "row":
                figure.text(0.006, box[1] + box[3] / 3, panel["title"], fontsize=10, fontweight="bold")
                continue
            frame = figure.add_axes((box[0] + 0.003, box[1] + 0.003, box[2] - 0.006, box[3] - 0.006), facecolor=_PANEL)
            frame.set(xticks=[], yticks=[])
            frame.set_title(panel["title"], loc="left", fontsize=8, y=1.0, pad=-10, x=0.02)
            found = [(target, query(target["expr"])) for target in panel["targets"]]
            if panel["type"] == "stat":
                _stat(frame, panel, found[0][1])
            else:
                _curves(frame.inset_axes((0.09, 0.27, 0.89, 0.58)), panel, found)
    figure.savefig(path, dpi=100, facecolor=_BACKGROUND)


def _stat(frame: Axes, panel: dict[str, Any], series: Series) -> None:
    values = [value for _, points in series for _, value in points if not math.isnan(value)]
    last = values[-1] if values else math.nan
    defaults = panel["fieldConfig"]["defaults"]
    steps = defaults["thresholds"]["steps"]
    color = next(step["color"] for step in reversed(steps) if step["value"] is None or last >= step["value"])
    scale, unit = (1000, " ms") if defaults["unit"] == "s" and last < 1 else _UNITS.get(defaults["unit"], (1, ""))
    frame.set_facecolor(_COLORS[color])
    frame.text(0.5, 0.4, f"{last * scale:.3g}{unit}", fontsize=20, ha="center", va="center", transform=frame.transAxes)


def _curves(axes: Axes, panel: dict[str, Any], found: list[tuple[dict[str, str], Series]]) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    scale, unit = _UNITS.get(defaults["unit"], (1, ""))
    lines = [(_legend(target["legendFormat"], labels), points) for target, series in found for labels, points in series]
    if "stacking" in defaults["custom"]:
        times = sorted({time for _, points in lines for time, _ in points})
        tables = [dict(points) for _, points in lines]
        heights = [[table.get(time, 0.0) * scale for time in times] for table in tables]
        axes.stackplot(times, heights, labels=[label for label, _ in lines], alpha=0.7)
    else:
        for label, points in lines:
            axes.plot([time for time, _ in points], [value * scale for _, value in points], label=label, linewidth=1)
    axes.set_facecolor(_PANEL)
    top = defaults.get("max")
    axes.set_ylim(0, None if top is None else top * scale * 1.02)
    for step in defaults["thresholds"]["steps"][1:] if "thresholdsStyle" in defaults["custom"] else ():
        axes.axhline(step["value"] * scale, color=_COLORS[step["color"]], linestyle="dashed", linewidth=0.8)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}{unit}")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g} s")
    axes.grid(color="#2c3235", linewidth=0.5)
    axes.legend(ncols=4, fontsize=6, frameon=False, loc="upper left", bbox_to_anchor=(-0.08, -0.12), labelcolor=_TEXT)


def _legend(pattern: str, labels: dict[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda match: labels.get(match[1], ""), pattern)
