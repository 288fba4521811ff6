"""Bring the schema into the package, so that whoever has the package needs no clone to install it.

In a clone the SQL is flattened from ../../sql; a source distribution carries the result.
"""

import runpy
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class SchemaHook(BuildHookInterface[Any]):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        package = Path(self.root) / "src" / "procrastinate_sql" / "sql"
        flatten = Path(self.root).parents[1] / "tools" / "flatten.py"
        if flatten.exists():
            runpy.run_path(str(flatten))["write_package"](package)
        elif not (package / "install.sql").exists():
            raise FileNotFoundError(
                f"{package / 'install.sql'}: build from a clone, or from the sdist"
            )
