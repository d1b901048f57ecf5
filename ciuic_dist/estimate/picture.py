"""A picture of a plan: one step in time, and where every byte lies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ciuic_dist.planning.footprint import levels
from ciuic_dist.planning.lanes import Lanes, lanes
from ciuic_dist.planning.plan import Plan
from ciuic_dist.planning.profile import Profile

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GIB = 1 << 30
_COLOURS = {"forward": "tab:blue", "backward": "tab:orange", "update": "tab:green"}


def draw(plan: Plan, profile: Profile, path: Path) -> None:
    """Write a PNG: computation and collectives of the last micro-batch and the update, memory, and tiers."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), layout="constrained")
    axes = FigureCanvasAgg(figure).figure.subplots(3, 1, height_ratios=(2, 2, 2))
    played = lanes(profile, plan.machine, plan.training, plan.choice)
    _draw_lanes(axes[0], plan, played)
    _draw_levels(axes[1], plan, profile, played)
    _draw_tiers(axes[2], plan)
    draft = path.with_name(path.name + ".partial")
    figure.savefig(draft, format="png", dpi=120)
    draft.replace(path)


def _draw_lanes(axes: Axes, plan: Plan, played: Lanes) -> None:
    stretches = played.micro_batches[-1]
    for stretch in stretches:
        kind = stretch.name.partition(" ")[0]
        axes.barh(2, stretch.end - stretch.start, left=stretch.start, color=_COLOURS[kind], edgecolor="white", lw=0.3)
        for row, span in ((1, stretch.gather), (0, stretch.reduce)):
            if span is not None:
                axes.barh(row, span[1] - span[0], left=span[0], color="tab:purple", edgecolor="white", lw=0.3)
    axes.barh(2, played.updating, left=stretches[-1].end, color=_COLOURS["update"])
    axes.set_yticks([2, 1, 0], ["computation", "gathers", "reductions"])
    many = f", the last of {plan.accumulation} micro-batches and the update" if plan.accumulation > 1 else ""
    axes.set(xlabel="seconds", title=f"{plan.model} on {plan.machine.name}: a step without transfers{many}")


def _draw_levels(axes: Axes, plan: Plan, profile: Profile, played: Lanes) -> None:
    times, alive = [], []
    for stretch, (begin, peak) in zip(played.micro_batches[-1], levels(profile, plan.choice), strict=True):
        times += [stretch.start, stretch.end]
        alive += [begin / _GIB, peak / _GIB]
    axes.fill_between(times, alive, color="tab:gray", alpha=0.6)
    axes.set(xlabel="seconds", ylabel="GiB", title="activations and temporary values on a device")


def _draw_tiers(axes: Axes, plan: Plan) -> None:
    tiers = ["nvme", "host", "device"]
    ends = dict.fromkeys(tiers, 0.0)
    for kind, places in plan.residency.items():
        widths = [places.get(tier, 0) / _GIB for tier in tiers]
        axes.barh(tiers, widths, left=[ends[tier] for tier in tiers], label=kind)
        for tier, width in zip(tiers, widths, strict=True):
            ends[tier] += width
    axes.legend(fontsize="small")
    axes.set(xlabel="GiB of a rank", title="where every byte lies")
