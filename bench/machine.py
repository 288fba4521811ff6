"""With what a run was made, without naming any host."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import psutil

from bench.context import Bench
from bench.peers import PEERS, Peer
from bench.peers.base import python_version


def describe(
    bench: Bench, peers: Sequence[Peer], missing: Mapping[str, str], runs: int, scale: float
) -> dict[str, Any]:
    """Return what the report says of the machine, the server and the peers."""
    return {
        "date": date.today().isoformat(),
        "runs": runs,
        "scale": scale,
        "machine": machine(bench.databases.server.folder),
        "software": software(bench),
        "settings": bench.databases.settings(),
        "peers": {
            peer.name: {
                "title": peer.title,
                "version": peer.version(),
                "configuration": peer.configuration,
                "finished": "kept" if peer.keeps_finished else "deleted",
            }
            for peer in peers
        },
        "missing": {PEERS[name].title: why for name, why in missing.items()},
    }


def machine(folder: Path) -> dict[str, str]:
    """Return the processor, the memory, the system, and the file system of the data."""
    return {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "system": f"{_distribution()}, Linux {platform.release().split('-')[0]}",
        "file system": _file_system(folder),
    }


def software(bench: Bench) -> dict[str, str]:
    """Return the versions of what all peers share."""
    row = bench.databases.admin.execute("show server_version").fetchone()
    assert row is not None
    found = {
        "PostgreSQL": str(row[0]).split()[0],
        "Python": platform.python_version(),
        "psycopg": python_version("psycopg"),
    }
    if node := shutil.which("node"):
        version = subprocess.run([node, "--version"], capture_output=True, text=True, check=False)
        found["Node.js"] = version.stdout.strip().lstrip("v")
    return found


def _processor() -> str:
    try:
        match = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        match = None
    return match.group(1).strip() if match else platform.machine()


def _distribution() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.system()


def _file_system(folder: Path) -> str:
    mounts = [
        (len(part.mountpoint), part.fstype)
        for part in psutil.disk_partitions(all=True)
        if folder.is_relative_to(part.mountpoint)
    ]
    return max(mounts, default=(0, "unknown"))[1]
