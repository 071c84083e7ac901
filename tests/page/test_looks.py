"""Accessibility by axe's rules, in every state, theme and width; nothing is wider than a phone."""

import re

import pytest

from tests.page.conftest import PHONE, WIDE, ask, chunk, error, fill, pretend

MARKDOWN = (
    "# Title\n\nText with `code`, **bold**, [link](https://a.example).\n\n- one\n  - two\n\n"
    "| a | b |\n|---|---|\n| 1 | 2 |\n\n```py\n" + "x" * 200 + "\n```\n\n> Quote\n\n" + "y" * 300
)


def check(page):
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    assert page.evaluate(
        "document.documentElement.scrollWidth <= innerWidth && document.body.scrollWidth <= innerWidth"
    )
    wide = page.evaluate(
        """[...document.querySelectorAll('#transcript, #panel, .foot')]
            .filter(part => part.scrollWidth > part.clientWidth + 1).map(part => part.id)"""
    )
    assert wide == []


@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_state_is_accessible_and_fits(server, open_page, size, scheme, shoot):
    name = f"{'phone' if size is PHONE else 'wide'}-{scheme}"
    page = open_page(
        server, viewport=size, color_scheme=scheme, has_touch=size is PHONE, reduced_motion="reduce", bypass_csp=True
    )
    page.allowed += ["Failed to load resource"]
    page.wait_for_selector("h2.model-name:text-is('tiny')")
    check(page)
    shoot(page, f"{name}-1-welcome")
    call = {"index": 0, "id": "c", "function": {"name": "find", "arguments": '{"what": "' + "z" * 100 + '"}'}}
    pretend(page, chunk(role="assistant", reasoning_content="Hm. " * 50, content=MARKDOWN), chunk("stop"), "[DONE]")
    ask(page, "Show me everything " * 10)
    page.locator(".reasoning summary").click()
    check(page)
    page.locator("#transcript").evaluate("e => e.scrollTo(0, 0)")
    shoot(page, f"{name}-2-markdown")
    pretend(page, chunk("tool_calls", role="assistant", tool_calls=[call]), "[DONE]")
    ask(page, "Find it")
    check(page)
    shoot(page, f"{name}-3-tools")
    pretend(page, error("The engine is " + "very " * 20 + "broken."), status=500)
    ask(page, "Fail")
    check(page)
    shoot(page, f"{name}-4-problem")
    page.unroute("**/v1/chat/completions")
    if size is PHONE:
        page.click("#toggle-panel")
    for part in page.locator("#settings details").all():
        part.locator("summary").click()
    fill(page, "max_tokens", "120")
    fill(page, "tools", "[")
    check(page)
    shoot(page, f"{name}-5-panel")
    fill(page, "tools", "")
    page.get_by_text("Token probabilities").click()
    if size is PHONE:
        page.click("#close-panel")
    ask(page, "Probable")
    page.locator(".token", has_text=re.compile("[a-z]")).last.hover()
    check(page)
    shoot(page, f"{name}-6-probabilities")
    page.click("#show-code")
    check(page)
    shoot(page, f"{name}-7-code")


def test_the_theme_follows_the_system_until_it_is_chosen(server, open_page):
    page = open_page(server, color_scheme="dark")
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(ground)
    page.emulate_media(color_scheme="light")
    light = page.evaluate(ground)
    assert dark != light
    page.click("#theme")  # light
    page.click("#theme")  # dark
    assert page.evaluate(ground) == dark
    page.reload()
    assert page.evaluate(ground) == dark


def test_on_a_phone_the_settings_lie_over_the_page(server, open_page):
    page = open_page(server, viewport=PHONE, has_touch=True)
    assert page.locator("#panel").is_hidden()
    page.click("#toggle-panel")
    assert page.evaluate("document.activeElement.id") == "close-panel"
    assert page.evaluate("document.getElementById('main').inert")
    page.keyboard.press("Escape")
    assert page.locator("#panel").is_hidden()
    assert page.evaluate("document.activeElement.id") == "toggle-panel"


def test_nothing_moves_where_less_motion_is_asked_for(server, open_page):
    page = open_page(server, reduced_motion="reduce")
    assert page.evaluate("getComputedStyle(document.querySelector('button')).transitionDuration") == "0s"


def test_the_reference_works_offline(server, open_page, shoot):
    page = open_page(server, "docs")
    page.get_by_text("/v1/chat/completions").first.wait_for()
    page.locator(".opblock-get", has_text="/version").first.click()
    page.get_by_role("button", name="Try it out").click()
    page.get_by_role("button", name="Execute").click()
    page.wait_for_selector(".live-responses-table >> text=200")
    shoot(page, "reference")
