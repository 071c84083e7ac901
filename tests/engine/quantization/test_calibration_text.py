"""The built-in calibration text, and the text that is held out from it."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from benchmarks import held_out_text
from engine.errors import ConfigError
from engine.quantization.calibration_text import builtin_texts, help_topics, read_texts, source_of


def test_help_topics_share_no_paragraph():
    calibration, held_out = (
        {" ".join(paragraph.split()) for paragraph in help_topics(held_out=part).split("\n\n")}
        for part in (False, True)
    )
    assert not calibration & held_out
    assert min(map(len, (help_topics(held_out=False), help_topics(held_out=True)))) > 20_000
    assert np.mean([len(text) for text in held_out]) > 20


def test_four_kinds_are_built_in():
    texts = builtin_texts()
    assert list(texts) == ["prose", "code", "docs", "chat"]
    for kind in ("prose", "code", "docs"):
        assert len(texts[kind][0]) > 4000
    for chat in texts["chat"]:
        roles = [message["role"] for message in chat if message["role"] != "system"]
        assert roles == ["user", "assistant"] * (len(roles) // 2)


def test_no_long_line_of_what_is_held_out_is_calibrated_on():
    lines = {line.strip() for kind in ("prose", "code", "docs") for line in builtin_texts()[kind][0].splitlines()}
    for kind in set(held_out_text.KINDS) - {"help"}:  # whose paragraphs are compared above
        held_out = {line.strip() for line in held_out_text.read(kind).splitlines() if len(line.strip()) > 50}
        assert not held_out & lines, kind


def test_the_source_of_a_module_without_one_is_empty():
    assert "def bisect_left" in source_of("bisect")
    assert source_of("sys") == source_of("no_such_module_anywhere") == ""


def test_a_line_is_a_text_a_prompt_or_a_chat(tmp_path):
    path, chat = tmp_path / "texts.jsonl", [{"role": "user", "content": "Hi"}]
    path.write_text("\n".join(map(json.dumps, [{"text": "a"}, {"prompt": "b"}, {"messages": chat}])))
    assert read_texts(path) == ["a", "b", chat]
    path.write_text('{"messages": ["Hi"]}')
    with pytest.raises(ConfigError, match='line 1: expected an object with "text", "prompt" or "messages"'):
        read_texts(path)


def test_a_pipe_or_a_device_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(ConfigError, match="is no regular file"):
            read_texts(path)
