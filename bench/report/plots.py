"""The plots, as SVG: the same results give the same files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from bench.figures import FIGURES
from bench.figures.drain import WHOLE
from bench.report.data import Data

STYLE: Any = {
    "svg.hashsalt": "procrastinate-sql",
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.use": True,
}
OURS, OTHERS = "#c0392b", "#8fa3b3"
Plot = Callable[[Data, str, Axes], bool]


def draw(data: Data, folder: Path) -> dict[str, list[str]]:
    """Draw all plots for which there are results; return their paths by figure."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.svg"):
        old.unlink()
    drawn: dict[str, list[str]] = {}
    with mpl.rc_context(STYLE):
        for figure, (plot, height) in PLOTS.items():
            canvas = Canvas(figsize=(7.5, height))
            axes = canvas.add_subplot()
            if data.metrics(figure) and plot(data, figure, axes):
                path = folder / f"{figure}.svg"
                canvas.savefig(path, metadata={"Date": None})
                drawn[figure] = [f"{folder.name}/{path.name}"]
    return drawn


def _bars(data: Data, figure: str, axes: Axes, metrics: Sequence[str], unit: str) -> bool:
    """Draw a bar for each peer of each metric, with the least and the most of the runs."""
    labels, middles, spreads, colours = [], [], [], []
    for metric in metrics:
        for peer in data.peers(figure, metric):
            values = sorted(data.values(figure, metric, peer).values())
            middle = data.middle(figure, metric, peer)
            assert middle is not None
            labels.append(f"{metric}: {data.title(peer)}")
            middles.append(middle)
            spreads.append((middle - values[0], values[-1] - middle))
            colours.append(OURS if peer == "ours" else OTHERS)
    if not labels:
        return False
    axes.barh(
        range(len(labels)),
        middles,
        xerr=list(zip(*spreads, strict=True)),
        color=colours,
        height=0.7,
    )
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.set_xlabel(unit)
    return True


def _drain(data: Data, figure: str, axes: Axes) -> bool:
    metrics = [name for name in data.metrics(figure) if not name.endswith(WHOLE)]
    return _bars(data, figure, axes, metrics, "jobs/s")


def _latency(data: Data, figure: str, axes: Axes) -> bool:
    axes.set_xscale("log")
    return _bars(data, figure, axes, ["p50", "p99"], "ms, logarithmic")


def _defer(data: Data, figure: str, axes: Axes) -> bool:
    return _bars(data, figure, axes, ["bulk, best batch", "COPY", "single"], "jobs/s")


def _locks(data: Data, figure: str, axes: Axes) -> bool:
    return _bars(data, figure, axes, list(data.metrics(figure)), "jobs/s")


def _wal(data: Data, figure: str, axes: Axes) -> bool:
    metrics = [name for name in data.metrics(figure) if name.startswith("WAL")]
    return _bars(data, figure, axes, metrics, "bytes/job")


def _rounds(data: Data, figure: str, axes: Axes) -> bool:
    """Draw each round as a part of the first."""
    samples = data.metrics(figure).values()
    rounds = sorted({s.details["round"] for s in samples if "round" in s.details})
    holders = dict.fromkeys(s.details["holder"] for s in samples if "holder" in s.details)
    styles = dict(zip(holders, (":", "-", "--"), strict=False))
    for peer in FIGURES[figure].peers:
        for holder in holders:
            values = [data.middle(figure, f"{holder}, round {n}", peer) for n in rounds]
            known = [value for value in values if value is not None]
            if len(known) < len(rounds) or not known:
                continue
            parts = [value / known[0] for value in known]
            label = f"{data.title(peer)}, {holder}"
            (line,) = axes.plot(rounds, parts, styles[holder], label=label, marker=".")
            if peer == "ours":
                line.set_color(OURS)
    axes.set_ylim(0)
    axes.set_xticks(rounds)
    axes.set_xlabel("round")
    axes.set_ylabel("rate, as a part of the first round's")
    axes.legend(fontsize=7, ncols=2)
    return True


def _connections(data: Data, figure: str, axes: Axes) -> bool:
    """Draw each rate as a part of its peak."""
    metrics = data.metrics(figure)
    numbers = sorted({s.details["connections"] for s in metrics.values() if s.details})
    for what in dict.fromkeys(name.rpartition(", ")[0] for name in metrics):
        for peer in data.peers(figure, f"{what}, most of peak"):
            values = [data.middle(figure, f"{what}, {n}", peer) or 0.0 for n in numbers]
            style = "-" if "100" in what else "--"
            parts = [value / max(values) for value in values]
            (line,) = axes.plot(
                numbers, parts, style, marker=".", label=f"{data.title(peer)}, {what}"
            )
            if peer == "ours":
                line.set_color(OURS)
    axes.set_xscale("log", base=2)
    axes.set_xticks(numbers, [str(n) for n in numbers])
    axes.set_ylim(0)
    axes.set_xlabel("connections")
    axes.set_ylabel("rate, as a part of its peak")
    axes.legend(fontsize=7)
    return True


def _flat(data: Data, figure: str, axes: Axes) -> bool:
    """Draw, for each shape, the time of each call as a multiple of the baseline's."""
    ending = ", time of baseline"
    samples = {n: s for n, s in data.metrics(figure).items() if n.endswith(ending)}
    shapes = list(dict.fromkeys(sample.details["shape"] for sample in samples.values()))
    calls = dict.fromkeys(sample.details["call"] for sample in samples.values())
    if not samples:
        return False
    for call in calls:
        values = [data.middle(figure, f"{shape}: {call}{ending}") or 0.0 for shape in shapes]
        axes.plot(values, range(len(shapes)), "x" if "first" in call else "o", label=call)
    axes.axvline(2.0, color=OTHERS, linewidth=1)
    axes.set_xlim(0)
    axes.set_yticks(range(len(shapes)), shapes)
    axes.invert_yaxis()
    axes.set_xlabel("time, as a multiple of that on a queue of 1,000 ready jobs (bar: 2)")
    axes.legend(fontsize=7)
    return True


def _memory(data: Data, figure: str, axes: Axes) -> bool:
    for metric in data.metrics(figure):
        if curve := data.details(figure, metric).get("curve"):
            axes.plot([done for done, _ in curve], [rss for _, rss in curve], color=OURS)
            axes.set_ylim(0)
            axes.set_xlabel("jobs run")
            axes.set_ylabel("MB")
            return True
    return False


PLOTS: dict[str, tuple[Plot, float]] = {
    "drain": (_drain, 5.0),
    "latency": (_latency, 3.0),
    "defer": (_defer, 4.0),
    "locks": (_locks, 2.0),
    "wal": (_wal, 2.5),
    "snapshot": (_rounds, 4.0),
    "locksnapshot": (_rounds, 3.0),
    "flat": (_flat, 4.5),
    "connections": (_connections, 4.0),
    "memory": (_memory, 2.5),
}
