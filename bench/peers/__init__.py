"""The peers: what each is, how it is started, and what it leaves in its tables."""

from bench.peers.base import Peer, Unavailable
from bench.peers.node_peers import Graphile, PgBoss
from bench.peers.python_peers import Absurd, Floor, Ours, PgQueuer, Procrastinate

PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        Ours(),
        Graphile(),
        PgQueuer(),
        PgBoss(),
        Absurd(),
        Procrastinate(),
        Floor(),
    )
}

__all__ = ["PEERS", "Peer", "Unavailable"]
