"""RESULTS.md."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from statistics import median

from bench.figures import FIGURES, Figure
from bench.report.bars import bars
from bench.report.data import Data, ratios

INTRODUCTION = """# Results

Written by `make bench` from [results.jsonl](results.jsonl); not edited. Absolute figures do not
carry to another machine or day: compare only within this page. Each figure was measured for all
peers in turn, run after run; a table shows the least, the median and the most of the runs, and
`ours ÷` is the median of the ratios within each run. How each figure is taken says
[README.md](README.md).
"""


def render(data: Data, plots: dict[str, list[str]]) -> str:
    """Return the page.

    Args:
        data: The results.
        plots: Paths of the plots, relative to the page, by figure.
    """
    parts = [INTRODUCTION, *_setup(data), *_bars(data)]
    for figure in FIGURES.values():
        if data.metrics(figure.name) or any(e.figure == figure.name for e in data.errors):
            parts += _figure(data, figure, plots.get(figure.name, []))
    return "\n".join(parts).rstrip() + "\n"


def _setup(data: Data) -> Iterator[str]:
    setup = data.setup
    yield f"{setup['date']}, {setup['runs']} runs, scale {setup['scale']:g}.\n"
    yield "## Peers\n"
    yield table(
        ("queue", "version", "configuration", "finished jobs are"),
        (
            (peer["title"], peer["version"], peer["configuration"], peer["finished"])
            for peer in setup["peers"].values()
        ),
    )
    for title, why in setup["missing"].items():
        yield f"{title} could not be had: {why}.\n"
    yield "## Machine and server\n"
    facts = {**setup["machine"], **setup["software"]}
    yield "; ".join(f"{name}: {value}" for name, value in facts.items()) + ".\n"
    yield (
        "Server and clients share it. Settings of the server: "
        + ", ".join(f"`{name} = {value}`" for name, value in setup["settings"].items())
        + ".\n"
    )


def _bars(data: Data) -> Iterator[str]:
    yield "## What is to be reached\n"
    yield table(
        ("figure", "bar", "reached", ""),
        (
            (
                bar.text,
                f"{'≥' if bar.at_least else '≤'} {number(bar.limit)}",
                "not measured" if bar.value is None else number(bar.value),
                {True: "yes", False: "**no**", None: ""}[bar.is_met],
            )
            for bar in bars(data)
        ),
    )


def _figure(data: Data, figure: Figure, plots: Sequence[str]) -> Iterator[str]:
    yield f"## {figure.title}\n"
    yield figure.text + (" Measured in the first run only." if figure.once else "") + "\n"
    for path in plots:
        yield f"![{figure.title}]({path})\n"
    yield from SPECIAL.get(figure.name, _plain)(data, figure)
    for record in data.errors:
        if record.figure == figure.name:
            what = "WRONG RESULT" if record.wrong else "not measured"
            text = " ".join(str(record.error).split())[:300]
            yield f"- {data.title(record.peer)}, run {record.run}: {what}: {text}\n"


def _plain(data: Data, figure: Figure, only: Callable[[str], bool] | None = None) -> Iterator[str]:
    rows = []
    for metric, sample in data.metrics(figure.name).items():
        if only is not None and not only(metric):
            continue
        ours = data.values(figure.name, metric)
        for peer in data.peers(figure.name, metric):
            values = data.values(figure.name, metric, peer)
            jobs = data.details(figure.name, metric, peer).get("jobs")
            ratio = ratios(ours, values) if peer != "ours" else []
            rows.append(
                (
                    metric,
                    data.title(peer),
                    number(min(values.values())),
                    number(median(values.values())),
                    number(max(values.values())),
                    sample.unit,
                    number(median(ratio)) if ratio else "",
                    f"{jobs:,}" if jobs else "",
                )
            )
    if rows:
        yield table(("metric", "queue", "min", "median", "max", "unit", "ours ÷", "jobs"), rows)


def _rounds(data: Data, figure: Figure) -> Iterator[str]:
    metrics = data.metrics(figure.name)
    rounds = sorted({s.details["round"] for s in metrics.values() if "round" in s.details})
    holders = dict.fromkeys(s.details["holder"] for s in metrics.values() if "holder" in s.details)
    rows = []
    for peer in FIGURES[figure.name].peers:
        for holder in holders:
            names = [f"{holder}, round {number}" for number in rounds]
            if data.values(figure.name, names[0], peer):
                last = data.middle(figure.name, f"{holder}, last round of first", peer)
                jobs = data.details(figure.name, names[0], peer)["jobs"]
                cells = [_or_dash(data.middle(figure.name, name, peer)) for name in names]
                rows.append((data.title(peer), holder, f"{jobs:,}", *cells, _or_dash(last)))
    heads = [f"round {number}" for number in rounds]
    yield "Jobs a second, medians; the last column is the median of the last round by the first.\n"
    yield table(("queue", "held by" if len(holders) > 2 else "", "jobs", *heads, "last ÷ 1"), rows)


def _connections(data: Data, figure: Figure) -> Iterator[str]:
    metrics = data.metrics(figure.name)
    numbers = sorted({s.details["connections"] for s in metrics.values() if s.details})
    rows = []
    for what in dict.fromkeys(name.rpartition(", ")[0] for name in metrics):
        for peer in data.peers(figure.name, f"{what}, most of peak"):
            cells = [
                _or_dash(data.middle(figure.name, f"{what}, {count}", peer)) for count in numbers
            ]
            kept = data.middle(figure.name, f"{what}, most of peak", peer)
            rows.append((what, data.title(peer), *cells, _or_dash(kept)))
    yield "Jobs (or statements) a second, medians.\n"
    yield table(("", "queue", *map(str, numbers), "most of peak"), rows)


def _flat(data: Data, figure: Figure) -> Iterator[str]:
    metrics = data.metrics(figure.name)
    shapes = dict.fromkeys(sample.details["shape"] for sample in metrics.values())
    calls = list(dict.fromkeys(sample.details["call"] for sample in metrics.values()))
    for title, ending, relation in (
        ("Time, ms", "time", "time of baseline"),
        ("Shared buffers", "buffers", "more buffers per job"),
    ):
        note = "the baseline's" if ending == "time" else "the baseline's, for each job"
        what = "as a multiple of" if ending == "time" else "how many more than"
        yield f"{title}; and, in parentheses, {what} {note}. Medians.\n"
        rows = []
        for shape in shapes:
            cells = []
            for call in calls:
                value = _or_dash(data.middle(figure.name, f"{shape}: {call}, {ending}"))
                more = data.middle(figure.name, f"{shape}: {call}, {relation}")
                if more is None:
                    cells.append(value)
                else:
                    compared = f"{more:.1f}" if ending == "time" else f"{more:+.1f}"
                    cells.append(f"{value} ({compared})")
            rows.append((shape, *cells))
        yield table(("shape", *calls), rows)


SPECIAL: dict[str, Callable[[Data, Figure], Iterator[str]]] = {
    "snapshot": _rounds,
    "locksnapshot": _rounds,
    "connections": _connections,
    "flat": _flat,
}


def number(value: float) -> str:
    """Return a number with three digits that matter."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _or_dash(value: float | None) -> str:
    return "-" if value is None else number(value)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return (
        "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines) + "\n"
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
