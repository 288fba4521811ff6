"""Hears that fetching is worth while. Without it the worker polls, later but no less surely."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from procrastinate_sql import calls
from procrastinate_sql.connections import Address
from procrastinate_sql.job_store import AsyncJobStore, Codec
from procrastinate_sql.worker.backoff import RETRIABLE, delays, reason

logger = logging.getLogger("procrastinate_sql.worker")


async def listen(
    address: Address,
    codec: Codec,
    queue_names: Sequence[str] | None,
    on_news: Callable[[], None],
) -> None:
    """Call `on_news` for each notification, for ever, or until it turns out that none can come.

    Args:
        address: A direct connection: a pooler passes no notifications on.
        codec: Where the functions are.
        queue_names: The queues of the worker (None: all).
        on_news: Called when there may be something to fetch.
    """
    backoff = delays()
    while True:
        try:
            connection, is_pooled = await address.open_async()
            async with connection:
                if is_pooled:
                    logger.info("a pooler is in between: polling only (see listen_dsn)")
                    return
                for channel in await AsyncJobStore(connection, codec).listen_channels(queue_names):
                    await connection.execute(calls.listen(channel))
                backoff = delays()
                # Something may have come while nobody listened.
                on_news()
                async for _ in connection.notifies():
                    on_news()
        except RETRIABLE as error:
            logger.info("not listening, trying again: %s", reason(error))
        await asyncio.sleep(next(backoff))
