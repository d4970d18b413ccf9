"""What the unit suite judges with."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from engine.slots.kind import Call, CallFailed, Case, HeldSet, Property
from engine.slots.places import told_of
from workers.judge.trial import SteadyHost, Trial, Wrong, prepared, recipe_of


class UnitBench:
    """The cases and properties of the subject's kind, and a host to try them on."""

    def __init__(self, trial: Trial) -> None:
        self.trial = trial
        subject = trial.subject
        self.kind = subject.kind
        self.header = subject.header
        self.source = trial.source.child("unit")
        self.host = SteadyHost(trial, subject.head)

    def parameters(self) -> dict[str, Sequence[Any]]:
        """The published cases and the properties, by the name of the fixture that takes them."""
        cases = self.kind.cases("unit", self.header, self.trial.environment)
        return {"case": cases, "prop": self.kind.properties(self.header, self.trial.environment)}

    @cached_property
    def _prepared(self) -> dict[str, HeldSet | CallFailed]:
        cases = [self.varied(case) for case in self.parameters()["case"]]
        return prepared(self.trial, self.host, cases, "unit")[0]

    def varied(self, case: Case) -> Case:
        """The case as this attempt sees it."""
        return self.kind.vary(case, self.source.child(case.name, "vary"))

    def check_case(self, published: Case) -> None:
        """One call with fresh inputs, in each way that there is, against the reference. Raises Wrong, CallFailed."""
        case = self.varied(published)
        held = self._prepared[case.name]
        if isinstance(held, CallFailed):
            raise held
        self.host.hold(held)
        more, finding = self.kind.settle(case, self.header, held, self.host)
        if finding is not None:
            raise Wrong(finding, published.name, recipe=recipe_of(case, "unit", case.name, "held"))
        held = held | more
        call = self.kind.draw(case, held, self.source.child(case.name, "call"))
        self.trial.note(f"unit/{case.name}/call", call.inputs)
        self._check_call(published.name, case, held, call, "call")
        for number in range(1, len(self.kind.ways(call))):
            # With inputs of its own: what was given before is of no use.
            other = self.kind.draw(case, held, self.source.child(case.name, "call", number))
            self._check_call(published.name, case, held, self.kind.ways(other)[number], "call", number)

    def _check_call(self, published: str, case: Case, held: HeldSet, call: Call, *labels: str | int) -> None:
        finding = self.kind.judged(case, self.header, held, self.host, call)
        if finding is not None:
            raise Wrong(told_of(call, finding), published, recipe=recipe_of(case, "unit", case.name, *labels))

    def check_property(self, prop: Property) -> None:
        """One property. Raises Wrong, CallFailed."""
        finding = prop.check(self.host, self.source.child("property", prop.name))
        if finding is not None:
            recipe = f"{prop.statement} Drawn from the attempt's seed as unit/property/{prop.name}."
            raise Wrong(finding, prop.name, prop.name.replace(" ", "_"), recipe)
