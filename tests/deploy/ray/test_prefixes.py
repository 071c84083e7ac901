"""Where a prompt goes: to the replica that was sent its beginning, unless that replica has too much to do."""

from __future__ import annotations

import pytest

from deploy.ray.prefixes import SentPrefixes, hash_blocks
from tests.support.running import make_prompt

IDLE = {"a": 0, "b": 0}
PROMPT = make_prompt(100)


@pytest.mark.parametrize(("length", "num_blocks"), [(0, 0), (15, 0), (16, 1), (31, 1), (32, 2)])
def test_only_full_blocks_are_hashed(length, num_blocks):
    assert len(hash_blocks(PROMPT[:length], b"")) == num_blocks


def test_a_blocks_hash_depends_on_its_tokens_all_before_it_and_the_tenant():
    hashes = hash_blocks(PROMPT, b"")
    assert hash_blocks([*PROMPT[:64], 1, *PROMPT[65:]], b"")[:4] == hashes[:4]
    assert not set(hash_blocks([PROMPT[0] ^ 1, *PROMPT[1:]], b"")) & set(hashes)
    assert not set(hash_blocks(PROMPT, b"tenant")) & set(hashes)
    assert len(set(hash_blocks([7] * 100, b""))) == 6


@pytest.fixture
def prefixes():
    return SentPrefixes()


def test_nothing_is_known_of_a_new_prompt(prefixes):
    prefixes.add("a", hash_blocks(PROMPT, b""))
    assert prefixes.choose(hash_blocks(make_prompt(100, seed=1), b""), IDLE, 4) is None


def test_a_prompt_goes_where_most_of_its_beginning_went(prefixes):
    prefixes.add("a", hash_blocks(PROMPT[:32], b""))
    prefixes.add("b", hash_blocks(PROMPT[:64], b""))
    hashes = hash_blocks(PROMPT, b"")
    assert prefixes.choose(hashes, IDLE, 4) == "b"
    assert prefixes.choose(hashes, {"a": 0, "b": 4}, 4) == "b"


def test_an_overloaded_replica_is_passed_over(prefixes):
    prefixes.add("a", hash_blocks(PROMPT[:32], b""))
    prefixes.add("b", hash_blocks(PROMPT, b""))
    assert prefixes.choose(hash_blocks(PROMPT, b""), {"a": 0, "b": 5}, 4) == "a"
    assert prefixes.choose(hash_blocks(PROMPT, b""), {"a": 5, "b": 5, "c": 0}, 4) is None


def test_of_those_that_know_it_equally_the_least_loaded_gets_it(prefixes):
    for replica in "ab":
        prefixes.add(replica, hash_blocks(PROMPT, b""))
    assert prefixes.choose(hash_blocks(PROMPT, b""), {"a": 2, "b": 1, "c": 0}, 4) == "b"


def test_a_replica_that_is_gone_is_forgotten(prefixes):
    prefixes.add("a", hash_blocks(PROMPT, b""))
    prefixes.keep({"b"})
    assert prefixes.choose(hash_blocks(PROMPT, b""), IDLE, 4) is None


def test_what_was_used_last_is_kept_and_the_beginning_longest():
    prefixes = SentPrefixes(capacity=8)
    old, new = hash_blocks(PROMPT, b""), hash_blocks(make_prompt(64, seed=1), b"")
    prefixes.add("a", old)  # six blocks
    prefixes.add("a", new)  # four more
    prefixes.add("b", old[:5])
    assert prefixes.choose(new, IDLE, 4) == "a"
    assert prefixes.choose(old, {"a": 1, "b": 3}, 4) == "b"  # "a" has only the first four left
    assert prefixes.choose(old[:4], {"a": 1, "b": 3}, 4) == "a"
