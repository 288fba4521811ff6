"""Faults made on purpose, with real processes on servers of their own: see docs/reliability.md.

$FAULTS_SIZE is small, full, or a number of jobs a scenario (`make faults SIZE=…`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tools"), str(ROOT)]  # for `postgres`, and for `bench`

from harness.scene import Scene, Size, scene  # noqa: E402  # it imports from tools/ too
from postgres import Server, cluster  # noqa: E402  # tools/ is no package

StartScene = Callable[..., tuple[Scene, Server]]


@pytest.fixture(scope="session")
def size() -> Size:
    return Size.read(os.environ.get("FAULTS_SIZE", "full"))


@pytest.fixture
def start_scene(request: pytest.FixtureRequest, tmp_path: Path, size: Size) -> Iterator[StartScene]:
    """Install the queue on a server of the scenario's own, by default a new one."""
    with ExitStack() as stack:

        def start(
            settings: Mapping[str, object] | None = None, server: Server | None = None
        ) -> tuple[Scene, Server]:
            server = server or stack.enter_context(cluster(settings=settings))
            dsn = server.conninfo(host="127.0.0.1")
            name = request.node.name.removeprefix("test_")
            started = stack.enter_context(scene(name, tmp_path, dsn, size))
            started.install()
            return started, server

        yield start
