"""What a model's generation_config.json says counts where a request says nothing."""

import dataclasses
import json

import pytest

from engine.errors import ConfigError, ModelError
from server.generation_config import FILE, describe, read_defaults
from server.protocol import ChatCompletionRequest, CompletionRequest

R1 = {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "eos_token_id": 1, "transformers_version": "4.39.3"}


def write(folder, content):
    (folder / FILE).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return folder


def test_the_models_file_is_read_and_what_is_not_sampling_left_out(tmp_path):
    defaults = read_defaults("auto", write(tmp_path, R1))
    assert defaults == {"temperature": 0.6, "top_p": 0.95}
    assert describe(defaults) == "temperature 0.6, top_p 0.95"


def test_all_names_are_read_and_none_of_them_is_what_is_so_anyway(tmp_path):
    content = {"top_k": 20, "min_p": 0.1, "repetition_penalty": 1.05, "max_new_tokens": 99, "temperature": None}
    expected = {"top_k": 20, "min_p": 0.1, "repetition_penalty": 1.05, "max_tokens": 99}
    assert read_defaults("auto", write(tmp_path, content)) == expected
    assert read_defaults("auto", write(tmp_path, {"temperature": 1.0, "top_p": 1, "top_k": 0})) == {}


def test_the_choice_says_which_file(tmp_path):
    model, other = tmp_path / "model", tmp_path / "other"
    model.mkdir()
    other.mkdir()
    assert read_defaults("auto", model) == {}
    write(model, R1)
    write(other, {"top_k": 5})
    assert read_defaults("none", model) == {}
    assert read_defaults(str(other), model) == {"top_k": 5}
    (tmp_path / "model.gguf").touch()
    write(tmp_path, R1)
    assert read_defaults("auto", tmp_path / "model.gguf") == {}
    with pytest.raises(ConfigError, match=r"--generation-config nowhere is not auto or none, and no folder"):
        read_defaults("nowhere", model)


@pytest.mark.parametrize("content", [{"temperature": -1}, {"top_k": "many"}, {"top_p": 2}, "{", "[]"])
def test_a_damaged_file_is_the_models_fault(tmp_path, content):
    with pytest.raises(ModelError, match=FILE):
        read_defaults("auto", write(tmp_path, content))


DEFAULTS = {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "repetition_penalty": 1.1, "max_tokens": 7}


def test_what_a_request_sets_wins_and_null_sets_nothing():
    unset = CompletionRequest(prompt="a", temperature=None).sampling(100, DEFAULTS)
    assert (unset.temperature, unset.top_p, unset.top_k, unset.repetition_penalty) == (0.6, 0.95, 20, 1.1)
    chosen = CompletionRequest(prompt="a", temperature=1.0, top_p=1.0, top_k=-1, repetition_penalty=1.0)
    chosen = chosen.sampling(100, DEFAULTS)
    assert (chosen.temperature, chosen.top_p, chosen.top_k, chosen.repetition_penalty) == (1.0, 1.0, 0, 1.0)


def test_max_new_tokens_is_kept_whatever_its_value(tmp_path):
    (tmp_path / "generation_config.json").write_text('{"max_new_tokens": 16, "temperature": 1.0}')
    assert read_defaults("auto", tmp_path) == {"max_tokens": 16}


def test_max_new_tokens_is_where_a_chat_ends_that_says_nothing():
    messages = [{"role": "user", "content": "hi"}]
    assert ChatCompletionRequest(messages=messages).sampling(100, DEFAULTS).max_tokens == 7
    assert ChatCompletionRequest(messages=messages).sampling(5, DEFAULTS).max_tokens == 5
    assert ChatCompletionRequest(messages=messages, max_tokens=50).sampling(100, DEFAULTS).max_tokens == 50
    assert CompletionRequest(prompt="a").sampling(100, DEFAULTS).max_tokens == 16


async def test_answers_follow_the_models_defaults(api):
    greedy = await api.choice("abc", temperature=0, max_tokens=8)
    api.app.state.server = dataclasses.replace(api.app.state.server, sampling_defaults={"temperature": 0.0})
    for _ in range(3):
        assert await api.choice("abc", max_tokens=8) == greedy
    assert await api.choice("abc", max_tokens=8, temperature=2.0, seed=3) != greedy
