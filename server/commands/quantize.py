"""Make an int8 checkpoint of a model, in the compressed-tensors format that this server and vLLM read.

Weights of linear layers become int8, with one scale for each output channel. Their inputs become 8-bit too: by a grid
known from calibration (w8a8-static), by each token's own range (w8a8-dynamic), or not at all (w8). Layers that a
scheme would hurt, as measured on the calibration text, get a finer one. Embeddings, lm_head, routers, norms and MLA's
kv_b_proj stay as they are. A model is run layer by layer, so memory for one layer is enough.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import ConfigError, ModelError
from engine.loading.resolve import resolve_model
from engine.quantization.calibration_text import builtin_text, read_texts
from server.arguments import Parser
from server.commands.output import report, table

if TYPE_CHECKING:
    from server.text.tokenizer import Tokenizer

_SCHEMES = {
    "w8a8-static": "fastest where activations are tame; needs text like yours",
    "w8a8-dynamic": "close to the original, nearly as fast",
    "w8": "weights only: half the memory, quality and arithmetic as before",
}
_CONTEXT = 512  # tokens of one calibration sequence

_EPILOG = """schemes:
{schemes}

examples:
  deepseek-serve quantize --model /models/llm-7b-chat --out /models/7b-int8
  deepseek-serve quantize --model HuggingFaceTB/SmolLM2-360M-Instruct \\
      --out smol-int8 --scheme w8a8-static --calibration chats.jsonl
  deepseek-serve smol-int8
  python -m benchmarks.quality --model BEFORE int8=AFTER   # what it cost"""


def main(argv: list[str]) -> int:
    """Run the command; the exit status."""
    args = _parser().parse_args(argv)
    try:
        report(*_quantize(args), as_json=args.json)
    except (ConfigError, ModelError, OSError, RuntimeError, MemoryError) as error:
        sys.stderr.write(f"deepseek-serve quantize: error: {error}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> Parser:
    schemes = "\n".join(f"  {name:14} {text}" for name, text in _SCHEMES.items())
    parser = Parser("deepseek-serve quantize", __doc__, _EPILOG.format(schemes=schemes))
    add = parser.add_argument
    add("--model", metavar="NAME|FOLDER|FILE.gguf|HUB_ID", help="as for serving; default: the built-in model")
    add("--out", required=True, type=Path, metavar="DIR", help="the folder to make")
    add("--scheme", choices=tuple(_SCHEMES), default="w8a8-dynamic", help="default: %(default)s")
    calibration = (
        'plain text, or .jsonl with "text" or "prompt" in each line; default: help topics that come with Python'
    )
    add("--calibration", type=Path, metavar="FILE", help=calibration)
    add("--json", action="store_true", help="print JSON on a terminal too")
    add("--tokens", type=int, default=4096, metavar="N", help="of it to calibrate on (default: %(default)s)")
    return parser


def _quantize(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Write the checkpoint; what to say of it, and its figures."""
    from engine.quantization import quantize  # imports torch
    from server.text.tokenizer import Tokenizer

    if args.out.exists() or args.out.is_symlink():
        raise ConfigError(f"--out {args.out} exists already; name a new folder")
    if args.tokens < 2:
        raise ConfigError(f"--tokens is {args.tokens}; it must be at least 2")
    source = resolve_model(args.model)
    tokenizer = Tokenizer.load(source)
    prompts = _prompts(tokenizer, args.calibration, args.tokens)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.out.parent, prefix=f".{args.out.name}.") as folder:
        unfinished = Path(folder) / "model"
        unfinished.mkdir()
        size, shares = quantize.quantize(source, unfinished, args.scheme, prompts, progress=sys.stderr.isatty())
        if source.is_gguf:
            tokenizer.save(unfinished)
        unfinished.rename(args.out)
    rounded = {name: round(share, 4) for name, share in shares.items()}
    rows = [["linear layers as", "share of arithmetic"]]
    rows += [[name, f"{share:.1%}"] for name, share in shares.items() if share]
    text = f"{args.out}: {size / 1e6:.0f} MB in {args.scheme}\n{table(rows)}\nserve it: deepseek-serve {args.out}"
    return text, {"out": str(args.out), "scheme": args.scheme, "bytes": size, "shares": rounded}


def _prompts(tokenizer: Tokenizer, file: Path | None, num_tokens: int) -> list[list[int]]:
    texts = read_texts(file) if file is not None else [builtin_text(held_out=False)]
    prompts: list[list[int]] = []
    for text in texts:
        ids = tokenizer.encode(text)[:num_tokens]
        prompts += [ids[first : first + _CONTEXT] for first in range(0, len(ids), _CONTEXT)]
        num_tokens -= len(ids)
        if num_tokens <= 0:
            break
    return [prompt for prompt in prompts if prompt]
