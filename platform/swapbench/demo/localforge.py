"""Makes the demo's forge: a bare repository whose main is this checkout's engine, with the samples as pull requests."""

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from swapbench.demo.samples import Sample
from swapbench.forge.mirror import COMMITTER, git

TAKEN = ("engine", "docs", "README.md", "LICENSE")
LEFT_OUT = (":(exclude)engine/checkpoints", ":(exclude,glob)**/__pycache__/**")
DIGEST = "Sample-digest: "


def make_forge(repository: Path, checkout: Path, samples: Iterable[Sample], branch: str) -> None:
    """Makes or brings up to date; what is as it should be stays as it is, merges included."""
    if not (repository / "HEAD").exists():
        repository.parent.mkdir(parents=True, exist_ok=True)
        git(repository, "init", "--quiet", "--bare", f"--initial-branch={branch}")
        # Workers fetch by exact SHA, which a repository allows only if told so.
        git(repository, "config", "uploadpack.allowAnySHA1InWant", "true")
    with tempfile.TemporaryDirectory(prefix="swapbench-") as folder:
        index = {"GIT_INDEX_FILE": str(Path(folder, "index"))}
        _bring_engine(repository, checkout, f"refs/heads/{branch}", index)
        for sample in samples:
            _open(repository, sample, f"refs/heads/{branch}", index)


def _bring_engine(repository: Path, checkout: Path, branch: str, index: Mapping[str, str]) -> None:
    """Puts this checkout's engine on the branch. What was merged there besides stays."""
    tip = _commit(repository, branch)
    if tip:
        git(repository, "read-tree", tip, extra=index)
    taken = [name for name in TAKEN if (checkout / name).exists()]
    # Without --all, what is only on the branch is left there: the files that the queue merged.
    git(
        repository,
        *("--work-tree", str(checkout), "add", "--ignore-removal", "--force", "--", *taken, *LEFT_OUT),
        extra=index,
        cwd=checkout,
    )
    tree = git(repository, "write-tree", extra=index)[1].decode().strip()
    if tip and tree == git(repository, "rev-parse", f"{tip}^{{tree}}")[1].decode().strip():
        return
    message = "Bring the engine up to date" if tip else "The engine, with the default of every slot"
    made = _make(repository, tree, [tip] if tip else [], message, COMMITTER)
    git(repository, "update-ref", branch, made, tip or "0" * 40)


def _open(repository: Path, sample: Sample, branch: str, index: Mapping[str, str]) -> None:
    """Opens a sample's pull request, or pushes to it where the sample has changed."""
    ref = f"refs/pull/{sample.number}/head"
    head = _commit(repository, ref)
    if head and f"{DIGEST}{sample.digest}" in git(repository, "log", "-1", "--format=%B", head)[1].decode():
        return
    base = _commit(repository, branch)
    git(repository, "read-tree", base, extra=index)
    for path, content in sample.files.items():
        blob = git(repository, "hash-object", "-w", "--stdin", stdin=content)[1].decode().strip()
        git(repository, "update-index", "--add", "--cacheinfo", f"100644,{blob},{path}", extra=index)
    tree = git(repository, "write-tree", extra=index)[1].decode().strip()
    author = {"GIT_AUTHOR_NAME": sample.author_name, "GIT_AUTHOR_EMAIL": sample.author_email}
    message = f"{sample.title}\n\n{sample.note}\n\n{DIGEST}{sample.digest}\n"
    made = _make(repository, tree, [base], message, {**COMMITTER, **author})
    git(repository, "update-ref", ref, made)


def _make(repository: Path, tree: str, parents: Iterable[str], message: str, people: Mapping[str, str]) -> str:
    arguments = [argument for parent in parents for argument in ("-p", parent)]
    made = git(repository, "commit-tree", tree, *arguments, stdin=message.encode(), extra=people)[1]
    return made.decode().strip()


def _commit(repository: Path, ref: str) -> str:
    """The commit that a ref is at; "" where there is none."""
    status, said = git(repository, "rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}", ok=(0, 1, 128))
    return said.decode().strip() if status == 0 else ""
