"""The peers that are npm packages; they are installed into .build, not into the tree."""

from __future__ import annotations

import json
import shutil
import subprocess
from functools import cache
from pathlib import Path

from bench.paths import BUILD
from bench.peers.base import Peer, Unavailable

SOURCE = Path(__file__).parent / "node"
FOLDER = BUILD / "node"


class NodePeer(Peer):
    """A peer whose program is in the folder node/."""

    package: str

    def prepare(self) -> None:
        install_packages()

    def version(self) -> str:
        installed = FOLDER / "node_modules" / self.package / "package.json"
        if not installed.exists():
            raise Unavailable(f"{self.package} is not installed")
        return str(json.loads(installed.read_text())["version"])

    def command(self) -> list[str]:
        return ["node", str(FOLDER / f"{self.name}.mjs")]


class Graphile(NodePeer):
    """Graphile Worker."""

    name = "graphile"
    title = "Graphile Worker"
    package = "graphile-worker"
    configuration = "localQueue.size 500, completeJobBatchDelay 0, concurrentJobs 24, addJobs"
    keeps_finished = False
    kinds = ("async",)
    unfinished = "select count(*) from graphile_worker.jobs"


class PgBoss(NodePeer):
    """pg-boss."""

    name = "pgboss"
    title = "pg-boss"
    package = "pg-boss"
    configuration = (
        "4 handlers with batchSize 5000 (no call for each job), polling at 0.5 s, insert"
    )
    keeps_finished = True
    kinds = ("batch",)
    unfinished = "select count(*) from pgboss.job where state < 'completed'"
    is_polled = True


@cache
def install_packages() -> None:
    """Install the pinned packages, and copy the programs beside them."""
    if not shutil.which("node") or not shutil.which("npm"):
        raise Unavailable("there is no Node.js and npm here")
    FOLDER.mkdir(parents=True, exist_ok=True)
    wanted = (SOURCE / "package.json").read_text()
    installed = FOLDER / "installed.json"
    for program in SOURCE.glob("*.mjs"):
        shutil.copy(program, FOLDER)
    if installed.exists() and installed.read_text() == wanted:
        return
    (FOLDER / "package.json").write_text(wanted)
    result = subprocess.run(
        ["npm", "install", "--silent", "--no-audit", "--no-fund"],
        cwd=FOLDER,
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        raise Unavailable(f"npm install failed: {(result.stderr or result.stdout).strip()[-500:]}")
    installed.write_text(wanted)
