"""Every implementation that is shipped passes its own kind's unit suite, on every device that is here."""

import importlib
import platform
from pathlib import Path

import pytest
import torch

from engine.slots import registry
from engine.slots.header import FOLDERS
from engine.slots.inprocess import judge_case
from engine.slots.kind import Environment, kind_named
from engine.slots.source import Source
from tests.engine.judging import CPU, findings

ENGINE = Path(registry.__file__).resolve().parent.parent
SHIPPED = [(kind, name) for kind in FOLDERS for name in registry.implementations(ENGINE, kind)]


def environments() -> list[Environment]:
    """The CPU, and the GPU where there is one."""
    found = [CPU]
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        found.append(Environment("gpu-test", "cuda", ("float32", "bfloat16"), sm=10 * major + minor))
    return found


def test_the_promised_implementations_are_shipped() -> None:
    assert {
        ("attention", "sdpa"),
        ("attention", "paged"),
        ("quantization", "none"),
        ("quantization", "int8wo"),
        ("quantization", "int4wo"),
        ("quantization", "fp8wo"),
        ("quantization", "fp8_dynamic"),
        ("normalization", "plain"),
        ("normalization", "fused"),
        ("activation", "plain"),
        ("activation", "fused"),
        ("adapter", "cpu_x86"),
        ("adapter", "cpu_arm"),
        ("adapter", "cuda"),
    } <= set(SHIPPED)


@pytest.mark.parametrize(("kind", "name"), SHIPPED)
def test_passes_its_unit_suite_or_says_why_it_cannot_run_here(kind: str, name: str) -> None:
    path = registry.implementations(ENGINE, kind)[name]
    header = registry.read_header(path)
    implementation = registry.load(kind, name)
    assert kind_named(kind).why_malformed(implementation) == []
    for environment in environments():
        reasons = kind_named(kind).why_not(header, environment)
        if reasons:
            assert (
                environment.device not in header.devices or header.limits.get("machines") or header.limits.get("min_sm")
            )
            continue
        assert findings(header, implementation, environment) == {}


@pytest.mark.parametrize(("kind", "name"), SHIPPED)
def test_timed_cases_are_right_without_the_plain_path(kind: str, name: str) -> None:
    header = registry.read_header(registry.implementations(ENGINE, kind)[name])
    slot = kind_named(kind)
    if slot.why_not(header, CPU):
        assert "cpu" not in header.devices or platform.machine() not in header.limits["machines"]
        return
    implementation = registry.load(kind, name)
    # The first workload of quantization is its largest, and packing it takes longer than all the others together.
    for case in slot.cases("performance", header, CPU)[-3:]:
        assert judge_case(slot, header, case, implementation, Source(b"timed"), calls=1, timed=True) is None


@pytest.mark.parametrize("inputs", [128, 320])
def test_int4_for_a_gpu_holds_what_was_rounded(inputs: int) -> None:
    int4wo = importlib.import_module(registry.load("quantization", "int4wo").__module__)
    q, scale = int4wo.rounded(torch.randn(5, inputs))
    wanted = ((q.float() - 8).view(5, -1, int4wo.GROUP) * scale[..., None]).flatten(1)
    assert torch.equal(int4wo.unpacked(int4wo.interleaved(q), scale), wanted)


def test_every_default_is_shipped() -> None:
    for kind in FOLDERS:
        assert (kind, kind_named(kind).default) in SHIPPED
