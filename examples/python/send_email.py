"""A worker for the jobs that the producers of every language defer.

    procrastinate-sql worker --app send_email --queues mail

`OUTBOX` names the mailbox file that stands for the mail server.
"""

from __future__ import annotations

import mailbox
import os
from email.message import EmailMessage

from procrastinate_sql import bindings


@bindings.task(queue="mail", max_attempts=5)
def send_email(to: str, subject: str) -> str:
    """Send an e-mail, and return to whom; the result is kept with the job."""
    message = EmailMessage()
    message["To"] = to
    message["Subject"] = subject
    outbox = mailbox.mbox(os.environ["OUTBOX"])
    outbox.lock()
    try:
        outbox.add(message)
    finally:
        outbox.close()
    return to


if __name__ == "__main__":
    print(send_email.defer(to="ann@example.org", subject="Hello Ann"))
