"""The page in a headless Chromium, against the real command. `make page-test` runs these; `make test` passes them by.

Every test also proves that its page logs no error, asks no other host, and breaks no rule of its own policy.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.server_process import ServerProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from playwright.sync_api import Browser, Page

collect_ignore_glob = [] if ".venv-page" in sys.prefix else ["test_*.py"]

WIDE, PHONE = {"width": 1280, "height": 800}, {"width": 360, "height": 740}
_CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_TIMEOUT = 20_000  # milliseconds; far more than anything here takes


class PageServer(ServerProcess):
    """The command as a module: the virtual environment of these tests has no script of its own."""

    command = (sys.executable, "-m", "server.cli")


@pytest.fixture(scope="session")
def start(
    make_llama: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., contextlib.AbstractContextManager[PageServer]]:
    """start(*flags) -> a server of a tiny model, whose tokens are single bytes."""
    model = ("--model", str(make_llama(max_position_embeddings=16384)), "--served-model-name", "tiny")
    exact = ("--dtype", "float32", "--device", "cpu", "--threads", "1", "--num-kv-blocks", "2048")
    return lambda *flags: PageServer(tmp_path_factory.mktemp("server"), *model, *exact, *flags)


@pytest.fixture(scope="session")
def server(start: Callable[..., Any]) -> Iterator[PageServer]:
    with start() as server:
        yield server


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Without a sandbox of its own, so that it also runs as root in a container; it sees this server alone.
        browser = playwright.chromium.launch(executable_path=_CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    """open_page(server, path="", **context) -> a page that may speak to this server alone, without an error.

    `page.allowed` has the beginnings of console messages that are expected.
    """
    with contextlib.ExitStack() as stack:
        pages = []

        def open_page(server: PageServer, path: str = "", **settings: Any) -> Page:
            context = browser.new_context(viewport=settings.pop("viewport", WIDE), **settings)  # type: ignore[arg-type]
            stack.callback(context.close)
            context.set_default_timeout(_TIMEOUT)
            page = context.new_page()
            page.allowed, page.problems = [], []  # type: ignore[attr-defined]
            page.on("console", lambda message: _judge(page, message.type, message.text))
            page.on("pageerror", lambda error: _judge(page, "error", str(error)))
            page.on("request", lambda request: _judge_request(page, server.url, request.url))
            page.goto(f"{server.url}/{path}")
            if not path:
                page.wait_for_selector("html[data-server]")
            pages.append(page)
            return page

        yield open_page
        for page in pages:
            assert page.problems == []


def _judge(page: Any, kind: str, text: str) -> None:
    if kind in ("error", "warning") and not any(text.startswith(allowed) for allowed in page.allowed):
        page.problems.append(text)


def _judge_request(page: Any, url: str, asked: str) -> None:
    if not asked.startswith((url + "/", "data:", f"blob:{url}/")):
        page.problems.append(f"asked {asked}")


@pytest.fixture
def page(server: PageServer, open_page: Callable[..., Page]) -> Page:
    """The page, wide and with answers that never end by themselves but after 40 tokens."""
    page = open_page(server)
    fill(page, "max_tokens", "40")
    fill(page, "extra", '{"ignore_eos": true}')
    return page


@pytest.fixture
def shoot(request: pytest.FixtureRequest) -> Callable[[Page, str], None]:
    """shoot(page, name) saves a picture in the folder of the variable PAGE_SHOTS, if it is set."""
    folder = os.environ.get("PAGE_SHOTS")

    def save(page: Page, name: str) -> None:
        if folder:
            page.screenshot(path=f"{folder}/{name}.png")

    return save


def fill(page: Page, name: str, value: str) -> None:
    """Set a field of the settings, in whatever part it lies."""
    field = page.locator(f"#settings [name='{name}']")
    field.evaluate("field => field.closest('details')?.setAttribute('open', '')")
    field.fill(value)


def ask(page: Page, text: str, *, wait: bool = True) -> None:
    """Send a message; wait until it is answered."""
    page.fill("#draft", text)
    page.press("#draft", "Enter")
    if wait:
        answered(page)


def answered(page: Page) -> None:
    page.wait_for_selector("html:not(.running)")


def pretend(page: Page, *events: Any, status: int = 200, headers: dict[str, str] | None = None) -> list[dict[str, Any]]:
    """Have the next chat requests answered with these events, or with a status and this body; what is asked."""
    asked: list[dict[str, Any]] = []
    kind = {"Content-Type": "text/event-stream" if status == 200 else "application/json"}
    body = "".join(f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n" for event in events)

    def answer(route: Any) -> None:
        asked.append(route.request.post_data_json)
        route.fulfill(
            status=status, headers={**kind, **(headers or {})}, body=body if status == 200 else json.dumps(events[0])
        )

    page.unroute("**/v1/chat/completions")
    page.route("**/v1/chat/completions", answer)
    return asked


def chunk(finish: str | None = None, **delta: Any) -> dict[str, Any]:
    """A chunk of a stream."""
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


def error(message: str, code: str | None = None) -> dict[str, Any]:
    """The body of an error."""
    return {"error": {"message": message, "type": "x", "param": None, "code": code}}
