"""Lines as their bytes come."""

import pytest

from server.batches.lines import LineSplitter, answered

TEXT = b'\xef\xbb\xbf{"a": 1}\r\n\n  \n{"b":\x00 2}\n' + b"x" * 20 + b"\nlast"
LINES = [(1, b'{"a": 1}'), (4, b'{"b":\x00 2}'), (5, None), (6, b"last")]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_lines_are_the_same_however_their_bytes_come(size):
    splitter = LineSplitter(19)
    lines = [line for i in range(0, len(TEXT), size) for line in splitter.feed(TEXT[i : i + size])]
    assert lines + splitter.feed(b"", is_last=True) == LINES


def test_a_line_that_is_too_long_is_not_kept():
    splitter = LineSplitter(1000)
    for _ in range(100):
        splitter.feed(b"x" * 900)
    assert len(splitter._begun) <= 1000
    assert splitter.feed(b"\nshort\n") == [(1, None), (2, b"short")]


@pytest.mark.parametrize(
    ("usage", "counts"),
    [
        (b'{"prompt_tokens": 3, "completion_tokens": 2, "prompt_tokens_details": null}', (3, 0, 2, 0)),
        (b'{"input_tokens": 3, "output_tokens": 2, "input_tokens_details": {"cached_tokens": 1}}', (3, 1, 2, 0)),
        (b'{"completion_tokens": 2, "completion_tokens_details": {"reasoning_tokens": 1}}', (0, 0, 2, 1)),
        (b'"much"', (0, 0, 0, 0)),
        (b"null", (0, 0, 0, 0)),
    ],
)
def test_usage_is_read_in_the_words_of_each_api(usage, counts):
    result = answered(1, "id", "r", 200, b'{"usage": ' + usage + b"}")
    assert result[3:] == counts
    assert not result.is_error
