"""Comparisons of anything: records, the store that keeps them, teachers, agreement, export.

An item is a segment of a trajectory or a text; a query shows two or more of them; an answer says
which is better, who said so, when, and how long it took. Nothing here imports JAX or torch, and
SQLAlchemy (the extra ``label``) is imported when a store is opened.
"""
