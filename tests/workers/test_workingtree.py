"""What `swapbench check` makes of a working tree."""

import shutil
from pathlib import Path

import pytest

from engine.slots.header import HeaderError
from tests.workers.repository import NORM, Repository, header
from workers.checkout import Trees
from workers.cli import main
from workers.judge.trial import subject
from workers.protocol import SlotFile
from workers.workingtree import WorkingTreeError, misplaced, read_working_tree

PATH = "engine/normalization/tried.py"


@pytest.fixture
def own(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "own")


def test_new_and_changed_slot_files_become_a_commit_and_nothing_else_moves(own: Repository) -> None:
    (own.folder / PATH).write_text(header() + NORM)
    plain = own.folder / "engine/normalization/plain.py"
    plain.write_text(plain.read_text() + "# changed\n")
    (own.folder / "engine/generate.py").write_text("# outside the slots\n")
    (own.folder / "engine/normalization/notes.txt").write_text("no slot file\n")
    before = own.git("status", "--porcelain"), own.git("rev-parse", "HEAD"), own.git("for-each-ref")
    tree = read_working_tree(own.folder / "engine", "HEAD")
    assert [(file.path, file.status) for file in tree.files] == [
        ("engine/normalization/plain.py", "modified"),
        (PATH, "added"),
    ]
    assert own.git("diff", "--name-only", tree.base_sha, tree.head_sha).splitlines() == [
        "engine/normalization/plain.py",
        PATH,
    ]
    assert own.git("show", f"{tree.head_sha}:{PATH}") == (header() + NORM).strip()
    assert before == (own.git("status", "--porcelain"), own.git("rev-parse", "HEAD"), own.git("for-each-ref"))


def test_a_clean_tree_has_no_files(own: Repository) -> None:
    assert read_working_tree(own.folder, "HEAD").files == ()


def test_only_picks_files_and_names_what_does_not_differ(own: Repository) -> None:
    (own.folder / PATH).write_text(header() + NORM)
    assert [file.path for file in read_working_tree(own.folder, "HEAD", [PATH]).files] == [PATH]
    with pytest.raises(WorkingTreeError, match="does not differ"):
        read_working_tree(own.folder, "HEAD", ["engine/normalization/plain.py"])


def test_an_unknown_base_a_deletion_and_a_symlink_are_refused_with_a_sentence(own: Repository) -> None:
    with pytest.raises(WorkingTreeError, match="There is no commit 'nowhere'"):
        read_working_tree(own.folder, "nowhere")
    (own.folder / PATH).symlink_to("plain.py")
    with pytest.raises(WorkingTreeError, match="symlink"):
        read_working_tree(own.folder, "HEAD")
    (own.folder / PATH).unlink()
    (own.folder / "engine/normalization/plain.py").unlink()
    with pytest.raises(WorkingTreeError, match="is deleted"):
        read_working_tree(own.folder, "HEAD")


def test_outside_a_repository_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(WorkingTreeError, match="not a git repository"):
        read_working_tree(tmp_path, "HEAD")


def test_a_slot_file_in_the_wrong_place_is_named(own: Repository) -> None:
    assert misplaced(own.folder, "HEAD") == []
    (own.folder / PATH).write_text(header() + NORM)
    (own.folder / "engine/normalization/no-name.py").write_text(header() + NORM)
    (own.folder / "mine.py").write_text(header() + NORM)
    (own.folder / "engine/other.py").write_text("# nothing of a slot\n")
    assert misplaced(own.folder / "engine", "HEAD") == ["engine/normalization/no-name.py", "mine.py"]


def test_check_says_what_to_do_where_it_finds_nothing(
    own: Repository, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(own.folder)
    monkeypatch.setenv("COLUMNS", "400")
    assert main(["check"]) == 2
    assert "found with --base, for example --base origin/main" in capsys.readouterr().out
    (own.folder / "mine.py").write_text(header() + NORM)
    assert main(["check"]) == 2
    assert "mine.py is no slot file where it is" in capsys.readouterr().out


def test_a_name_belongs_to_one_file(own: Repository, tmp_path: Path) -> None:
    head = tmp_path / "head"
    shutil.copytree(own.folder, head)
    plain, tried = head / "engine/normalization/plain.py", head / PATH
    both = Trees(own.folder, head)
    plain.write_text(plain.read_text() + "# changed\n")
    file = SlotFile("engine/normalization/plain.py", "normalization", "modified")
    assert subject(file, both).header.name == "plain"
    # A new file may not take it, nor share a name with another new one.
    tried.write_text(plain.read_text())
    for path, status in ((PATH, "added"), (file.path, "modified")):
        with pytest.raises(HeaderError, match="The name 'plain' is taken by engine/normalization/"):
            subject(SlotFile(path, "normalization", status), both)  # type: ignore[arg-type]
    # Nor a file that had a name of its own.
    own_name = head / "engine/normalization/fused.py"
    tried.unlink()
    own_name.write_text(plain.read_text())
    with pytest.raises(HeaderError, match=r"is taken by engine/normalization/plain\.py"):
        subject(SlotFile("engine/normalization/fused.py", "normalization", "modified"), both)
