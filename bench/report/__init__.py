"""The report: RESULTS.md and its plots, from a file of results and nothing else."""

from __future__ import annotations

from pathlib import Path

from bench.report.data import Data
from bench.report.markdown import render
from bench.report.plots import draw
from bench.samples import read


def write(results: Path, folder: Path) -> Path:
    """Write RESULTS.md and plots/ into a folder; return the path of the former."""
    folder.mkdir(parents=True, exist_ok=True)
    data = Data(read(results))
    plots = draw(data, folder / "plots")
    page = folder / "RESULTS.md"
    page.write_text(render(data, plots))
    return page
