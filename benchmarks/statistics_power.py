"""What the judge's rule gets wrong and what it finds, on simulated noise: `python -m benchmarks.statistics_power [--attempts N]`.

Three tables: false gates, coverage and power by machine and effect; false gates of authors who resubmit the same change until they are
lucky; and why the sign-flip test takes ranks as its scores.
"""

import argparse
import itertools
from collections.abc import Iterable

import numpy as np
from rich.console import Console
from rich.table import Table

from workers.statistics import Decision, Rule, alpha_for_try, attempt_from, clopper_pearson, percent
from workers.statistics.simulation import MACHINES, Noise

CASES = 6
GAINS = (-0.05, -0.02, 0.0, 0.01, 0.02, 0.03, 0.05, 0.10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--attempts", type=int, default=1000, help="attempts per row (default 1000)")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    console = Console()
    console.print(by_effect(arguments.attempts, arguments.seed))
    console.print(by_tries(max(50, arguments.attempts // 4), arguments.seed))
    console.print(by_scores(4 * arguments.attempts, arguments.seed))


def by_effect(attempts: int, seed: int) -> Table:
    table = Table(title=f"One try, {CASES} cases, {attempts} attempts a row", title_justify="left")
    for heading in (
        "machine",
        "pair's SD",
        "true gain",
        "gates",
        "95 % interval",
        "slower",
        "coverage",
        "of cases",
        "ends at 8",
        "pairs",
    ):
        table.add_column(heading, justify="left" if heading == "machine" else "right")
    rule = Rule()
    length = rule.looks[-1] + rule.confirm_pairs
    for machine in MACHINES:
        rng = np.random.default_rng(seed)
        spread = np.std([pairs.gate for pairs in machine.attempts(rng, 200, length, CASES)])
        for gain in GAINS:
            decisions = [attempt_from(rule, pairs) for pairs in machine.attempts(rng, attempts, length, CASES, gain)]
            gates = sum(decision.gates for decision in decisions)
            low, high = clopper_pearson(gates, attempts)
            table.add_row(
                machine.name,
                percent(float(spread), 2),
                percent(gain),
                percent(gates / attempts),
                f"[{percent(low)}, {percent(high)}]",
                percent(share(decision.kind == "slower" for decision in decisions)),
                percent(share(covers(decision, gain) for decision in decisions)),
                percent(share(case.estimate.low <= gain <= case.estimate.high for d in decisions for case in d.cases)),
                percent(share(decision.pairs == 8 for decision in decisions), 0),
                f"{np.mean([decision.pairs + decision.fresh for decision in decisions]):.1f}",
                end_section=gain == GAINS[-1],
            )
    return table


def by_tries(authors: int, seed: int, tries: int = 12) -> Table:
    """False gates of the same change, worth nothing, handed in `tries` times."""
    table = Table(title=f"Resubmitted {tries} times, worth nothing, {authors} authors a row", title_justify="left")
    for heading in ("machine", "authors who gate", "95 % interval"):
        table.add_column(heading, justify="left" if heading == "machine" else "right")
    rules = [Rule(alpha=alpha_for_try(0.05, attempt)) for attempt in range(1, tries + 1)]
    length = rules[0].looks[-1] + rules[0].confirm_pairs
    for machine in MACHINES:
        rng = np.random.default_rng(seed)
        through = sum(author_gates(machine, rules, rng, length) for _ in range(authors))
        low, high = clopper_pearson(through, authors)
        table.add_row(machine.name, percent(through / authors, 2), f"[{percent(low, 2)}, {percent(high, 2)}]")
    return table


def author_gates(machine: Noise, rules: list[Rule], rng: np.random.Generator, length: int) -> bool:
    attempts = machine.attempts(rng, len(rules), length, CASES)
    return any(attempt_from(rule, pairs).gates for rule, pairs in zip(rules, attempts, strict=True))


def by_scores(attempts: int, seed: int, pairs: int = 8) -> Table:
    """Power of three scores in the same sign-flip test of 8 pairs, at the levels 0.025 and 0.10."""
    table = Table(
        title=f"Scores of the sign-flip test: power on {pairs} pairs, effect = 1.5 SD, bursts of 7 SD",
        title_justify="left",
    )
    levels = (0.025, 0.10)
    for heading in ("pairs in a burst", "level", "ranks", "log-ratios", "log-ratios cut at their median size"):
        table.add_column(heading, justify="right")
    flips = np.array(list(itertools.product([1.0, -1.0], repeat=pairs)))
    rng = np.random.default_rng(seed)
    for bursts, level in itertools.product((0.0, 0.05, 0.1, 0.2), levels):
        noise = rng.normal(size=(attempts, pairs))
        x = 1.5 + noise + (rng.random((attempts, pairs)) < bursts) * 7 * rng.normal(size=(attempts, pairs))
        sizes = np.abs(x)
        scores = (
            sizes.argsort(axis=1).argsort(axis=1) + 1.0,
            sizes,
            np.minimum(sizes, np.median(sizes, axis=1, keepdims=True)),
        )
        powers = (share(flip_p(np.sign(x), score, flips) <= level) for score in scores)
        table.add_row(
            percent(bursts, 0), str(level), *(percent(power) for power in powers), end_section=level == levels[-1]
        )
    return table


def flip_p(signs: np.ndarray, scores: np.ndarray, flips: np.ndarray) -> np.ndarray:
    observed = (signs * scores).sum(axis=1, keepdims=True)
    return (scores @ flips.T >= observed - 1e-9).mean(axis=1)


def covers(decision: Decision, gain: float) -> bool:
    return decision.estimate is not None and decision.estimate.low <= gain <= decision.estimate.high


def share(events: Iterable[bool]) -> float:
    return float(np.mean(list(events)))


if __name__ == "__main__":
    main()
