"""What all commands' parsers of flags share: help that fits the terminal, and mistakes that name the nearest flag."""

from __future__ import annotations

import argparse
import difflib
import sys
import textwrap
from typing import NoReturn

_MOST_DIGITS = 18


class Parser(argparse.ArgumentParser):
    """argparse's parser. A mistake ends the program with status 2 and one line on standard error."""

    def __init__(self, prog: str, description: str | None, epilog: str | None = None) -> None:
        super().__init__(
            prog=prog, description=description, epilog=epilog, formatter_class=_Formatter, allow_abbrev=False
        )

    def error(self, message: str) -> NoReturn:
        """Called by argparse for a flag that it does not know or that lacks its value."""
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown != message and unknown.startswith("-"):
            given = unknown.split()[0].partition("=")[0]
            known = [option for option in self._option_string_actions if option.startswith("--")]
            nearest = difflib.get_close_matches(given, known, 1, 0.5)
            message = f"there is no flag {given}" + (f"; did you mean {nearest[0]}?" if nearest else "")
        sys.stderr.write(f"{self.prog}: error: {message}; {self.prog} --help lists what is valid\n")
        sys.exit(2)


class _Formatter(argparse.HelpFormatter):
    """Fills paragraphs; those with indented lines, such as lists of examples, stay as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:  # noqa: ARG002  # argparse's own
        paragraphs = textwrap.dedent(text).strip().split("\n\n")
        return "\n\n".join(
            paragraph if "\n " in paragraph or paragraph.startswith(" ") else textwrap.fill(paragraph, width)
            for paragraph in paragraphs
        )


def positive(text: str) -> int:
    """Return a flag's value, a whole number above 0; argparse calls this as a type."""
    if not text.isdecimal() or len(text) > _MOST_DIGITS or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text[:20]!r} is not a positive whole number")
    return int(text)
