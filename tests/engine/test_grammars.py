"""Grammars in the engine: what they allow, when their sequences join the steps, and how these end."""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import torch

from engine.errors import RequestError
from engine.grammars import Compiler, Grammars
from engine.protocol import AbortRequest, SamplingParams
from tests.support.grammar import BYTES, EOS_ID, VOCAB_SIZE, allowed, compiler, feed
from tests.support.running import finish, generate, greedy_params, load, make_prompt, request
from tests.support.sequences import make_sequence
from tests.support.tiny import reference

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from engine.engine import Engine
    from engine.grammars import Matcher

NUMBER = "start: /[1-9][0-9]{0,5}/\n"
PAIR = (
    'start: %json {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "yy"]}}, '
    '"required": ["a", "b"], "additionalProperties": false, "x-guidance": {"whitespace_flexible": false}}\n'
)
WORDS = 'start: WORD (" " WORD)*\nWORD: /[a-z]{1,5}/\n'


@pytest.fixture(scope="module")
def engine(tiny_llama: Path) -> Engine:
    """Left idle by every test, so that all can share it."""
    return with_bytes(load(tiny_llama, max_batch_size=8))


def with_bytes(engine: Engine) -> Engine:
    engine.grammars.learn(BYTES)
    return engine


def text_of(token_ids: list[int]) -> str:
    return bytes(i for i in token_ids if i < 256).decode()


def start(grammar: str, stop_token_ids: tuple[int, ...] = (EOS_ID,)) -> Matcher:
    made = compiler()
    return made.start(made.compile(grammar), stop_token_ids)


# A matcher


def test_the_mask_has_what_may_come_next_and_stop_tokens_where_the_text_may_end():
    matcher = start(NUMBER)
    assert allowed(matcher.mask) == list(b"123456789")
    assert matcher.accept(ord("7")) is None
    assert allowed(matcher.mask) == [*b"0123456789", EOS_ID]


def test_a_text_that_nothing_can_follow_is_over():
    assert feed(start(PAIR), '{"a":1,"b":"yy"}') == "stop"


def test_all_stop_tokens_of_the_sequence_end_it_and_none_where_it_has_none():
    matcher = start(NUMBER, (EOS_ID, 3))
    matcher.accept(ord("7"))
    assert allowed(matcher.mask) == [3, *b"0123456789", EOS_ID]
    matcher = start(NUMBER, ())
    matcher.accept(ord("7"))
    assert allowed(matcher.mask) == list(b"0123456789")


def test_ids_beyond_the_tokenizer_and_special_tokens_are_never_text():
    vocabulary = msgspec.structs.replace(BYTES, tokens=[*BYTES.tokens[:256], b"ab", b"ab"], special_token_ids=[256])
    wide = Compiler(vocabulary, 300, (257,))  # logits may be wider than the vocabulary; EOS has the bytes of a text
    matcher = wide.start(wide.compile('start: "ab"'), (257,))
    assert allowed(matcher.mask) == [ord("a")]
    narrow = Compiler(vocabulary, 200, ())
    assert allowed(narrow.start(narrow.compile("start: /(?s:.+)/"), ()).mask)[-1] < 200


def test_a_special_token_can_be_asked_for_by_its_id():
    matcher = start('start: <[256]> "a"')
    assert allowed(matcher.mask) == [256]
    assert matcher.accept(256) is None
    assert allowed(matcher.mask) == [ord("a")]


def test_one_text_is_allowed_in_whatever_tokens_the_model_likes():
    vocabulary = msgspec.structs.replace(BYTES, tokens=[*BYTES.tokens[:254], b'{"', b'{"a', *BYTES.tokens[256:]])
    made = Compiler(vocabulary, VOCAB_SIZE, (EOS_ID,))
    assert allowed(made.start(made.compile(PAIR), ()).mask) == [ord("{"), 254, 255]


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        ("start: other", "unknown name"),
        ("start: /(/", "unclosed"),
        ('start: ""', "empty"),
        ("", "start"),
        ("start: x\nx: x", "NoExtension"),
    ],
)
def test_a_grammar_that_cannot_be_used_says_why(grammar, reason):
    with pytest.raises(RequestError, match=reason) as caught:
        start(grammar)
    assert caught.value.param == "grammar"


def test_a_grammar_too_ambiguous_ends_with_an_error_and_soon(caplog):
    matcher, started = start('start: s\ns: s s | s s s | "a" |\n'), time.thread_time()
    reasons = (matcher.accept(ord("a")) for _ in range(2000))
    assert next(reason for reason in reasons if reason is not None) == "error"
    assert time.thread_time() - started < 4
    assert "cannot be followed" in caplog.text


# The cache


def test_a_grammar_is_compiled_once_and_the_cache_is_bounded(monkeypatch):
    grammars, compiled = Grammars(VOCAB_SIZE, frozenset({EOS_ID})), []
    grammars.learn(BYTES)
    compile_one = Compiler.compile
    monkeypatch.setattr(Compiler, "compile", lambda self, text: compiled.append(text) or compile_one(self, text))
    monkeypatch.setattr("engine.grammars._MAX_CACHED", 2)
    for text in (NUMBER, NUMBER, PAIR, NUMBER, WORDS, NUMBER, PAIR):
        grammars.check(text)
    assert compiled == [NUMBER, PAIR, WORDS, PAIR]
    monkeypatch.setattr("engine.grammars._MAX_CACHED_CHARS", len(WORDS))
    grammars.check(WORDS)
    assert list(grammars._cached) == [WORDS]
    grammars.learn(msgspec.structs.replace(BYTES))
    assert len(grammars._cached) == 1, "the same vocabulary"
    grammars.learn(msgspec.structs.replace(BYTES, special_token_ids=[]))
    assert not grammars._cached


def test_a_grammar_is_compiled_anew_after_so_many_tokens_and_after_an_error(monkeypatch):
    grammars, compiled = Grammars(VOCAB_SIZE, frozenset({EOS_ID})), []
    grammars.learn(BYTES)
    compile_one = Compiler.compile
    monkeypatch.setattr(Compiler, "compile", lambda self, text: compiled.append(text) or compile_one(self, text))
    monkeypatch.setattr("engine.grammars._MAX_TOKENS", 10)

    def begin() -> Matcher:
        grammars.compile(make_sequence(), NUMBER)
        ((_, matcher),) = grammars.ready(10.0)
        assert matcher is not None
        return matcher

    first, second = begin(), begin()
    assert (feed(first, "12345"), feed(second, "1234"), len(compiled)) == (None, None, 1)
    assert feed(begin(), "1") is None
    begin()
    assert len(compiled) == 2, "its tokens were used up"
    assert feed(second, "56") == "stop", "those that had begun on it go on"
    third = begin()
    assert third.accept(ord("!")) == "error"
    begin()
    assert len(compiled) == 3
    assert grammars._num_chars == len(NUMBER)


def test_sequences_of_one_grammar_do_not_share_where_they_stand():
    grammars = Grammars(VOCAB_SIZE, frozenset({EOS_ID}))
    grammars.learn(BYTES)
    for _ in range(2):
        grammars.compile(make_sequence(), NUMBER)
    ready: list[Any] = []
    while len(ready) < 2:
        ready += grammars.ready(1.0)
    (_, first), (_, second) = ready
    first.accept(ord("1"))
    assert allowed(second.mask) == list(b"123456789")
    assert grammars.ready(10.0) == [], "waits for nothing where nothing is compiled"


# Whole generations


def greedy_by_the_book(folder: Path, prompt: list[int], grammar: str, max_tokens: int) -> list[int]:
    """The largest logit of transformers' model that the grammar allows, token by token."""
    model, matcher, ids = reference(folder), start(grammar), list(prompt)
    with torch.no_grad():
        while len(ids) < len(prompt) + max_tokens:
            logits = model(torch.tensor([ids])).logits[0, -1]
            tokens = allowed(matcher.mask)
            ids.append(tokens[int(logits[tokens].argmax())])
            if ids[-1] == EOS_ID or matcher.accept(ids[-1]) is not None:
                break
    return ids[len(prompt) :]


PROMPTS = [make_prompt(length, seed=length) for length in (3, 17, 40)]


@pytest.mark.parametrize("grammar", [NUMBER, PAIR, WORDS], ids=["number", "pair", "words"])
def test_greedy_tokens_are_a_plain_reference_s(engine, tiny_llama, grammar):
    params = SamplingParams(max_tokens=30, temperature=0.0, grammar=grammar)
    results = generate(engine, PROMPTS, params)
    assert [result.token_ids for result in results] == [
        greedy_by_the_book(tiny_llama, prompt, grammar, 30) for prompt in PROMPTS
    ]


@pytest.mark.parametrize("sampling", [{"temperature": 0.0}, {"seed": 3}, {"seed": 3, "top_k": 5, "logprobs": 1}])
def test_batched_equals_alone_and_neighbours_notice_nothing(engine, sampling):
    params = [SamplingParams(max_tokens=24, grammar=grammar, **sampling) for grammar in (NUMBER, PAIR, WORDS)]
    free = greedy_params(24)
    together = generate(engine, [*PROMPTS, *PROMPTS], [*params, free, free, free])
    alone = [
        generate(engine, [prompt], one)[0] for prompt, one in zip(PROMPTS * 2, [*params, *[free] * 3], strict=True)
    ]
    assert [result.token_ids for result in together] == [result.token_ids for result in alone]


def test_preemption_keeps_the_place_in_the_grammar(tiny_llama, engine):
    params = SamplingParams(max_tokens=40, seed=4, temperature=1.5, grammar=WORDS, ignore_eos=True)
    prompts = [make_prompt(30, seed=i) for i in range(6)]
    tight = with_bytes(load(tiny_llama, max_batch_size=8, max_batched_tokens=16, block_size=4, num_kv_blocks=40))
    results, expected = generate(tight, prompts, params), generate(engine, prompts, params)
    assert tight.batcher.stats().num_preemptions > 0
    assert [result.token_ids for result in results] == [result.token_ids for result in expected]


def test_steps_with_masks_are_replayed_from_the_captured_graph(engine, monkeypatch):
    graph = engine.executor.runner.graph
    if graph is None:
        pytest.skip("no graph on these kernels")
    replayed, replay = [], graph.replay
    monkeypatch.setattr(graph, "replay", lambda batch: replayed.append(batch) or replay(batch))
    (result,) = generate(engine, [[65]], SamplingParams(max_tokens=30, temperature=0.0, grammar=PAIR))
    assert len(replayed) >= len(result.token_ids) - 1


# How a sequence ends, and what other parameters mean


def test_it_ends_with_its_last_token_when_nothing_can_follow(engine):
    (result,) = generate(engine, [[65]], SamplingParams(max_tokens=99, temperature=0.0, grammar='start: "abc"'))
    assert (text_of(result.token_ids), result.finish_reason, result.stop_token_id) == ("abc", "stop", None)


def test_it_ends_with_a_stop_token_where_the_text_may_end(engine):
    params = SamplingParams(max_tokens=99, temperature=0.0, grammar=NUMBER, logit_bias={EOS_ID: 100.0})
    (result,) = generate(engine, [[65]], params)
    assert (len(result.token_ids), result.finish_reason, result.stop_token_id) == (2, "stop", EOS_ID)


def test_max_tokens_cuts_it_off(engine):
    (result,) = generate(engine, [[65]], SamplingParams(max_tokens=3, grammar=PAIR, temperature=0.0))
    assert (text_of(result.token_ids), result.finish_reason) == ('{"a', "length")
    (result,) = generate(engine, [[65]], SamplingParams(max_tokens=3, grammar='start: "abc"'))
    assert result.finish_reason == "stop", "complete with the last token that it may have"


def test_no_tokens_are_asked_for(engine):
    (result,) = generate(engine, [[65]], SamplingParams(max_tokens=0, grammar=PAIR))
    assert (result.token_ids, result.finish_reason) == ([], "length")


def test_without_eos_it_goes_on_while_the_grammar_does(engine):
    params = SamplingParams(max_tokens=99, temperature=0.0, grammar=NUMBER, ignore_eos=True, logit_bias={EOS_ID: 100.0})
    (result,) = generate(engine, [[65]], params)
    assert (len(result.token_ids), result.finish_reason) == (6, "stop")


def test_min_tokens_holds_stop_tokens_back_but_not_the_grammar_s_end(engine):
    bias = {EOS_ID: 100.0}
    (result,) = generate(
        engine, [[65]], SamplingParams(max_tokens=99, min_tokens=4, temperature=0.0, grammar=NUMBER, logit_bias=bias)
    )
    assert len(result.token_ids) == 5
    (result,) = generate(engine, [[65]], SamplingParams(max_tokens=99, min_tokens=9, temperature=0.0, grammar=NUMBER))
    assert (len(result.token_ids), result.finish_reason) == (6, "stop")


def test_biases_and_penalties_choose_among_what_is_allowed(engine):
    params = SamplingParams(
        max_tokens=9, temperature=0.0, grammar="start: /[ab]{4}/", logit_bias={98: 100.0, 99: 100.0}, seed=1
    )
    (result,) = generate(engine, [[65]], params)
    assert text_of(result.token_ids) == "bbbb"
    penal = msgspec.structs.replace(params, logit_bias={97: 40.0, 98: 40.0}, frequency_penalty=50.0)
    (result,) = generate(engine, [[65]], penal)
    assert sorted(text_of(result.token_ids)) == list("aabb")


def test_logprobs_are_the_model_s_own(engine):
    free = greedy_params(1, logprobs=3)
    (expected,) = generate(engine, [[65]], free)
    (result,) = generate(engine, [[65]], msgspec.structs.replace(free, grammar=NUMBER))
    assert result.logprobs[0].top_logprobs == pytest.approx(expected.logprobs[0].top_logprobs, abs=1e-4)
    assert result.logprobs[0].logprob < expected.logprobs[0].logprob


def test_n_sequences_of_a_seed_differ_match_and_come_again(engine):
    params = SamplingParams(max_tokens=30, seed=9, temperature=2.0, grammar=PAIR)

    def run() -> list[str]:
        asked = request([65], params, n=4)
        engine.add(asked)
        return [text_of(result.token_ids) for result in finish(engine, [asked])]

    texts = run()
    assert len(set(texts)) > 1
    assert run() == texts
    for text in texts:
        assert feed(start(PAIR), text) in ("stop", None)


def test_a_matcher_that_fails_ends_its_sequence_alone(engine, monkeypatch, caplog):
    good = request([65], greedy_params(8))
    bad = request([65], SamplingParams(max_tokens=30, temperature=0.0, grammar=PAIR))
    for asked in (good, bad):
        engine.add(asked)
    while not any(seq.matcher for seq in engine.batcher._live.of(bad.request_id, None)):
        engine.step()
    (seq,) = engine.batcher._live.of(bad.request_id, None)
    seq.matcher._matcher.consume_token(ord("!"))  # which the grammar does not allow
    first, second = finish(engine, [good, bad])
    assert second.finish_reason == "error"
    assert first.finish_reason == "length"
    assert "cannot be followed" in caplog.text


# While a grammar is compiled


@pytest.fixture
def slow(monkeypatch) -> Iterator[threading.Event]:
    """Compiling waits until this is set."""
    may_go, compile_one = threading.Event(), Compiler.compile

    def wait(self: Compiler, text: str) -> Any:
        assert may_go.wait(20)
        return compile_one(self, text)

    monkeypatch.setattr(Compiler, "compile", wait)
    yield may_go
    may_go.set()


def fresh(text: str) -> str:
    """The same grammar with another text, which no other test has had compiled."""
    return f"{text}// {time.monotonic_ns()}\n"


def test_others_are_computed_while_a_grammar_is_compiled(engine, slow):
    waiting = request([65], SamplingParams(max_tokens=4, temperature=0.0, grammar=fresh('start: "ok"\n')))
    other = request([65], greedy_params(8))
    for asked in (waiting, other):
        engine.add(asked)
    outputs = []
    while not outputs or outputs[-1].finish_reason is None:
        outputs += engine.step().outputs
    assert {output.request_id for output in outputs} == {other.request_id}
    slow.set()
    (result,) = finish(engine, [waiting])
    assert text_of(result.token_ids) == "ok"


def test_a_sequence_can_be_aborted_and_can_be_late_while_its_grammar_is_compiled(engine, slow):
    params = SamplingParams(max_tokens=4, grammar=fresh(NUMBER))
    aborted, late = request([65], params, n=2), request([65], params)
    late = msgspec.structs.replace(late, scheduling=msgspec.structs.replace(late.scheduling, deadline=1.0))
    for asked in (aborted, late):
        engine.add(asked)
    engine.abort(AbortRequest(aborted.request_id))
    outputs = engine.step().outputs
    assert [(output.request_id, output.finish_reason) for output in outputs] == [(late.request_id, "timeout")]
    assert not engine.has_work
    engine.batcher.check_idle()
    slow.set()
    again = request([65], params)
    engine.add(again)
    (result,) = finish(engine, [again])  # the grammar is ready for those that ended, too, and that changes nothing
    assert result.finish_reason in ("stop", "length")


def test_a_grammar_that_is_done_while_another_is_started_is_not_forgotten(monkeypatch):
    grammars = Grammars(VOCAB_SIZE, frozenset({EOS_ID}))
    first, second, start = Future[Any](), Future[Any](), grammars._start
    futures = iter((first, second))
    monkeypatch.setattr(grammars, "_future", lambda _: next(futures))
    monkeypatch.setattr(grammars, "_require_compiler", compiler)

    def slowly(*args: Any) -> Matcher | None:
        if not second.done():
            second.set_result(compiler().compile(NUMBER))
        return start(*args)

    monkeypatch.setattr(grammars, "_start", slowly)
    seqs = [make_sequence("a"), make_sequence("b")]
    for seq in seqs:
        grammars.compile(seq, NUMBER)
    first.set_result(compiler().compile(NUMBER))
    assert [seq for _ in range(2) for seq, _ in grammars.ready(0)] == seqs
    assert not grammars.are_compiling


def test_a_bad_grammar_ends_its_sequences_alone(engine, caplog):
    caplog.set_level(logging.WARNING)
    bad, good = request([65], SamplingParams(grammar="start: nothing"), n=2), request([65], greedy_params(2))
    for asked in (bad, good):
        engine.add(asked)
    results = finish(engine, [bad, good])
    assert [result.finish_reason for result in results] == ["error", "error", "length"]
    assert "unknown name" in caplog.text


def test_a_compiler_that_fails_in_another_way_ends_its_sequences_alone(engine, monkeypatch):
    def fail(*_: Any) -> None:
        raise RuntimeError("a fault of the compiler's own")

    monkeypatch.setattr(Compiler, "compile", fail)
    bad, good = request([65], SamplingParams(grammar='start: "never compiled"')), request([65], greedy_params(2))
    for asked in (bad, good):
        engine.add(asked)
    assert [result.finish_reason for result in finish(engine, [bad, good])] == ["error", "length"]
