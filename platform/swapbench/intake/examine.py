"""Looks at what a pull request changes, and says what is to become of it. Reads git objects; writes nothing, runs nothing."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from engine.slots.header import (
    FOLDERS,
    MAX_SOURCE_BYTES,
    Header,
    HeaderError,
    decode_source,
    kind_of_path,
    parse_header,
)
from swapbench.forge.mirror import Change, Mirror, show_path
from swapbench.submissions.treehash import tree_hash

SLOT_FOLDERS = {f"engine/{folder}/": kind for kind, folder in FOLDERS.items()}
MAX_PATH = 300
REGULAR = ("100644", "100755")
KINDS_OF_MODE = {"120000": "a symbolic link", "160000": "a submodule"}

Owns = Callable[[str], str]
"""Given a path that exists at base: "" where the pull request's author owns it, else whose it is."""


@dataclass(frozen=True)
class Note:
    """Why something is refused or waits: a stable code, a sentence, and what to do."""

    code: str
    sentence: str
    next_step: str
    path: str = ""


@dataclass
class Examination:
    """What was found. `refusals` end it; `outside` needs a maintainer; `files` can be judged."""

    base_sha: str = ""
    files: list[dict[str, str]] = field(default_factory=list)
    outside: list[dict[str, str]] = field(default_factory=list)
    documents: list[str] = field(default_factory=list)
    refusals: list[Note] = field(default_factory=list)

    def refuse(self, code: str, sentence: str, next_step: str, path: str = "") -> None:
        self.refusals.append(Note(code, sentence, next_step, path))


def examine(
    mirror: Mirror, tip: str, head: str, branch: str, owns: Owns, max_files: int, max_changes: int
) -> Examination:
    """What merging `head` into `branch`, which is at `tip`, would change, and what may come of it. Raises GitError."""
    found = Examination(base_sha=tip)
    if mirror.merge_base(tip, head) is None:
        found.refuse(
            "no_common_history",
            f"The pull request shares no history with {branch}.",
            f"Branch off {branch}, commit your change there, and push that.",
        )
        return found
    tree, conflicts = mirror.merge_tree(tip, head)
    if conflicts:
        shown = ", ".join(conflicts[:5]) + (f" and {len(conflicts) - 5} more" if len(conflicts) > 5 else "")
        found.refuse(
            "merge_conflict",
            f"It conflicts with {branch} in {shown}.",
            f"Merge {branch} into your branch, settle the conflict, and push.",
        )
        return found
    # What the merge would change, and not what differs from a common ancestor: there may be several, and beside one of them a
    # head that takes back what was merged through another looks as if it changed nothing.
    changes = mirror.changes(tip, tree)
    if not changes:
        found.refuse("empty", f"The pull request changes nothing on {branch}.", "Push a commit that changes something.")
        return found
    if len(changes) > max_changes:
        found.refuse(
            "too_many_changes",
            f"The pull request changes {len(changes):,} files; at most {max_changes} are looked at.",
            "Split it, and leave out what does not belong to it (build outputs, data).",
        )
        return found
    _Sorter(mirror, found, tip, head, branch, owns).sort(changes)
    if len(found.files) > max_files:
        found.refuse(
            "too_many_files",
            f"The pull request adds or changes {len(found.files)} slot files; at most {max_files} are judged together.",
            "Split it into several pull requests.",
        )
    return found


class _Sorter:
    """Puts each change where it belongs: judged, along for the ride, for a maintainer, or refused."""

    def __init__(self, mirror: Mirror, found: Examination, tip: str, head: str, branch: str, owns: Owns) -> None:
        self.mirror = mirror
        self.found = found
        self.tip = tip
        self.head = head
        self.branch = branch
        self.owns = owns

    def sort(self, changes: list[Change]) -> None:
        sizes = self.mirror.sizes(change.blob for change in changes if change.mode in REGULAR)
        for change in changes:
            folder = _slot_folder(change.path)
            if folder is None:
                self._elsewhere(change, sizes.get(change.blob, 0))
            elif self._is_sound(change, folder, sizes.get(change.blob)):
                self._slot_file(change, SLOT_FOLDERS[folder])
        self._names_are_free({change.path.decode("utf-8", "replace") for change in changes if change.status == "D"})

    def _elsewhere(self, change: Change, size: int) -> None:
        path = change.shown
        is_document = change.path.startswith(b"docs/") and change.path.endswith(b".md") and path == _text(change.path)
        if is_document and change.status == "A" and change.mode == "100644" and size <= MAX_SOURCE_BYTES:
            self.found.documents.append(path)
            return
        self._for_maintainer(change, "it lies outside the slots")

    def _for_maintainer(self, change: Change, why: str) -> None:
        status = {"A": "added", "D": "deleted"}.get(change.status, "modified")
        self.found.outside.append({"path": change.shown, "status": status, "why": why})

    def _is_sound(self, change: Change, folder: str, size: int | None) -> bool:
        """Whether a change in a slot folder is to a plain file that a slot file may be; refuses it where not."""
        path = change.shown
        if (what := KINDS_OF_MODE.get(change.mode)) is not None:
            self.found.refuse(
                "not_a_file",
                f"{path} is {what}; a slot folder holds plain files only.",
                "Replace it by the file itself.",
                path,
            )
            return False
        if _text(change.path) != path or not path.isprintable() or len(path) > MAX_PATH:
            self.found.refuse(
                "bad_name",
                f"The name {path} holds characters that a slot file's name may not have, or is too long.",
                f"Name it {folder}NAME.py, where NAME has only a-z, 0-9 and '_'.",
                path,
            )
            return False
        if change.status == "D":
            self._for_maintainer(change, "it deletes an implementation")
            return False
        if change.status != "A" and (owner := self.owns(path)):
            self._for_maintainer(change, f"it belongs to {owner}")
            return False
        if kind_of_path(path) is None:
            self.found.refuse(
                "bad_name",
                f"{path} is not where an implementation can be: it must be one file directly in {folder}, "
                "whose name has only a-z, 0-9 and '_', starts with a letter, and ends in .py.",
                f"Name it {folder}NAME.py; put documents under docs/.",
                path,
            )
            return False
        if size is None:
            self.found.refuse(
                "missing_blob", f"The content of {path} could not be read from the push.", "Push again.", path
            )
            return False
        if size > MAX_SOURCE_BYTES:
            self.found.refuse(
                "too_large",
                f"{path} has {size:,} bytes; a slot file may have at most {MAX_SOURCE_BYTES:,}.",
                "Leave data and generated tables out; compute them when the module is loaded.",
                path,
            )
            return False
        if change.blob != self.mirror.blob_at(
            self.head, path
        ):  # Merged from both sides: head's is not what would be there.
            self.found.refuse(
                "behind",
                f"{self.branch} has changed {path} since you branched off.",
                f"Merge {self.branch} into your branch, and push.",
                path,
            )
            return False
        return True

    def _slot_file(self, change: Change, kind: str) -> None:
        path = change.shown
        try:
            source = decode_source(self.mirror.read_blob(change.blob))
            header = parse_header(source)
        except HeaderError as error:
            self.found.refuse(
                "bad_header",
                f"{path}: {error}",
                "Mend the file, try it with `.venv/bin/swapbench check`, and push.",
                path,
            )
            return
        if header.kind != kind:
            self.found.refuse(
                "wrong_folder",
                f"{path} declares the kind {header.kind!r}, but its folder holds implementations of {kind!r}.",
                f"Declare kind = {kind!r}, or move the file to engine/{FOLDERS[header.kind]}/.",
                path,
            )
            return
        self.found.files.append(
            {
                "path": path,
                "kind": kind,
                "status": "modified" if change.status != "A" else "added",
                "name": header.name,
                "quality_class": header.quality_class,
                "summary": header.summary,
                "blob": change.blob,
                "tree_hash": tree_hash(source, header),
            }
        )

    def _names_are_free(self, deleted: set[str]) -> None:
        """Refuses names that another file has, at the branch's tip or in the same pull request."""
        files = self.found.files
        own = {file["path"] for file in files}
        for kind in sorted({file["kind"] for file in files}):
            taken = {
                name: path for name, path in names_at(self.mirror, self.tip, kind).items() if path not in own | deleted
            }
            names = Counter(file["name"] for file in files if file["kind"] == kind)
            for file in files:
                if file["kind"] != kind:
                    continue
                name, path = file["name"], file["path"]
                holder = taken.get(name) or (names[name] > 1 and "another file of this pull request")
                if holder:
                    self.found.refuse(
                        "name_taken",
                        f"{path} is named {name!r}, and so is {holder}.",
                        "Give it a name of its own in its header and in @register.",
                        path,
                    )


def names_at(mirror: Mirror, commit: str, kind: str) -> dict[str, str]:
    """The paths of a kind's implementations at a commit, by their name."""
    names = {}
    for entry in mirror.entries(commit, f"engine/{FOLDERS[kind]}/"):
        path = show_path(entry.path)
        if entry.mode in REGULAR and entry.size <= MAX_SOURCE_BYTES and kind_of_path(path) == kind:
            try:
                names[_header(mirror, entry.blob).name] = path
            except HeaderError:
                continue  # A file without header takes no name.
    return names


def _header(mirror: Mirror, blob: str) -> Header:
    return parse_header(decode_source(mirror.read_blob(blob)))


def _slot_folder(path: bytes) -> str | None:
    return next((folder for folder in SLOT_FOLDERS if path.startswith(folder.encode())), None)


def _text(path: bytes) -> str:
    return path.decode("utf-8", "replace")
