"""Child processes for tasks that compute; one job at a time each, to be killed alone."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from procrastinate_sql.context import JobFailed, Retry

if TYPE_CHECKING:
    from procrastinate_sql.worker.run import Run

# Not fork: this process has threads, and connections that must not be shared.
_spawn = multiprocessing.get_context("spawn")


class ChildFailed(JobFailed):
    """A task failed in its process: the text is the error that it raised there."""


class ChildDied(ChildFailed):
    """The process of a task died, or was killed."""


class Child:
    """A process that calls functions by name."""

    def __init__(self) -> None:
        self._connection, remote = _spawn.Pipe()
        self._process = _spawn.Process(target=_serve, args=(remote,), daemon=True)
        self._process.start()
        # Else a dead child would not be noticed: the pipe had another end left.
        remote.close()

    def call(self, func: Callable[..., Any], args: Mapping[str, Any]) -> Any:
        """Call a function of a module there, and return what it returns.

        Raises:
            ChildFailed: It raised.
            ChildDied: The process died.
            Retry: It raised that.
        """
        try:
            self._connection.send((func.__module__, func.__qualname__, args))
            kind, value = self._connection.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            raise ChildDied(f"its process died (exit code {self._process.exitcode})") from None
        if kind == "result":
            return value
        if kind == "retry":
            raise Retry(*value)
        raise ChildFailed(value)

    def kill(self) -> None:
        self._process.kill()

    def is_alive(self) -> bool:
        return self._process.is_alive()


class Children:
    """Idle children; more are started as they are needed."""

    def __init__(self) -> None:
        self._idle: list[Child] = []

    def call(self, run: Run, func: Callable[..., Any], args: Mapping[str, Any]) -> Any:
        """Call a function in a child, on behalf of a run, from the thread of that run."""
        child = self._take()
        run.child = child
        # It may have been told to stop before it had a process to be killed.
        if run.stop_reason is not None:
            child.kill()
        try:
            return child.call(func, args)
        finally:
            # In this order: who tells the run to stop from now on does not find the child, and who
            # found it has left the reason.
            run.child = None
            if run.stop_reason is None and child.is_alive():
                self._idle.append(child)
            else:
                child.kill()

    def _take(self) -> Child:
        while self._idle:
            child = self._idle.pop()
            if child.is_alive():
                return child
        return Child()

    def close(self) -> None:
        """Kill the idle ones; those at work die with this process."""
        while self._idle:
            self._idle.pop().kill()


def end_if_forked(process_id: int) -> None:
    """End this process if it is a child that a task forked: the worker is its parent alone."""
    if os.getpid() != process_id:
        os._exit(0)


def _serve(connection: Connection) -> None:
    # The worker decides when to stop: a signal to the whole group is not for this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    process_id = os.getpid()
    while True:
        try:
            module, name, args = connection.recv()
        except EOFError:
            return
        answer = _answer(module, name, args)
        end_if_forked(process_id)
        try:
            connection.send(answer)
        except Exception as error:  # what cannot be pickled
            connection.send(
                ("error", f"{type(error).__name__}: the result cannot be sent: {error}")
            )


def _answer(module: str, name: str, args: Mapping[str, Any]) -> tuple[str, Any]:
    from procrastinate_sql.worker.run import error_text

    try:
        target: Any = importlib.import_module(module)
        for part in name.split("."):
            target = getattr(target, part)
        # The name of a decorated function stands for its Task.
        return "result", getattr(target, "func", target)(**args)
    except Retry as retry:
        return "retry", retry.args
    except BaseException as error:
        return "error", error_text(error)
