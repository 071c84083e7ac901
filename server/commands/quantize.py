"""Make a checkpoint of a model in 8 or 4 bits, in the compressed-tensors format that this server and vLLM read.

Weights of linear layers become int8, with one scale for each output channel. Their inputs become 8-bit too: by a grid
known from calibration (w8a8-static), by each token's own range (w8a8-dynamic), or not at all (w8). Or weights become
int4 by GPTQ, with one scale for each 32 inputs (w4a8, w4a16). Layers that a scheme would hurt, as measured on the
calibration text, get a finer one. Embeddings, routers, norms and MLA's kv_b_proj stay as they are. lm_head gets 8 bits
in the schemes of 4, and stays as it is in others. A model is run layer by layer, so memory for one layer and its inputs
is enough. GPTQ takes 25 bytes times the square of the inputs beside it: 3 GB for a layer of 11,008 inputs.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import ConfigError, ModelError, RequestError
from engine.loading.resolve import resolve_model
from engine.quantization.calibration_text import Text, builtin_texts, read_texts
from engine.quantization.scheme_bits import AVERAGE, AVERAGE_OF_SMALL, FEW, MANY, SMALL, Bits
from server.arguments import Parser
from server.commands.output import fault_of, report, table
from server.commands.stopping import stoppable

if TYPE_CHECKING:
    from server.text.tokenizer import Tokenizer

_SCHEMES = {
    "w8a8-static": "fastest where activations are tame; needs text like yours",
    "w8a8-dynamic": "close to the original, nearly as fast",
    "w8": "weights only: half the memory, quality and arithmetic as before",
    "w4a8": "a third of the memory; fastest for few streams",
    "w4a16": "the same weights, inputs in bf16: closer, and slower",
}
_TOKENS = {"w8": 4096, "w4": 16384}  # to calibrate on, by the kind of scheme
_CONTEXT = 512  # tokens of one calibration sequence

_EPILOG = """schemes:
{schemes}

examples:
  deepseek-serve quantize --model /models/llm-7b-chat --out /models/7b-int8
  deepseek-serve quantize --model HuggingFaceTB/SmolLM2-360M-Instruct \\
      --out smol-int8 --scheme w8a8-static --calibration chats.jsonl
  deepseek-serve quantize --model /models/v2-lite --out v2-int4 --scheme w4a8
  deepseek-serve smol-int8
  python -m benchmarks.quality --model BEFORE int8=AFTER   # what it cost"""


def main(argv: list[str]) -> int:
    """Run the command; the exit status."""
    args = _parser().parse_args(argv)
    try:
        with stoppable():
            report(*_quantize(args), as_json=args.json)
    except (ConfigError, ModelError, OSError, RuntimeError, MemoryError) as error:
        sys.stderr.write(f"deepseek-serve quantize: error: {fault_of(error, args.out)}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write(f"\ndeepseek-serve quantize: stopped; nothing is left at {args.out}\n")
        return 130
    return 0


def _parser() -> Parser:
    schemes = "\n".join(f"  {name:14} {text}" for name, text in _SCHEMES.items())
    parser = Parser("deepseek-serve quantize", __doc__, _EPILOG.format(schemes=schemes))
    add = parser.add_argument
    add("--model", metavar="NAME|FOLDER|FILE.gguf|HUB_ID", help="as for serving; default: the built-in model")
    add("--out", required=True, type=Path, metavar="DIR", help="the folder to make")
    add("--scheme", choices=tuple(_SCHEMES), metavar="SCHEME", default="w8a8-dynamic", help="default: %(default)s")
    calibration = (
        'plain text, or .jsonl with "text", "prompt" or "messages" in each line; default: prose, code, documentation '
        "and chats, which come with this program and with Python"
    )
    add("--calibration", type=Path, metavar="FILE", help=calibration)
    tokens = ", ".join(f"{number} for {kind}" for kind, number in _TOKENS.items())
    add("--tokens", type=int, metavar="N", help=f"of that text to calibrate on (default: {tokens})")
    bits = (
        f"of w4a8 and w4a16: average of a weight, scales included (default: {AVERAGE}, or {AVERAGE_OF_SMALL} for a "
        f"model of less than {SMALL // 10**9} billion)"
    )
    add("--bits", type=float, metavar="B", help=bits)
    wide = (
        "of w4a8 and w4a16: bits of lm_head and of the layers that lose most, as many as --bits allows; 16 leaves them "
        f"as they are, which vLLM reads on CPUs too (default: {Bits.wide})"
    )
    add("--wide", type=int, choices=tuple(MANY), help=wide)
    add("--json", action="store_true", help="print JSON on a terminal too")
    return parser


def _quantize(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Write the checkpoint; what to say of it, and its figures."""
    from engine.quantization import quantize  # imports torch
    from server.text.tokenizer import Tokenizer

    if args.out.exists() or args.out.is_symlink():
        raise ConfigError(f"--out {args.out} exists already; name a new folder")
    if args.tokens is None:
        args.tokens = _TOKENS[args.scheme[:2]]
    if args.tokens < 2:
        raise ConfigError(f"--tokens is {args.tokens}; it must be at least 2")
    bits = _bits(args)
    source = resolve_model(args.model)
    tokenizer = Tokenizer.load(source)
    prompts = _prompts(tokenizer, args.calibration, args.tokens)
    quantize.check_room(source, args.out, args.scheme, bits)
    with _folder_beside(args.out) as folder:
        unfinished = Path(folder) / "model"
        unfinished.mkdir()
        size, shares = quantize.quantize(source, unfinished, args.scheme, prompts, bits=bits, progress=True)
        if source.is_gguf:
            tokenizer.save(unfinished)
        unfinished.rename(args.out)
    rounded = {name: round(share, 4) for name, share in shares.items()}
    rows = [["linear layers as", "share of weights" if args.scheme.startswith("w4") else "share of arithmetic"]]
    rows += [[name, f"{share:.1%}"] for name, share in shares.items() if share]
    text = f"{args.out}: {size / 1e6:.0f} MB in {args.scheme}\n{table(rows)}\nserve it: deepseek-serve {args.out}"
    return text, {"out": str(args.out), "scheme": args.scheme, "bytes": size, "shares": rounded}


def _folder_beside(out: Path) -> tempfile.TemporaryDirectory[str]:
    """A hidden folder on the same disk, so that what is finished in it can be renamed."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.")
    except OSError as error:
        raise ConfigError(f"--out {out} cannot be made: {error.strerror}") from None


def _bits(args: argparse.Namespace) -> Bits:
    if (args.bits, args.wide) != (None, None) and not args.scheme.startswith("w4"):
        raise ConfigError(f"--bits and --wide are for the schemes w4a8 and w4a16; --scheme is {args.scheme}")
    bits = Bits(args.bits, Bits.wide if args.wide is None else args.wide)
    if not 0 <= bits.wide_share(0) <= 1:
        raise ConfigError(
            f"--bits is {bits.average}; it must be from {FEW} (all layers in 4 bits) to {MANY[bits.wide]} (none)"
        )
    return bits


def _prompts(tokenizer: Tokenizer, file: Path | None, num_tokens: int) -> list[list[int]]:
    """The tokens to calibrate on, cut into sequences; of the built-in text, each kind has the same share of them."""
    kinds = builtin_texts() if file is None else {"yours": read_texts(file)}
    prompts: list[list[int]] = []
    for number, texts in enumerate(kinds.values()):
        share = num_tokens // (len(kinds) - number)  # what a short text leaves goes to the kinds behind it
        taken = _take(tokenizer, texts, share)
        prompts += taken
        num_tokens -= sum(map(len, taken))
    return prompts


def _take(tokenizer: Tokenizer, texts: list[Text], num_tokens: int) -> list[list[int]]:
    """Up to `num_tokens` tokens of these texts, each cut into sequences of at most _CONTEXT."""
    prompts: list[list[int]] = []
    for text in texts:
        ids = tokenizer.encode(text if isinstance(text, str) else _as_text(tokenizer, text))[:num_tokens]
        prompts += [ids[first : first + _CONTEXT] for first in range(0, len(ids), _CONTEXT)]
        num_tokens -= len(ids)
    return [prompt for prompt in prompts if prompt]


def _as_text(tokenizer: Tokenizer, messages: list[dict[str, Any]]) -> str:
    """A chat as the model's template has it; without one, or where it refuses the chat, line by line."""
    with contextlib.suppress(RequestError):
        if tokenizer.chat_template is not None:
            return tokenizer.chat_template.render(messages, add_generation_prompt=False)
    return "\n".join(f"{message.get('role')}: {message.get('content')}" for message in messages)
