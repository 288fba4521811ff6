"""What is done to servers, and what is put before them: poolers, proxies, standbys, full disks."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from io import StringIO
from pathlib import Path

import psycopg
from postgres import (
    Server,
    cluster,
    default_version,
    free_port,
    identity,
    installation,
    quick_folder,
    run,
    server_user,
)

from bench.server import SETTINGS, disk_folder

# Ends two sessions of clients, whichever.
TERMINATE = """
    select count(pg_terminate_backend(chosen.pid)) from (
        select activity.pid from pg_stat_activity as activity
        where activity.backend_type = 'client backend' and activity.pid <> pg_backend_pid()
        order by random() limit 2
    ) as chosen
"""

PROXY = Path(__file__).with_name("proxy.py")


def children(pid: int) -> list[int]:
    """Return the processes that this one has started."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        if int(fields[1]) == pid:
            found.append(int(status.parent.name))
    return found


def cut_power(server: Server) -> None:
    """End all processes of a server at once: what they have not given to the system is lost."""
    postmaster = server.pid
    os.kill(postmaster, signal.SIGSTOP)
    while state(postmaster) != "T":  # from then on it starts no more processes
        time.sleep(0.001)
    processes = [*children(postmaster), postmaster]
    for pid in processes:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    while not all(map(is_dead, processes)):
        time.sleep(0.01)
    # It may stay a zombie for a while, and a server that starts would take it for alive.
    (server.data / "postmaster.pid").unlink()
    (server.folder / f".s.PGSQL.{server.port}.lock").unlink()


def state(pid: int) -> str | None:
    """Return the letter by which the system gives a process's state; None when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return None


def is_dead(pid: int) -> bool:
    """Is a process gone, or no more than an entry of the system's?"""
    return state(pid) in {None, "Z"}


def freeze_wal_writer(server: Server) -> None:
    """Let commits that do not wait for the disk stay in memory, until one that does writes them."""
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        for (pid,) in connection.execute(
            "select pid from pg_stat_activity where backend_type = 'walwriter'"
        ):
            os.kill(pid, signal.SIGSTOP)


def start_again(server: Server, seconds: float = 30) -> None:
    """Start a server as a supervisor does: over and over until it runs."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            # Each failure would show the whole log.
            with redirect_stderr(StringIO()) as shown:
                server.start()
            return
        except subprocess.CalledProcessError:
            ends = "\n".join(shown.getvalue().splitlines()[-30:])
            assert time.monotonic() < deadline, f"the server does not start: {ends}"
            time.sleep(0.2)


# --- As in production ---------------------------------------------------------------


@contextmanager
def durable_server() -> Iterator[Server]:
    """Yield a server like that of the benchmark, on a disk, with checkpoints as by default."""
    settings = {**SETTINGS, "checkpoint_timeout": "5min", "max_wal_size": "4GB"}
    with cluster(settings=settings, parent=disk_folder()) as made:
        yield made


# --- A pooler ----------------------------------------------------------------------


@contextmanager
def pooler(server: Server, sessions: int = 10) -> Iterator[str]:
    """Yield the address of a server behind PgBouncer in transaction mode."""
    program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
    assert program, "PgBouncer is missing: sh tools/setup.sh test"
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        configuration = Path(folder) / "pgbouncer.ini"
        configuration.write_text(f"""
            [databases]
            * = host=127.0.0.1 port={server.port} user={server.user}
            [pgbouncer]
            listen_addr = 127.0.0.1
            listen_port = {port}
            unix_socket_dir =
            auth_type = any
            pool_mode = transaction
            default_pool_size = {sessions}
            max_client_conn = 500
            server_login_retry = 0.2
            ignore_startup_parameters = extra_float_digits,options
        """)
        Path(folder).chmod(0o755)
        command = [program, "--quiet", str(configuration)]
        with subprocess.Popen(command, cwd="/", **identity()) as process:  # type: ignore[call-overload]
            try:
                time.sleep(0.5)
                assert process.poll() is None
                yield f"host=127.0.0.1 port={port} user={server.user} dbname=postgres"
            finally:
                process.kill()


# --- A network that goes away ------------------------------------------------------


class Network:
    """A TCP proxy in a process of its own. While it is frozen, packets go nowhere.

    Nothing is reset or closed, and the system at both ends goes on to take what is sent, so that
    neither notices. When it goes on, what was sent meanwhile arrives, late.
    """

    def __init__(self, port: int) -> None:
        self.port = free_port()
        command = [sys.executable, str(PROXY), str(self.port), str(port)]
        self._process = subprocess.Popen(command)
        time.sleep(0.5)
        assert self._process.poll() is None

    def address(self, server: Server) -> str:
        return f"host=127.0.0.1 port={self.port} user={server.user} dbname=postgres"

    def cut(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def heal(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


@contextmanager
def network(server: Server) -> Iterator[Network]:
    """Yield a network through which a server is reached."""
    made = Network(server.port)
    try:
        yield made
    finally:
        made.close()


# --- A standby ---------------------------------------------------------------------


@contextmanager
def standby(primary: Server) -> Iterator[Server]:
    """Yield a server that follows another one, which waits for it with each commit."""
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir=quick_folder()))
    if name := server_user():
        shutil.chown(folder, name)
    made = Server(primary.programs, folder, {})
    made.port = free_port()
    try:
        backup = [primary.programs.client / "pg_basebackup", "--pgdata", made.data]
        source = primary.conninfo(host="127.0.0.1") + " application_name=standby"
        options = ["--write-recovery-conf", "--checkpoint=fast", "--dbname", source]
        run([*backup, *options], **identity(), cwd=folder)
        with (made.data / "postgresql.conf").open("a") as file:
            file.write(f"port = {made.port}\nunix_socket_directories = '{folder}'\n")
        (made.data / "postgresql.auto.conf").write_text(
            f"primary_conninfo = '{source}'\nhot_standby_feedback = on\n"
        )
        made.start()
        primary.psql("-c", "alter system set synchronous_standby_names = 'standby'")
        primary.psql("-c", "select pg_reload_conf()")
        with psycopg.connect(primary.dsn, autocommit=True) as connection:
            deadline = time.monotonic() + 20
            while True:
                states = connection.execute("select sync_state from pg_stat_replication").fetchall()
                if states == [("sync",)]:
                    break
                assert time.monotonic() < deadline, "the standby does not follow"
                time.sleep(0.05)
        yield made
    finally:
        if made.is_running():
            made.stop("immediate")
        shutil.rmtree(folder, ignore_errors=True)


# --- A small disk ------------------------------------------------------------------


class Disk:
    """A small file system of its own, in memory; it can be filled up."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fill(self) -> None:
        """Leave no room."""
        with (self.folder / "filler").open("ab", buffering=0) as file:
            try:
                while file.write(bytes(64 * 1024)):
                    pass
            except OSError:
                pass

    def free(self) -> None:
        """Make room again."""
        (self.folder / "filler").unlink(missing_ok=True)

    def has_room(self) -> bool:
        return shutil.disk_usage(self.folder).free > 0


@contextmanager
def disk(megabytes: int) -> Iterator[Disk]:
    """Yield a disk of this size. Mounting it takes root: without, this fails, loudly."""
    folder = Path(tempfile.mkdtemp(prefix="disk-", dir="/tmp"))
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0755", "tmpfs", str(folder)]
    result = subprocess.run(mount, capture_output=True, text=True, check=False)
    assert not result.returncode, f"a small disk cannot be mounted (it takes root): {result.stderr}"
    try:
        if name := server_user():
            shutil.chown(folder, name)
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
        folder.rmdir()


@contextmanager
def server_on(data: Disk, wal: Disk) -> Iterator[Server]:
    """Yield a server with its data on one disk, and its write-ahead log on another."""
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir=quick_folder()))
    if name := server_user():
        shutil.chown(folder, name)
    made = Server(installation(default_version()), folder, {})
    try:
        made.data = data.folder / "data"
        command = [made.programs.bin / "initdb", "--pgdata", made.data, "--username", made.user]
        command += ["--waldir", wal.folder / "pg_wal", "--wal-segsize=1"]
        run([*command, "--auth=trust", "--encoding=UTF8", "--locale=C"], **identity(), cwd=folder)
        settings = {**made.settings, "min_wal_size": "2MB", "max_wal_size": "16MB"}
        with (made.data / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in settings.items())
        made.start()
        yield made
    finally:
        if made.is_running():
            made.stop("immediate")
        shutil.rmtree(folder, ignore_errors=True)
