"""What goes wrong is said kindly, with a way on: no server, no key, no room, no end."""

import pytest

from tests.page.conftest import answered, ask, chunk, error, fill, pretend

REFUSED = "Failed to load resource"


@pytest.fixture
def page(page):
    page.allowed.append(REFUSED)  # Chromium logs each status from 400 on
    return page


def test_a_key_is_asked_for_kept_in_the_tab_and_sent(start, open_page, shoot):
    with start("--api-key", "sk-secret") as server:
        page = open_page(server)
        page.allowed.append(REFUSED)
        page.problems.clear()  # the list of models was refused already
        page.wait_for_selector("h2.model-name:text-is('tiny')")
        fill(page, "max_tokens", "8")
        ask(page, "Hi")
        assert "asks for an API key" in page.locator(".notice").inner_text()
        shoot(page, "key")
        page.fill(".notice input", "sk-wrong")
        page.get_by_role("button", name="Use it").click()
        answered(page)
        page.fill(".notice input", "sk-secret")
        page.keyboard.press("Enter")
        page.wait_for_selector(".figures:has-text('8 tokens')")
        assert page.locator(".notice").count() == 0
        assert page.evaluate("JSON.stringify(localStorage)").count("sk-") == 0
        page.reload()
        ask(page, "Again")
        page.wait_for_function("() => document.querySelectorAll('.figures').length === 2")
        assert page.locator(".notice").count() == 0
        page.click("#show-code")
        assert "sk-" not in page.locator("#code-text").inner_text()


def test_a_server_that_starts_is_asked_again_until_it_is_ready(page, shoot):
    pretend(page, error("The engine is restarting. Please try again soon."), status=503, headers={"Retry-After": "1"})
    ask(page, "Hi", wait=False)
    page.wait_for_selector(".notice:has-text('not ready')")
    shoot(page, "restarting")
    page.unroute("**/v1/chat/completions")
    page.wait_for_selector(".figures:has-text('40 tokens')")
    assert page.locator(".notice").count() == 0


def test_waiting_can_be_stopped(page):
    pretend(page, error("The queue is full."), status=429, headers={"Retry-After": "60"})
    ask(page, "Hi", wait=False)
    page.wait_for_selector(".notice:has-text('busy')")
    page.keyboard.press("Escape")
    answered(page)
    assert "stopped" in page.locator(".figures").inner_text()


def test_a_server_that_is_away_is_told_and_found_again(page, shoot):
    page.context.set_offline(True)
    ask(page, "Hi")
    assert "cannot be reached" in page.locator(".notice").inner_text()
    page.wait_for_selector("html[data-server='offline']")
    shoot(page, "offline")
    page.context.set_offline(False)
    page.get_by_role("button", name="Try again").click()
    page.wait_for_selector(".figures:has-text('40 tokens')")
    page.wait_for_selector("html[data-server='ready']")


@pytest.mark.parametrize("end", [(), (error("The engine has died."), "[DONE]")])
def test_a_stream_that_breaks_keeps_what_came(page, end, shoot):
    pretend(page, chunk(role="assistant", content="Half an"), *end)
    ask(page, "Hi")
    assert page.locator(".markdown").inner_text() == "Half an"
    assert "broke off" in page.locator(".notice").inner_text()
    shoot(page, "broken")
    page.unroute("**/v1/chat/completions")
    page.get_by_role("button", name="Try again").click()
    page.wait_for_selector(".figures:has-text('40 tokens')")
    assert page.locator(".count").inner_text() == "2 / 2"


def test_what_is_too_long_can_be_shortened(page, shoot):
    for number in range(3):
        ask(page, f"Question {number}")
    pretend(page, error("This server's maximum context length is 9 tokens.", "context_length_exceeded"), status=400)
    ask(page, "One more")
    assert "longer than the model" in page.locator(".notice").inner_text()
    shoot(page, "too-long")
    asked = pretend(page, chunk("stop", content="Fine."), "[DONE]")
    page.get_by_role("button", name="Leave out the oldest").click()
    page.wait_for_selector("text=Fine.")
    assert asked[0]["messages"][0]["content"] == "Question 2"
    assert len(asked[0]["messages"]) == 3


def test_the_servers_own_words_say_what_it_refuses(page):
    fill(page, "extra", '{"temperatur": 1}')
    ask(page, "Hi")
    assert "Unsupported parameter: 'temperatur'" in page.locator(".notice").inner_text()


def test_full_storage_is_no_trouble(page):
    page.evaluate("localStorage.setItem('other', 'x'.repeat(5_190_000))")
    ask(page, "Hi " + "long " * 2000)
    assert page.locator(".notice").count() == 0
    assert page.locator(".answer .body").inner_text()
