"""The slot alone, against the reference."""

from engine.slots.kind import Case, Property
from workers.suites.unit.bench import UnitBench


# Properties first: "it sees the future" helps more than the dozen of wrong outputs that follow from it, and that end the suite.
def test_property(bench: UnitBench, prop: Property) -> None:
    """A property of the kind holds."""
    bench.check_property(prop)


def test_matches_the_reference(bench: UnitBench, case: Case) -> None:
    """The output of one call is as close to the reference as the declared class asks."""
    bench.check_case(case)
