"""From a job to two engine trees: exact commits, slot files of head only."""

from pathlib import Path

import pytest

from tests.workers.repository import NORM, Repository, header
from workers.checkout import CheckoutError, RefusedFile, fetch, lay_out

PATH = "engine/normalization/tried.py"


def test_head_is_base_with_its_slot_files_and_nothing_else_of_head(
    repository: Repository, mirror: Path, tmp_path: Path
) -> None:
    head = repository.pull({PATH: header() + NORM, "engine/generate.py": "raise SystemExit\n", "workers/x.py": "1\n"})
    job = repository.job(head, PATH)
    fetch(mirror, job)
    trees = lay_out(mirror, job, tmp_path)
    assert (trees.head / PATH).read_text() == header() + NORM
    assert not (trees.base / PATH).exists()
    assert (trees.head / "engine/generate.py").read_bytes() == (trees.base / "engine/generate.py").read_bytes()
    assert not (trees.head / "workers").exists()
    assert not (trees.head / "engine/checkpoints").exists()
    assert "base" not in trees.base.name
    assert "head" not in trees.head.name


def test_a_changed_file_is_taken_from_head(repository: Repository, mirror: Path, tmp_path: Path) -> None:
    path = "engine/normalization/plain.py"
    head = repository.pull({path: (repository.folder / path).read_text() + "# changed\n"})
    job = repository.job(head, path)
    assert job.files[0].status == "modified"
    fetch(mirror, job)
    trees = lay_out(mirror, job, tmp_path)
    assert (trees.head / path).read_text().endswith("# changed\n")
    assert not (trees.base / path).read_text().endswith("# changed\n")


def test_a_file_that_head_lacks_and_a_file_outside_the_slots_are_refused(
    repository: Repository, mirror: Path, tmp_path: Path
) -> None:
    head = repository.pull({PATH: header() + NORM})
    fetch(mirror, repository.job(head, PATH))
    with pytest.raises(RefusedFile, match="does not exist in commit"):
        lay_out(mirror, repository.job(head, "engine/normalization/nowhere.py"), tmp_path / "a")
    with pytest.raises(RefusedFile, match="no slot file"):
        lay_out(mirror, repository.job(head, "engine/generate.py"), tmp_path / "b")


def test_a_pathspec_in_a_file_name_stands_for_itself(repository: Repository, mirror: Path, tmp_path: Path) -> None:
    head = repository.pull({PATH: header() + NORM})
    fetch(mirror, repository.job(head, PATH))
    with pytest.raises(RefusedFile):
        lay_out(mirror, repository.job(head, "engine/normalization/*.py"), tmp_path)


def test_a_commit_that_nobody_has_and_a_repository_that_is_gone_are_our_fault(
    repository: Repository, tmp_path: Path
) -> None:
    with pytest.raises(CheckoutError, match="git fetch failed"):
        fetch(tmp_path / "mirror.git", repository.job("2" * 40, PATH))
    gone = repository.job("2" * 40, PATH, repository=str(tmp_path / "gone"))
    with pytest.raises(CheckoutError, match="git fetch failed"):
        fetch(tmp_path / "mirror.git", gone)


def test_an_external_transport_is_never_run(repository: Repository, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    job = repository.job("2" * 40, PATH, repository=f"ext::touch {marker}")
    with pytest.raises(CheckoutError):
        fetch(tmp_path / "mirror.git", job)
    assert not marker.exists()


def test_an_option_in_place_of_a_repository_is_never_taken(repository: Repository, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    job = repository.job("2" * 40, PATH, repository=f"--upload-pack=touch {marker};")
    with pytest.raises(CheckoutError):
        fetch(tmp_path / "mirror.git", job)
    assert not marker.exists()
