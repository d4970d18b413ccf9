"""Where implementations announce themselves, and how one file is loaded."""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from engine.slots.header import FOLDERS, Header, HeaderError, decode_source, parse_header

T = TypeVar("T")

_announced: dict[tuple[str, str], Any] = {}


class SlotError(Exception):
    """An implementation could not be loaded; `str(error)` is a sentence for its author."""


def register(kind: str, name: str) -> Callable[[T], T]:
    """Class decorator that announces an implementation: `@register("attention", "varlen-grouped")`."""

    def announce(implementation: T) -> T:
        if kind not in FOLDERS:
            raise SlotError(f"@register: there is no slot kind {kind!r}; the kinds are {', '.join(FOLDERS)}.")
        if (kind, name) in _announced:
            raise SlotError(f"@register: {kind} {name!r} is announced twice.")
        _announced[kind, name] = implementation
        return implementation

    return announce


def read_header(path: Path) -> Header:
    """The header of the slot file at `path`, read without running it. Raises HeaderError."""
    return parse_header(decode_source(path.read_bytes()))


def load_file(path: Path) -> tuple[Header, Any]:
    """Runs the slot file at `path` and returns its header and the registered class.

    Raises HeaderError for the header, SlotError where header and `@register` disagree, and whatever the file itself raises.
    """
    header = read_header(path)
    before = set(_announced)
    module_name = f"engine.{FOLDERS[header.kind]}.{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    spec.loader.exec_module(module)
    new = [key for key in _announced if key not in before]
    wanted = (header.kind, header.name)
    if wanted in new:
        return header, _announced[wanted]
    if new:
        kind, name = new[0]
        raise SlotError(
            f"The header declares {header.kind} {header.name!r}, but the file registers {kind} {name!r}. Make them agree."
        )
    raise SlotError(f"The file registers nothing. Put @register({header.kind!r}, {header.name!r}) on its class.")


def declared(engine_root: Path, kind: str) -> Iterator[tuple[Path, Header]]:
    """The slot files of `kind` below `engine_root`, in order, with their headers; files whose header cannot be read are left out."""
    for path in sorted((engine_root / FOLDERS[kind]).glob("*.py")):
        if path.name == "__init__.py":
            continue
        with suppress(HeaderError, OSError):
            header = read_header(path)
            if header.kind == kind:
                yield path, header


def implementations(engine_root: Path, kind: str) -> dict[str, Path]:
    """The slot files of `kind` below `engine_root`, by declared name."""
    return {header.name: path for path, header in declared(engine_root, kind)}


def load(kind: str, name: str, engine_root: Path | None = None) -> Any:
    """The registered class of `kind` called `name`, for use inside the engine. Raises SlotError that lists what exists."""
    root = engine_root or Path(__file__).resolve().parent.parent
    if (kind, name) not in _announced:
        found = implementations(root, kind)
        if name not in found:
            raise SlotError(f"There is no {kind} called {name!r}; there are: {', '.join(sorted(found)) or 'none'}.")
        load_file(found[name])
    return _announced[kind, name]
