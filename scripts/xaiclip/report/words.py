"""Words that come from data, made fit to be read: names and reasons can hold any character."""

from __future__ import annotations

import html
import re

#: What means something in Markdown within a line; underscores do so at the edge of a word alone.
_MARKDOWN = re.compile(r"[\\`*\[\]|~]|(?<![^\W_])_|_(?![^\W_])")


def plain(text: str) -> str:
    """One line: white space becomes a blank, and what cannot be printed becomes ``\\ufffd``."""
    one_line = " ".join(text.split())
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in one_line)


def escape(text: str) -> str:
    """As `plain`, so that Markdown and HTML show it letter by letter."""
    return _MARKDOWN.sub(r"\\\g<0>", html.escape(plain(text), quote=False))
