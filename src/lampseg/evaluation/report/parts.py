"""What the page of a report is made of: sections of tables, pictures and paragraphs."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from lampseg.evaluation.report import figures


@dataclass(frozen=True)
class TablePart:
    """A table; `best` are the (row, column) to stress, where footer rows count on from the last row."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    footer: Sequence[Sequence[str]] = ()
    best: frozenset[tuple[int, int]] = frozenset()
    note: str = ""
    sortable: bool = True
    kind: str = "table"


@dataclass(frozen=True)
class PicturePart:
    """A figure as a data address, with its caption and the text for who cannot see it."""

    uri: str
    caption: str
    alt: str
    kind: str = "picture"


@dataclass(frozen=True)
class TextPart:
    """A paragraph, a `heading` or a block of `code`."""

    text: str
    kind: str = "text"


@dataclass(frozen=True)
class ViewerCase:
    """A case as the page's script reads it: JSON whose volumes are NIfTI, compressed, in base64."""

    name: str
    data: str


@dataclass(frozen=True)
class ViewerPart:
    """The interactive viewer; a page has at most one."""

    cases: Sequence[ViewerCase]
    library_text: str
    """The script of the viewer's library."""
    library: str
    """The same as base64 of its gzip file."""
    views: tuple[tuple[str, str], ...]
    """Name for the script, and label."""
    layers: tuple[tuple[str, str, bool], ...]
    """Name for the script, label, and whether it is shown at first."""
    note: str
    kind: str = "viewer"


@dataclass(frozen=True)
class FoldPart:
    """Parts that are hidden under a line until it is opened."""

    text: str
    parts: Sequence["Part"]
    kind: str = "fold"


Part = TablePart | PicturePart | TextPart | ViewerPart | FoldPart


@dataclass(frozen=True)
class Section:
    """A titled part of the page."""

    title: str
    parts: Sequence[Part]


def picture(figure: Figure, caption: str, *, alt: str) -> PicturePart:
    """The figure drawn as SVG."""
    return PicturePart(figures.data_uri(figure), caption, alt)
