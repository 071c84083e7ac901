"""training.data.cleaning: what is left out of texts."""

import time

import pytest

from training.data.cleaning import Cleaner

CLEANER = Cleaner(["<|end|>", "[SEP]", "<|end|>er"])


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("a\r\nb\rc\u2028d", "a\nb\nc\nd"),
        ("a\x00\x07\x1b[0m\x7f\ufeff\ufffe\u202eb", "a[0mb"),
        ("    indented\n\tcode", "    indented\n\tcode"),
        ("\n\n  a  \n b\t\n\n\n\n\n\nc\n\n", "  a\n b\n\n\nc"),
        ("a<|end|>b<|end|>erc[SEP]", "a b c"),
        ("<|e<|end|>nd|>", "<|e nd|>"),
        ("emoji \U0001f468\u200d\U0001f469 stay", "emoji \U0001f468\u200d\U0001f469 stay"),
        (" \n\t ", ""),
    ],
)
def test_clean(text: str, cleaned: str) -> None:
    assert CLEANER.clean(text) == cleaned
    assert CLEANER.clean(cleaned) == cleaned


def test_a_title_is_one_line() -> None:
    assert CLEANER.clean_title(" A \n title\x00 [SEP] ") == "A title"


def test_time_grows_with_the_text_and_no_faster() -> None:
    for text in (" " * 2_000_000 + "x", "\n" * 2_000_000 + "x", "<|e" * 700_000, "\u0301\u0323" * 1_000_000):
        started = time.process_time()
        CLEANER.clean(text)
        assert time.process_time() - started < 5
