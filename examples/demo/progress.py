"""Tells how far the jobs are: in one line on a terminal, else in a new line now and then."""

from __future__ import annotations

import shutil
import sys
import time

BAR = 30  # characters
PAUSE = 2  # seconds between lines where none can be overwritten
CLEAR_REST = "\x1b[K"


class Progress:
    """A line that is updated in place, if standard output is a terminal."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._in_place = sys.stdout.isatty()
        self._next = 0.0

    def show(self, jobs: int, ended: int, running: int) -> None:
        """Tell how many jobs there are, how many ended, and how many a worker has."""
        seconds = time.monotonic() - self._start
        line = f"{seconds:5.1f} s  {ended} of {jobs} jobs have ended, {running} are with a worker"
        if self._in_place:
            filled = BAR * ended // jobs
            bar = f"  [{'#' * filled}{'.' * (BAR - filled)}]"
            # A line that wraps could not be overwritten.
            width = shutil.get_terminal_size().columns - 1
            print("\r" + (line + bar)[:width] + CLEAR_REST, end="", flush=True)
        elif seconds >= self._next or ended == jobs:
            self._next = seconds + PAUSE
            print(line, flush=True)

    def close(self) -> None:
        """Leave the line."""
        if self._in_place:
            print(flush=True)
