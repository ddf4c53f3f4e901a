"""The papers in references.bib, as far as the report names them."""

import re
import unicodedata
from pathlib import Path
from typing import NamedTuple

from experiments.runner.discover import ROOT

FILE = ROOT.parent / "references.bib"
ACCENTS = {"'": "\u0301", "`": "\u0300", '"': "\u0308", "^": "\u0302", "~": "\u0303", "c": "\u0327"}
ACCENTS |= {"v": "\u030c", "u": "\u0306", "H": "\u030b", "=": "\u0304", ".": "\u0307"}
LETTERS = {r"\o": "ø", r"\O": "Ø", r"\l": "ł", r"\L": "Ł", r"\ss": "ß", r"\aa": "å", r"\i": "i"}


class Paper(NamedTuple):
    """What a report says of a paper."""

    title: str
    authors: str  # "Pang, Baratin and Lacoste-Julien", "Wu et al."
    year: str
    url: str | None

    @property
    def label(self) -> str:
        """Authors and year."""
        return f"{self.authors} {self.year}".strip()


def read(path: Path = FILE) -> dict[str, Paper]:
    """Return key -> paper."""
    papers = {}
    for entry in re.split(r"^(?=@)", path.read_text(encoding="utf-8"), flags=re.M)[1:]:
        key = entry[entry.index("{") + 1 : entry.index(",")].strip()
        papers[key] = Paper(
            title=field(entry, "title"),
            authors=short_authors(field(entry, "author")),
            year=field(entry, "year"),
            url=address(entry),
        )
    return papers


def field(entry: str, name: str) -> str:
    """The text of one field, without TeX; empty where the entry has none."""
    match = re.search(rf"[\s,]{name}\s*=\s*", entry, flags=re.I)
    if match is None:
        return ""
    rest, depth = entry[match.end() :], 0
    if rest[0] == '"':
        return plain(rest[1 : rest.index('"', 1)])
    for end, letter in enumerate(rest):
        depth += {"{": 1, "}": -1}.get(letter, 0)
        if depth < 0 or (depth == 0 and letter in ",\n"):
            return plain(rest[:end])
    return plain(rest)


def plain(text: str) -> str:
    """TeX accents as letters, braces and quotes gone, one line."""

    def accent(match: re.Match) -> str:
        return unicodedata.normalize("NFC", match[2] + ACCENTS[match[1]])

    text = text.replace(r"{\i}", "i").replace(r"\i ", "i")
    text = re.sub(r"""\\(['`"^~=.])\s*\{?([A-Za-z])\}?""", accent, text)
    text = re.sub(r"\\([cvuH])(?:\s+|\{)([A-Za-z])\}?", accent, text)
    text = re.sub(r"\\(?:[oOlLi]|ss|aa)(?![A-Za-z])", lambda m: LETTERS[m[0]], text)
    text = text.replace(r"\&", "&").replace("--", "–")
    return " ".join(re.sub(r'\\[A-Za-z]+\s*|[\\{}"$]', "", text).split())


def short_authors(authors: str) -> str:
    """Up to three family names, or the first one and others."""
    people = [person.strip() for person in re.split(r"\s+and\s+", authors) if person.strip()]
    families = [p.split(",")[0] if "," in p else p.split()[-1] for p in people]
    if len(families) > 3 or "others" in families:
        return f"{families[0]} et al."
    return " and ".join([", ".join(families[:-1]), families[-1]] if families[1:] else families)


def address(entry: str) -> str | None:
    """Where the paper can be read."""
    if eprint := re.search(r"\b(\d{4}\.\d{4,5})\b", field(entry, "eprint") + " " + entry):
        return f"https://arxiv.org/abs/{eprint[1]}"
    if doi := field(entry, "doi"):
        return f"https://doi.org/{doi}"
    return field(entry, "url") or None
