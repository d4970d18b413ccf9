"""What the kinds are made of: comparison, caps, patterns, drawn inputs, and cases that replay."""

import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.slots.caps import Caps, why_not
from engine.slots.compare import compare_output, same_bits
from engine.slots.drawing import DISTRIBUTIONS, draw_tensor, jitter
from engine.slots.header import FOLDERS, Header, HeaderError, parse_header
from engine.slots.kind import Environment, kind_named
from engine.slots.patterns import assign, matches, scheme_of
from engine.slots.source import Source
from engine.workloads.attention import format_sequences, parse_sequences
from tests.engine.judging import CPU, header

GPU = Environment("gpu-test", "cuda", ("bfloat16",), sm=80)


# -- comparison ---------------------------------------------------------------------------------------------------------


def outputs(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    expected = torch.randn(20, 64, generator=generator)
    return expected, expected.bfloat16()


def test_rounding_of_the_dtype_is_no_error() -> None:
    expected, plain = outputs()
    assert compare_output("y", plain, expected, plain, "bfloat16") is None
    assert compare_output("y", plain, expected, None, "bfloat16") is None
    assert compare_output("y", expected * (1 + 1e-6), expected, expected, "float32") is None


def test_the_first_wrong_element_is_named_with_both_values() -> None:
    expected, plain = outputs()
    got = plain.clone()
    got[7, 3] += 1.0
    got[9, 0] += 1.0
    finding = compare_output("y", got, expected, plain, "bfloat16", row="token")
    assert finding is not None
    assert finding.index == (7, 3)
    assert finding.expected == pytest.approx(float(expected[7, 3]))
    assert finding.got == pytest.approx(float(got[7, 3]))
    assert "y is wrong from token 7 on" in finding.sentence
    assert "in 2 of 20 tokens" in finding.sentence


@pytest.mark.parametrize(
    ("dtype", "coarser"),
    [("float32", torch.float16), ("float16", torch.bfloat16), ("bfloat16", torch.float8_e4m3fn)],
)
def test_timed_calls_tell_an_output_of_the_next_coarser_dtype(dtype: str, coarser: torch.dtype) -> None:
    expected, _ = outputs()
    rounded = expected.to(getattr(torch, dtype)).float()
    assert compare_output("y", rounded, expected, None, dtype) is None
    assert compare_output("y", expected.to(coarser).float(), expected, None, dtype) is not None


def test_timed_calls_tell_attention_in_eight_bits_from_attention_in_bfloat16() -> None:
    generator = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(tokens, 64, generator=generator).bfloat16().float() for tokens in (32, 512, 512))

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return (q @ k.T / 8).softmax(-1).to(q.dtype) @ v

    def eight_bits(x: torch.Tensor) -> torch.Tensor:
        step = x.abs().amax(-1, keepdim=True) / 127
        return (x / step).round() * step

    expected = attend(q, k, v)
    rounded = attend(q.bfloat16(), k.bfloat16(), v.bfloat16()).float()
    assert compare_output("out", rounded, expected, None, "bfloat16") is None
    finding = compare_output("out", attend(*map(eight_bits, (q, k, v))), expected, None, "bfloat16")
    assert finding is not None
    assert "systematic error" in finding.sentence


def test_a_small_error_everywhere_is_systematic() -> None:
    expected, _ = outputs()
    finding = compare_output("y", expected.bfloat16().float(), expected, None, "float32")
    assert finding is not None
    small = compare_output("y", expected * (1 + 5e-5), expected, None, "float32")
    assert small is not None
    assert "a systematic error" in small.sentence


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda y: y * 0, "zero everywhere"),
        (lambda y: torch.full_like(y, 0.3), "nearly constant"),
        (lambda y: y * 8, "8 times what is expected"),
        (lambda y: y.masked_fill(torch.arange(64) == 5, float("nan")), "holds NaN at [0, 5]"),
        (lambda y: y.masked_fill(torch.arange(64) == 5, float("-inf")), "holds infinity at [0, 5]"),
        (lambda y: y[:, :32], "has shape [20, 32]; expected [20, 64]"),
    ],
)
def test_telling_errors_are_told(change: object, sentence: str) -> None:
    expected, plain = outputs()
    finding = compare_output("y", change(expected), expected, plain, "bfloat16")  # type: ignore[operator]
    assert finding is not None
    assert sentence in finding.sentence


def test_one_loud_row_does_not_excuse_a_quiet_one() -> None:
    expected, _ = outputs()
    expected[0] *= 1e4
    plain = expected.bfloat16()
    got = plain.clone()
    got[5] *= 1.5
    finding = compare_output("y", got, expected, plain, "bfloat16")
    assert finding is not None
    assert finding.index[0] == 5


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["float32", "bfloat16"]), st.floats(1e-3, 1e3))
def test_the_plain_path_itself_always_passes(seed: int, dtype: str, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    expected = torch.randn(9, 33, generator=generator) * scale
    plain = expected.to(getattr(torch, dtype))
    assert compare_output("y", plain, expected, plain, dtype) is None


def test_nan_in_the_expected_state_stands_for_anything() -> None:
    expected = torch.tensor([1.0, float("nan"), 3.0])
    assert same_bits("kv", torch.tensor([1.0, 7.0, 3.0]), expected, "Wrong.") is None
    finding = same_bits("kv", torch.tensor([1.0, 7.0, 4.0]), expected, "Wrong.")
    assert finding is not None
    assert finding.index == (2,)
    # NaN where a number is expected is a difference.
    assert same_bits("kv", torch.tensor([float("nan"), 7.0, 3.0]), expected, "Wrong.") is not None


# -- caps and patterns --------------------------------------------------------------------------------------------------


def test_limits_are_read_from_the_header() -> None:
    caps = Caps.of(header("attention", head_dims=[32, 64], window=False, kv="own", cuda_graph=True))
    assert caps.head_dims == (32, 64)
    assert not caps.window
    assert caps.kv == "own"
    assert caps.cuda_graph
    assert Caps.of(header("attention")).phases == ("prefill", "decode", "mixed")


@pytest.mark.parametrize(
    ("limits", "sentence"),
    [
        ({"colour": "red"}, "'colour' means nothing for attention"),
        ({"embedding": True}, "'embedding' means nothing for attention"),
        ({"head_dims": 64}, "'head_dims' must be a list of int"),
        ({"head_dims": [True]}, "'head_dims' must be a list of int"),
        ({"deterministic": "yes"}, "'deterministic' must be a bool"),
        ({"min_sm": True}, "'min_sm' must be a int"),
        ({"phases": ["training"]}, "'phases' may hold prefill, decode, mixed"),
        ({"kv": "flat"}, "must be 'standard' or 'own'"),
        ({"head_dims": [7]}, "leave no case of the unit suite over"),
        # Python imports what is before the last dot of a name that is looked for.
        ({"needs": ["engine.attention.paged.x"]}, "without dots; 'engine.attention.paged.x' is not one"),
        ({"needs": [""]}, "without dots; '' is not one"),
        ({"needs": ["x" * 5000]}, "names of packages"),
    ],
)
def test_limits_that_make_no_sense_are_reasons(limits: dict[str, object], sentence: str) -> None:
    reasons = kind_named("attention").why_not(header("attention", **limits), CPU)
    assert len(reasons) == 1
    assert sentence in reasons[0]


def test_reasons_say_what_is_missing() -> None:
    declared = Header(
        "attention", "x", "E", ("cuda",), ("float16",), limits={"min_sm": 90, "needs": ["no_such_package"]}
    )
    assert [reason.split(";")[0] for reason in why_not(declared, CPU)] == [
        "It is for cuda",
        "It is for float16",
        "It needs the package 'no_such_package', which is not installed here.",
    ]
    assert "It needs compute capability 9.0; the device has 8.0." in why_not(declared, GPU)


@pytest.mark.parametrize("name", ["engine.attention.paged.x", "this.x", "no_such.package", "", "a/b", "__main__"])
def test_nothing_is_imported_for_what_a_header_needs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "engine.attention.paged", raising=False)
    before = set(sys.modules)
    declared = Header("attention", "x", "E", ("cpu",), ("float32",), limits={"needs": [name]})
    assert bool(why_not(declared, CPU)) is (name != "__main__")
    assert set(sys.modules) == before


@pytest.mark.parametrize("number", ["9" * 5000, "1" + "0" * 310, "0x" + "f" * 4000, str(2**63), f"[[{2**64}]]"])
def test_a_header_with_a_number_beyond_toml_is_refused(number: str) -> None:
    source = Path("engine/normalization/plain.py").read_text()
    for key in ("min_sm", "colour"):
        with pytest.raises(HeaderError, match="not valid TOML"):
            parse_header(source.replace("# deterministic = true", f"# {key} = {number}"))
    assert parse_header(source.replace("# deterministic = true", f"# min_sm = {2**63 - 1}"))


def test_patterns_assign_quantizations() -> None:
    names = ["embed", "layers.0.attn.qkv", "layers.0.mlp.down", "layers.11.mlp.gate_up", "head"]
    given = {"layers.*.attn.qkv": "fp8", "layers.*.mlp.*": "fp8wo", "layers.11.**": "none", "embed": "int4"}
    assert assign(names, given) == {
        "embed": "int4wo",
        "layers.0.attn.qkv": "fp8wo",
        "layers.0.mlp.down": "fp8wo",
        "layers.11.mlp.gate_up": "none",
        "head": "none",
    }
    assert set(assign(names, "int8").values()) == {"int8wo"}
    assert not matches("layers.*", "layers.0.mlp")
    assert matches("**.mlp.*", "layers.0.mlp.down")
    assert scheme_of("head", {}) == "none"
    with pytest.raises(ValueError, match=r"'layer\.\*\.mlp\.\*' matches no weight. There are: embed"):
        assign(names, {"layer.*.mlp.*": "fp8"})


# -- drawn inputs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_drawn_tensors_replay_and_differ_by_stream(distribution: str) -> None:
    def once(label: str) -> torch.Tensor:
        return draw_tensor(Source(b"s").child(label), (64, 256), torch.float32, "cpu", distribution)  # type: ignore[arg-type]

    assert torch.equal(once("a"), once("a"))
    assert not torch.equal(once("a"), once("b"))
    assert bool(torch.isfinite(once("a")).all())
    assert 0.5 < float(once("a").abs().median()) < 1.5


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 500), min_size=1, max_size=40), st.integers(0, 10**6))
def test_jitter_keeps_the_total(sizes: list[int], seed: int) -> None:
    drawn = jitter(Source(str(seed).encode()), sizes, 0.25, least=0)
    assert len(drawn) == len(sizes)
    assert abs(sum(drawn) - sum(sizes)) <= max(len(sizes), 0.03 * sum(sizes))
    assert all(new == 0 for new, size in zip(drawn, sizes, strict=True) if size == 0)


def test_sequences_are_written_as_text() -> None:
    assert parse_sequences("1/256*2 40/40") == [(1, 256), (1, 256), (40, 40)]
    assert parse_sequences(format_sequences([(1, 5), (3, 3)])) == [(1, 5), (3, 3)]


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("suite", ["unit", "performance"])
def test_cases_replay_from_a_seed_and_vary_with_it(name: str, suite: str) -> None:
    kind = kind_named(name)
    declared = (
        header(name, operators=["linear", "rms_norm", "softmax", "swiglu", "attention"])
        if name == "adapter"
        else header(name)
    )
    cases = kind.cases(suite, declared, CPU)  # type: ignore[arg-type]
    assert len({case.name for case in cases}) == len(cases)
    assert suite == "unit" or 3 <= len(cases) <= 5
    differing = 0
    for case in cases[:3]:

        def drawn(seed: bytes, case: object = case) -> dict[str, torch.Tensor]:
            source = Source(seed)
            varied = kind.vary(case, source.child("vary"))  # type: ignore[arg-type]
            held = kind.held(varied, source.child("held"))
            return kind.draw(varied, held, source.child("call", 1)).inputs

        first, again, other = drawn(b"1"), drawn(b"1"), drawn(b"2")
        assert all(torch.equal(first[key], again[key]) for key in first)
        differing += any(
            first[key].shape != other[key].shape or not torch.equal(first[key], other[key]) for key in first
        )
    assert differing == len(cases[:3])


@pytest.mark.parametrize("name", FOLDERS)
def test_gpu_cases_have_floors_a_clock_can_see(name: str) -> None:
    """At an H100's ceilings, or at 2 us a launch, no call takes less than 0.05 ms; what is reached is several times that."""
    kind = kind_named(name)
    limits = {"operators": ["linear", "rms_norm", "softmax", "swiglu", "attention"]} if name == "adapter" else {}
    declared = Header(name, "x", "E", ("cuda",), ("bfloat16",), limits=limits)
    for case in kind.cases("performance", declared, GPU):
        bytes_moved, flops = sizes(name, case.params)
        launches = 2e-6 * int(case.params.get("repeat") or 1)
        assert max(bytes_moved / 3.0e12, flops / 800e12, launches) > 5e-5, case.name


@pytest.mark.parametrize("where", [CPU, GPU], ids=["cpu", "gpu"])
@pytest.mark.parametrize("name", FOLDERS)
def test_only_prompts_of_quantization_may_lose_what_unpacking_costs(name: str, where: Environment) -> None:
    kind = kind_named(name)
    limits = {"operators": ["linear", "rms_norm", "softmax", "swiglu", "attention"]} if name == "adapter" else {}
    declared = Header(name, "x", "E", ("cpu", "cuda"), ("float32", "bfloat16"), limits=limits)
    cases = kind.cases("performance", declared, where)
    prompts = {case.name for case in cases if case.name.startswith("prefill")}
    assert prompts or name == "adapter"
    base = [{"bits per weight": 16.0}] * len(cases)
    for bits, trades in ((4.2, True), (14.4, True), (15.9, False), (16.0, False), (17.0, False)):
        losing = kind.may_lose(cases, base, [{"bits per weight": bits}] * len(cases))
        assert losing == (dict.fromkeys(prompts, 0.05) if name == "quantization" and trades else {})
    # Fewer for the prompts alone earn nothing.
    mixed = [{"bits per weight": 4.0 if case.name in prompts else 16.0} for case in cases]
    assert not kind.may_lose(cases, base, mixed)


def sizes(name: str, params: object) -> tuple[float, float]:
    """Bytes and FLOPs of a bfloat16 case by its numbers alone, since its tensors do not fit a test machine."""
    p = dict(params)  # type: ignore[call-overload]
    if name == "attention":
        pairs = keys = 0
        for new, total in parse_sequences(p["sequences"]):
            pairs += new * total - new * (new - 1) // 2
            keys += total
        width = p["head_dim"] * p["layers"]
        return 4.0 * keys * p["kv_heads"] * width, 4.0 * pairs * p["q_heads"] * width
    if name == "quantization":
        # At 4 bits, the fewest that a class allows.
        products = p["weights"] * p["rounds"]
        return products * p["outputs"] * p["inputs"] / 2, 2.0 * products * p["tokens"] * p["outputs"] * p["inputs"]
    if name == "adapter":
        elements = p["rows"] * p["inputs"] + p["inputs"] * (p["outputs"] if p["operator"] == "linear" else 0)
        flops = 2.0 * p["rows"] * p["inputs"] * p["outputs"] * p["heads"]
        return 2.0 * elements, flops if p["operator"] in ("linear", "attention") else 0.0
    factor = 3.0 if name == "activation" else 4.0 if p["residual"] else 2.0
    return 2.0 * factor * p["tokens"] * p["width"] * p["repeat"], 0.0
