"""The demo's sample pull requests are what they say they are."""

import ast
import dis
from collections.abc import Iterator
from pathlib import Path
from types import CodeType

import pytest

from engine.corpus import evaluation_tokens
from engine.slots.registry import load_file
from workers.suites.integration.bench import text_lengths

ROOT = Path(__file__).resolve().parents[2]
SAME = ROOT / "demo/pulls/03-attention-same-code/files/engine/attention/sdpa_tidied.py"
DEFAULT = ROOT / "engine/attention/sdpa.py"


def instructions(path: Path) -> list[list[str]]:
    """The operations of each function in a file, in order, without names and texts."""

    def functions(code: CodeType) -> Iterator[CodeType]:
        yield code
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                yield from functions(constant)

    tree = ast.parse(path.read_text())
    # What a module says of itself is no part of what it does.
    tree.body = [node for node in tree.body if not isinstance(node, ast.Expr)]
    return [[step.opname for step in dis.get_instructions(code)] for code in functions(compile(tree, "file", "exec"))]


def test_the_sample_of_the_same_code_does_what_the_default_does_step_by_step() -> None:
    assert instructions(SAME) == instructions(DEFAULT)
    assert SAME.read_text() != DEFAULT.read_text()


def taken_from_outside(path: Path) -> list[object]:
    """What a file imports, and what it asks of torch, in order."""
    found: list[object] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            found.append((node.module, [name.name for name in node.names]))
        elif isinstance(node, ast.Import):
            found.append([name.name for name in node.names])
        elif isinstance(node, ast.Attribute) and ast.unparse(node).startswith("torch."):
            found.append(ast.unparse(node))
    return found


def test_it_takes_the_same_from_outside_and_can_be_loaded() -> None:
    assert taken_from_outside(SAME) == taken_from_outside(DEFAULT)
    header, implementation = load_file(SAME)
    assert (header.name, implementation.__name__) == ("sdpa-tidied", "TidiedSdpa")


def test_another_step_would_be_noticed(tmp_path: Path) -> None:
    other = tmp_path / "other.py"
    other.write_text(DEFAULT.read_text().replace("else torch.cat(outputs)", "else torch.cat([*outputs])"))
    with pytest.raises(AssertionError):
        assert instructions(other) == instructions(DEFAULT)


def test_every_text_is_long_enough_to_hold_a_task() -> None:
    for tokens in set(text_lengths()):
        assert len(evaluation_tokens(bytes(32), tokens).ids) == tokens
