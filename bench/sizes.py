"""How many of everything: the complete sizes, scaled."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """Sizes of a run.

    Args:
        scale: Factor for everything; 1 takes two hours or so.
        drain_jobs: Jobs of a drain, if not `scale` times the usual.
    """

    scale: float = 1.0
    drain_jobs: int | None = None

    def _scaled(self, usual: int, least: int) -> int:
        return max(least, int(usual * self.scale))

    @property
    def jobs(self) -> int:
        """Jobs of a drain."""
        return self.drain_jobs or self._scaled(100_000, 500)

    @property
    def locked_jobs(self) -> int:
        return self._scaled(50_000, 500)

    @property
    def samples(self) -> int:
        """Jobs whose latency is taken, one at a time."""
        return min(300, self._scaled(300, 30))

    @property
    def singles(self) -> int:
        """Jobs deferred one by one."""
        return min(4_000, self._scaled(4_000, 100))

    @property
    def bulk_jobs(self) -> int:
        return self._scaled(100_000, 1_000)

    @property
    def round_jobs(self) -> int:
        """Jobs of a round under a held snapshot."""
        return self._scaled(200_000, 500)

    @property
    def peer_round_jobs(self) -> int:
        """The same for peers, which slow down."""
        return self._scaled(20_000, 500)

    @property
    def rounds(self) -> int:
        return 5 if self.scale > 0.02 else 2

    @property
    def flat_jobs(self) -> int:
        """Jobs of a flat-cost shape."""
        return self._scaled(1_000_000, 5_000)

    @property
    def flat_calls(self) -> int:
        """Calls of which the median is taken."""
        return 20 if self.scale > 0.02 else 5

    @property
    def connection_jobs(self) -> int:
        """Jobs for one number of connections, so many that their first calls matter little.

        A new connection plans all that a fetch and a finish do: 26 ms of CPU, 64 times.
        """
        return self._scaled(100_000, 2_000)

    @property
    def connections(self) -> tuple[int, ...]:
        return (1, 2, 4, 8, 16, 32, 64) if self.scale > 0.02 else (1, 4)

    @property
    def idle_workers(self) -> int:
        return min(100, self._scaled(100, 10))

    @property
    def idle_seconds(self) -> float:
        return min(20.0, max(3.0, 20.0 * self.scale))

    @property
    def kills(self) -> int:
        """Workers to kill."""
        return min(3, self._scaled(3, 1))

    @property
    def memory_jobs(self) -> int:
        return self._scaled(1_000_000, 5_000)

    @property
    def commit_seconds(self) -> float:
        return min(5.0, max(1.0, 5.0 * self.scale))
