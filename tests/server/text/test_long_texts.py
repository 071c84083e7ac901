"""Long texts: refused after few tokens, cut before they are tokenised, and never many bytes at a time."""

import asyncio

import pytest

from engine.loading.resolve import ModelSource
from server.memory import Trimming
from server.text import long_texts
from server.text.long_texts import LongTexts
from server.text.tokenizer import Tokenizer

TEXT = "The quick brown fox, jumps over 12 lazy dogs.\n\u4e2d\u6587 " * 1000


class Counting:
    """A tokenizer that counts the characters that it reads."""

    def __init__(self, tokenizer):
        self.encode_whole, self.num_read = tokenizer.encode, 0

    def encode(self, text, **options):
        self.num_read += len(text)
        return self.encode_whole(text, **options)


@pytest.fixture
def tokenizer(tiny_llama):
    return Counting(Tokenizer.load(ModelSource(tiny_llama, "tiny")))


@pytest.fixture
def texts(tokenizer):
    return LongTexts(tokenizer, Trimming())


async def test_a_text_that_is_too_long_is_read_until_that_is_sure(texts, tokenizer):
    assert await texts.exceeds(TEXT, 2000)
    assert tokenizer.num_read <= long_texts._PIECE


async def test_a_text_that_fits_never_exceeds(texts, tokenizer):
    num_tokens = len(tokenizer.encode_whole(TEXT, add_special_tokens=False))
    assert not await texts.exceeds(TEXT, num_tokens)
    assert not await texts.exceeds(TEXT, num_tokens, usual=0)
    assert await texts.exceeds(TEXT, num_tokens // 2, usual=0)


async def test_a_text_beyond_all_bounds_is_not_read_at_all(texts, tokenizer):
    assert await texts.exceeds("a" * (long_texts._LONGEST + 1), 1000)
    assert tokenizer.num_read == 0


@pytest.mark.parametrize("num_tokens", [1, 100, 1000, 100_000])
async def test_the_end_of_a_text_has_its_last_tokens(texts, tokenizer, num_tokens):
    whole = tokenizer.encode_whole(TEXT, add_special_tokens=False)
    end = await texts.end_of(TEXT, num_tokens)
    begin = await texts.end_of(TEXT, num_tokens, is_beginning=True)
    assert tokenizer.encode_whole(end, add_special_tokens=False)[-num_tokens:] == whole[-num_tokens:]
    assert tokenizer.encode_whole(begin, add_special_tokens=False)[:num_tokens] == whole[:num_tokens]
    assert num_tokens == 100_000 or len(end) + len(begin) < len(TEXT)


async def test_so_many_bytes_at_a_time(texts, monkeypatch):
    under_way, most = [], 0

    def read(number):
        return number

    async def noted(function, number):
        nonlocal most
        under_way.append(number)
        most = max(most, sum(under_way))
        await asyncio.sleep(0)
        under_way.remove(number)
        return function(number)

    monkeypatch.setattr(asyncio, "to_thread", noted)
    sizes = [long_texts._AT_A_TIME // 3] * 8
    assert await asyncio.gather(*[texts.run(size, read, size) for size in sizes]) == sizes
    assert 0 < most <= long_texts._AT_A_TIME
