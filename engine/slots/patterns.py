"""Which quantization each weight of a model gets, as data: patterns over fully qualified names.

    {"layers.*.attn.qkv": "fp8wo", "layers.*.mlp.*": "int8wo", "embed": "int4wo"}

Names are split at dots. `*` stands for any characters within one part, `**` for any number of whole parts. The last
pattern that matches wins, so that exceptions follow rules. A name that no pattern matches stays as it is ("none").
"""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

ALIASES = {"int8": "int8wo", "int4": "int4wo", "fp8": "fp8wo", "bf16": "none"}


def matches(pattern: str, name: str) -> bool:
    """Whether `pattern` stands for the fully qualified `name`."""
    return _match(pattern.split("."), name.split("."))


def _match(pattern: list[str], name: list[str]) -> bool:
    if not pattern:
        return not name
    if pattern[0] == "**":
        return any(_match(pattern[1:], name[skip:]) for skip in range(len(name) + 1))
    return bool(name) and fnmatchcase(name[0], pattern[0]) and _match(pattern[1:], name[1:])


def scheme_of(name: str, patterns: Mapping[str, str], default: str = "none") -> str:
    """The quantization that `patterns` give to the weight called `name`; short names ("int8") are written out."""
    chosen = default
    for pattern, scheme in patterns.items():
        if matches(pattern, name):
            chosen = scheme
    return ALIASES.get(chosen, chosen)


def assign(names: Iterable[str], patterns: Mapping[str, str] | str, default: str = "none") -> dict[str, str]:
    """The quantization of every weight in `names`. A plain string stands for {"**": string}.

    Raises ValueError where a pattern matches no name: a misspelt pattern must not silently leave weights unpacked.
    """
    if isinstance(patterns, str):
        patterns = {"**": patterns}
    names = list(names)
    for pattern in patterns:
        if not any(matches(pattern, name) for name in names):
            shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
            raise ValueError(f"The quantization pattern {pattern!r} matches no weight. There are: {shown}.")
    return {name: scheme_of(name, patterns, default) for name in names}
