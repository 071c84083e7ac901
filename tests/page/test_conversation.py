"""Chat and completion: streaming, stop, other versions, edits, undo, files, the keyboard."""

import json
import re
import subprocess
import sys

import pytest

from tests.page.conftest import answered, ask, chunk, fill, pretend


def texts(page, selector):
    return page.locator(selector).all_inner_texts()


def test_an_answer_streams_with_its_figures_and_outlasts_the_page(page, shoot):
    shoot(page, "welcome")
    fill(page, "max_tokens", "3000")
    ask(page, "Hi there", wait=False)
    page.wait_for_selector(".live .figures:has-text('tokens/s')")
    early = len(page.locator(".answer .body").inner_text())
    page.wait_for_function("n => document.querySelector('.answer .body').innerText.length > n", arg=early)
    assert page.locator("#transcript").get_attribute("aria-busy") == "true"
    page.keyboard.press("Escape")
    answered(page)
    assert "stopped" in page.locator(".figures").inner_text()
    assert "first after" in page.locator(".figures").inner_text()
    before = texts(page, ".turn .bubble, .turn .body")
    assert before[0] == "Hi there"
    page.reload()
    page.wait_for_selector(".answer")
    assert texts(page, ".turn .bubble, .turn .body") == before


def test_stopping_frees_the_engine(page, server):
    fill(page, "max_tokens", "10000")
    ask(page, "Hi", wait=False)
    page.wait_for_function("() => document.querySelector('#load-running').textContent.startsWith('1')")
    page.click("#stop")
    answered(page)
    server.until(lambda: server.metric("requests_running") == 0)


def test_another_answer_is_another_version(page):
    fill(page, "seed", "1")
    ask(page, "Hi")
    first = page.locator(".answer .body").inner_text()
    fill(page, "seed", "2")
    page.get_by_role("button", name="Again").click()
    answered(page)
    assert page.locator(".count").inner_text() == "2 / 2"
    assert page.locator(".answer .body").inner_text() != first
    page.get_by_role("button", name="Previous version").click()
    assert page.locator(".answer .body").inner_text() == first


def test_n_answers_are_versions_too(page):
    fill(page, "n", "3")
    ask(page, "Hi")
    assert page.locator(".count").inner_text() == "1 / 3"
    seen = {page.locator(".answer .body").inner_text()}
    for _ in range(2):
        page.get_by_role("button", name="Next version").click()
        seen.add(page.locator(".answer .body").inner_text())
    assert len(seen) == 3


def test_an_edit_asks_again_and_can_be_undone(page):
    ask(page, "First")
    ask(page, "Second")
    page.locator(".user").first.hover()
    page.get_by_role("button", name="Edit").first.click()
    page.keyboard.type(" indeed")
    page.keyboard.press("Enter")
    answered(page)
    assert texts(page, ".bubble") == ["First indeed"]
    page.get_by_role("button", name="Undo").click()
    assert texts(page, ".bubble") == ["First", "Second"]


def test_what_is_sent_is_the_conversation(page):
    asked = pretend(page, chunk("stop", role="assistant", content="Yes."), "[DONE]")
    fill(page, "system", "Be brief.")
    fill(page, "stop", "END\\n")
    fill(page, "top_k", "5")
    ask(page, "One")
    ask(page, "Two")
    assert [message["content"] for message in asked[1]["messages"]] == ["Be brief.", "One", "Yes.", "Two"]
    kept = {
        name: asked[1][name]
        for name in ("model", "temperature", "top_k", "stop", "max_completion_tokens", "ignore_eos")
    }
    assert kept == {
        "model": "tiny",
        "temperature": 0.7,
        "top_k": 5,
        "stop": ["END\n"],
        "max_completion_tokens": 40,
        "ignore_eos": True,
    }


def test_the_keyboard_is_enough(page):
    page.keyboard.press("Control+k")
    page.keyboard.type("One")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    page.keyboard.press("Enter")
    answered(page)
    assert texts(page, ".bubble") == ["One\ntwo"]
    assert page.evaluate("document.activeElement.id") == "draft"
    page.keyboard.press("Control+k")
    assert texts(page, ".bubble") == []
    page.keyboard.press("Shift+Tab")  # to the toast's button or the conversation, and so on up to the skip link
    seen = []
    for _ in range(30):
        seen.append(page.evaluate("document.activeElement.id || document.activeElement.className"))
        assert page.evaluate("document.activeElement.matches(':focus-visible')")
        if seen[-1] == "skip":
            break
        page.keyboard.press("Shift+Tab")
    assert {"transcript", "toggle-panel", "theme", "new", "skip"} <= set(seen)
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "draft"


def test_a_new_conversation_can_be_undone(page):
    ask(page, "Hi")
    page.click("#new")
    assert page.locator("#welcome").is_visible()
    page.get_by_role("button", name="Undo").click()
    assert texts(page, ".bubble") == ["Hi"]


def test_a_completion_goes_on_with_the_text(page, shoot):
    page.get_by_text("Completion", exact=True).click()
    shoot(page, "completion-welcome")
    ask(page, "Once upon  a time")
    assert texts(page, ".prompt") == ["Once upon  a time"]
    whole = page.locator(".completion .body").first.text_content()
    assert len(whole) > len("Once upon  a time")
    page.get_by_role("button", name="Continue").click()
    answered(page)
    longer = page.locator(".completion .body").text_content()
    assert longer.startswith(whole)
    assert len(longer) > len(whole)
    assert "80 tokens" in page.locator(".figures").inner_text()
    assert page.locator(".count").is_hidden()  # it is the same version
    page.get_by_text("Chat", exact=True).click()
    assert texts(page, ".turn") == []  # each mode has turns of its own


def test_an_answer_that_was_cut_can_be_continued(page):
    pretend(page, chunk("length", role="assistant", content="Half an"), "[DONE]")
    ask(page, "Hi")
    asked = pretend(page, chunk("stop", role="assistant", content=" answer."), "[DONE]")
    page.get_by_role("button", name="Continue").click()
    page.wait_for_selector(".markdown >> text=Half an answer.")
    assert asked[0]["messages"][-1] == {"role": "assistant", "content": "Half an"}
    assert (asked[0]["continue_final_message"], asked[0]["add_generation_prompt"]) == (True, False)
    assert page.get_by_role("button", name="Continue").is_hidden()
    page.unroute("**/v1/chat/completions")
    ask(page, "More")
    before = page.locator(".markdown").last.text_content()
    page.get_by_role("button", name="Continue").locator("visible=true").click()
    page.wait_for_selector(".figures:has-text('80 tokens')")  # the server takes it
    assert page.locator(".markdown").last.text_content().startswith(before.rstrip("\ufffd")[:8])


@pytest.mark.parametrize("mode", ["Chat", "Completion"])
def test_probabilities_show_on_hover_and_by_the_keyboard(page, mode, shoot):
    page.get_by_text(mode, exact=True).click()
    page.get_by_text("Token probabilities").click()
    ask(page, "Hi")
    assert page.locator(".token").count() == 40
    page.locator(".token", has_text=re.compile("[a-z]")).last.hover()
    rows = texts(page, "#tip div")
    assert 5 <= len(rows) <= 6
    assert all("%" in row for row in rows)
    assert page.locator("#tip .chosen").count() == 1
    shoot(page, f"probabilities-{mode}")
    page.mouse.move(0, 0)
    assert page.locator("#tip").is_hidden()
    page.locator(".token").first.focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.dataset.index") == "1"
    assert page.locator("#tip").is_visible()
    page.get_by_role("button", name="Plain text").click()
    assert page.locator(".tokens").is_hidden()


def test_a_character_of_several_tokens_is_whole_in_the_end(page):
    def token(text, data):
        top = [{"token": text, "logprob": -0.1, "bytes": data}]
        return {"token": text, "logprob": -0.1, "bytes": data, "top_logprobs": top}

    parts = [token("\ufffd", [part]) for part in "🌊".encode()]
    logprobs = {"content": [token("A", [65]), *parts]}
    pretend(
        page,
        {"choices": [{"index": 0, "delta": {"content": "A🌊"}, "logprobs": logprobs, "finish_reason": "stop"}]},
        "[DONE]",
    )
    ask(page, "Hi")
    assert page.locator(".tokens").text_content() == "A🌊"


def test_a_conversation_can_be_saved_and_read(page, tmp_path):
    ask(page, "Keep this")
    with page.expect_download() as download:
        page.click("#export")
    path = tmp_path / "conversation.json"
    download.value.save_as(path)
    saved = json.loads(path.read_text())
    assert saved["conversation"]["chat"][0] == {"kind": "user", "text": "Keep this"}
    page.click("#new")
    with page.expect_file_chooser() as chooser:
        page.click("#import")
    chooser.value.set_files(path)
    page.wait_for_selector(".bubble")
    assert texts(page, ".bubble") == ["Keep this"]
    with page.expect_file_chooser() as chooser:
        page.click("#import")
    path.write_text('{"application": "other"}')
    chooser.value.set_files(path)
    page.wait_for_selector("#toast:has-text('no exported conversation')")


@pytest.mark.parametrize("mode", ["Chat", "Completion"])
def test_the_code_that_is_shown_does_the_same(page, mode, tmp_path, shoot):
    page.get_by_text(mode, exact=True).click()
    fill(page, "seed", "7")
    fill(page, "stop", "it's\\n")
    ask(page, 'It\'s "so", $HOME `x`')
    said = page.locator(".answer .body").text_content()
    page.click("#show-code")
    shoot(page, f"code-{mode}")
    curl = subprocess.run(
        ["bash", "-c", page.locator("#code-text").inner_text()], capture_output=True, text=True, check=True
    )
    chunks = [json.loads(line[6:]) for line in curl.stdout.splitlines() if line.startswith("data: {")]
    assert len(chunks) >= 2
    assert "error" not in chunks[0]
    page.get_by_text("Python", exact=True).click()
    program = tmp_path / "program.py"
    program.write_text(page.locator("#code-text").inner_text())
    ran = subprocess.run([sys.executable, program], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout
    if mode == "Completion":
        assert said == 'It\'s "so", $HOME `x`' + ran.stdout
    page.get_by_role("button", name="Close", exact=True).click()
    assert page.locator("#code").is_hidden()
