"""Reads the header of a slot file without running the file.

The header is a comment block in the form of PEP 723 (inline script metadata) with the type `swapbench`, holding TOML:

    # /// swapbench
    # kind = "attention"
    # name = "varlen-grouped"
    # class = "E"
    # devices = ["cpu"]
    # dtypes = ["float32", "bfloat16"]
    # head_dims = [32, 64, 128]
    # summary = "One sentence that a person reads on the leaderboard."
    # ///

Torch-free, so that the web tier can parse it too.
"""

import re
import tomllib
from dataclasses import dataclass, field
from typing import Any

KINDS = ("attention", "quantization", "normalization", "activation", "adapter")
FOLDERS = {kind: kind for kind in KINDS} | {"adapter": "adapters"}
CLASSES = ("E", "Q8", "Q4", "S")
DEVICES = ("cpu", "cuda")
DTYPES = ("float32", "float16", "bfloat16")

MAX_SOURCE_BYTES = 512 * 1024
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")
FILE_NAME = re.compile(r"[a-z][a-z0-9_]{0,59}\.py")
# PEP 723's regular expression, for our type.
BLOCK = re.compile(r"(?m)^# /// swapbench$\s(?P<content>(^#(| .*)$\s)+)^# ///$")


class HeaderError(ValueError):
    """The file has no header, or one that cannot be accepted; `str(error)` is a sentence for its author."""


@dataclass(frozen=True)
class Header:
    """What an implementation declares about itself.

    `limits` holds the remaining keys, which the kind interprets (for attention: `head_dims`, `phases`, `min_sm`, ...).
    """

    kind: str
    name: str
    quality_class: str
    devices: tuple[str, ...]
    dtypes: tuple[str, ...]
    summary: str = ""
    limits: dict[str, Any] = field(default_factory=dict)


def decode_source(data: bytes) -> str:
    """The text of a slot file. Raises HeaderError where it is too large, not UTF-8, or holds a NUL byte."""
    if len(data) > MAX_SOURCE_BYTES:
        raise HeaderError(f"The file has {len(data):,} bytes; a slot file may have at most {MAX_SOURCE_BYTES:,}.")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise HeaderError(f"The file is not UTF-8: byte {error.start} cannot be decoded. Save it as UTF-8.") from None
    if "\0" in text:
        raise HeaderError("The file holds a NUL byte; a slot file is plain Python source.")
    return text


def _check_numbers(value: object) -> None:
    """Raises ValueError where a value holds a whole number that TOML does not have: nobody could write it down, or compute with it."""
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError("it holds a whole number of more than 64 bits")
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_numbers(item)


def parse_header(source: str) -> Header:
    """The header declared in `source`. Raises HeaderError with a sentence that says what to write instead."""
    source = source.replace("\r\n", "\n")
    blocks = list(BLOCK.finditer(source))
    if not blocks:
        raise HeaderError(
            "The file has no swapbench header. Start it with a comment block '# /// swapbench' ... '# ///' "
            "that declares kind, name, class, devices and dtypes (see docs/contributing-a-module.md)."
        )
    if len(blocks) > 1:
        raise HeaderError("The file has more than one swapbench header; keep one.")
    lines = blocks[0].group("content").splitlines()
    toml = "\n".join(line[2:] if line.startswith("# ") else line[1:] for line in lines)
    try:
        values = tomllib.loads(toml)
        _check_numbers(values)
    # Whole numbers of thousands of digits are a ValueError of Python's own.
    except (ValueError, RecursionError) as error:
        # It counts from the block's first line.
        before = source.count("\n", 0, blocks[0].start("content"))
        said = re.sub(r"at line (\d+), column \d+", lambda at: f"line {before + int(at[1])}", str(error))
        raise HeaderError(f"The swapbench header is not valid TOML: {said}.") from None

    def text(key: str, default: str | None = None) -> str:
        value = values.pop(key, default)
        if value is None:
            raise HeaderError(f"The header lacks '{key}'.")
        if not isinstance(value, str):
            raise HeaderError(f"The header's '{key}' must be a string, not {value!r}.")
        return value

    def choice(key: str, allowed: tuple[str, ...]) -> str:
        value = text(key)
        if value not in allowed:
            raise HeaderError(f"The header's '{key}' is {value!r}; it must be one of {', '.join(allowed)}.")
        return value

    def choices(key: str, allowed: tuple[str, ...]) -> tuple[str, ...]:
        value = values.pop(key, None)
        if not isinstance(value, list) or not value or any(item not in allowed for item in value):
            raise HeaderError(f"The header's '{key}' must be a list of one or more of {', '.join(allowed)}.")
        return tuple(dict.fromkeys(value))

    name = text("name")
    if not NAME.fullmatch(name):
        raise HeaderError(
            f"The header's name {name!r} is not allowed: use 1 to 40 of a-z, 0-9, '-' and '_', not starting with '-' or '_'."
        )
    summary = text("summary", "")
    if len(summary) > 200 or not summary.isprintable():
        raise HeaderError("The header's 'summary' must be one printable line of at most 200 characters.")
    return Header(
        kind=choice("kind", KINDS),
        name=name,
        quality_class=choice("class", CLASSES),
        devices=choices("devices", DEVICES),
        dtypes=choices("dtypes", DTYPES),
        summary=summary,
        limits=values,
    )


def kind_of_path(path: str) -> str | None:
    """The kind whose folder holds `path` ("engine/attention/x.py" -> "attention"), or None where it is no slot file."""
    parts = path.split("/")
    if len(parts) != 3 or parts[0] != "engine" or not FILE_NAME.fullmatch(parts[2]):
        return None
    for kind, folder in FOLDERS.items():
        if parts[1] == folder:
            return kind
    return None
