"""Texts from a process of their own: the same texts, and no template that stops anybody."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from engine.errors import DrainingError, RequestError
from server.chat.chat_template import ChatTemplate
from tests.server.conftest import CHAT, check_error

MESSAGES = [{"role": "user", "content": "hi é漢"}]
LOOP = (
    "{% for m in messages if m.content == 'loop' %}{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}"
)
LOOP += "{% endfor %}{% endfor %}{{ messages[0].content }}{{ bos_token }}"


@pytest.fixture(scope="module")
def template():
    return ChatTemplate(LOOP, {"bos_token": "<s>"})


def ask(template, messages=MESSAGES, timeout=20.0, **options):
    return template.process.render(timeout, messages, add_generation_prompt=True, **options)


async def test_texts_are_the_templates_and_one_process_renders_them_in_turn(template):
    texts = await asyncio.gather(*(ask(template, [{"role": "user", "content": f"é{i}"}]) for i in range(20)))
    assert texts == [f"é{i}<s>" for i in range(20)]
    pid = template.process._process.pid
    assert await ask(template, [{"role": "user", "content": "\ud800\n\0"}]) == "\ud800\n\0<s>"
    assert template.process._process.pid == pid


async def test_a_template_that_loops_is_refused_in_time_and_the_next_text_comes(template):
    loop = [{"role": "user", "content": "loop"}]
    with pytest.raises(RequestError, match=r"took longer than 0\.1 s \(--chat-template-timeout\)") as caught:
        await ask(template, loop, timeout=0.1)
    assert caught.value.param == "messages"
    assert await ask(template) == "hi é漢<s>"


async def test_refusals_are_the_templates_own():
    refusing = ChatTemplate("{{ raise_exception('never') }}", {})
    with pytest.raises(RequestError, match="never") as caught:
        await ask(refusing)
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a' * 10 ** 10 }}",
        "{{ [0] * 10 ** 10 }}",
        "{{ '%1000000000000d' % 1 }}",
        "{% for a in range(40000) %}{{ 'a' * 1000 }}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
async def test_memory_is_bounded(source):
    with pytest.raises(RequestError, match="chat template"):
        await ask(ChatTemplate(source, {}))


def test_a_lower_limit_on_memory_stands():
    options = {"add_generation_prompt": True}
    lines = [{"source": "{{ 1 + 1 }}", "special_tokens": {}}, {"timeout": 20, "messages": [], "options": options}]
    command = f"ulimit -v {900 << 10}; exec {sys.executable} -m server.chat.template_process"
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    done = subprocess.run(["bash", "-c", command], input=text, check=True, capture_output=True, text=True)
    assert json.loads(done.stdout) == ["2", "", None]


async def test_a_process_that_was_killed_is_replaced(template):
    await ask(template)
    os.kill(template.process._process.pid, signal.SIGKILL)
    template.process._process.wait()
    assert await ask(template) == "hi é漢<s>"


async def test_variables_too_deep_for_json_are_refused(template):
    deep = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(RequestError, match="nested too deeply"):
        await ask(template, deep=deep)


async def test_others_are_served_while_a_template_loops(api, monkeypatch, template):
    monkeypatch.setattr(api.tokenizer, "chat_template", template)
    monkeypatch.setattr(template, "timeout", 0.5)
    looping = asyncio.create_task(api.post(CHAT, messages=[{"role": "user", "content": "loop"}]))
    started = time.monotonic()
    await api.complete("a", max_tokens=1)
    assert not looping.done()
    assert time.monotonic() - started < 0.5
    error = check_error(await looping, 400, type="invalid_request_error", param="messages")
    assert "--chat-template-timeout" in error["message"]


async def test_a_process_that_is_stopped_gives_up_its_text():
    template = ChatTemplate(LOOP, {"bos_token": "<s>"})
    template.process.start()
    assert await ask(template)
    looping = asyncio.create_task(ask(template, [{"role": "user", "content": "loop"}]))
    await asyncio.sleep(0)  # the text is the thread's now, and perhaps the process's
    template.process.stop()
    with pytest.raises(DrainingError):
        await looping
    with pytest.raises(DrainingError):
        await ask(template)
