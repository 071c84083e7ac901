"""deepseek-serve chat: a conversation over a pipe, its commands, and what interrupts it."""

import io
import json
import shutil

import pytest

from engine.errors import EngineUnavailableError, RequestError
from server.commands import chat
from server.commands.chat import Piece, _Chat
from server.commands.remote import RemoteServer
from tests.server.commands.scripted import scripted


class Echo:
    """Answers with the number of messages; stops where it is told to."""

    name = "echo"

    def __init__(self):
        self.seen, self.raises = [], None

    def answer(self, messages):
        self.seen.append([dict(message) for message in messages])
        yield Piece("hm", is_reasoning=True, num_tokens=1)
        yield Piece(f"<{len(messages)}", num_tokens=1)
        if self.raises is not None:
            raise self.raises
        yield Piece(">", num_tokens=1)


@pytest.fixture
def model():
    return Echo()


@pytest.fixture
def talk(model, monkeypatch, capsys):
    """talk(lines) -> what is printed."""

    def run(*lines, is_terminal=False, **settings):
        typed = iter(lines)

        def read(prompt):
            line = next(typed, None)
            if isinstance(line, BaseException):
                raise line
            if line is None:
                raise EOFError
            return line

        monkeypatch.setattr("builtins.input", read)
        _Chat(model, is_terminal=is_terminal, **settings).run()
        return capsys.readouterr().out

    return run


def test_an_answer_cannot_steer_the_terminal(talk, model, monkeypatch):
    written = "\tA\n\x1b]0;title\x07B\x9b2J\x7f"
    monkeypatch.setattr(model, "answer", lambda _: iter_of(Piece(written, num_tokens=1)))
    assert "\tA\n]0;titleB2J\n" in talk("hi", is_terminal=True)
    assert talk("hi") == written + "\n"  # a pipe gets what was written


def iter_of(*pieces):
    yield from pieces


def test_answers_stay_in_the_conversation_and_reasoning_does_not(talk, model):
    assert talk("Hi", "", "Ho") == "<1>\n<3>\n"
    assert [message["content"] for message in model.seen[1]] == ["Hi", "<1>", "Ho"]


def test_commands(talk, model, tmp_path):
    path = tmp_path / "talk.json"
    said = talk("Hi", "/new", "/system Be brief.", "Ho", "/retry", f"/save {path}", "/nonsense", "/quit", "unread")
    assert [len(messages) for messages in model.seen] == [1, 2, 2]
    assert model.seen[1][0] == {"role": "system", "content": "Be brief."}
    saved = json.loads(path.read_text())
    assert saved["model"] == "echo"
    assert [message["role"] for message in saved["messages"]] == ["system", "user", "assistant"]
    assert chat.HELP in said
    assert f"{path}: 3 messages" in said


def test_a_line_may_go_on_in_the_next(talk, model):
    talk("one \\", "two", system="S")
    assert [message["content"] for message in model.seen[0]] == ["S", "one \ntwo"]


def test_ctrl_c_stops_an_answer_and_keeps_what_there_is(talk, model):
    model.raises = KeyboardInterrupt()
    said = talk("Hi", "Ho", is_terminal=True)
    assert "stopped" in said
    assert [message["content"] for message in model.seen[1]] == ["Hi", "<1", "Ho"]


def test_ctrl_c_at_the_prompt_does_not_leave(talk, model):
    assert "ctrl-D or /quit leaves" in talk(KeyboardInterrupt(), "Hi", is_terminal=True)
    assert len(model.seen) == 1


def test_an_error_takes_the_message_back(talk, model):
    model.raises = RequestError("too long")
    assert "too long" in talk("Hi", "Ho")
    assert len(model.seen[1]) == 1


def test_a_terminal_is_told_the_speed_and_shows_reasoning_dimmed(talk):
    said = talk("Hi", is_terminal=True)
    assert "\033[2mhm\033[0m<1>" in said
    assert "(3 tokens in " in said


def test_a_local_model_answers_a_pipe(tiny_llama, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("Hi\n"))
    assert chat.main([str(tiny_llama), "--temperature", "0", "--max-tokens", "5"]) == 0
    assert len(capsys.readouterr().out) > 1


def test_a_model_without_a_chat_template_needs_one(tiny_llama, tmp_path, monkeypatch, capsys):
    folder = shutil.copytree(tiny_llama, tmp_path / "model")
    for path in (folder / "chat_template.jinja", folder / "tokenizer_config.json"):
        if path.exists():
            path.write_text("{}" if path.suffix == ".json" else "")
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    assert chat.main([str(folder)]) == 2
    assert "has no chat template; name one with --chat-template" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", io.StringIO("Hi\n"))
    assert chat.main([str(folder), "--chat-template", "deepseek-v2", "--max-tokens", "2"]) == 0


def test_a_model_that_is_not_there_is_named(capsys):
    assert chat.main(["/no/such"]) == 2
    assert "deepseek-serve chat: error: --model /no/such" in capsys.readouterr().err


def delta(**fields):
    return {"choices": [{"index": 0, "delta": fields}]}


def test_a_server_is_asked_with_the_key_and_its_first_model(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("Hi\n"))
    with scripted() as server:
        server.chunks = [
            delta(role="assistant", content=""),
            delta(reasoning_content="hm"),
            delta(content="Hel"),
            delta(content="lo"),
        ]
        assert chat.main(["--url", f"{server.url}/v1/", "--api-key", "sk-1", "--max-tokens", "9"]) == 0
    assert capsys.readouterr().out == "Hello\n"
    [(path, key, body)] = server.asked
    assert (path, key, body["model"], body["max_tokens"]) == ("/v1/chat/completions", "Bearer sk-1", "scripted", 9)


def test_refusals_and_broken_answers_are_errors():
    with scripted() as server:
        remote = RemoteServer(server.url)
        server.status, server.error = 429, "busy"
        with pytest.raises(RequestError, match="429: busy"):
            list(remote.stream("/v1/completions", {}))
        server.status, server.chunks = 200, [{"error": {"message": "it died"}}]
        with pytest.raises(RequestError, match="it died"):
            list(remote.stream("/v1/completions", {}))
        server.chunks, server.is_whole = [], False
        with pytest.raises(EngineUnavailableError, match="without"):
            list(remote.stream("/v1/completions", {}))
    with pytest.raises(EngineUnavailableError, match="cannot be reached"):
        remote.first_model()


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x", "http://", ""])
def test_what_is_no_url_is_refused(url, capsys):
    if url:
        assert chat.main(["--url", url]) == 2
        assert "--url" in capsys.readouterr().err
