"""Text to tokens and back, chat templates, and text that grows token by token."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend

from engine.loader import LoadError, read_object


class ChatTemplateError(ValueError):
    """The checkpoint has no chat template, or it refuses the messages; `str(error)` says which."""


class Tokenizer:
    """A checkpoint's tokenizer.json, with its chat template if it has one."""

    def __init__(self, backend: Backend, template: str | None = None, variables: dict[str, Any] | None = None) -> None:
        self.backend = backend
        self.template = template
        self.variables = variables or {}

    @staticmethod
    def load(folder: str | Path) -> "Tokenizer":
        """Reads tokenizer.json, and the chat template from tokenizer_config.json or chat_template.jinja.

        Raises LoadError.
        """
        folder = Path(folder)
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise LoadError(f"{folder} has no tokenizer.json; pass tokens instead of text, or convert its tokenizer.")
        try:
            backend = Backend.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise LoadError(f"{path} cannot be read by the tokenizers library: {error}.") from None
        # Some files keep what their training cut and filled up to; a prompt is taken whole, and nothing is put beside it.
        backend.no_truncation()
        backend.no_padding()
        settings: dict[str, Any] = {}
        path = folder / "tokenizer_config.json"
        if path.is_file():
            settings = read_object(path)
        template = settings.get("chat_template")
        if isinstance(template, list):
            template = next((item["template"] for item in template if item.get("name") == "default"), None)
        if (folder / "chat_template.jinja").is_file():
            template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
        tokens = ("bos_token", "eos_token", "pad_token", "unk_token")
        return Tokenizer(backend, template, {name: _content(settings[name]) for name in tokens if settings.get(name)})

    def encode(self, text: str) -> list[int]:
        """Tokens of a prompt, with the special tokens that the tokenizer adds."""
        ids: list[int] = self.backend.encode(text).ids
        return ids

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of `tokens`, special tokens left out."""
        text: str = self.backend.decode(list(tokens), skip_special_tokens=True)
        return text

    def chat(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Tokens of a conversation up to where the assistant answers. Raises ChatTemplateError."""
        if self.template is None:
            raise ChatTemplateError("This checkpoint has no chat template; pass a plain prompt.")
        try:
            from jinja2 import TemplateError
            from jinja2.sandbox import ImmutableSandboxedEnvironment
        except ImportError:
            raise ChatTemplateError("Chat templates need the package jinja2: pip install jinja2.") from None

        def refuse(message: str) -> None:
            raise TemplateError(message)

        # Templates come with checkpoints from anywhere: sandboxed, and without access to attributes of Python objects.
        sandbox = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        sandbox.globals["raise_exception"] = refuse
        sandbox.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
        try:
            text = sandbox.from_string(self.template).render(
                messages=list(messages), add_generation_prompt=True, **self.variables
            )
        except TemplateError as error:
            raise ChatTemplateError(f"The chat template refuses these messages: {error}.") from None
        ids: list[int] = self.backend.encode(text, add_special_tokens=False).ids
        return ids


class GrowingText:
    """The text of a sequence as its tokens arrive, cut at the first stop string.

    A token may hold a part of a character, and a stop string may be spread over tokens; `push` returns only text that
    can no longer change.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Iterable[str] = ()) -> None:
        self.tokenizer = tokenizer
        self.stop = tuple(stop)
        self.text = ""
        self.stopped = False
        self._tokens: list[int] = []
        self._read = 0
        self._given = 0

    def push(self, token: int) -> str:
        """Takes a token and returns what text it settled; sets `stopped` at a stop string."""
        self._tokens.append(token)
        # Decoded from a few tokens before, since the space before a word depends on its neighbour.
        start = max(0, self._read - 4)
        known = self.tokenizer.decode(self._tokens[start : self._read])
        piece = self.tokenizer.decode(self._tokens[start:])[len(known) :]
        if piece.endswith("\ufffd") and len(self._tokens) - self._read < 8:
            return ""
        self._read = len(self._tokens)
        searched = max(0, len(self.text) - max(map(len, self.stop), default=0))
        self.text += piece
        ends = [at for at in (self.text.find(stop, searched) for stop in self.stop) if at >= 0]
        if ends:
            self.stopped = True
            self.text = self.text[: min(ends)]
            return self._settle(len(self.text))
        held = max((n for stop in self.stop for n in range(1, len(stop)) if self.text.endswith(stop[:n])), default=0)
        return self._settle(len(self.text) - held)

    def flush(self) -> str:
        """The rest of the text, once no token follows."""
        start = max(0, self._read - 4)
        known = self.tokenizer.decode(self._tokens[start : self._read])
        if not self.stopped:
            self.text += self.tokenizer.decode(self._tokens[start:])[len(known) :]
        self._read = len(self._tokens)
        return self._settle(len(self.text))

    def _settle(self, end: int) -> str:
        settled = self.text[self._given : end]
        self._given = max(self._given, end)
        return settled


def _content(token: Any) -> str:
    return str(token["content"] if isinstance(token, dict) else token)
