"""The offline API: the same answers as over HTTP."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from transformers import LlamaForSequenceClassification

from engine.errors import ConfigError, ModelError, RequestError
from server import LLM, SamplingParams
from tests.support import tiny

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.server.conftest import Api

GREEDY = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)


@pytest.fixture(scope="module")
def llm(tiny_llama: Path) -> LLM:
    return LLM(str(tiny_llama), dtype="float32", device="cpu", threads=1, num_kv_blocks=256)


def test_a_text_and_its_ids_give_the_reference_models_tokens(llm, tiny_llama, ids_of, reference_tokenizer):
    ids = ids_of("Hello")
    expected = tiny.greedy(tiny.reference(tiny_llama), ids, 20)
    for prompts in ("Hello", ["Hello"], [ids]):
        [completion] = llm.generate(prompts, GREEDY)
        assert completion.prompt_token_ids == ids
        assert completion.token_ids == expected
        assert completion.text == reference_tokenizer.decode(expected)
        assert completion.finish_reason == "length"
        assert completion.logprobs == []


async def test_answers_are_those_of_the_api(llm: LLM, api: Api) -> None:
    prompts = ["one", "two two", "three three three"]
    answer = await api.complete(prompts, temperature=0, max_tokens=20, ignore_eos=True, return_token_ids=True)
    completions = llm.generate(prompts, GREEDY)
    assert [completion.text for completion in completions] == [choice["text"] for choice in answer["choices"]]
    assert [completion.token_ids for completion in completions] == [c["token_ids"] for c in answer["choices"]]
    sampled = await api.complete("one", seed=5, temperature=1, max_tokens=20)
    [completion] = llm.generate("one", SamplingParams(seed=5, temperature=1, max_tokens=20))
    assert (completion.text, completion.finish_reason) == (
        sampled["choices"][0]["text"],
        sampled["choices"][0]["finish_reason"],
    )


def test_many_prompts_come_back_in_order_as_if_alone(llm: LLM) -> None:
    prompts: list[str | list[int]] = [f"prompt {i} " * (1 + i % 7) for i in range(40)]
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    together = [completion.token_ids for completion in llm.generate(prompts, params)]
    assert together == [llm.generate([prompt], params)[0].token_ids for prompt in prompts]
    llm.engine.batcher.check_idle()


def test_each_prompt_may_have_its_own_parameters(llm: LLM) -> None:
    params = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True) for n in (1, 5, 9)]
    assert [len(c.token_ids) for c in llm.generate(["a", "b", "c"], params)] == [1, 5, 9]


def test_the_default_parameters_are_sampling_params(llm: LLM) -> None:
    [completion] = llm.generate("a")
    assert len(completion.token_ids) <= 16


def test_as_many_parameters_as_prompts_are_needed(llm: LLM) -> None:
    with pytest.raises(ValueError, match="shorter"):
        llm.generate(["a", "b"], [GREEDY])
    llm.engine.batcher.check_idle()


def test_stop_strings_cut_the_text_and_free_the_blocks(llm: LLM) -> None:
    bias = dict.fromkeys(llm.tokenizer.encode("abé "), 100.0)
    params = SamplingParams(seed=3, max_tokens=60, logit_bias=bias, ignore_eos=True)
    [whole] = llm.generate("x", params)
    stop = whole.text[20:23]
    stopped = SamplingParams(seed=3, max_tokens=60, logit_bias=bias, ignore_eos=True, stop=(stop, "not there"))
    [cut] = llm.generate("x", stopped)
    assert cut.text == whole.text[: whole.text.find(stop)]
    assert cut.finish_reason == "stop"
    assert cut.token_ids == whole.token_ids[: len(cut.token_ids)]
    llm.engine.batcher.check_idle()


def test_logprobs_come_with_each_token(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, logprobs=2)
    [completion] = llm.generate("abc", params)
    assert len(completion.logprobs) == 8
    for token_id, report in zip(completion.token_ids, completion.logprobs, strict=True):
        assert report.top_ids[0] == token_id
        assert report.logprob == report.top_logprobs[0] <= 0


def test_a_bad_prompt_starts_nothing(llm: LLM) -> None:
    for bad in ([999], [], [65] * 600):
        with pytest.raises(RequestError):
            llm.generate(["good", bad], GREEDY)
        assert not llm.engine.has_work
    assert llm.generate("good", GREEDY)[0].finish_reason == "length"


def test_no_prompts_give_no_completions(llm: LLM) -> None:
    assert llm.generate([]) == []


def test_bad_settings_and_models_are_named(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="float32"):
        LLM(str(tiny_llama), dtype="int3")
    with pytest.raises(ModelError, match=str(tmp_path)):
        LLM(str(tmp_path / "none"))
    with pytest.raises(TypeError, match="no_such_option"):
        LLM(str(tiny_llama), no_such_option=1)


def test_weights_cut_short_are_named(tiny_llama: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_llama, tmp_path / "checkpoint")
    [path] = folder.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        LLM(str(folder))


def test_prompt_logprobs_come_with_the_completion(tiny_llama):
    llm = LLM(str(tiny_llama), dtype="float32", threads=1)
    (answer,) = llm.generate(["abcd"], SamplingParams(max_tokens=2, temperature=0.0, prompt_logprobs=1))
    assert len(answer.prompt_logprobs) == len(answer.prompt_token_ids) - 1
    assert all(report.logprob <= 0 and len(report.top_ids) == 1 for report in answer.prompt_logprobs)


def test_an_interrupted_generation_leaves_the_engine_idle(tiny_llama, monkeypatch):
    llm = LLM(str(tiny_llama), dtype="float32", threads=1)
    params = SamplingParams(max_tokens=8, temperature=0.0)
    expected = llm.generate(["ab"], params)[0].token_ids
    step, calls = llm.engine.step, []

    def interrupted():
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return step()

    monkeypatch.setattr(llm.engine, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        llm.generate(["ab", "cd"], params)
    monkeypatch.undo()
    llm.engine.batcher.check_idle()
    assert llm.generate(["ab"], params)[0].token_ids == expected


@pytest.mark.parametrize(
    "params",
    [{"stop": "xyz"}, {"stop": ("",)}, {"max_tokens": -1}, {"temperature": -1.0}, {"top_p": 5.0},
     {"min_tokens": 20, "max_tokens": 10}, {"repetition_penalty": 0.0}, {"max_tokens": 1.5}, {"logprobs": -1},
     {"temperature": "hot"}, {"presence_penalty": float("nan")}, {"seed": "x"}],
    ids=str,
)  # fmt: skip
def test_parameters_out_of_their_range_are_refused_by_name(tiny_llama, params):
    llm = LLM(str(tiny_llama), dtype="float32", threads=1)
    with pytest.raises(RequestError, match=next(iter(params))):
        llm.generate(["ab"], SamplingParams(**params))


@pytest.mark.parametrize("prompt", [5, ["a"], None])
def test_a_prompt_that_is_neither_text_nor_token_ids_is_refused(llm, prompt):
    with pytest.raises(RequestError, match="a string or a list of token ids"):
        llm.generate([prompt])


CONVERSATION = [{"role": "user", "content": "Hi"}]


async def test_a_conversation_is_answered_as_over_http(llm: LLM, api: Api) -> None:
    [answer] = llm.chat(CONVERSATION, GREEDY)
    over_http = await api.chat("Hi", temperature=0, max_tokens=20, ignore_eos=True)
    assert answer.text == over_http["choices"][0]["message"]["content"]
    again, other = llm.chat([CONVERSATION, [{"role": "user", "content": "Ho"}]], GREEDY)
    assert again == answer
    assert other.prompt_token_ids != answer.prompt_token_ids


def test_a_conversation_may_go_on_with_its_last_message(llm: LLM) -> None:
    messages = [*CONVERSATION, {"role": "assistant", "content": "Well, "}]
    [answer] = llm.chat(messages, GREEDY, add_generation_prompt=False, continue_final_message=True)
    assert llm.tokenizer.decode(answer.prompt_token_ids).endswith("Well, ")
    with pytest.raises(RequestError, match="add_generation_prompt"):
        llm.chat(messages, GREEDY, continue_final_message=True)


def test_another_template_and_its_variables_may_be_given(llm: LLM) -> None:
    template = "{{ bos_token }}{{ messages[0].content }}{{ mood }}"
    [answer] = llm.chat(CONVERSATION, GREEDY, chat_template=template, chat_template_kwargs={"mood": "!"})
    assert llm.tokenizer.decode(answer.prompt_token_ids) == "Hi!"
    with pytest.raises(ConfigError, match="deepseek-v3"):
        llm.chat(CONVERSATION, GREEDY, chat_template="no-such")


@pytest.mark.parametrize("messages", ["Hi", ["Hi"], [[]], [["Hi"]], [CONVERSATION, "Hi"], {"role": "user"}])
def test_what_is_no_conversation_is_refused(llm: LLM, messages: Any) -> None:
    with pytest.raises(RequestError, match="messages is"):
        llm.chat(messages, GREEDY)
    assert not llm.engine.has_work


def test_a_stream_adds_up_and_may_be_left_early(llm: LLM) -> None:
    [whole] = llm.generate(["Hello"], GREEDY)
    assert "".join(delta.text for delta in llm.stream("Hello", GREEDY)) == whole.text
    stream = llm.stream("Hello", GREEDY)
    next(stream)
    stream.close()
    assert not llm.engine.has_work
    llm.engine.batcher.check_idle()


def test_progress_is_for_terminals(llm: LLM, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    llm.generate(["a", "b"], GREEDY)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    llm.generate(["a", "b"], GREEDY, use_tqdm=False)
    assert capsys.readouterr().err == ""
    llm.generate(["a", "b"], GREEDY)
    assert "output tokens/s" in capsys.readouterr().err


def test_outputs_match_a_grammar(llm: LLM) -> None:
    params = [SamplingParams(temperature=2.0, seed=i, max_tokens=20, grammar='start: "a" /[0-9]{2}/') for i in range(4)]
    answers = llm.generate(["x"] * 4, params)
    assert all(re.fullmatch("a[0-9]{2}", answer.text) for answer in answers)
    assert {answer.finish_reason for answer in answers} == {"stop"}


def test_a_grammar_does_not_go_with_allowed_tokens(llm: LLM) -> None:
    with pytest.raises(RequestError, match="does not go with a grammar"):
        llm.generate("x", SamplingParams(grammar='start: "a"', allowed_token_ids=(1,)))


def test_a_grammar_that_cannot_be_used_starts_nothing(llm: LLM) -> None:
    with pytest.raises(RequestError, match="unknown name") as caught:
        llm.generate(["x", "y"], [GREEDY, SamplingParams(grammar="start: nothing")])
    assert caught.value.param == "grammar"
    assert not llm.engine.has_work


FENCED = "Why? ```x = 1``` So."


@pytest.fixture(scope="module")
def moe(make_dynamic_moe: Callable[..., Path]) -> LLM:
    return LLM(str(make_dynamic_moe("defaults")), dtype="float32", device="cpu", threads=1, num_kv_blocks=128)


@pytest.fixture
def sent(moe: LLM, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the engine was asked to read: of each prompt a character a token, c for code."""
    drawn: list[str] = []
    add = moe.engine.add

    def note(request: Any) -> None:
        drawn.append("".join(".c"[i] for i in request.modalities or bytes(len(request.prompt_token_ids))))
        add(request)

    monkeypatch.setattr(moe.engine, "add", note)
    return drawn


def test_fences_or_modality_say_what_is_code(moe: LLM, sent: list[str]) -> None:
    drawn = "........ccccc......."
    moe.generate([FENCED, [1, 2]], GREEDY)
    moe.generate([FENCED, [1, 2]], GREEDY, modality="code")
    list(moe.stream(FENCED, GREEDY))
    list(moe.stream(FENCED, GREEDY, modality="text"))
    assert sent == [drawn, "..", "c" * len(drawn), "cc", drawn, "." * len(drawn)]


def test_parts_of_a_chat_may_be_code(moe: LLM, sent: list[str]) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "code", "text": "b"}, {"type": "code", "code": "``` c"}]
    moe.chat([{"role": "user", "content": parts}], GREEDY)
    moe.chat([{"role": "user", "content": "ab``` c"}], GREEDY, modality="code")
    assert sent[0] == "." * len("^[user]a") + "c" * len("b``` c") + "." * len("[assistant]")
    assert set(sent[1]) == {"c"}
    assert len(sent[0]) == len(sent[1])


def test_what_cannot_be_read_as_code_or_text_is_refused_by_name(moe: LLM) -> None:
    with pytest.raises(RequestError, match="'modality' is '5'"):
        moe.generate(["a"], GREEDY, modality=5)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="a part of type code lacks its 'text'"):
        moe.chat([{"role": "user", "content": [{"type": "code"}]}], GREEDY)


def test_code_has_other_logprobs_than_text(moe: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=4, logprobs=0)
    text, code = (moe.generate("x = 1", params, modality=modality)[0] for modality in ("text", "code"))
    assert text.logprobs[0].logprob != pytest.approx(code.logprobs[0].logprob, abs=1e-3)


def test_other_modalities_are_refused(moe: LLM, llm: LLM) -> None:
    for model, modality in ((moe, "image"), (llm, "code")):
        with pytest.raises(RequestError, match=f"'modality' is '{modality}'"):
            model.generate("a", GREEDY, modality=modality)
        model.engine.batcher.check_idle()


def test_a_model_of_text_alone_reads_parts_of_code_as_text(llm: LLM) -> None:
    parts = [{"type": "text", "text": "a "}, {"type": "code", "text": "x"}]
    of_parts, of_text = (llm.chat([{"role": "user", "content": content}], GREEDY) for content in (parts, "a x"))
    assert of_parts == of_text


def test_parts_of_other_types_are_left_to_the_template(llm: LLM) -> None:
    source = "{% for m in messages %}{% for p in m.content %}{{ p.type }}{% endfor %}{% endfor %}"
    parts = [{"type": "text", "text": "a"}, {"type": "picture"}]
    [answer] = llm.chat([{"role": "user", "content": parts}], GREEDY, chat_template=source)
    assert llm.tokenizer.decode(answer.prompt_token_ids) == "textpicture"


async def test_embeddings_are_those_of_the_api(llm: LLM, api: Api) -> None:
    texts = ["three rivers", "a", "the Nile, the Amazon and the Yangtze " * 6]
    said: list[dict[str, Any]] = [{}, {"pooling": "mean"}, {"dimensions": 9, "normalize": False}]
    for options in said:
        answer = (await api.http.post("/v1/embeddings", json={"input": texts, **options})).json()
        for vector, data in zip(llm.embed(texts, **options), answer["data"], strict=True):
            assert vector == pytest.approx(data["embedding"], rel=1e-4, abs=1e-6)
    scores = (await api.http.post("/v1/score", json={"text_1": texts[0], "text_2": texts[1:]})).json()["data"]
    assert llm.score(texts[0], texts[1:]) == pytest.approx([score["score"] for score in scores], abs=1e-5)
    assert llm.score(texts[1:], texts[1:]) == pytest.approx([1.0, 1.0])
    llm.engine.batcher.check_idle()


def test_classes_and_scores_of_a_head(make_llama: Callable[..., Path]) -> None:
    labels = {"id2label": {0: "no", 1: "yes"}, "label2id": {"no": 0, "yes": 1}}
    options: dict[str, Any] = {"dtype": "float32", "device": "cpu", "threads": 1}
    llm = LLM(str(make_llama(kind=LlamaForSequenceClassification, pad_token_id=0, **labels)), **options)
    first, second = llm.classify(["rain", [1, 2, 3]])
    assert {first.label, second.label} <= {"no", "yes"}
    assert sum(first.probs) == pytest.approx(1)
    assert first.label == ["no", "yes"][first.probs[1] > first.probs[0]]
    with pytest.raises(RequestError, match="cannot generate text; it can embed text and classify text"):
        llm.generate("a")
    one = {"id2label": {0: "fits"}, "label2id": {"fits": 0}}
    ranker = LLM(str(make_llama(kind=LlamaForSequenceClassification, pad_token_id=0, **one)), **options)
    scores = ranker.score("query", ["one", "two"])
    assert scores == pytest.approx([ranker.classify("query" + text)[0].probs[0] for text in ("one", "two")], abs=1e-6)


def test_what_has_no_values_is_refused_before_anything_starts(llm: LLM) -> None:
    for ask in (
        lambda: llm.classify("a"),
        lambda: llm.embed(["a", ""]),
        lambda: llm.embed("a", dimensions=65),
        lambda: llm.embed([3]),  # type: ignore[list-item]
        lambda: llm.score(["a", "b"], ["c", "d", "e"]),
    ):
        with pytest.raises(RequestError):
            ask()
    llm.engine.batcher.check_idle()
