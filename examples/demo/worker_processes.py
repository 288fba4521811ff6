"""Starts workers as anybody would, by their command, and notices when one ends."""

from __future__ import annotations

import os
import subprocess
import sysconfig
import time
from pathlib import Path
from types import TracebackType

HERE = Path(__file__).resolve().parent
COMMAND = Path(sysconfig.get_path("scripts"), "procrastinate-sql")
GRACE = 5  # seconds for all of them to stop in good order


class WorkerEnded(Exception):
    """A worker ended while it was needed; the message holds the end of its log."""


class WorkerProcesses:
    """Worker processes, stopped at the end of the block.

    Args:
        folder: Where their logs go, and the reports that their tasks write.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> WorkerProcesses:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in self._processes.values():
            process.terminate()
        deadline = time.monotonic() + GRACE
        for process in self._processes.values():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def start(self, name: str, *, queues: str, concurrency: int) -> None:
        """Start a worker that takes jobs from these queues, so many at a time."""
        options = ["--queues", queues, "--concurrency", str(concurrency), "--name", name]
        health_file = ["--health-file", str(self._folder / f"{name}.alive")]
        with self._log(name).open("wb") as log:
            self._processes[name] = subprocess.Popen(
                [str(COMMAND), "worker", "--app", "demo_tasks", *options, *health_file],
                cwd=HERE,
                env={**os.environ, "DEMO_REPORTS": str(self._folder)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def check(self) -> None:
        """Raise WorkerEnded if one is there no more."""
        for name, process in self._processes.items():
            if process.poll() is not None:
                raise WorkerEnded(
                    f"worker {name} ended early (exit code {process.returncode})\n{self.log(name)}"
                )

    def logs(self) -> str:
        """Return the ends of all logs."""
        return "\n".join(self.log(name) for name in self._processes)

    def log(self, name: str) -> str:
        """Return the end of a worker's log."""
        lines = self._log(name).read_text(errors="replace").splitlines()[-20:]
        return "\n".join([f"--- the log of worker {name} ends with:", *lines])

    def _log(self, name: str) -> Path:
        return self._folder / f"{name}.log"
