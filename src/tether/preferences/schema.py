"""The tables of a store.

``tether_answers`` is the log: rows are appended and never changed. ``tether_standing`` is an index
made of it (an annotator's newest answer to a query, unless retracted), and so are the counts
``answered`` and ``decided`` of a query; all of them change in the same transaction.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)

SCHEMA: Final = 1
"""Raised when an older tether would misread a store."""

_NUMBER: Final = BigInteger().with_variant(Integer, "sqlite")

metadata = MetaData()

store_table = Table("tether_store", metadata, Column("schema", Integer, nullable=False))

notes_table = Table(
    "tether_notes",
    metadata,
    Column("key", String(200), primary_key=True),
    Column("value", Text, nullable=False),
)

items_table = Table(
    "tether_items",
    metadata,
    Column("number", _NUMBER, primary_key=True, autoincrement=True),
    Column("id", String(32), nullable=False, unique=True),
    Column("kind", String(16), nullable=False),
    Column("facts", Text, nullable=False),
    Column("arrays", LargeBinary),
    sqlite_autoincrement=True,
)

queries_table = Table(
    "tether_queries",
    metadata,
    Column("number", _NUMBER, primary_key=True, autoincrement=True),
    Column("id", String(32), nullable=False, unique=True),
    Column("items", Text, nullable=False),
    Column("context", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("step", _NUMBER, nullable=False),
    Column("nonce", Text, nullable=False),
    # Standing answers, and those of them that prefer, rank or call a tie.
    Column("answered", Integer, nullable=False, default=0),
    Column("decided", Integer, nullable=False, default=0),
    Index("tether_queries_open", "answered", "number"),
    sqlite_autoincrement=True,
)

answers_table = Table(
    "tether_answers",
    metadata,
    Column("cursor", _NUMBER, primary_key=True, autoincrement=True),
    Column("uuid", String(36), nullable=False, unique=True),
    Column("query", String(32), ForeignKey("tether_queries.id"), nullable=False),
    Column("preference", Double),
    Column("ranking", Text),
    Column("annotator", Text, nullable=False),
    Column("time", Double, nullable=False),
    Column("latency", Double),
    Column("supersedes", String(36)),
    Column("retracted", Boolean, nullable=False),
    # Whether the lease had run out when the answer came.
    Column("late", Boolean, nullable=False),
    sqlite_autoincrement=True,
)

standing_table = Table(
    "tether_standing",
    metadata,
    Column("query", String(32), ForeignKey("tether_queries.id"), primary_key=True),
    Column("annotator", Text, primary_key=True),
    Column("cursor", _NUMBER, ForeignKey("tether_answers.cursor"), nullable=False, unique=True),
    Index("tether_standing_newest", "annotator", "cursor"),
)

leases_table = Table(
    "tether_leases",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("query", String(32), ForeignKey("tether_queries.id"), nullable=False),
    Column("annotator", Text, nullable=False),
    Column("expires", Double, nullable=False),
    Index("tether_leases_query", "query", "annotator", unique=True),
    Index("tether_leases_annotator", "annotator"),
)
