"""Tools that the reader plays, JSON schemas, and reasoning apart from the answer."""

from tests.page.conftest import ask, chunk, fill, pretend


def call(index, **function):
    return {"index": index, "function": function}


def test_the_reader_answers_the_calls_of_tools(page, shoot):
    page.get_by_text("Tools", exact=True).click()
    page.get_by_role("button", name="Fill in an example").locator("visible=true").click()
    page.select_option("[name='tool_choice']", "get_weather")
    first = {**call(0, name="get_weather", arguments=""), "id": "c1", "type": "function"}
    asked = pretend(
        page,
        chunk(role="assistant", content=None, tool_calls=[first]),
        chunk(tool_calls=[call(0, arguments='{"city": "Pa')]),
        chunk(tool_calls=[call(0, arguments='ris"}')]),
        chunk("tool_calls"),
        "[DONE]",
    )
    ask(page, "The weather?")
    shoot(page, "tools")
    assert asked[0]["tool_choice"] == {"type": "function", "function": {"name": "get_weather"}}
    assert asked[0]["tools"][0]["function"]["name"] == "get_weather"
    assert page.locator(".call code").inner_text() == '{\n  "city": "Paris"\n}'
    asked = pretend(page, chunk("stop", content="It is sunny."), "[DONE]")
    page.fill(".results textarea", '{"sky": "clear"}')
    page.get_by_role("button", name="Send results").click()
    page.wait_for_selector("text=It is sunny.")
    _, answer, result = asked[0]["messages"]
    function = {"name": "get_weather", "arguments": '{"city": "Paris"}'}
    assert answer["tool_calls"] == [{"id": "c1", "type": "function", "function": function}]
    assert result == {"role": "tool", "tool_call_id": "c1", "content": '{"sky": "clear"}'}
    assert page.locator(".results").count() == 0
    shoot(page, "tools-answered")


def test_a_schema_is_sent_and_a_wrong_one_is_explained(page, shoot):
    asked = pretend(page, chunk("stop", content="{}"), "[DONE]")
    page.get_by_text("Structured output").click()
    page.select_option("[name='format']", "json_schema")
    fill(page, "schema", '{"type": ')
    assert "Not valid JSON" in page.locator("#schema-fault").inner_text()
    ask(page, "Who?")
    assert "This cannot be sent" in page.locator(".notice").inner_text()
    assert asked == []
    shoot(page, "schema-fault")
    page.get_by_role("button", name="Fill in an example").locator("visible=true").click()
    page.get_by_role("button", name="Try again").click()
    page.wait_for_selector(".answer .markdown >> text={}")
    assert asked[0]["response_format"]["json_schema"]["schema"]["type"] == "object"


def test_thoughts_are_apart_and_can_be_folded(page, shoot):
    asked = pretend(
        page,
        chunk(role="assistant", reasoning_content="Two and two "),
        chunk(reasoning="is four."),
        chunk("stop", content="Four."),
        "[DONE]",
    )
    ask(page, "2 + 2?")
    assert page.locator(".markdown").inner_text() == "Four."
    summary = page.locator(".reasoning summary")
    assert summary.inner_text().startswith("Thought for")
    assert page.locator(".thought").is_hidden()
    summary.click()
    assert page.locator(".thought").inner_text() == "Two and two is four."
    shoot(page, "thoughts")
    page.get_by_text("More parameters").click()
    page.select_option("[name='reasoning_effort']", "none")
    ask(page, "Sure?")
    assert asked[1]["messages"][1] == {"role": "assistant", "content": "Four."}  # thoughts are not sent again
    assert ("reasoning_effort" in asked[0], asked[1]["reasoning_effort"]) == (False, "none")
