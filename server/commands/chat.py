"""Talk to a model in the terminal: loaded into this process, or served at a URL by any OpenAI-compatible server."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from engine.errors import DeepseekServeError
from server.arguments import Parser

if TYPE_CHECKING:
    from collections.abc import Iterator

HELP = """  /new            begin a new conversation
  /system TEXT    say what the model is to be, and begin a new conversation
  /retry          answer the last message again
  /save FILE      write the conversation as JSON
  /help           show this
  /quit           leave; so does ctrl-D
ctrl-C stops an answer. A line that ends with \\ goes on in the next one."""

_EPILOG = f"""in the chat:
{HELP}

examples:
  deepseek-serve chat
  deepseek-serve chat /models/my-llama --system "Answer in one sentence."
  deepseek-serve chat --url http://127.0.0.1:8000
  echo "Name three rivers." | deepseek-serve chat"""

# A model's text must not steer the terminal: of control characters, only tabs and line feeds are shown.
_CONTROLS = dict.fromkeys([code for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\t\n"])

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Piece:
    """Text of an answer as it comes; reasoning comes before the answer proper."""

    text: str
    is_reasoning: bool = False
    num_tokens: int = 0


class Model(Protocol):
    """Whoever answers."""

    name: str

    def answer(self, messages: Messages) -> Iterator[Piece]:
        """Yield an answer as it grows; closing the iterator ends it.

        Raises:
            DeepseekServeError: these messages cannot be answered.
        """


def main(argv: list[str]) -> int:
    """Run the command; the exit status."""
    args = _parser().parse_args(argv)
    try:
        model = _load(args)
        _Chat(model, args.system).run()
    except DeepseekServeError as error:
        sys.stderr.write(f"deepseek-serve chat: error: {error}\n")
        return 2
    except KeyboardInterrupt:  # while loading
        return 130
    return 0


def _parser() -> Parser:
    parser = Parser("deepseek-serve chat", __doc__, _EPILOG)
    add = parser.add_argument
    add("model", nargs="?", metavar="MODEL", help="as for serving; with --url: one of its models, default the first")
    add("--url", help="ask the server there instead of loading a model here")
    add("--api-key", default=os.environ.get("OPENAI_API_KEY"), metavar="KEY", help="for --url; or $OPENAI_API_KEY")
    add("--system", metavar="TEXT", help="what the model is to be")
    add("--chat-template", metavar="NAME|FILE", help="as for serving, for a model in this process")
    add("--temperature", type=float, default=0.7, metavar="X", help="0 is greedy (default: %(default)s)")
    add("--top-p", type=float, default=0.95, metavar="X", help="default: %(default)s")
    add("--max-tokens", type=int, metavar="N", help="of one answer; default: what the context holds")
    return parser


def _load(args: argparse.Namespace) -> Model:
    from server.commands.chat_models import LocalModel, RemoteModel

    options = {"temperature": args.temperature, "top_p": args.top_p, "max_tokens": args.max_tokens}
    if args.url:
        return RemoteModel(args.url, args.api_key, args.model, options)
    return LocalModel(args.model, args.chat_template, options)


@dataclass
class _Chat:
    """One conversation after another, until the end of the input."""

    model: Model
    system: str | None = None
    messages: Messages = field(default_factory=list)
    is_terminal: bool = field(default_factory=lambda: sys.stdin.isatty() and sys.stdout.isatty())

    def run(self) -> None:
        """Read lines and answer them."""
        self._begin()
        if self.is_terminal:
            import readline  # noqa: F401  # makes input() edit lines and remember them

            self._say(f"{self.model.name}. /help lists commands, ctrl-D leaves.\n")
        while (line := self._read()) is not None:
            if not line.strip():
                continue
            if line.startswith("/"):
                word, _, argument = line.strip().partition(" ")
                if word in ("/quit", "/exit", "/bye"):
                    return
                self._command(word, argument.strip())
            else:
                self.messages.append({"role": "user", "content": line})
                self._answer()

    def _begin(self) -> None:
        self.messages = [{"role": "system", "content": self.system}] if self.system else []

    def _read(self) -> str | None:
        """Return what is typed next; None at the end of the input."""
        lines: list[str] = []
        while True:
            try:
                line = input(("... " if lines else ">>> ") if self.is_terminal else "")
            except EOFError:
                if self.is_terminal:
                    self._say("\n")
                return "\n".join(lines) or None
            except KeyboardInterrupt:
                self._say("\n(ctrl-D or /quit leaves)\n")
                lines = []
                continue
            if not line.endswith("\\"):
                return "\n".join([*lines, line])
            lines.append(line[:-1])

    def _command(self, word: str, argument: str) -> None:
        if word == "/new":
            self._begin()
            self._say("A new conversation.\n")
        elif word == "/system":
            self.system = argument or None
            self._begin()
            self._say("A new conversation.\n")
        elif word == "/retry" and any(message["role"] == "user" for message in self.messages):
            while self.messages[-1]["role"] != "user":
                self.messages.pop()
            self._answer()
        elif word == "/save" and argument:
            self._save(Path(argument).expanduser())
        else:
            self._say(HELP + "\n")

    def _save(self, path: Path) -> None:
        try:
            path.write_text(json.dumps({"model": self.model.name, "messages": self.messages}, indent=2) + "\n")
        except OSError as error:
            self._say(f"{path} cannot be written: {error.strerror}\n")
        else:
            self._say(f"{path}: {len(self.messages)} messages\n")

    def _answer(self) -> None:
        """Answer the last message; what ctrl-C leaves of an answer stays in the conversation."""
        started, first, num_tokens, text, end = time.monotonic(), None, 0, "", ""
        answer = self.model.answer(self.messages)
        try:
            for piece in answer:
                num_tokens += piece.num_tokens
                first = first or time.monotonic()
                self._show(piece)
                text += "" if piece.is_reasoning else piece.text
        except KeyboardInterrupt:
            end = ", stopped"
        except DeepseekServeError as error:
            self.messages.pop()
            self._say(f"{error}\n")
            return
        finally:
            answer.close()  # type: ignore[attr-defined]  # a generator
        self.messages.append({"role": "assistant", "content": text})
        seconds = time.monotonic() - started
        if self.is_terminal and first is not None:
            rate = (num_tokens - 1) / max(time.monotonic() - first, 1e-9)
            waited = f"first after {first - started:.2f} s, {rate:.0f} tokens/s"
            self._say(f"\n\033[2m({num_tokens} tokens in {seconds:.1f} s: {waited}{end})\033[0m\n")
        else:
            self._say("\n")

    def _show(self, piece: Piece) -> None:
        is_dim = piece.is_reasoning and self.is_terminal
        text = piece.text.translate(_CONTROLS) if self.is_terminal else piece.text
        if self.is_terminal or not piece.is_reasoning:
            self._say(f"\033[2m{text}\033[0m" if is_dim else text)

    def _say(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()
