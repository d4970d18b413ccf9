"""Requests in, text out: what is served together is what would be served alone, and trouble stays with whose it is."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from engine import bind
from engine.bind import SlotRefused
from engine.generate import Engine, EngineError, Request, RequestError
from engine.loader import LoadError
from engine.sampler import Sampling, SamplingError
from engine.slots.attention import AttentionShape, StepMeta
from engine.slots.registry import SlotError
from engine.tokenizer import ChatTemplateError, GrowingText, Tokenizer
from tests.engine.cast import REFERENCE, SMALL, small_model, text


def engine(**options: Any) -> Engine:
    return Engine(small_model(), **({"block_size": 4, "kv_tokens": 512, "step_tokens": 64} | options))


def alone(prompt: list[int], **options: Any) -> list[int]:
    return engine().generate([prompt], **options)[0].tokens


def bytes_tokenizer(template: str | None = None) -> Tokenizer:
    """One token for each byte below 97, so that any two tokens of a character can be told apart."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return Tokenizer(backend, template)


# -- batching ---------------------------------------------------------------------------------------------------------


def test_a_batch_of_many_lengths_generates_what_each_would_alone() -> None:
    prompts = [text(n, seed=n) for n in (1, 3, 17, 40, 5, 60)]
    together = engine(max_batch=4, step_tokens=16).generate(prompts, max_tokens=9)
    assert [c.tokens for c in together] == [alone(p, max_tokens=9) for p in prompts]
    assert {c.finish for c in together} == {"length"}
    assert all(c.ttft > 0 and c.tpot > 0 for c in together)


def test_preempted_requests_end_up_the_same() -> None:
    prompts = [text(14, seed=n) for n in range(4)]
    tight = engine(kv_tokens=80).generate(prompts, max_tokens=20, temperature=1.0, seed=4)
    assert sum(c.preemptions for c in tight) > 0
    assert [c.tokens for c in tight] == [alone(p, max_tokens=20, temperature=1.0, seed=4) for p in prompts]


def test_prompts_that_begin_alike_share_pages_and_lose_nothing() -> None:
    start = text(41)
    one = engine()
    first = one.generate([[*start, 1, 2]], max_tokens=6)[0]
    second = one.generate([[*start, 3]], max_tokens=6)[0]
    assert (first.shared, second.shared) == (0, 40)
    assert second.tokens == alone([*start, 3], max_tokens=6)
    assert one.pool.free == one.pool.capacity


def test_a_seed_draws_the_same_in_any_company() -> None:
    requests = [
        Request(text(8, seed=n), 12, Sampling(temperature=0.9, top_k=30, top_p=0.95, min_p=0.01, seed=n))
        for n in range(5)
    ]
    together = engine().generate(requests)
    for request, completion in zip(requests, together, strict=True):
        assert completion.tokens == engine().generate(request)[0].tokens
    free = [engine().generate([text(8)], max_tokens=12, temperature=5.0)[0].tokens for _ in range(2)]
    assert free[0] != free[1], "without a seed each run is another"


def test_streams_may_be_read_side_by_side() -> None:
    one = engine()
    streams = [one.stream([text(6, seed=n)], max_tokens=8) for n in range(3)]
    got: list[list[int]] = [[], [], []]
    open_streams = set(range(3))
    while open_streams:
        for index in sorted(open_streams):
            event = next(streams[index], None)
            if event is None:
                open_streams.remove(index)
            else:
                got[index] += event.tokens
    assert got == [alone(text(6, seed=n), max_tokens=8) for n in range(3)]


def test_a_stream_that_is_dropped_gives_its_pages_back() -> None:
    one = engine()
    stream = one.stream([text(30), text(9)], max_tokens=20)
    for _ in range(5):
        next(stream)
    stream.close()
    assert one.pool.free == one.pool.capacity
    assert one.scheduler.idle


def test_generation_ends_at_the_end_token_unless_told_otherwise() -> None:
    continued = alone(text(5), max_tokens=10)
    ends = Engine(small_model(eos=(continued[3],)), kv_tokens=512)
    stopped = ends.generate([text(5)], max_tokens=10)[0]
    assert stopped.finish == "stop"
    assert stopped.tokens == continued[: continued.index(continued[3]) + 1]
    assert ends.generate([text(5)], max_tokens=10, ignore_eos=True)[0].tokens == continued


def test_the_context_bounds_what_is_generated() -> None:
    completion = engine(max_len=20).generate([text(15)], max_tokens=100)[0]
    assert (len(completion.tokens), completion.finish) == (5, "length")


# -- text -------------------------------------------------------------------------------------------------------------


def test_stop_strings_end_the_text_before_them_even_across_tokens() -> None:
    tokenizer = bytes_tokenizer()
    growing = GrowingText(tokenizer, ["ENDE", "END!"])
    pieces = [growing.push(token) for token in tokenizer.encode("abc EN END! rest")[:11]]
    assert growing.stopped
    assert "".join(pieces) == growing.text == "abc EN "
    assert pieces[:6] == ["a", "b", "c", " ", "", ""], "what may become a stop string is held back"


def test_characters_are_given_out_whole() -> None:
    tokenizer = bytes_tokenizer()
    growing = GrowingText(tokenizer)
    pieces = [growing.push(token) for token in tokenizer.encode("é漢😀")]
    assert "".join(pieces) == "é漢😀"
    assert [piece for piece in pieces if piece] == ["é", "漢", "😀"]


def test_what_is_held_back_comes_at_the_end() -> None:
    tokenizer = bytes_tokenizer()
    growing = GrowingText(tokenizer, ["xyz"])
    given = "".join(growing.push(token) for token in tokenizer.encode("ab xy"))
    assert (given, growing.flush(), growing.text) == ("ab ", "xy", "ab xy")


def test_streamed_pieces_join_to_the_text_and_stop_where_they_must() -> None:
    one = Engine(small_model(vocab=256), tokenizer=bytes_tokenizer(), kv_tokens=512)
    whole = one.generate("hello", max_tokens=40, temperature=1.0, seed=1)[0].text
    events = list(one.stream("hello", max_tokens=40, temperature=1.0, seed=1))
    assert "".join(event.text for event in events) == whole
    stop = whole[10:12]
    stopped = one.generate("hello", max_tokens=40, temperature=1.0, seed=1, stop=stop)[0]
    assert stopped.finish == "stop"
    assert stopped.text == whole[: whole.index(stop)]


def test_the_reference_checkpoint_continues_text() -> None:
    one = Engine(REFERENCE, dtype=torch.float32, max_len=256)
    assert one.tokenizer is not None
    prompt = "import os\nimport "
    assert one.tokenizer.decode(one.tokenizer.encode(prompt)) == prompt
    completion = one.generate(prompt, max_tokens=16)[0]
    assert completion.text == one.tokenizer.decode([t for t in completion.tokens if t not in one.model.config.eos])


def test_a_prompt_is_taken_whole_whatever_the_tokenizer_was_trained_with(tmp_path: Path) -> None:
    backend = bytes_tokenizer().backend
    backend.enable_truncation(4)
    backend.enable_padding(length=40)
    backend.save(str(tmp_path / "tokenizer.json"))
    loaded = Tokenizer.load(tmp_path)
    assert loaded.decode(loaded.encode("a longer text")) == "a longer text"
    for broken, message in (("{", "not valid JSON"), ("[]", "must hold a JSON object")):
        (tmp_path / "tokenizer_config.json").write_text(broken)
        with pytest.raises(LoadError, match=f"tokenizer_config.json.* {message}"):
            Tokenizer.load(tmp_path)


def test_chat_templates_are_rendered_in_a_sandbox() -> None:
    template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
    )
    tokenizer = bytes_tokenizer(template)
    assert tokenizer.decode(tokenizer.chat([{"role": "user", "content": "hi"}])) == "<user>hi<a>"
    with pytest.raises(ChatTemplateError, match="only users"):
        bytes_tokenizer("{{ raise_exception('only users') }}").chat([])
    with pytest.raises(ChatTemplateError, match="unsafe"):
        bytes_tokenizer("{{ ''.__class__.__mro__ }}").chat([])
    with pytest.raises(ChatTemplateError, match="no chat template"):
        bytes_tokenizer().chat([])


# -- what cannot be served --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([], "prompt is empty"),
        ([1, 97], "holds 97; tokens are whole numbers from 0 to 96"),
        ([1, -1], "holds -1"),
        ([1, 2.5], "holds 2.5"),
        ([True], "holds True"),
        (None, "must be text or a list of tokens"),
        ("text", "there is no tokenizer"),
        (list(range(90)) * 2, "The prompt has 180 tokens, but only 127 fit"),
        (Request([1], max_tokens=0), "max_tokens is 0"),
        (Request([1], max_tokens="5"), "max_tokens is '5'"),  # type: ignore[arg-type]
        (Request([1], sampling=0.7), "sampling is 0.7; it must be a Sampling"),  # type: ignore[arg-type]
        (Request([1], stop=("x",)), "Stop strings need a tokenizer"),
        (Request([1], stop=("",)), "none of them empty"),
        (Request([1], stop=(5,)), "stop is (5,)"),  # type: ignore[arg-type]
    ],
)
def test_a_bad_request_fails_alone(bad: Any, message: str) -> None:
    completions = engine().generate([text(7), bad, text(9)], max_tokens=5)
    assert [c.finish for c in completions] == ["length", "error", "length"]
    assert message in (completions[1].error or "")
    assert completions[2].tokens == alone(text(9), max_tokens=5)


def test_text_that_is_none_fails_alone() -> None:
    one = Engine(small_model(vocab=256), tokenizer=bytes_tokenizer(), kv_tokens=512)
    completions = one.generate(["left", "\ud800", "right"], max_tokens=3)
    assert [c.finish for c in completions] == ["length", "error", "length"]
    assert "cannot be made into tokens" in (completions[1].error or "")


def test_options_that_are_none_are_refused_before_anything_runs() -> None:
    with pytest.raises(RequestError, match="temprature"):
        engine().generate([text(3)], temprature=1.0)
    with pytest.raises(SamplingError, match="top_p"):
        engine().generate([text(3)], top_p=7.0)
    with pytest.raises(SamplingError, match="seed is 'x'"):
        engine().generate([text(3)], seed="x")


class Failing:
    """Attention that fails in some steps as a full device would, and is sdpa otherwise."""

    def __init__(self, fail: Callable[[StepMeta], bool], error: Exception) -> None:
        shape = AttentionShape(SMALL.q_heads, SMALL.kv_heads, SMALL.head_dim, SMALL.head_dim**-0.5)
        self.inner = bind.implementation("attention", "sdpa", torch.float32, torch.device("cpu"))(shape)
        self.fail, self.error = fail, error

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def forward(self, q: Any, k: Any, v: Any, kv: Any, meta: StepMeta) -> Any:
        if self.fail(meta):
            raise self.error
        return self.inner.forward(q, k, v, kv, meta)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("full"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_out_of_memory_is_said_and_the_next_request_is_served(error: Exception) -> None:
    one = engine(slots={"attention": Failing(lambda meta: meta.max_q > 40, error)})
    completions = one.generate([text(50), text(20)], max_tokens=4)
    assert completions[0].finish == "error"
    assert "ran out of memory" in (completions[0].error or "")
    assert one.generate([text(20)], max_tokens=4)[0].tokens == alone(text(20), max_tokens=4)
    assert one.pool.free == one.pool.capacity


def test_other_failures_of_a_step_are_raised_and_leave_the_engine_usable() -> None:
    one = engine(slots={"attention": Failing(lambda meta: meta.max_q > 40, ZeroDivisionError("a bug"))})
    with pytest.raises(ZeroDivisionError):
        one.generate([text(50)], max_tokens=4)
    assert one.generate([text(20)], max_tokens=4)[0].tokens == alone(text(20), max_tokens=4)


def test_a_cache_that_does_not_fit_is_said_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **options: Any) -> Any:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr("engine.runner.runner.torch.zeros", full)
    with pytest.raises(EngineError, match=r"KV cache of 512 tokens takes .* lower kv_tokens or max_len"):
        engine()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"slots": {"atention": "sdpa"}}, EngineError, "There is no slot 'atention'"),
        ({"slots": {"attention": "spda"}}, SlotError, "There is no attention called 'spda'; there are: .*sdpa"),
        ({"slots": {"quantization": {"layers.*.mlp": "none"}}}, ValueError, "matches no weight"),
        ({"slots": {"adapter": "cuda"}}, SlotRefused, "adapter 'cuda' cannot be used"),
        ({"step_tokens": 3}, EngineError, "at least max_batch"),
        ({"dtype": torch.bfloat16}, EngineError, "The model is torch.float32 on cpu, not torch.bfloat16"),
        ({"device": "meta"}, EngineError, "The model is torch.float32 on cpu, not torch.float32 on meta"),
        ({"max_len": 0}, EngineError, "max_len is 0"),
        ({"max_len": -3}, EngineError, "max_len is -3"),
        ({"graphs": True}, EngineError, "CUDA graphs need a CUDA device"),
    ],
)
def test_a_setup_that_cannot_work_is_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        engine(**options)


def test_an_implementation_that_refuses_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    real = bind.header_of

    def narrow(kind: str, name: str) -> Any:
        from dataclasses import replace

        return replace(real(kind, name), dtypes=("bfloat16",)) if kind == "attention" else real(kind, name)

    monkeypatch.setattr(bind, "header_of", narrow)
    with pytest.raises(SlotRefused, match=r"The attention 'sdpa' cannot be used: It is for bfloat16"):
        engine()


# -- slots ------------------------------------------------------------------------------------------------------------


def test_a_trusted_engine_runs_no_slot_file() -> None:
    import subprocess
    import sys

    code = (
        "import sys\nfrom engine.generate import Engine\nfrom tests.engine.cast import small_model, text\n"
        "print(Engine(small_model(), trusted=True).generate([text(20)], max_tokens=5)[0].tokens)\n"
        "folders = ('attention', 'quantization', 'normalization', 'activation', 'adapters')\n"
        "print([m for m in sys.modules if m.split('.')[0] == 'engine' and m.split('.')[1:2] and m.split('.')[1] in folders])\n"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.splitlines() == [str(alone(text(20), max_tokens=5)), "[]"]


def test_default_names_are_those_of_the_kinds() -> None:
    from engine.slots.kind import kind_named

    assert {kind: kind_named(kind).default for kind in bind.DEFAULTS} == bind.DEFAULTS


class Recording:
    """An attention object as a judge would pass it: no class that the engine knows, its own storage."""

    def __init__(self) -> None:
        shape = AttentionShape(SMALL.q_heads, SMALL.kv_heads, SMALL.head_dim, SMALL.head_dim**-0.5)
        self.inner = bind.ReferenceAttention(shape)
        self.calls: list[str] = []
        self.names: list[str] = []

    def kv_spec(self, num_blocks: int, block_size: int, dtype: str) -> Any:
        return self.inner.kv_spec(num_blocks, block_size, dtype)

    def allocate(self, name: str, spec: Any, device: torch.device) -> torch.Tensor:
        self.names.append(name)
        return torch.full(spec.shape, 7.0, dtype=spec.torch_dtype, device=device)

    def plan(self, meta: StepMeta) -> None:
        self.calls.append(meta.phase)

    def write(self, k: Any, v: Any, kv: Any, meta: StepMeta) -> None:
        assert k.is_contiguous()
        assert v.is_contiguous()
        self.calls.append("write")
        self.inner.write(k, v, kv, meta)

    def forward(self, q: Any, k: Any, v: Any, kv: Any, meta: StepMeta) -> Any:
        assert q.is_contiguous()
        self.calls.append("forward")
        return self.inner.forward(q, k, v, kv, meta)


def test_an_object_is_planned_once_a_step_and_called_once_a_layer() -> None:
    recording = Recording()
    one = engine(slots={"attention": recording})
    assert one.generate([text(20)], max_tokens=2)[0].tokens == alone(text(20), max_tokens=2)
    layers = ["write", "forward"] * SMALL.layers
    assert recording.calls == ["prefill", *layers, "decode", *layers]
    assert recording.names == ["kv.0", "kv.1"]


class Forgetful(Recording):
    """Lets go of all full pages but the first and the last two of each sequence."""

    def evict(self, kv: Any, meta: StepMeta) -> torch.Tensor:
        gone = []
        for row, length in zip(meta.block_table.tolist(), meta.kv_len.tolist(), strict=True):
            full = row[: length // meta.block_size]
            gone += full[1:-2]
        return torch.tensor(gone, dtype=torch.int64)


def test_pages_that_attention_lets_go_of_are_free_for_others() -> None:
    one = engine(slots={"attention": Forgetful()}, kv_tokens=80)
    completions = one.generate([text(20, seed=n) for n in range(3)], max_tokens=40)
    assert [len(c.tokens) for c in completions] == [40, 40, 40]
    assert sum(c.preemptions for c in completions) == 0, "each holds at most 5 of the 20 pages after its prompt"
    assert one.pool.free == one.pool.capacity


def test_what_was_evicted_changes_what_is_attended_to_and_not_where_tokens_stand() -> None:
    texts = [text(60)]
    whole = engine(slots={"attention": Recording()}).logits(texts, chunk=4)[0]
    part = engine(slots={"attention": Forgetful()}).logits(texts, chunk=4)[0]
    assert torch.equal(whole[:16], part[:16])
    assert not torch.allclose(whole[40:], part[40:], atol=1e-3)


def test_gradients_flow_through_every_slot_and_the_cache() -> None:
    one = engine()
    texts = [text(11), text(6, seed=1)]
    weights = one.model.tensors()
    for tensor in weights.values():
        tensor.requires_grad_()
    made = one.differentiable_logits(texts)
    for ours, plain in zip(made, one.logits(texts), strict=True):
        assert torch.allclose(ours, plain, atol=1e-5)
    torch.cat(made).log_softmax(-1)[:, 3].sum().backward()
    name, step = "layers.0.attn.qkv.weight", 1e-2
    # A key's weight, since its gradient comes through the cache: the one that differences in float32 tell the most of.
    keys = slice(32, 48)
    gradient = weights[name].grad[keys]  # type: ignore[index]
    row, column = divmod(int(gradient.abs().argmax()), gradient.shape[1])
    at = (keys.start + row, column)
    found = weights[name].grad[at].item()  # type: ignore[index]
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            weights[name][at] += sign * step
            values.append(torch.cat(one.differentiable_logits(texts)).double().log_softmax(-1)[:, 3].sum().item())
            weights[name][at] -= sign * step
    assert found == pytest.approx((values[0] - values[1]) / (2 * step), rel=2e-2)
    assert all(tensor.grad is not None for tensor in weights.values())


def test_gradients_are_refused_where_a_slot_has_none() -> None:
    for slots, named in (
        ({"normalization": "fused"}, "normalization 'fused'"),
        ({"quantization": "int8"}, "quantization 'int8wo'"),
        ({"quantization": {"layers.*.mlp.*": "int8wo", "embed": "none"}}, "quantization 'int8wo'"),
        ({"adapter": "generic"}, "adapter 'generic'"),
    ):
        with pytest.raises(EngineError, match=f"flow through {named}: the header"):
            engine(slots=slots).differentiable_logits([text(4)])
    assert engine(slots={"quantization": "none"}).differentiable_logits([text(4)])[0].shape == (4, SMALL.vocab)


def test_gradients_beyond_the_context_are_refused() -> None:
    with pytest.raises(RequestError, match="A text has 21 tokens; the context is 20"):
        engine(max_len=20).differentiable_logits([text(21)])


def test_mixed_quantization_is_data() -> None:
    wide = small_model(hidden=64, q_heads=4, head_dim=16, intermediate=128, vocab=192)
    patterns = {"layers.*.attn.qkv": "fp8", "layers.*.mlp.*": "int8", "layers.1.mlp.down": "int4", "embed": "int4"}
    mixed = Engine(wide, slots={"quantization": patterns}, kv_tokens=512)
    schemes = {linear.name: type(linear.scheme).__name__ for linear in mixed.model.linears()}
    assert schemes == {
        "embed": "Int4WeightOnly",
        "layers.0.attn.qkv": "Fp8WeightOnly",
        "layers.0.attn.o": "Dense",
        "layers.0.mlp.gate_up": "Int8WeightOnly",
        "layers.0.mlp.down": "Int8WeightOnly",
        "layers.1.attn.qkv": "Fp8WeightOnly",
        "layers.1.attn.o": "Dense",
        "layers.1.mlp.gate_up": "Int8WeightOnly",
        "layers.1.mlp.down": "Int4WeightOnly",
        "head": "Dense",
    }
    plain = Engine(wide, kv_tokens=512)
    assert mixed.model.nbytes() < 0.6 * plain.model.nbytes()
    ours, theirs = mixed.logits([text(30)])[0], plain.logits([text(30)])[0]
    assert torch.nn.functional.cosine_similarity(ours, theirs, dim=-1).min() > 0.95


@pytest.mark.slow  # compiles C++ for half a minute
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # of torch about torch
@pytest.mark.timeout(300)
def test_compiled_functions_compute_the_same_and_are_compiled_once_for_all_layers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    compiled = Engine(small_model(layers=4), compile=True, kv_tokens=512)
    plain = Engine(small_model(layers=4), kv_tokens=512)
    assert compiled.warm_up() > 0.5
    torch._dynamo.utils.counters.clear()
    for chunk in (None, 1):
        for ours, theirs in zip(
            compiled.logits([text(30), text(30, seed=1)], chunk),
            plain.logits([text(30), text(30, seed=1)], chunk),
            strict=True,
        ):
            assert torch.allclose(ours, theirs, atol=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 8, "four functions, for two numbers of tokens"
    ahead = compiled.forward.fixed
    assert [len(each._compiled) for each in ahead] == [1, 1, 1, 1], "one function each, whatever the layer"
    assert all(run is not None for each in ahead for run in each._compiled.values()), (
        "each could be compiled ahead of time"
    )
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "ahead").iterdir()}
    again = Engine(small_model(layers=4), compile=True, kv_tokens=512)
    assert again.generate([text(20)], max_tokens=4)[0].tokens == plain.generate([text(20)], max_tokens=4)[0].tokens
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "ahead").iterdir()} == made, (
        "found, not compiled again"
    )
    torch._dynamo.utils.counters.clear()
    assert compiled.generate([text(20)], max_tokens=8)[0].tokens == plain.generate([text(20)], max_tokens=8)[0].tokens
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 0


def test_an_adapter_binds_its_operators() -> None:
    class Counting:
        def __init__(self) -> None:
            self.calls: dict[str, int] = {}

        def detect(self) -> str | None:
            return "a test"

        def operators(self) -> dict[str, Any]:
            def rms_norm(x: Any, weight: Any, eps: float) -> Any:
                self.calls["rms_norm"] = self.calls.get("rms_norm", 0) + 1
                return torch.nn.functional.rms_norm(x, x.shape[-1:], weight, eps)

            def linear(x: Any, weight: Any) -> Any:
                self.calls["linear"] = self.calls.get("linear", 0) + 1
                return x @ weight.T

            return {"rms_norm": rms_norm, "linear": linear}

    adapter = Counting()
    bound = engine(slots={"adapter": adapter})
    assert torch.allclose(bound.logits([text(9)])[0], engine().logits([text(9)])[0], atol=1e-4)
    assert adapter.calls == {"rms_norm": 2 * SMALL.layers + 1, "linear": 4 * SMALL.layers + 1}
    adapter.detect = lambda: None  # type: ignore[method-assign]
    with pytest.raises(SlotRefused, match="does not recognise this machine"):
        engine(slots={"adapter": adapter})


# -- logits -----------------------------------------------------------------------------------------------------------


def test_logits_do_not_disturb_generation_under_way() -> None:
    one = engine()
    stream = one.stream([text(10)], max_tokens=8)
    got = list(next(stream).tokens)
    one.logits([text(30), text(70)])
    for event in stream:
        got += event.tokens
    assert got == alone(text(10), max_tokens=8)


def test_a_cache_full_of_texts_being_scored_is_said() -> None:
    one = engine(kv_tokens=64)
    scoring = one.stream_logits([text(60)], chunk=4)
    next(scoring)
    with pytest.raises(EngineError, match="full of texts that are being scored"):
        one.generate([text(20)], max_tokens=4)
    scoring.close()
    assert one.generate([text(20)], max_tokens=4)[0].tokens == alone(text(20), max_tokens=4)
    assert one.pool.free == one.pool.capacity


def test_more_texts_than_fit_at_once_take_turns() -> None:
    texts = [text(n, seed=n) for n in (60, 30, 64, 5, 50)]
    small = engine(kv_tokens=72)
    for one, other in zip(small.logits(texts), engine().logits(texts), strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    assert small.pool.free == small.pool.capacity
    with pytest.raises(RequestError, match="A text has 80 tokens; at most 72 fit"):
        small.logits([text(80)])
