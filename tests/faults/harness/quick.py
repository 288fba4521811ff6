"""The same tasks, for workers whose claims do not wait for the disk: the command has no option."""

from __future__ import annotations

from functools import partial

from harness.tasks import app

app.run_worker = partial(app.run_worker, durable_claims=False)  # type: ignore[method-assign]
