"""Throughput against memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.frontier.cases import OURS, PLAIN, RECOMPUTED
from benchmarks.frontier.results import Point, frontier
from benchmarks.measure.setting import Setting

_GB = 1e9
_NEAR = 0.04
"""Of the picture: labels of points that are nearer would cover each other."""


def draw(found: Sequence[Point], setting: Setting, path: Path) -> None:
    """Ours as the steps that budgets allow, each peer as a point, as a PNG at `path`, whose folder is made.

    Peers that compute activations again are hollow.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    most = 1.15 * max(point.memory for point in found) / _GB
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = FigureCanvasAgg(figure).figure.add_subplot()
    ours = [point for point in found if point.engine == OURS]
    if ours:
        across, up = zip(*frontier(ours), strict=True)
        axes.step([*(x / _GB for x in across), most], [*up, up[-1]], where="post", color="C0", linewidth=2)
    colors = _colors(found)
    for point, offset in zip(found, _offsets(found), strict=True):
        color, at = colors[point.engine], (point.memory / _GB, point.tokens_per_second)
        face = "white" if point.case.endswith(RECOMPUTED) else color
        spread = [[at[1] - point.slowest], [point.quickest - at[1]]]
        axes.errorbar(*at, yerr=spread, fmt="o", color=color, markerfacecolor=face, markersize=6, capsize=3)
        side = "right" if offset[0] < 0 else "left"
        axes.annotate(_label(point), at, xytext=offset, textcoords="offset points", ha=side, color=color, fontsize=8)
        if point.case == PLAIN:
            limit = setting.ranks * point.tokens_per_second
            axes.axhline(limit, linestyle="--", linewidth=1, color="gray")
            axes.annotate("linear scaling", (0, limit), xytext=(4, 4), textcoords="offset points", color="gray")
    axes.set_xlim(left=0, right=most)
    axes.set_ylim(bottom=0)
    axes.set(
        title=f"{setting.model} {setting.size} {setting.dtype}, {setting.ranks} ranks; hollow: activations recomputed",
        xlabel="memory of all ranks beyond interpreter and libraries (GB, sum of PSS)",
        ylabel="tokens/s",
    )
    axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=120)


def _colors(found: Sequence[Point]) -> dict[str, str]:
    peers = dict.fromkeys(point.engine for point in found if point.engine not in (OURS, PLAIN))
    return {OURS: "C0", PLAIN: "black"} | {engine: f"C{1 + index % 9}" for index, engine in enumerate(peers)}


def _label(point: Point) -> str:
    """The engine; of ours, which has a line of its own, the budget."""
    return point.case.removesuffix(RECOMPUTED).removeprefix(f"{OURS}, ")


def _offsets(found: Sequence[Point]) -> Iterator[tuple[int, int]]:
    """Where labels stand, in points from theirs: peers' below where there is one just there already."""
    wide = max(point.memory for point in found) * _NEAR
    high = max(point.tokens_per_second for point in found) * _NEAR

    def near(one: Point, other: Point) -> bool:
        apart = abs(one.memory - other.memory), abs(one.tokens_per_second - other.tokens_per_second)
        return apart[0] < wide and apart[1] < high

    for index, point in enumerate(found):
        covered = any(near(point, other) for other in found[:index])
        yield (-4 if point.engine == OURS else 6), (-12 if covered else 5)
