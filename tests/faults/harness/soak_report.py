"""The report of a soak: a page and plots, from its file of results and nothing else.

    PYTHONPATH=tests/faults:tools python -m harness.soak_report

A complete soak is written into docs/soak, any other into .build/faults/soak.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from bench.report.markdown import number, table
from bench.report.plots import OTHERS, OURS, STYLE
from harness.evidence import read_lines
from harness.soak import FILE, MB

ROOT = Path(__file__).resolve().parents[3]

PAGE = """# Soak

Written by `make soak` from the JSON lines of one run; not edited.

{minutes:g} minutes at {rate:,.0f} jobs a second, {share:.0%} of the {sustained:,.0f} that this
machine defers and drains at once. (It drains {drained:,.0f} a second while nobody defers, and
defers {deferred:,.0f} while nobody works: producers and workers share its cores.)
A worker process was killed every 15 seconds and replaced, another one stopped in good order and
started again every 25, a third one left alone; what had ended was purged; in the middle third
(grey) a session held a snapshot. Four of ten jobs have one of 198 locks.
[reliability.md](../reliability.md) says how it is judged.

PostgreSQL {PostgreSQL}; {machine}; {date}. Everything shares the machine.

{bounds}
{done}
{plots}"""

Lines = dict[str, list[dict[str, Any]]]


def read(path: Path) -> Lines:
    """Return the lines of a file of results, by kind."""
    lines: Lines = {"setup": [], "sample": [], "interval": [], "bound": [], "end": []}
    for line in read_lines(path):
        lines[line.pop("kind")].append(line)
    return lines


def write(lines: Lines) -> Path:
    """Write the page and its plots; return the path of the page."""
    (setup,) = lines["setup"]
    is_complete = setup["minutes"] >= 30 and setup["share"] >= 0.7 and lines["end"]
    folder = ROOT / ("docs/soak" if is_complete else ".build/faults/soak")
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / "README.md"
    facts = ", ".join(f"{name}: {value}" for name, value in setup.pop("machine").items())
    bounds = table(
        ("bounded", "measured", "limit", "unit", ""),
        (
            (
                bound["text"],
                number(bound["value"]),
                number(bound["limit"]),
                bound["unit"],
                "holds" if bound["holds"] else "**does not hold**",
            )
            for bound in lines["bound"]
        ),
    )
    done = table(
        ("what happened", ""),
        (
            (name.replace("_", " "), f"{value:,}")
            for end in lines["end"]
            for name, value in end.items()
        ),
    )
    plots = "\n".join(f"![{title}]({name}.svg)" for name, title in draw(lines, folder).items())
    page.write_text(
        PAGE.format(
            **setup,
            rate=setup["share"] * setup["sustained"],
            machine=facts,
            bounds=bounds,
            done=done,
            plots=plots,
        ).rstrip()
        + "\n"
    )
    return page


def draw(lines: Lines, folder: Path) -> dict[str, str]:
    """Draw all plots; return their titles by name."""
    held = [lines["setup"][0]["minutes"] * third / 3 for third in (1, 2)]
    with mpl.rc_context(STYLE):
        for name, (plot, title) in PLOTS.items():
            canvas = Canvas(figsize=(7.5, 2.5))
            axes = canvas.add_subplot()
            plot(lines, axes)
            axes.axvspan(*held, color=OTHERS, alpha=0.2, linewidth=0)
            axes.set_xlabel("minutes")
            axes.set_ylabel(title)
            canvas.savefig(folder / f"{name}.svg", metadata={"Date": None})
    return {name: title for name, (_, title) in PLOTS.items()}


def _minutes(lines: list[dict[str, Any]]) -> list[float]:
    return [line["at"] / 60 for line in lines]


def _size(lines: Lines, axes: Axes) -> None:
    samples = lines["sample"]
    for name in samples[-1]["sizes"] if samples else ():
        sizes = [sample["sizes"][name] / MB for sample in samples]
        colour = OURS if name == "procrastinate_jobs" else None
        axes.plot(_minutes(samples), sizes, color=colour, label=name.removeprefix("procrastinate_"))
    axes.set_ylim(0)
    axes.legend(fontsize=5, ncols=3)


def _dead_rows(lines: Lines, axes: Axes) -> None:
    samples = lines["sample"]
    axes.plot(_minutes(samples), [sample["dead_rows"] for sample in samples], color=OURS)
    axes.set_ylim(0)


def _latency(lines: Lines, axes: Axes) -> None:
    intervals = lines["interval"]
    for name, colour in (("p50", OTHERS), ("p99", OURS)):
        milliseconds = [interval[name] * 1000 for interval in intervals]
        axes.plot(_minutes(intervals), milliseconds, color=colour, label=name)
    axes.set_yscale("log")
    axes.legend(fontsize=7)


def _waiting(lines: Lines, axes: Axes) -> None:
    intervals = lines["interval"]
    axes.plot(_minutes(intervals), [interval["waiting"] for interval in intervals], color=OURS)
    axes.set_ylim(0)


def _memory(lines: Lines, axes: Axes) -> None:
    samples = lines["sample"]
    for worker in dict.fromkeys(name for sample in samples for name in sample["memory"]):
        alive = [sample for sample in samples if worker in sample["memory"]]
        is_left_alone = len(alive) == len(samples)
        axes.plot(
            _minutes(alive),
            [sample["memory"][worker] for sample in alive],
            color=OURS if is_left_alone else OTHERS,
            linewidth=1.5 if is_left_alone else 0.5,
        )
    axes.set_ylim(0)


PLOTS: dict[str, tuple[Callable[[Lines, Axes], None], str]] = {
    "size": (_size, "MB of each table and index"),
    "dead_rows": (_dead_rows, "dead rows of the jobs"),
    "latency": (_latency, "ms from defer to start"),
    "waiting": (_waiting, "jobs that wait"),
    "memory": (_memory, "MB of each worker process"),
}

if __name__ == "__main__":
    print(f"Report: {write(read(FILE)).relative_to(ROOT)}")
