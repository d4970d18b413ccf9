"""The model with the slot's calls in the host, against itself with the reference."""

from workers.suites.integration.bench import IntegrationBench


def test_keeps_the_declared_class(bench: IntegrationBench) -> None:
    """Perplexity, KL divergence and top-1 agreement over texts of this attempt stay within the class."""
    bench.measure()


def test_finds_needles(bench: IntegrationBench, cell: int) -> None:
    """Keys hidden in long documents are found as often as with the reference."""
    bench.find_needles(cell)
