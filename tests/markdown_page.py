"""A page of Markdown, read as a reader sees it: by a parser that knows nothing of the project."""

import re
from dataclasses import dataclass

from markdown_it import MarkdownIt

NUMBER = r"[+−]?[\d,]*\.?\d+"
CELL = re.compile(
    rf"(?P<mean>{NUMBER})(?: \[(?P<low>{NUMBER}), (?P<high>{NUMBER})\])?"
    rf"(?: \((?P<relative>{NUMBER})%\))?(?:; p (?P<p>[=<] 0\.\d+))?(?: \(n = (?P<n>\d+)\))?"
)


@dataclass
class Page:
    """The heads and rows of each table in order, and the items of lists; plain text."""

    tables: list[tuple[list[str], list[list[str]]]]
    items: list[str]
    kinds: set[str]


def read(markdown: str) -> Page:
    """Read a page; ``kinds`` are the kinds of everything in it, such as "html_inline"."""
    tokens = MarkdownIt("commonmark").enable("table").parse(markdown)
    page = Page([], [], set())
    for before, token in zip([tokens[0], *tokens], tokens, strict=False):
        page.kinds |= {token.type, *(child.type for child in token.children or [])}
        if token.type == "table_open":
            page.tables.append(([], []))
        elif token.type == "tr_open" and page.tables[-1][0]:
            page.tables[-1][1].append([])
        elif token.type == "inline" and before.type == "th_open":
            page.tables[-1][0].append(_text(token))
        elif token.type == "inline" and before.type == "td_open":
            page.tables[-1][1][-1].append(_text(token))
        elif token.type == "inline" and before.type == "paragraph_open" and before.level >= 2:
            page.items.append(_text(token))
    return page


def value(cell):
    """The numbers of a cell by name; None for a dash."""
    if cell == "—":
        return None
    found = CELL.fullmatch(cell)
    assert found, cell
    return {
        name: text if name == "p" else float(text.replace(",", "").replace("−", "-"))
        for name, text in found.groupdict().items()
        if text is not None
    }


def _text(token):
    return "".join(child.content if child.type != "softbreak" else "\n" for child in token.children)
