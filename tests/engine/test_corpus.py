"""The text that the judge draws: decided by its seed alone, of the length asked for, and with the answer where it says."""

import ast
from pathlib import Path

import numpy as np
import pytest

from engine import corpus

SEED = b"\x01" * 32
OTHER = b"\x02" * 32


@pytest.fixture(scope="module")
def files() -> tuple[Path, ...]:
    return corpus.source_files()[::6]


@pytest.fixture(scope="module")
def tokenizer() -> corpus.Tokenizer:
    return corpus.reference_tokenizer()


def test_same_seed_draws_the_same_evaluation_text_and_another_seed_another(tokenizer, files):
    first, again, other = (corpus.evaluation_tokens(s, 1024, tokenizer, files=files) for s in (SEED, SEED, OTHER))
    assert np.array_equal(first.ids, again.ids)
    assert np.array_equal(first.scored, again.scored)
    assert (first.ids[1:] == other.ids[1:]).mean() < 0.2


@pytest.mark.parametrize("tokens", [64, 500, 2048])
def test_evaluation_text_has_exactly_the_tokens_asked_for_and_begins_with_bos(tokenizer, files, tokens):
    drawn = corpus.evaluation_tokens(SEED, tokens, tokenizer, files=files)
    assert len(drawn.ids) == len(drawn.scored) == tokens
    assert drawn.ids[0] == tokenizer.token_to_id(corpus.BOS)
    assert drawn.ids.min() >= 0
    assert drawn.ids.max() < tokenizer.get_vocab_size()


def test_most_positions_of_an_evaluation_text_are_scored(tokenizer, files):
    shares = [corpus.evaluation_tokens(SEED + bytes([n]), 2048, tokenizer, files=files).scored.mean() for n in range(4)]
    assert 0.6 < np.mean(shares) < 1


def test_evaluation_text_encodes_to_about_the_tokens_asked_for(tokenizer, files):
    text = corpus.evaluation_text(SEED, 2048, tokenizer, files=files)
    assert 1900 < len(tokenizer.encode(text).ids) < 2150


def test_evaluation_text_too_short_for_a_task_is_refused(tokenizer, files):
    with pytest.raises(ValueError, match="64 is the least"):
        corpus.evaluation_tokens(SEED, 63, tokenizer, files=files)


@pytest.mark.parametrize("depth", [0.0, 0.3, 1.0])
def test_needle_stands_at_its_depth_once_and_the_document_ends_by_asking(tokenizer, files, depth):
    prompt, answer = corpus.needle_document(SEED, 1500, depth, tokenizer, files=files)
    name = prompt[prompt.rindex("The passkey of ") + len("The passkey of ") : prompt.rindex(" is")]
    line = corpus.needle(name, answer.strip())
    assert prompt.endswith(corpus.question(name))
    assert prompt.count(line) == 1
    assert prompt.count("\nThe passkey of ") == 4
    assert abs(prompt.index(line) / len(prompt) - depth) < 0.08
    assert len(answer.split()) == corpus.KEY_WORDS


def test_needle_document_encodes_to_the_length_and_the_tokens_drawn(tokenizer, files):
    """Lines are inserted where no token is torn, so text and tokens are one document."""
    drawn = corpus.needle_tokens(SEED, 1500, 0.5, tokenizer, files=files)
    prompt, answer = corpus.needle_document(SEED, 1500, 0.5, tokenizer, files=files)
    assert len(drawn.prompt) == 1500
    assert tokenizer.encode(prompt).ids == drawn.prompt.tolist()
    assert (
        tokenizer.encode(prompt + answer, add_special_tokens=False).ids[-len(drawn.answer) :] == drawn.answer.tolist()
    )


def test_needles_of_different_depths_are_different_documents(tokenizer, files):
    keys = {corpus.needle_document(SEED, 400, d, tokenizer, files=files)[1] for d in (0.0, 0.25, 0.5, 0.75)}
    assert len(keys) == 4


@pytest.mark.parametrize(("length", "depth", "reason"), [(100, 0.5, "at least 200"), (1000, 1.5, "0 to 1")])
def test_impossible_needles_are_refused_with_the_reason(tokenizer, files, length, depth, reason):
    with pytest.raises(ValueError, match=reason):
        corpus.needle_document(SEED, length, depth, tokenizer, files=files)


SOURCE = '''
class Walker:
    """Walks."""

    LIMIT = 7

    def step(self, length):
        self.distance = self.distance + length
        return self.distance < Walker.LIMIT
'''


def test_renaming_keeps_the_program_and_changes_its_names():
    pool = ["Alpha", "Beta", "GAMMA", "DELTA", "epsilon", "zeta_eta", "theta"]
    renamed = corpus.rename(SOURCE, pool, np.random.default_rng(3))
    assert renamed != SOURCE
    assert ast.dump(ast.parse(renamed)).count("Attribute") == ast.dump(ast.parse(SOURCE)).count("Attribute")
    names = {n.attr for n in ast.walk(ast.parse(renamed)) if isinstance(n, ast.Attribute)}
    assert len(names) == 2  # distance and LIMIT are still two names, each the same wherever it stands


def test_renaming_is_one_to_one():
    text = "\n".join(f"name_{i} = {i}" for i in range(40))
    renamed = corpus.rename(text, [f"other_{i}" for i in range(30)], np.random.default_rng(0))
    assert len(set(corpus.defined_names(renamed))) == 40


def test_every_word_of_a_needle_is_one_token(tokenizer):
    pieces = corpus.Pieces(tokenizer)
    assert {len(pieces(" " + word)) for word in corpus.WORDS} == {1}
    assert len(set(corpus.WORDS)) == 256


@pytest.mark.parametrize("kind", corpus.KINDS)
@pytest.mark.parametrize("length", [128, 1500])
def test_every_kind_of_document_fills_the_length(tokenizer, files, kind, length):
    pieces = corpus.Pieces(tokenizer)
    filler = pieces.filler(corpus.encode_sources([corpus.read_source(f) for f in files[:4]], pieces))
    for n in range(8):
        doc = corpus.Document(pieces)
        corpus.KINDS[kind](doc, np.random.default_rng(n), filler, length)
        ids, weights = doc.cut(length)
        assert len(ids) == len(weights) == length
        assert weights.min() >= 0
        assert weights.max() > 0


def test_questions_ask_for_what_an_earlier_needle_hid(tokenizer, files):
    pieces = corpus.Pieces(tokenizer)
    filler = pieces.filler(corpus.encode_sources([corpus.read_source(f) for f in files[:4]], pieces))
    asked = 0
    for n in range(6):
        doc = corpus.Document(pieces)
        corpus.add_needles(doc, np.random.default_rng(n), filler, 2000)
        text = tokenizer.decode(doc.cut(doc.length)[0].tolist(), skip_special_tokens=False)
        for part in text.split("\nWhat is the passkey of ")[1:]:
            name = part.split("?")[0]
            key = part.split(f"The passkey of {name} is")[1].split(".")[0].strip()
            assert 0 <= text.index(corpus.needle(name, key)) < text.index(f"What is the passkey of {name}?")
            asked += 1
    assert asked >= 6


def test_brackets_close_what_is_open(tokenizer, files):
    pieces = corpus.Pieces(tokenizer)
    filler = pieces.filler(np.zeros(1, dtype=np.int32))
    doc = corpus.Document(pieces)
    corpus.add_brackets(doc, np.random.default_rng(0), filler, 600)
    closing = {o.strip(): c.strip() for o, c in corpus.BRACKETS}
    stack = []
    for sign in tokenizer.decode(doc.cut(600)[0].tolist()).split()[1:]:
        if sign in closing:
            stack.append(closing[sign])
        else:
            assert sign == stack.pop()


def test_filler_shorter_than_asked_for_says_so(tokenizer):
    filler = corpus.Pieces(tokenizer).filler(np.zeros(5, dtype=np.int32))
    with pytest.raises(ValueError, match="9 tokens of filler asked of a stream of 5"):
        filler.draw(np.random.default_rng(0), 9)


def test_library_without_sources_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(RuntimeError, match="install the full standard library"):
        corpus.source_files(tmp_path)


def test_library_drawn_from_leaves_out_tests_and_installed_packages():
    parts = {part for f in corpus.source_files() for part in f.parts}
    assert not parts & {"site-packages", "dist-packages", "idle_test"}


def test_tokenizer_gives_back_any_text_byte_for_byte(tokenizer):
    text = "naïve 漢字 🜁 \x00\t\r\n  x\ud7ff    def f(): return 'ß'\n\n\n\tend  "
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_library_text_needs_less_than_a_token_for_three_characters(tokenizer, files):
    """100,000 characters have to fit into 32,768 tokens, with room."""
    text = "".join(corpus.read_source(f) for f in files)
    assert len(text) / len(tokenizer.encode(text, add_special_tokens=False).ids) >= 3.3
