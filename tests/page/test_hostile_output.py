"""Whatever a model or a file says stays text: nothing runs, nothing is loaded, links lead to http(s) alone."""

import json
import time

import pytest

from tests.page.conftest import ask, chunk, pretend

HOSTILE = [
    '<img src=x onerror="window.hit = 1">',
    "<script>window.hit = 1</script><svg onload='window.hit = 1'>",
    "```html\n</code></pre><script>window.hit = 1</script>\n```",
    '``` "><img src=x onerror=window.hit=1>\ncode\n```',
    "[click](javascript:window.hit=1) [b](JaVaScRiPt:1) [c](data:text/html,x) [d](vbscript:x) [e](//evil.example)",
    '[x](https://ok.example/"onmouseover="window.hit=1) ![pixel](https://evil.example/pixel.png)',
    "[https://good.example](https://evil.example/<b>) https://ok.example/'\"><b>",
    "| <b>a</b> | b |\n|---|---|\n| <iframe src='javascript:window.hit=1'> | [x](javascript:1) |",
    "# <style>*{display:none}</style>\n> <form action=https://evil.example><input>",
    "- <details ontoggle='window.hit=1' open>\n"
    '  - <math><mtext></form><form><mglyph><svg><mtext><style><path id="</style><img onerror=window.hit=1 src>">',
    "\u202e\u2066evil\u2069 \x00 \x1b[31m \ufeff &lt;b&gt; &#x3C;script&#x3E;",
    "__proto__ constructor {{7*7}} ${window.hit = 1}",
]
ALLOWED = {
    *("A", "P", "CODE", "PRE", "STRONG", "EM", "UL", "OL", "LI", "BLOCKQUOTE", "HR", "H3", "H4", "H5", "H6"),
    *("FIGURE", "FIGCAPTION", "SPAN", "BUTTON", "svg", "use", "DIV", "TABLE", "THEAD", "TBODY", "TR", "TH", "TD"),
}


def check_harmless(page):
    assert page.evaluate("window.hit") is None
    tags = page.evaluate("[...document.querySelectorAll('#turns .body *')].map(element => element.tagName)")
    assert set(tags) <= ALLOWED
    links = page.locator("#turns a").evaluate_all("links => links.map(link => [link.protocol, link.rel, link.target])")
    assert all(link[0] in ("http:", "https:") and "noopener" in link[1] and link[2] == "_blank" for link in links)
    attributes = page.evaluate(
        "[...document.querySelectorAll('#turns .body *')].flatMap(element => element.getAttributeNames())"
    )
    assert not [name for name in attributes if name.startswith("on") or name in ("style", "src", "srcdoc")]


@pytest.mark.parametrize("text", HOSTILE)
def test_an_answer_is_text(page, text):
    delta = {
        "content": text,
        "reasoning_content": text,
        "tool_calls": [{"index": 0, "id": text, "function": {"name": text, "arguments": json.dumps({text: text})}}],
    }
    token = {"token": text, "logprob": -1, "bytes": None, "top_logprobs": [{"token": text, "logprob": -1}]}
    pretend(page, chunk("stop", **delta), "[DONE]")
    ask(page, text)
    check_harmless(page)
    logprobs = {"content": [token]}
    pretend(page, {"choices": [{"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": text}]}, "[DONE]")
    ask(page, text)
    page.locator(".token").first.hover()
    check_harmless(page)
    page.reload()
    page.wait_for_selector(".answer")
    check_harmless(page)


def test_errors_and_names_of_models_are_text(page):
    page.allowed.append("Failed to load resource")
    text = HOSTILE[0]
    pretend(page, {"error": {"message": text}}, status=400)
    ask(page, "Hi")
    check_harmless(page)
    page.route("**/v1/models", lambda route: route.fulfill(json={"data": [{"id": text}, {"id": "b"}]}))
    page.reload()
    page.wait_for_selector("#model option", state="attached")
    assert page.evaluate("window.hit") is None


@pytest.mark.parametrize(
    "file",
    [
        {"settings": None, "conversation": None},
        {
            "settings": {"temperature": {}, "mode": "x", "__proto__": {"a": 1}},
            "conversation": {"chat": "x", "completion": [None, 1, {}]},
        },
        {
            "settings": {},
            "conversation": {
                "chat": [{"kind": "answer", "versions": [None, {"tokens": [None], "toolCalls": [1]}], "active": 99}]
            },
        },
        {
            "settings": {},
            "conversation": {"chat": [{"kind": "answer", "versions": []}, {"kind": "user", "text": HOSTILE[0]}]},
        },
        {
            "settings": {},
            "conversation": {
                "chat": [{"kind": "answer", "versions": [{"problem": {"kind": HOSTILE[0], "title": HOSTILE[0]}}]}]
            },
        },
        {
            "settings": {},
            "conversation": {
                "chat": [{"kind": "answer", "versions": [{"text": HOSTILE[0], "stats": {"ttft": "x", "rate": {}}}]}]
            },
        },
    ],
)
def test_a_file_can_do_no_harm(page, file, tmp_path):
    page.allowed.append("Failed to load resource")  # the server may refuse what such a file makes of the conversation
    path = tmp_path / "file.json"
    path.write_text(json.dumps({"application": "deepseek-serve", "version": 1, **file}))
    with page.expect_file_chooser() as chooser:
        page.click("#import")
    chooser.value.set_files(path)
    page.wait_for_selector("#toast:has-text('was read')")
    ask(page, "Still here?")
    assert page.locator(".bubble").last.inner_text() == "Still here?"
    check_harmless(page)


@pytest.mark.parametrize(
    "piece",
    [
        "*",
        "**a",
        "`",
        "``` ",
        "[",
        "[a](",
        "[a](http://",
        "> ",
        "- ",
        " - ",
        "  ",
        "| ",
        "|-",
        "#",
        "1. ",
        "~~~",
        "-",
        "\n\n",
        "https://",
        "* a",
        "`a``b",
    ],
)
def test_no_text_takes_long(page, piece):
    for text in (piece * (40_000 // len(piece)), (piece + "\n") * (20_000 // len(piece))):
        took = page.evaluate(
            """async text => {
                const { renderMarkdown } = await import(new URL("page/markdown.js", document.baseURI));
                const target = document.createElement("div"), start = performance.now();
                renderMarkdown(target, text);
                return performance.now() - start;
            }""",
            text,
        )
        assert took < 1500, (piece, took)


def test_a_long_answer_keeps_the_page_quick(page):
    """Each chunk costs about what is new: 2,000 chunks of paragraphs and code come in less than ten seconds."""
    words = [chunk(content=("word " * 10 + ("\n\n" if number % 5 == 0 else ""))) for number in range(2000)]
    pretend(page, *words, chunk("stop"), "[DONE]")
    started = time.monotonic()
    ask(page, "Write")
    assert time.monotonic() - started < 10
    assert page.locator(".markdown p").count() == 401
