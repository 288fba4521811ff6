"""Run the benchmark: python -m bench, or `make bench` (ARGS=…), which brings what it needs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from bench.context import Bench
from bench.figures import FIGURES, Figure
from bench.machine import describe
from bench.paths import BUILD, HERE, ROOT
from bench.peers import PEERS, Peer, Unavailable
from bench.samples import Record, ResultFile, WrongResult
from bench.server import running_server
from bench.sizes import Sizes

SMOKE_SCALE = 0.01
SMOKE_SKIPS = (("snapshot", "floor"), ("wal", "floor"))  # they say nothing of ours


def main() -> int:
    options = arguments()
    if options.report:
        return write_report(options.report, HERE)
    sizes = Sizes(options.scale, options.jobs)
    results = ResultFile(options.results or BUILD / f"{'smoke' if options.smoke else 'run'}.jsonl")
    problems: list[str] = []

    with running_server(options.postgres) as databases:
        bench = Bench(databases, sizes, options.install)
        peers, missing = available([PEERS[name] for name in options.peers])
        setup = describe(bench, peers, missing, options.runs, options.scale)
        results.write(Record(0, "setup", setup=setup))
        steps = plan(options.runs, [FIGURES[name] for name in options.figures], peers)
        if options.smoke:
            steps = [step for step in steps if (step[1].name, step[2].name) not in SMOKE_SKIPS]
        with tqdm(steps, unit="figure", disable=None) as bar:
            for run, figure, peer in bar:
                bar.set_description(f"run {run}, {figure.name}, {peer.name}")
                problems += measure(bench, results, run, figure, peer)

    for problem in [*(f"{name}: {why}" for name, why in missing.items()), *problems]:
        print(problem, file=sys.stderr)
    print(f"Results: {results.path}")
    if not options.smoke:
        # Only a complete run is a result; others leave the page of the last one as it is.
        write_report(results.path, HERE if is_complete(options) else BUILD / "report")
    return 1 if problems and (options.smoke or any("WRONG" in p for p in problems)) else 0


def plan(
    runs: int, figures: Sequence[Figure], peers: Sequence[Peer]
) -> list[tuple[int, Figure, Peer]]:
    """Return what to measure: in each run, for each figure, the peers in turn."""
    return [
        (run, figure, peer)
        for run in range(1, runs + 1)
        for figure in figures
        if run == 1 or not figure.once
        for peer in peers
        if peer.name in figure.peers
    ]


def measure(bench: Bench, results: ResultFile, run: int, figure: Figure, peer: Peer) -> list[str]:
    """Measure a figure of a peer once; write what came out, and return what went wrong."""
    try:
        for sample in figure.measure(bench, peer):
            results.write(Record(run, figure.name, peer.name, sample))
    except WrongResult as error:
        results.write(Record(run, figure.name, peer.name, error=str(error), wrong=True))
        return [f"WRONG: run {run}, {figure.name}, {peer.name}: {error}"]
    except Exception as error:
        # Whatever fails is one figure of one peer; the report says so.
        text = f"{type(error).__name__}: {error}"
        results.write(Record(run, figure.name, peer.name, error=text))
        return [f"run {run}, {figure.name}, {peer.name}: {text}"]
    return []


def available(peers: Sequence[Peer]) -> tuple[list[Peer], dict[str, str]]:
    """Prepare the peers; return those that can be had, and why the others cannot."""
    found, missing = [], {}
    for peer in peers:
        try:
            peer.prepare()
            found.append(peer)
        except Unavailable as error:
            missing[peer.name] = str(error)
    return found, missing


def is_complete(options: argparse.Namespace) -> bool:
    """Were all figures measured for all peers, in their full sizes, often enough?"""
    everything = set(options.peers) == set(PEERS) and set(options.figures) == set(FIGURES)
    return everything and options.runs >= 3 and options.scale >= 1 and options.jobs is None


def write_report(results: Path, folder: Path) -> int:
    """Write RESULTS.md and the plots into a folder, from a file of results."""
    # Here, since matplotlib is not needed for anything else.
    from bench.report import write

    print(f"Report: {write(results, folder)}")
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench", description="Measure this queue and its peers, side by side."
    )
    parser.add_argument("--peers", type=names(PEERS), default=list(PEERS), metavar="A,B")
    parser.add_argument("--figures", type=names(FIGURES), default=list(FIGURES), metavar="A,B")
    parser.add_argument("--runs", type=int, default=3, help="interleaved runs (3)")
    parser.add_argument("--scale", type=float, default=1.0, help="factor for all sizes (1)")
    parser.add_argument("--jobs", type=int, help="jobs of a drain (100,000 times the scale)")
    parser.add_argument("--postgres", type=int, help="its major version (14 to 18)")
    parser.add_argument(
        "--install",
        type=Path,
        default=ROOT / "sql/install.sql",
        metavar="FILE",
        help="another install.sql of ours, to compare",
    )
    parser.add_argument("--results", type=Path, help="where the JSON lines go (.build/bench)")
    parser.add_argument(
        "--report", type=Path, metavar="FILE", help="only write bench/RESULTS.md, from FILE"
    )
    parser.add_argument(
        "--smoke", action="store_true", help="tiny sizes, ours and the floor; fails if wrong"
    )
    options = parser.parse_args()
    if options.smoke:
        options.peers, options.runs, options.scale = ["ours", "floor"], 1, SMOKE_SCALE
    return options


class names:  # noqa: N801  # a type of argument, as `int` is
    """Reads names, separated by commas, of a table."""

    def __init__(self, table: dict[str, Peer] | dict[str, Figure]) -> None:
        self._table = table

    def __call__(self, text: str) -> list[str]:
        chosen = text.split(",")
        if unknown := [name for name in chosen if name not in self._table]:
            raise argparse.ArgumentTypeError(f"{unknown[0]} is none of {', '.join(self._table)}")
        return chosen


if __name__ == "__main__":
    sys.exit(main())
