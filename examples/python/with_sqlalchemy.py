"""Store an order and defer its e-mail in one transaction of SQLAlchemy: both exist, or neither.

python with_sqlalchemy.py 42 ann@example.org
"""

from __future__ import annotations

import sys

from sqlalchemy import Integer, Text, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from procrastinate_sql import bindings


class Base(DeclarativeBase):
    """The tables of the shop."""


class Order(Base):
    """Who ordered what."""

    __tablename__ = "orders"

    number: Mapped[int] = mapped_column(Integer, primary_key=True)
    email: Mapped[str] = mapped_column(Text)


def place_order(session: Session, number: int, email: str) -> None:
    """Store an order, and have its e-mail sent once that is committed."""
    session.add(Order(number=number, email=email))
    session.flush()
    bindings.configure("send_email", queue="mail", connection=session.connection()).defer(
        to=email, subject=f"Your order {number}"
    )


if __name__ == "__main__":
    # An address without anything: that of PGHOST, PGDATABASE and so on.
    engine = create_engine("postgresql+psycopg://")
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        place_order(session, int(sys.argv[1]), sys.argv[2])
        session.commit()
