"""Each grammar is tried once, in a process that can be killed; a hostile one costs its own request alone."""

import asyncio
import json
import os
import signal

import pytest

from engine.engine_info import EngineInfo
from engine.errors import EngineUnavailableError, RequestError
from server.grammar import checker as module
from server.grammar.checker import GrammarChecker
from server.grammar.lark import choice, grammar_of, regex_expression, schema_expression, user_grammar
from tests.support.grammar import BYTES, VOCAB_SIZE
from tests.support.no_engine import NoEngine

LIMITS = {"max_seq_len": 512, "vocab_size": VOCAB_SIZE, "num_blocks": 10, "block_size": 16, "max_batch_size": 4}
GOOD, BAD = choice(["yes", "no"]), "start: nothing\n"
ENDLESS = grammar_of(schema_expression({"allOf": [{"type": "integer", "multipleOf": n} for n in (9973, 9967)]}))


class Words:
    """As much of a tokenizer as is asked."""

    def vocabulary(self):
        return BYTES


@pytest.fixture
def make():
    """make(timeout) -> a checker; its processes end with the test."""
    made = []

    def checker(timeout=20.0, max_size=1 << 20):
        client = NoEngine()
        client._ready(EngineInfo(**LIMITS, device="cpu", dtype="float32"))
        made.append(GrammarChecker(Words(), client, max_size, timeout))
        return made[-1]

    yield checker
    for one in made:
        module._end(one._processes)


async def refused(checker, grammar):
    with pytest.raises(RequestError) as caught:
        await checker.grammar(lambda: grammar)
    return str(caught.value)


async def test_a_good_grammar_comes_back_and_a_bad_one_is_refused_with_the_reason(make):
    checker = make()
    assert await checker.grammar(lambda: GOOD) == GOOD
    assert await checker.grammar(lambda: None) is None
    assert "unknown name" in await refused(checker, BAD)
    assert checker._client.vocabulary is BYTES


async def test_a_verdict_is_kept_and_few_are(make, monkeypatch):
    checker = make()
    for grammar in (GOOD, BAD):
        with pytest.raises(RequestError) if grammar is BAD else open(os.devnull):
            await checker.grammar(lambda grammar=grammar: grammar)
    monkeypatch.setattr(checker, "_try", lambda _: pytest.fail("tried again"))
    assert await checker.grammar(lambda: GOOD) == GOOD
    assert "unknown name" in await refused(checker, BAD)
    monkeypatch.setattr(checker, "_try", lambda grammar: (grammar, ""))
    monkeypatch.setattr(module, "_MAX_VERDICTS", 2)
    for text in ("a", "b", "c"):
        await checker.grammar(lambda text=text: choice([text]))
    assert len(checker._verdicts) == 2
    assert checker._num_chars == sum(map(len, checker._verdicts))


async def test_a_large_one_is_refused_unread(make, monkeypatch):
    checker = make(max_size=50)
    monkeypatch.setattr(checker, "_try", lambda _: pytest.fail("tried"))
    assert "it has 51 characters; this server takes 50" in await refused(checker, "x" * 51)


async def test_gbnf_becomes_lark_alone_and_in_a_list(make):
    checker, gbnf = make(), user_grammar('root ::= "a" | "b"')
    assert (await checker.grammar(lambda: gbnf)).startswith("%llguidance")
    several = {"grammars": [{"lark_grammar": "start: @answer"}, {"name": "answer", "lark_grammar": gbnf}]}
    in_lark = json.loads(await checker.grammar(lambda: json.dumps(several)))
    assert in_lark["grammars"][1]["lark_grammar"].startswith("%llguidance")


async def test_half_a_surrogate_pair_is_refused(make):
    assert "not valid Unicode" in await refused(make(), grammar_of(regex_expression("a\ud800")))


async def test_one_that_compiles_for_ever_is_given_up_while_others_are_tried(make):
    checker = make()
    await checker.grammar(lambda: GOOD)  # the process is up: no wait below is for that
    checker._timeout = 0.5
    endless = asyncio.create_task(refused(checker, ENDLESS))
    await asyncio.sleep(0)
    assert "unknown name" in await refused(checker, BAD)
    assert "takes more than 0.5 s" in await endless
    assert "takes more than 0.5 s" in await asyncio.wait_for(refused(checker, ENDLESS), 0.2), "it is known by now"
    assert await checker.grammar(lambda: choice(["again"]))


async def test_a_process_that_dies_idle_costs_nothing_and_is_replaced(make):
    checker = make()
    await checker.grammar(lambda: GOOD)
    (process,) = checker._processes
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert await checker.grammar(lambda: choice(["b"]))
    assert process not in checker._processes


async def test_a_process_that_dies_at_work_costs_its_request(make, monkeypatch, caplog):
    checker = make()
    await checker.grammar(lambda: GOOD)
    (process,) = checker._processes
    tell = module._Process.tell
    monkeypatch.setattr(module._Process, "tell", lambda self, message: (tell(self, message), self.popen.kill()))
    reason = await refused(checker, ENDLESS)
    assert "this grammar cannot be compiled" in reason
    assert " s " not in reason, "it did not take long"
    assert "ended with Killed" in caplog.text
    monkeypatch.undo()
    assert await checker.grammar(lambda: choice(["c"]))
    assert process not in checker._processes


async def test_two_threads_may_want_the_same_process(make):
    class TakenMeanwhile(list):
        def __len__(self):
            return 1

    checker = make()
    checker._idle = TakenMeanwhile()
    assert await checker.grammar(lambda: GOOD) == GOOD


async def test_requests_with_the_same_grammar_have_it_tried_by_as_many_as_there_are_processes(make, monkeypatch):
    checker, tried = make(), []
    monkeypatch.setattr(checker, "_try", lambda grammar: tried.append(grammar) or (grammar, ""))
    monkeypatch.setattr(module, "_MAX_VERDICTS", 1)
    await asyncio.gather(*(checker.grammar(lambda: GOOD) for _ in range(20)))
    assert len(tried) <= module._NUM_PROCESSES
    assert checker._num_chars == len(GOOD)


async def test_where_no_process_starts_the_server_says_so(make, monkeypatch):
    checker = make()
    monkeypatch.setattr(module.sys, "executable", "/bin/false")
    with pytest.raises(EngineUnavailableError, match="try again"):
        await checker.grammar(lambda: GOOD)
    assert not checker._processes


HOSTILE = [
    user_grammar("root ::= r0\n" + "".join(f"r{i} ::= r{i + 1} r{i + 1}\n" for i in range(40)) + 'r40 ::= "a"'),
    user_grammar("root ::= r0\n" + "".join(f'r{i} ::= "x" r{i + 1} | [a-z]+\n' for i in range(900)) + 'r900 ::= "a"'),
    user_grammar("\n" * 200_000),
    "start: /((a+)+)+b/",
    "start: /(((a{1,1000}){1,1000}){1,1000}b){1,1000}/",
    "start: /(a|b)*a(a|b){2000}/",
    "start: s\ns: s s | s s s | \"a\" |\n",
    "start: r0\n" + "".join(f"r{i}: r{i + 1} r{i + 1} r{i + 1}\n" for i in range(40)) + 'r40: "a"\n',
    "start: R0\n" + "".join(f"R{i}: R{i + 1} R{i + 1}\n" for i in range(40)) + 'R40: "a"\n',
    'start: a{1000000}\na: "x"\n',
    "start: " + "(" * 20000 + '"a"' + ")" * 20000,
    "start: X\nX: " + " & ".join(f"/(?s:.*)a.{{{i}}}b(?s:.*)/" for i in range(12)) + "\n",
    "start: " + " | ".join(f'"c{i}"' for i in range(8_000)),
    choice([f"c{i}" for i in range(8_000)]),
    grammar_of(regex_expression("[" + "".join(chr(0x4E00 + 2 * i) for i in range(5000)) + "]{1,100}")),
    *(grammar_of(schema_expression(schema)) for schema in (
        {"enum": [f"v{i}" for i in range(8_000)]},
        {"type": "string", "minLength": 1_000_000},
        {"type": "string", "maxLength": 100_000, "pattern": "^(a|b)*a$"},
        {"type": "array", "minItems": 10**9},
        {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(3000)}},
        {"allOf": [{"anyOf": [{"properties": {f"a{i}": {"const": j}}} for j in range(4)]} for i in range(20)]},
        {"oneOf": [{"type": "object", "properties": {"k": {"const": f"x{i}"}}, "required": ["k"]} for i in range(900)]},
        {"$ref": "#/$defs/d29", "$defs": {"d0": {"type": "string"}} | {
            f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i - 1}"}] * 2} for i in range(1, 30)}},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
        {"type": "integer", "multipleOf": 99991, "minimum": 123456789, "maximum": 99999999999},
    )),
]  # fmt: skip


async def test_hostile_grammars_are_answered_in_bounded_time(make):
    checker = make(timeout=1.0)
    for grammar in HOSTILE:
        async with asyncio.timeout(20):  # a slow machine's own delays beside the second
            try:
                await checker.grammar(lambda grammar=grammar: grammar)
            except RequestError as error:
                assert str(error)  # noqa: PT017 - either way is right, in time
