"""Command line: `python -m engine generate MODEL "prompt"`."""

import argparse
import json
import sys
from typing import Any

from engine.generate import Engine
from engine.loader import DTYPES
from engine.slots.registry import SlotError
from engine.tokenizer import ChatTemplateError

DTYPE_NAMES = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES}


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; returns the exit status: 0, 1 where something could not be done, 2 for wrong usage."""
    options = parser().parse_args(arguments)
    try:
        status: int = options.run(options)
    except (ValueError, SlotError) as error:
        # Every error that the engine explains is one of these two.
        print(f"error: {error}", file=sys.stderr)
        return 1
    return status


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    top = argparse.ArgumentParser(prog="python -m engine", description="The Swapbench reference engine.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    generate = commands.add_parser("generate", help="continue one or more prompts", description=run_generate.__doc__)
    generate.set_defaults(run=run_generate)
    generate.add_argument("model", help="folder of a checkpoint: config.json, *.safetensors, tokenizer.json")
    generate.add_argument("prompt", nargs="+", help="text to continue; several are served as one batch")
    generate.add_argument("--max-tokens", type=int, default=128)
    generate.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default)")
    generate.add_argument("--top-k", type=int, default=0)
    generate.add_argument("--top-p", type=float, default=1.0)
    generate.add_argument("--min-p", type=float, default=0.0)
    generate.add_argument("--seed", type=int)
    generate.add_argument("--stop", action="append", default=[], help="end before this text; may be repeated")
    generate.add_argument("--chat", action="store_true", help="put each prompt into the checkpoint's chat template")
    generate.add_argument("--device", default="cpu")
    generate.add_argument("--dtype", choices=DTYPE_NAMES, help="default: the checkpoint's; on the CPU float32")
    generate.add_argument("--max-len", type=int, help="longest sequence in tokens (default: the model's context)")
    generate.add_argument("--slot", action="append", default=[], metavar="KIND=NAME", help="e.g. attention=sdpa")
    generate.add_argument(
        "--quantization",
        metavar="NAME|JSON",
        help='a name, or patterns: {"layers.*.mlp.*": "int8wo", "embed": "int4wo"}',
    )
    generate.add_argument(
        "--compile",
        action="store_true",
        help="compile what lies beside attention; takes a while before the first token",
    )
    generate.add_argument("--stats", action="store_true", help="print times and counts on standard error")
    return top


def run_generate(options: argparse.Namespace) -> int:
    """Continues the prompts and prints the text; a single prompt's as it comes."""
    engine = Engine(
        options.model,
        slots=slots_of(options.slot, options.quantization),
        # Few CPUs multiply bfloat16 quickly; ten times slower than float32 is common.
        dtype=DTYPE_NAMES.get(options.dtype or ("float32" if options.device == "cpu" else "")),
        device=options.device,
        max_len=options.max_len,
        compile=options.compile,
    )
    if options.compile:
        seconds = engine.warm_up((len(options.prompt),))
        print(f"compiled in {seconds:.1f} s", file=sys.stderr)
    prompts: list[Any] = options.prompt
    if options.chat:
        if engine.tokenizer is None:
            raise ChatTemplateError("--chat needs a tokenizer.json with the checkpoint.")
        prompts = [engine.tokenizer.chat([{"role": "user", "content": prompt}]) for prompt in prompts]
    given = ("temperature", "top_k", "top_p", "min_p", "seed", "stop")
    sampling = {name: getattr(options, name) for name in given}
    done: dict[int, Any] = {}
    for event in engine.stream(prompts, options.max_tokens, **sampling):
        done[event.index] = event.completion
        if len(prompts) == 1:
            print(event.text, end="", flush=True)
    failed = False
    for index, completion in sorted(done.items()):
        if completion.error is not None:
            failed = True
            print(f"error: prompt {index + 1}: {completion.error}", file=sys.stderr)
        elif len(prompts) > 1:
            print(f"--- {index + 1}\n{completion.text}")
    if len(prompts) == 1:
        print()
    if options.stats:
        for index, completion in sorted(done.items()):
            rate = 1 / completion.tpot if completion.tpot else 0.0
            print(
                f"prompt {index + 1}: {completion.prompt_tokens} + {len(completion.tokens)} tokens, {completion.finish}, "
                f"TTFT {completion.ttft * 1e3:.1f} ms, TPOT {completion.tpot * 1e3:.2f} ms, {rate:.1f} tokens/s",
                file=sys.stderr,
            )
    return 1 if failed else 0


def slots_of(pairs: list[str], quantization: str | None) -> dict[str, Any]:
    """The `slots` of an Engine from KIND=NAME pairs and the value of --quantization. Raises SlotError."""
    slots: dict[str, Any] = {}
    for pair in pairs:
        kind, separator, name = pair.partition("=")
        if not separator or not name:
            raise SlotError(f"--slot takes KIND=NAME, such as attention=sdpa; got {pair!r}.")
        slots[kind] = name
    if quantization is not None:
        slots["quantization"] = quantization
        if quantization.lstrip().startswith("{"):
            try:
                slots["quantization"] = json.loads(quantization)
            except ValueError as error:
                raise SlotError(f"--quantization is not valid JSON: {error}.") from None
    return slots


if __name__ == "__main__":
    sys.exit(main())
