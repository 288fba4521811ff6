"""Finds the text files of a folder: the work of the demo."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

# Of a huge folder the demo takes a part, since it is to end within a minute.
MAX_FILES = 1_000
MAX_BYTES = 1_000_000  # per file
MAX_LOOKED_AT = 20_000

SKIPPED_FOLDERS = {"node_modules", "__pycache__"}  # and those whose name begins with a dot


@dataclass(frozen=True)
class TextFile:
    """A text file as it was when it was found.

    Attributes:
        path: Its absolute path.
        kind: The end of its name: py, sql, md.
        version: What changes when the file does.
    """

    path: str
    kind: str
    version: tuple[int, int]

    def has_changed(self) -> bool:
        """Was it written to, or removed, since it was found?"""
        try:
            return version_of(os.stat(self.path)) != self.version
        except OSError:
            return True


@dataclass
class Finds:
    """Text files by path, why others were left out, and whether the folder holds more."""

    files: list[TextFile] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    more: bool = False

    def __str__(self) -> str:
        text = f"{len(self.files)} text files"
        if self.more:
            text += " (there are more, but a demo is to be short)"
        if self.left_out:
            reasons = (f"{count} {why}" for why, count in self.left_out.most_common())
            text += f", left out {', '.join(reasons)}"
        return text


def find_text_files(folder: Path) -> Finds:
    """Return the text files in a folder and its subfolders, hidden ones excepted."""
    finds = Finds()
    paths = walk(folder.resolve())
    for path in islice(paths, MAX_LOOKED_AT):
        if len(finds.files) == MAX_FILES:
            finds.more = True
            return finds
        if why := reason_to_leave_out(path):
            finds.left_out[why] += 1
        else:
            finds.files.append(TextFile(path, kind_of(path), version_of(os.stat(path))))
    finds.more = next(paths, None) is not None
    return finds


def walk(folder: Path) -> Iterator[str]:
    """Yield the paths of all files, in the same order each time; symbolic links lead nowhere."""
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not is_skipped(name))
        for name in sorted(names):
            yield os.path.join(parent, name)


def is_skipped(name: str) -> bool:
    """Is a folder of this name none of the user's own work?"""
    return name.startswith(".") or name in SKIPPED_FOLDERS


def reason_to_leave_out(path: str) -> str | None:
    """Return what keeps a file from being work for the demo; None if it is text."""
    try:
        path.encode()
        facts = os.lstat(path)
        if not stat.S_ISREG(facts.st_mode):
            return "special"
        if facts.st_size > MAX_BYTES:
            return f"larger than {MAX_BYTES // 1_000_000} MB"
        with open(path, "rb") as file:
            return "binary" if b"\0" in file.read(8192) else None
    except (OSError, UnicodeEncodeError):
        return "unreadable"


def kind_of(path: str) -> str:
    """Return the end of a file's name in lower case, cut to a sensible length."""
    return Path(path).suffix.lower()[1:21] or "other"


def version_of(facts: os.stat_result) -> tuple[int, int]:
    """Return what changes whenever a file is written to."""
    return facts.st_mtime_ns, facts.st_size
