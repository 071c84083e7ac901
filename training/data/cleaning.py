"""What is left out of texts before they are tokenised. Indentation and words stay as they are.

Unicode's forms of one character (NFC, NFD) are left to the tokenizer's normalizer, which prompts pass as well.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

# C0 and C1 controls but tab and newline, BOM, marks of direction, which can hide code, and what is no character.
_UNPRINTED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ufeff\u202a-\u202e\u2066-\u2069\ufdd0-\ufdef\ufffe\uffff]")
_NEWLINES = re.compile("\r\n?|\x85|[\u2028\u2029]")
_EMPTY_LINES = re.compile("\n{4,}")


class Cleaner:
    """Cleans texts for one tokenizer; takes time in proportion to them."""

    def __init__(self, special_tokens: Collection[str]) -> None:
        """`special_tokens` are texts that the tokenizer would read as marks, such as that of the end."""
        longest_first = sorted(filter(None, special_tokens), key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def clean(self, text: str) -> str:
        """Return a text with newlines of one kind, without controls and special tokens.

        Spaces at the ends of lines go, and so do empty lines at the beginning and at the end; three or more between
        lines become two.
        """
        text = _UNPRINTED.sub("", _NEWLINES.sub("\n", text))
        if self._special is not None:
            text = self._special.sub(" ", text)  # a space, or what stands around it might become one
        text = "\n".join([line.rstrip() for line in text.split("\n")])
        return _EMPTY_LINES.sub("\n\n\n", text).strip("\n")

    def clean_title(self, title: str) -> str:
        """Return a title cleaned, on one line."""
        return " ".join(self.clean(title).split())
