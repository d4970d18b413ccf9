"""Text for the quality model: what it is trained on, and what the judge draws to question it.

Two sources, mixed at the level of tokens. The first is the source of the Python standard library that this interpreter came with,
its identifiers renamed by a seed, so that a text can't be recalled from training and its names must be looked up in the context. The
second is tasks that only attention at a distance can do: needles in filler, recall of pairs, repeated runs, repeated passages and
brackets. Everything here is a pure function of its seed and of the standard library at hand.

Imports no torch: numpy, and `tokenizers` for the functions that load the reference tokenizer themselves.
"""

import functools
import hashlib
import hmac
import os
import re
import sysconfig
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int32]
Weights = npt.NDArray[np.float32]

REFERENCE = Path(__file__).parent / "checkpoints" / "reference"
BOS, EOS = "<s>", "</s>"

# One token each in the reference vocabulary when a space precedes them, so that a name or a key has the same length in every document.
_WORDS = """
acorn oak elm alder amber anchor anvil apple apron arrow aspen atlas autumn badger bagel balcony bamboo banjo barley basil basket
beacon beaver bell birch biscuit blanket blossom bonfire bottle boulder bramble bridge bronze bucket butter button cabin
cactus camel candle canoe canyon carpet castle cedar cello chalk cherry chimney cinder circus clay cliff clover cobalt comet copper
coral cotton cradle crane crater cricket crystal curtain cypress daisy dolphin donkey dragon dune eagle easel ebony echo elbow
ember emerald falcon feather ferry fiddle finch flint flute fossil fountain garden garlic gecko geyser ginger glacier
glove goat granite grape gravel grove guitar hammer hammock harbor harvest hazel hedge helmet heron hickory honey horizon hornet
indigo island ivory jacket jaguar jasmine jersey jewel jungle juniper kayak kettle kite kiwi ladder lagoon lake
lantern lark laurel lava lemon lentil lily lime lizard llama lobster lotus lynx magnet mango maple marble meadow melon mint
mitten moose moss mountain mustard nectar nickel nutmeg oasis ocean olive onion opal orchard orchid otter owl oyster
paddle palace panda pansy papaya parrot peach pearl pebble pelican pepper petal piano pigeon pillow pine planet pond poplar
poppy prairie pumpkin puffin quail quarry quartz quilt rabbit radish rain raven ribbon river robin rocket rose ruby saddle
saffron sail salmon sandal sapphire satin scarf seal shell silk silver sleigh sparrow spruce stable star stone stork sugar summit
tango temple thicket thistle thunder tiger timber topaz torch tundra turtle umbrella valley vanilla velvet violet violin
walnut walrus waterfall whale wheat willow window winter wolf yarn zebra zephyr zinc
"""
WORDS = tuple(_WORDS.split())
BRACKETS = ((" (", " )"), (" [", " ]"), (" {", " }"), (" <", " >"))

# How often each kind of document is drawn: for a model to learn from, and for the judge's text, where most positions should be ones
# that a good model is sure of.
TRAINING_MIX = {
    "text": 0.32,
    "needles": 0.26,
    "mixed": 0.12,
    "passages": 0.11,
    "recall": 0.08,
    "runs": 0.07,
    "brackets": 0.04,
}
EVALUATION_MIX = {"text": 0.24, "passages": 0.22, "recall": 0.20, "runs": 0.20, "needles": 0.08, "brackets": 0.06}
ANSWER_WEIGHT = 4.0
FILLER_WEIGHT = 0.25
KEY_WORDS = 4


class Tokenizer(Protocol):
    """What is needed of a `tokenizers.Tokenizer`."""

    def encode(self, sequence: Any, /, *, add_special_tokens: bool = ...) -> Any: ...
    def decode(self, ids: Any, /, skip_special_tokens: bool = ...) -> str: ...
    def token_to_id(self, token: str, /) -> int | None: ...
    def get_vocab_size(self) -> int: ...
    def __hash__(self) -> int: ...


def generator(seed: bytes, *purpose: object) -> np.random.Generator:
    """A random generator for one purpose under a secret seed: HMAC-SHA256(seed, purpose), so one draw says nothing about another."""
    digest = hmac.new(seed, "/".join(map(str, purpose)).encode(), hashlib.sha256).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "big")))


# --- the standard library -----------------------------------------------------------------------------------------------------

# Character tables and test suites: installations differ in whether they ship them, and a page of hexadecimal numbers teaches nothing.
_LEFT_OUT = {"site-packages", "dist-packages", "encodings", "__pycache__", "__phello__"}
_TESTS = {"test", "tests", "idle_test"}
_LONGEST_FILE = 800_000


@functools.cache
def source_files(root: Path | None = None, *, tests: bool = False) -> tuple[Path, ...]:
    """The standard library's Python files in a fixed order, of this interpreter or under `root`, with its test suite if asked for.

    Raises RuntimeError when fewer than 100 are found: an installation that ships only bytecode can't be drawn from.
    """
    root = root or Path(sysconfig.get_paths()["stdlib"])
    left_out = _LEFT_OUT if tests else _LEFT_OUT | _TESTS
    found = []
    for folder, below, names in os.walk(root):
        at_root = Path(folder) == root
        below[:] = [name for name in below if name not in left_out and not (at_root and name.startswith("config-"))]
        for name in names:
            path = Path(folder, name)
            if name.endswith(".py") and 400 <= path.stat().st_size <= _LONGEST_FILE:
                found.append(path)
    if len(found) < 100:
        raise RuntimeError(
            f"{len(found)} Python source files under {root}, and 100 are needed to draw text from: "
            "install the full standard library (Debian: libpython3-stdlib), or run an interpreter that ships its source"
        )
    return tuple(sorted(found))


def read_source(path: Path) -> str:
    """A source file's text with line ends as \\n; bytes that are no UTF-8 become the replacement character."""
    return path.read_text(encoding="utf-8", errors="replace").replace("\r\n", "\n").replace("\f", "")


def held_out(path: Path) -> bool:
    """Whether training leaves this file out (one in twenty, by its name), so that a loss on unseen text can be measured."""
    return hashlib.sha256("/".join(path.parts[-2:]).encode()).digest()[0] < 13


_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_DEFINED = re.compile(
    r"\b(?:def|class)[ ]+([A-Za-z_]\w*)|\bself\.([A-Za-z_]\w*)|^[ ]*([A-Za-z_]\w*)(?:, [a-z_]+)* = ", re.MULTILINE
)
_TOO_COMMON = """
self cls args kwargs name value data key None True False print len str int list dict set tuple type object super isinstance
Exception ValueError TypeError and or not in is if else elif for while def class return import from as with try except finally
raise pass yield lambda global assert del break continue the of to a an it that this be are by on when
"""
_KEPT = frozenset(_TOO_COMMON.split())


def defined_names(text: str) -> list[str]:
    """The identifiers that a source text defines or assigns, sorted, without dunders and words too common to rename."""
    names = {name for groups in _DEFINED.findall(text) for name in groups if len(name) > 2}
    return sorted(n for n in names if n not in _KEPT and not n.startswith("__"))


@functools.lru_cache(maxsize=2048)
def _names_in(path: Path) -> tuple[str, ...]:
    return tuple(defined_names(read_source(path)))


def _shape(name: str) -> str:
    return ("_" if name.startswith("_") else "") + (
        "U" if name.isupper() else "C" if name.lstrip("_")[:1].isupper() else "l"
    )


def rename(text: str, pool: Sequence[str], rng: np.random.Generator) -> str:
    """The text with every name that it defines replaced by another of the same shape (constant, class, plain; private or not).

    `pool` holds the names to draw from, usually those that other files define. The mapping is one-to-one within the text, so
    whatever was the same name still is.
    """
    shapes: dict[str, list[str]] = {}
    for name in pool:
        shapes.setdefault(_shape(name), []).append(name)
    mapping: dict[str, str] = {}
    by_shape: dict[str, list[str]] = {}
    for name in defined_names(text):
        by_shape.setdefault(_shape(name), []).append(name)
    for shape, names in by_shape.items():
        candidates = sorted(set(shapes.get(shape, ())) | set(names))
        for name, drawn in zip(names, rng.permutation(len(candidates)), strict=False):
            mapping[name] = candidates[drawn]
    return _NAME.sub(lambda match: mapping.get(match[0], match[0]), text)


def draw_sources(rng: np.random.Generator, characters: int, files: Sequence[Path] | None = None) -> list[str]:
    """Renamed source texts of different files, at least `characters` characters in all unless the files hold fewer."""
    files = files or source_files()
    order = rng.permutation(len(files))
    pool = sorted({name for i in order[-40:] for name in _names_in(files[i])})
    texts, total = [], 0
    for i in order:
        text = rename(read_source(files[i]), pool, rng)
        texts.append(text)
        total += len(text)
        if total >= characters:
            break
    return texts


# --- documents as tokens ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Filler:
    """A stream of natural text as tokens.

    ids: [n] token ids; line_starts: ascending positions whose token begins a line, the only places where something is inserted.
    """

    ids: Ids
    line_starts: npt.NDArray[np.int64]

    def draw(self, rng: np.random.Generator, tokens: int) -> Ids:
        """A contiguous run of `tokens` tokens that begins at a line start; raises ValueError when the stream is shorter."""
        usable = int(np.searchsorted(self.line_starts, len(self.ids) - tokens, side="right"))
        if not usable:
            raise ValueError(f"{tokens} tokens of filler asked of a stream of {len(self.ids)}: draw more source text")
        start = self.line_starts[rng.integers(usable)]
        return self.ids[start : start + tokens]


class Pieces:
    """Turns the small strings that documents are made of into token ids, and remembers them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.bos, self.eos = (tokenizer.token_to_id(t) for t in (BOS, EOS))
        size = tokenizer.get_vocab_size()
        self._ordinary = np.array([i for i in range(size) if i not in (self.bos, self.eos)], dtype=np.int32)
        starts = [tokenizer.decode([i], skip_special_tokens=False).startswith("\n") for i in range(size)]
        self._begins_line = np.array(starts)
        self._known: dict[str, Ids] = {}

    def __call__(self, text: str) -> Ids:
        ids = self._known.get(text)
        if ids is None:
            ids = np.array(self.tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.int32)
            self._known[text] = ids
        return ids

    def filler(self, ids: Ids) -> Filler:
        """The stream with its line starts found."""
        return Filler(ids, self.line_starts(ids))

    def line_starts(self, ids: Ids) -> npt.NDArray[np.int64]:
        """The positions whose token begins a line, ascending."""
        return np.flatnonzero(self._begins_line[ids])

    def random(self, rng: np.random.Generator, tokens: int) -> Ids:
        """Tokens drawn evenly from the whole vocabulary but its special tokens."""
        return self._ordinary[rng.integers(len(self._ordinary), size=tokens)]


class Document:
    """Tokens with the weight of each as something to predict: 0 where only chance could, ANSWER_WEIGHT where the task is."""

    def __init__(self, pieces: Pieces) -> None:
        self.pieces = pieces
        self.parts: list[Ids] = []
        self.weights: list[Weights] = []
        self.length = 0

    def add(self, part: str | Ids, weight: float | Weights = 1.0) -> None:
        ids = self.pieces(part) if isinstance(part, str) else part
        self.parts.append(ids)
        self.weights.append(np.full(len(ids), weight, np.float32) if isinstance(weight, float) else weight)
        self.length += len(ids)

    def cut(self, length: int) -> tuple[Ids, Weights]:
        return np.concatenate(self.parts)[:length], np.concatenate(self.weights)[:length]


def _words(rng: np.random.Generator, n: int) -> str:
    return " ".join(WORDS[i] for i in rng.choice(len(WORDS), n, replace=False))


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> int:
    return int(np.exp(rng.uniform(np.log(low), np.log(max(low, high)))))


def needle(name: str, key: str) -> str:
    """The line that hides a key in a document."""
    return f"\nThe passkey of {name} is {key}."


def question(name: str) -> str:
    """The line that asks for it; the answer is a space and the key."""
    return f"\nWhat is the passkey of {name}? The passkey of {name} is"


def add_text(doc: Document, rng: np.random.Generator, filler: Filler, length: int) -> None:
    """Natural text."""
    doc.add(filler.draw(rng, length))


def add_needles(doc: Document, rng: np.random.Generator, filler: Filler, length: int) -> None:
    """Filler with needles at depths drawn evenly, and questions about them at every distance behind."""
    asked = max(1, length // 96)
    needles = _log_uniform(rng, 1, min(asked, 64))
    names: list[str] = []
    while len(names) < needles:
        name = _words(rng, 2)
        if name not in names:
            names.append(name)
    events: list[tuple[float, str, Ids, Weights]] = []
    budget = length
    for name in names:
        key = doc.pieces(f" {_words(rng, KEY_WORDS)}.")
        hidden, asking = doc.pieces(f"\nThe passkey of {name} is"), doc.pieces(question(name))
        # Half of them early and asked about late: distances near the whole length are rare in an even draw, and stay unlearnt.
        far = rng.random() < 0.5
        depth = 0.9 * rng.random() ** (4 if far else 1)
        n = 1 + int(rng.integers(0, 2 * max(1, asked // (2 * needles)) + 1))
        times = [1 - (1 - depth) * rng.random() ** (4 if far else 1) for _ in range(n)]
        if name is names[-1]:
            times[0] = 1.0
        cost = len(hidden) + len(key) + len(times) * (len(asking) + len(key))
        if events and cost > budget - length // 4:
            break
        budget -= cost
        line = np.concatenate((np.full(len(hidden), 0.1), np.zeros(len(key)))).astype(np.float32)
        answer = np.concatenate((np.full(len(asking), 0.1), np.full(len(key), ANSWER_WEIGHT))).astype(np.float32)
        events.append((depth, name, np.concatenate((hidden, key)), line))
        events += [(at, name, np.concatenate((asking, key)), answer) for at in times]
    text = filler.draw(rng, max(budget, 0))
    breaks = doc.pieces.line_starts(text)
    done = 0
    for at, _, ids, weights in sorted(events, key=lambda event: event[0]):
        place = int(np.searchsorted(breaks, at * len(text)))
        here = int(breaks[place]) if place < len(breaks) else len(text)
        doc.add(text[done:here], FILLER_WEIGHT)
        doc.add(ids, weights)
        done = here
    doc.add(text[done:], FILLER_WEIGHT)


def add_recall(doc: Document, rng: np.random.Generator, filler: Filler, length: int) -> None:
    """Lines `- key = value`, the same value whenever a key comes again."""
    keys = rng.choice(len(WORDS), min(len(WORDS), _log_uniform(rng, 3, max(4, length // 8))), replace=False)
    values = [_words(rng, int(rng.integers(1, 4))) for _ in keys]
    seen = np.zeros(len(keys), dtype=bool)
    end = doc.length + length
    while doc.length < end:
        i = int(rng.integers(len(keys)))
        doc.add("\n-", 0.2)
        doc.add(" " + WORDS[keys[i]], 0.0)
        doc.add(" =", 0.2)
        doc.add(" " + values[i], ANSWER_WEIGHT / 2 if seen[i] else 0.0)
        seen[i] = True


def add_runs(doc: Document, rng: np.random.Generator, filler: Filler, length: int) -> None:
    """A random run of tokens, again and again: from the second time on, each token follows from what followed it before."""
    period = _log_uniform(rng, 8, max(9, length // 2))
    if rng.random() < 0.5:
        run = doc.pieces.random(rng, period)
    else:
        run = np.concatenate([doc.pieces(" " + WORDS[i]) for i in rng.integers(len(WORDS), size=period)])
    weights = np.ones(length, np.float32)
    weights[: len(run) + 1] = 0.0
    doc.add(np.resize(run, length), weights)


def add_passages(doc: Document, rng: np.random.Generator, filler: Filler, length: int) -> None:
    """Passages of natural text, half of them repeats of an earlier one."""
    end = doc.length + length
    past: list[Ids] = []
    while doc.length < end:
        if past and rng.random() < 0.5:
            again = past[int(rng.integers(len(past)))]
            weights = np.full(len(again), 1.5, np.float32)
            weights[:4] = 0.0  # which passage comes again is chance until it has begun
            doc.add(again, weights)
        else:
            passage = filler.draw(rng, _log_uniform(rng, 24, max(25, min(1024, length // 4))))
            past.append(passage)
            doc.add(passage)


def add_brackets(doc: Document, rng: np.random.Generator, filler: Filler, length: int) -> None:
    """Nested brackets of four kinds: what closes must be the kind that is open."""
    end = doc.length + length
    doc.add("\n:", 0.1)
    stack: list[str] = []
    while doc.length < end:
        if stack and (len(stack) >= 24 or rng.random() < 0.5):
            doc.add(stack.pop(), 1.0)
        else:
            opening, closing = BRACKETS[int(rng.integers(len(BRACKETS)))]
            stack.append(closing)
            doc.add(opening, 0.0)


def add_mixed(doc: Document, rng: np.random.Generator, filler: Filler, length: int) -> None:
    """Sections of every kind in rounds of 2048 tokens at most, each round with the shares of EVALUATION_MIX in an order of its own, so
    that one seed's text is as hard as another's.
    """
    end = doc.length + length
    while doc.length < end:
        whole = min(2048, max(256, end - doc.length))
        for kind in rng.permutation(list(EVALUATION_MIX)):
            if doc.length < end:
                KINDS[kind](doc, rng, filler, max(48, round(EVALUATION_MIX[kind] * whole)))


KINDS: dict[str, Callable[[Document, np.random.Generator, Filler, int], None]] = {
    "text": add_text,
    "needles": add_needles,
    "recall": add_recall,
    "runs": add_runs,
    "passages": add_passages,
    "brackets": add_brackets,
    "mixed": add_mixed,
}


def training_document(pieces: Pieces, filler: Filler, rng: np.random.Generator, length: int) -> tuple[Ids, Weights]:
    """One document to train on: ids [length] with its beginning-of-text token (nine times in ten) and weights [length]."""
    kinds, shares = list(TRAINING_MIX), np.array(list(TRAINING_MIX.values()))
    doc = Document(pieces)
    if rng.random() < 0.9:
        doc.add(np.array([pieces.bos], dtype=np.int32), 0.0)
    KINDS[kinds[rng.choice(len(kinds), p=shares / shares.sum())]](doc, rng, filler, length)
    return doc.cut(length)


# --- what the judge draws -----------------------------------------------------------------------------------------------------


@functools.cache
def reference_tokenizer() -> Tokenizer:
    """The tokenizer of the reference checkpoint; raises RuntimeError when there is none."""
    from tokenizers import Tokenizer as Load

    path = REFERENCE / "tokenizer.json"
    if not path.exists():
        raise RuntimeError(
            f"{path} is missing: train the reference with `python -m engine.train_reference --out {REFERENCE}`"
        )
    loaded: Tokenizer = Load.from_file(str(path))
    return loaded


@functools.lru_cache(maxsize=4)
def _pieces_of(tokenizer: Tokenizer) -> Pieces:
    return Pieces(tokenizer)


def encode_sources(texts: Iterable[str], pieces: Pieces) -> Ids:
    """Texts as one stream of tokens, each ended by the end-of-text token."""
    parts = []
    for text in texts:
        parts.append(
            np.array(pieces.tokenizer.encode("\n" + text.strip("\n"), add_special_tokens=False).ids, dtype=np.int32)
        )
        parts.append(np.array([pieces.eos], dtype=np.int32))
    return np.concatenate(parts)


def _drawn_filler(rng: np.random.Generator, pieces: Pieces, tokens: int, files: Sequence[Path] | None) -> Filler:
    # Five characters a token is more than any text of the library has, and the draw still has room to begin somewhere else.
    return pieces.filler(encode_sources(draw_sources(rng, 5 * tokens + 20_000, files), pieces))


@dataclass(frozen=True)
class EvaluationText:
    """ids: [tokens] with the beginning-of-text token first. scored: [tokens] bool, true where the token can be predicted from what
    stands before it; names and keys drawn at random are not, there the most likely token is a coin flip whatever the module does.
    """

    ids: Ids
    scored: npt.NDArray[np.bool_]


def evaluation_tokens(
    seed: bytes, tokens: int, tokenizer: Tokenizer | None = None, *, files: Sequence[Path] | None = None
) -> EvaluationText:
    """A document of exactly `tokens` tokens drawn by a secret seed: renamed library text mixed with tasks (EVALUATION_MIX)."""
    if tokens < 64:
        raise ValueError(f"an evaluation text of {tokens} tokens was asked for: 64 is the least that holds a task")
    pieces = _pieces_of(tokenizer or reference_tokenizer())
    rng = generator(seed, "evaluation-text", tokens)
    filler = _drawn_filler(rng, pieces, tokens, files)
    doc = Document(pieces)
    doc.add(np.array([pieces.bos], dtype=np.int32), 0.0)
    add_mixed(doc, rng, filler, tokens)
    ids, weights = doc.cut(tokens)
    return EvaluationText(ids, weights >= 1)


def evaluation_text(
    seed: bytes, tokens: int, tokenizer: Tokenizer | None = None, *, files: Sequence[Path] | None = None
) -> str:
    """The same document as text, without its beginning-of-text token; encoded again it has about `tokens` tokens."""
    tokenizer = tokenizer or reference_tokenizer()
    return tokenizer.decode(
        evaluation_tokens(seed, tokens, tokenizer, files=files).ids[1:].tolist(), skip_special_tokens=False
    )


@dataclass(frozen=True)
class NeedleTokens:
    """prompt: [length] ids with the beginning-of-text token first; answer: [KEY_WORDS or more] ids that should follow."""

    prompt: Ids
    answer: Ids


def needle_tokens(
    seed: bytes,
    length_tokens: int,
    depth: float,
    tokenizer: Tokenizer | None = None,
    *,
    distractors: int = 3,
    files: Sequence[Path] | None = None,
) -> NeedleTokens:
    """A document of exactly `length_tokens` tokens that hides a key at `depth` (0 its beginning, 1 just before the question) and
    ends by asking for it, among `distractors` other names with keys of their own at random depths.
    """
    if not 0.0 <= depth <= 1.0:
        raise ValueError(f"depth {depth} of a needle: it is a share of the document, 0 to 1")
    least = 128 + 24 * distractors
    if length_tokens < least:
        raise ValueError(
            f"a needle document of {length_tokens} tokens with {distractors} distractors: at least {least} are needed"
        )
    pieces = _pieces_of(tokenizer or reference_tokenizer())
    rng = generator(seed, "needle", length_tokens, depth)
    filler = _drawn_filler(rng, pieces, length_tokens, files)
    drawn = rng.choice(len(WORDS), 2 * (distractors + 1), replace=False)
    names = [f"{WORDS[a]} {WORDS[b]}" for a, b in drawn.reshape(-1, 2)]
    keys = [_words(rng, KEY_WORDS) for _ in names]
    depths = [depth, *rng.uniform(0, 1, distractors)]
    lines = sorted(
        zip(depths, [pieces(needle(n, k)) for n, k in zip(names, keys, strict=True)], strict=True),
        key=lambda line: line[0],
    )
    ask = pieces(question(names[0]))
    text = filler.draw(rng, length_tokens - 1 - len(ask) - sum(len(ids) for _, ids in lines))
    breaks = np.append(pieces.line_starts(text), len(text))
    parts, done = [np.array([pieces.bos], dtype=np.int32)], 0
    for at, ids in lines:
        here = int(breaks[np.abs(breaks - at * len(text)).argmin()])
        parts += [text[done:here], ids]
        done = here
    parts += [text[done:], ask]
    return NeedleTokens(np.concatenate(parts), pieces(" " + keys[0]))


def needle_document(
    seed: bytes,
    length_tokens: int,
    depth: float,
    tokenizer: Tokenizer | None = None,
    *,
    distractors: int = 3,
    files: Sequence[Path] | None = None,
) -> tuple[str, str]:
    """The same document as (prompt, answer) text; the answer begins with a space, and the prompt lacks its beginning-of-text token."""
    tokenizer = tokenizer or reference_tokenizer()
    drawn = needle_tokens(seed, length_tokens, depth, tokenizer, distractors=distractors, files=files)
    return (
        tokenizer.decode(drawn.prompt[1:].tolist(), skip_special_tokens=False),
        tokenizer.decode(drawn.answer.tolist(), skip_special_tokens=False),
    )
