"""The report: RESULTS.md and its plots, from a file of results and nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

from bench.report.data import Data
from bench.report.markdown import render
from bench.report.plots import draw
from bench.samples import read


def write(results: Path, folder: Path) -> Path:
    """Write RESULTS.md and plots/ into a folder, and the results beside them.

    Args:
        results: The file of JSON lines.
        folder: Where to write.

    Returns:
        The path of RESULTS.md.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / "results.jsonl"
    if results.resolve() != kept.resolve():
        shutil.copyfile(results, kept)
    data = Data(read(results))
    plots = draw(data, folder / "plots")
    page = folder / "RESULTS.md"
    page.write_text(render(data, plots))
    return page
