"""A hash of what a slot file does, blind to comments, layout, docstrings and the name it is registered under."""

import ast
import hashlib

from engine.slots.header import Header


def tree_hash(source: str, header: Header) -> str:
    """The hex SHA-256 of the normalised syntax tree together with the header's claims.

    Two files with the same hash are the same code, and get one draw between them. Names are kept: a method that is
    renamed is another method to its caller. Where the source does not parse, it is hashed as it stands.
    """
    claims = (
        header.kind,
        header.quality_class,
        header.devices,
        header.dtypes,
        sorted(map(repr, header.limits.items())),
    )
    try:
        body = ast.dump(_Normalise(header.name).visit(ast.parse(source)))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        body = source
    return hashlib.sha256(f"{claims!r}\n{body}".encode("utf-8", "surrogatepass")).hexdigest()


class _Normalise(ast.NodeTransformer):
    def __init__(self, name: str) -> None:
        self.name = name

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        return ast.Constant("<name>") if node.value == self.name else node

    def visit(self, node: ast.AST) -> ast.AST:
        body = getattr(node, "body", None)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and body:
            first = body[0]
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = body[1:]
        return super().visit(node)  # type: ignore[no-any-return]
