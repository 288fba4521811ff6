"""A task that books exactly once: its effects and its completion commit in one transaction.

    procrastinate-sql worker --app book_order --queues books

Should the worker die in the middle, both vanish and the job is run again. Should it have been given
up for dead, and the job to another worker, `finish` raises and the effects are rolled back.
"""

from __future__ import annotations

import psycopg

from procrastinate_sql import JobContext, bindings


@bindings.task(queue="books", max_attempts=5, pass_context=True)
def book_order(context: JobContext, account: str, amount: int) -> None:
    """Add an amount to an account."""
    with psycopg.connect() as connection:
        connection.execute(
            "update accounts set balance = balance + %s where name = %s", [amount, account]
        )
        context.finish(connection, result={"booked": amount})


if __name__ == "__main__":
    print(book_order.defer(account="sales", amount=10))
