"""The unit suite of a kind on a class in this process: what the tests of kinds and implementations share."""

from typing import Any

from engine.slots.header import Header
from engine.slots.inprocess import InProcess, judge_case
from engine.slots.kind import CallFailed, Environment, Finding, kind_named
from engine.slots.source import Source

CPU = Environment("cpu-test", "cpu", ("float32", "bfloat16"))
SEED = Source(bytes(range(32)))


def header(kind: str, quality_class: str = "E", **limits: Any) -> Header:
    """The header of an implementation that a test makes up."""
    return Header(kind, "made-up", quality_class, ("cpu",), ("float32", "bfloat16"), limits=limits)


def findings(
    declared: Header, implementation: type[Any], environment: Environment = CPU, source: Source = SEED
) -> dict[str, str]:
    """The sentence of each case and property of the unit suite that the class does not pass, by name."""
    kind = kind_named(declared.kind)
    found: dict[str, str] = {}

    def note(name: str, finding: Finding | CallFailed | None) -> None:
        if finding is not None:
            found[name] = finding.sentence if isinstance(finding, Finding) else str(finding)

    for case in kind.cases("unit", declared, environment):
        try:
            note(case.name, judge_case(kind, declared, case, implementation, source.child(case.name)))
        except CallFailed as failure:
            note(case.name, failure)
    for prop in kind.properties(declared, environment):
        try:
            note(prop.name, prop.check(InProcess(kind, implementation), source.child(prop.name)))
        except CallFailed as failure:
            note(prop.name, failure)
    return found
