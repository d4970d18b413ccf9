"""The sample pull requests: demo/pulls/NN-name/ with pull.toml and the files that it adds or changes under files/."""

import hashlib
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FOLDER = re.compile(r"([0-9]{2,4})-[a-z0-9-]+")


class SampleError(Exception):
    """A sample cannot be read; `str(error)` says which, and what to write instead."""


@dataclass(frozen=True)
class Sample:
    """A sample pull request. `files` are bytes by path; `expected` is what pull.toml says of its verdict."""

    number: int
    title: str
    author_name: str
    author_email: str
    note: str
    expected: dict[str, Any]
    files: dict[str, bytes] = field(repr=False)

    @property
    def digest(self) -> str:
        """Changes whenever the pull request's content does."""
        digest = hashlib.sha256(repr((self.title, self.author_name, self.author_email)).encode())
        for path, content in sorted(self.files.items()):
            digest.update(f"{path}\0{len(content)}\0".encode() + content)
        return digest.hexdigest()


def read_samples(folder: Path) -> list[Sample]:
    """All samples in `folder`, by number. Raises SampleError."""
    samples = []
    for path in sorted(folder.iterdir() if folder.is_dir() else ()):
        match = FOLDER.fullmatch(path.name)
        if match and (path / "pull.toml").is_file():
            samples.append(_read(path, int(match[1])))
    numbers = [sample.number for sample in samples]
    if len(set(numbers)) != len(numbers):
        raise SampleError(f"Two folders in {folder} have the same number; the number is the pull request's.")
    return samples


def _read(folder: Path, number: int) -> Sample:
    try:
        said = tomllib.loads((folder / "pull.toml").read_text(encoding="utf-8"))
        texts = {key: said[key] for key in ("title", "author_name", "author_email")}
    except (OSError, ValueError) as error:
        raise SampleError(f"{folder / 'pull.toml'} cannot be read: {error}") from None
    except KeyError as error:
        raise SampleError(f"{folder / 'pull.toml'} lacks {error}.") from None
    root = folder / "files"
    files = {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
    if not files:
        raise SampleError(f"{folder} has nothing under files/; put what the pull request adds or changes there.")
    return Sample(number, **texts, note=said.get("note", ""), expected=said.get("expected", {}), files=files)
