"""The endpoints. Each reads by the pages' queries and shapes; nothing here changes anything."""

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from django.core.exceptions import BadRequest
from django.http import Http404, HttpRequest, HttpResponse
from ninja import Field, NinjaAPI, Path, Query, Schema
from ninja.errors import ValidationError

from swapbench.api import schemas
from swapbench.mergequeue.models import QueueEntry
from swapbench.submissions.models import Submission, Verdict
from swapbench.web import filters, queries, tracks
from swapbench.web.views.submissions import found
from swapbench.web.views.tracks import found_board

api = NinjaAPI(
    title="Swapbench",
    version="1",
    description="Read-only. Speed-ups are fractions (0.123 is 12.3 % faster), times are seconds, moments are ISO 8601.",
    docs_url=None,
    openapi_url="/openapi.json",
    urls_namespace="api",
)

PROBLEMS = {400: schemas.Problem, 404: schemas.Problem}


@api.exception_handler(ValidationError)
def invalid(request: HttpRequest, error: ValidationError) -> HttpResponse:
    """What a parameter should have been, as a sentence."""
    first = error.errors[0]
    name = first["loc"][-1]
    return api.create_response(request, {"error": f"“{name}”: {first['msg']}."}, status=400)


@api.exception_handler(BadRequest)
def bad(request: HttpRequest, error: BadRequest) -> HttpResponse:
    return api.create_response(request, {"error": str(error)}, status=400)


@api.exception_handler(Http404)
def missing(request: HttpRequest, error: Http404) -> HttpResponse:
    return api.create_response(request, {"error": str(error)}, status=404)


def _page(request: HttpRequest, path: str) -> str:
    return request.build_absolute_uri(path)


def _interval(interval: Any) -> dict[str, float] | None:
    if interval is None:
        return None
    return {"estimate": interval.estimate, "low": interval.low, "high": interval.high, "level": interval.level}


def _verdict(verdict: Verdict) -> dict[str, Any]:
    names = (
        "path",
        "kind",
        "name",
        "quality_class",
        "machine_class",
        "suite_version",
        "status",
        "speed",
        "against",
        "qualifies",
        "summary",
    )
    return {name: getattr(verdict, name) for name in names} | {"speedup": _interval(queries.speedup_of(verdict))}


def _submission(request: HttpRequest, submission: Submission, verdicts: Iterable[Verdict]) -> dict[str, Any]:
    pull = submission.pull_request
    return {
        "id": submission.pk,
        "pull_request": pull.number,
        "title": pull.title,
        "author": pull.author,
        "head_sha": submission.head_sha,
        "base_sha": submission.base_sha,
        "state": submission.state,
        "created_at": submission.created_at,
        "judged_at": submission.judged_at,
        "files": [
            {key: file.get(key) or "" for key in ("path", "kind", "name", "quality_class")} for file in submission.files
        ],
        "verdicts": [_verdict(verdict) for verdict in verdicts],
        "page": _page(request, f"/submissions/{submission.pk}"),
    }


def _csv(name: str, heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> HttpResponse:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(heads)
    for row in rows:
        writer.writerow([_cell(value) for value in row])
    return HttpResponse(
        text.getvalue(),
        content_type="text/csv; charset=utf-8",
        headers={"Content-Disposition": f'attachment; filename="{name}"'},
    )


def _cell(value: Any) -> Any:
    """A text that a spreadsheet would run as a formula is quoted: titles and names are contributors' own."""
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return f"'{value}"
    return "" if value is None else value


class SubmissionQuery(Schema):
    """Filters of the list; leave out what does not matter."""

    kind: str = ""
    quality_class: str = Field("", alias="class", description="E, Q8, Q4 or S")
    state: str = ""
    status: str = ""
    author: str = ""
    page: str = Field("1", description="from 1; 50 submissions a page")


@api.get("/submissions", response={200: schemas.Submissions, **PROBLEMS}, summary="List submissions, latest first")
def list_submissions(request: HttpRequest, query: Query[SubmissionQuery]) -> Any:
    page = queries.submissions(filters.submission_filter(request.GET, Submission.State.values))
    return {
        "items": [_submission(request, submission, submission.current_verdicts) for submission in page],  # type: ignore[attr-defined]
        "page": page.number,
        "pages": page.paginator.num_pages,
        "count": page.paginator.count,
    }


@api.get(
    "/submissions/{number}",
    response={200: schemas.SubmissionInFull, **PROBLEMS},
    summary="One submission with its evidence",
)
def one_submission(request: HttpRequest, number: int = Path(..., ge=1, le=999_999_999)) -> Any:
    submission = found(number)
    verdicts = list(submission.verdicts.filter(current=True).order_by("path"))
    full = _submission(request, submission, verdicts)
    evidence = ("isolation", "reasons", "next_steps", "cases", "tests", "quality", "meets", "figures")
    full["verdicts"] = [_verdict(verdict) | {name: getattr(verdict, name) for name in evidence} for verdict in verdicts]
    attempt = tuple(schemas.Attempt.model_fields)
    full["attempts"] = list(submission.attempts.order_by("-id").values(*attempt)[:50])
    full["reasons"] = submission.reasons
    return full


@api.get(
    "/submissions/{number}/outcome",
    response={200: dict[str, Any], **PROBLEMS},
    summary="The signed outcome of the latest attempt that has one",
)
def outcome(request: HttpRequest, number: int = Path(..., ge=1, le=999_999_999)) -> Any:
    text = queries.latest_outcome_text(found(number))
    if not text:
        raise Http404(f"Submission {number} has no outcome yet.")
    return HttpResponse(text, content_type="application/json")


@api.get("/tracks", response=list[schemas.Track], summary="Tracks that somebody has a place on")
def list_tracks(request: HttpRequest) -> Any:
    return [
        {
            "kind": track.kind,
            "quality_class": track.quality_class,
            "machine_class": track.machine_class,
            "entries": len(track.entries),
            "best": _interval(track.best),
            "page": _page(request, track.address),
        }
        for group in tracks.groups()
        for track in group.tracks
    ]


def _entries(board: tracks.Board) -> list[dict[str, Any]]:
    return [
        {
            "rank": entry.rank,
            "name": entry.verdict.name,
            "author": entry.verdict.submission.author,
            "submission": entry.verdict.submission_id,
            "speedup": _interval(entry.speedup),
            "quality": entry.verdict.quality,
            "memory_ratio": entry.memory,
            "on_front": entry.on_front,
            "merged": entry.merged,
            "judged_at": entry.verdict.created_at,
        }
        for entry in board.entries
    ]


@api.get(
    "/tracks/{kind}/{quality_class}/{machine_class}.csv",
    response={200: None, **PROBLEMS},
    summary="A leaderboard as CSV",
)
def leaderboard_csv(request: HttpRequest, kind: str, quality_class: str, machine_class: str) -> Any:
    board = found_board(kind, quality_class, machine_class)
    heads = (
        "rank",
        "name",
        "author",
        "submission",
        "speedup",
        "speedup_low",
        "speedup_high",
        "delta_ppl",
        "mean_kl",
        "top1",
        "needle",
        "memory_ratio",
        "on_front",
        "merged",
        "judged_at",
    )
    rows = (
        (
            entry["rank"], entry["name"], entry["author"], entry["submission"],
            entry["speedup"]["estimate"], entry["speedup"]["low"], entry["speedup"]["high"],
            *(entry["quality"].get(metric) for metric in ("delta_ppl", "mean_kl", "top1", "needle")),
            entry["memory_ratio"], entry["on_front"], entry["merged"], entry["judged_at"].isoformat(),
        )
        for entry in _entries(board)
    )  # fmt: skip
    return _csv(f"{kind}-{quality_class}.csv", heads, rows)


@api.get(
    "/tracks/{kind}/{quality_class}/{machine_class}",
    response={200: schemas.Leaderboard, **PROBLEMS},
    summary="A leaderboard",
)
def leaderboard(request: HttpRequest, kind: str, quality_class: str, machine_class: str) -> Any:
    board = found_board(kind, quality_class, machine_class)
    return {
        "kind": kind,
        "quality_class": quality_class,
        "machine_class": machine_class,
        "entries": _entries(board),
    }


@api.get("/verdicts.csv", response={200: None}, summary="Every current verdict as CSV")
def verdicts_csv(request: HttpRequest) -> Any:
    heads = (
        "submission",
        "pull_request",
        "author",
        "head_sha",
        "kind",
        "name",
        "quality_class",
        "machine_class",
        "suite_version",
        "status",
        "speed",
        "speedup",
        "speedup_low",
        "speedup_high",
        "against",
        "qualifies",
        "judged_at",
    )
    verdicts = (
        Verdict.objects.filter(current=True)
        .select_related("submission__pull_request")
        .defer("cases", "tests")
        .order_by("id")
    )
    rows = (
        (
            verdict.submission_id, verdict.submission.pull_request.number, verdict.submission.author, verdict.submission.head_sha,
            verdict.kind, verdict.name, verdict.quality_class, verdict.machine_class, verdict.suite_version, verdict.status, verdict.speed,
            verdict.speedup, verdict.speedup_low, verdict.speedup_high, verdict.against, verdict.qualifies, verdict.created_at.isoformat(),
        )
        for verdict in verdicts.iterator(chunk_size=500)
    )  # fmt: skip
    return _csv("verdicts.csv", heads, rows)


@api.get("/queue", response=schemas.Queue, summary="The merge queue")
def queue(request: HttpRequest) -> Any:
    branch = queries.branch()
    entries: list[QueueEntry] = queries.queue_entries()
    return {
        "branch": branch.name if branch else "",
        "tip_sha": branch.tip_sha if branch else "",
        "held": branch.held if branch else False,
        "hold_reason": branch.hold_reason if branch else "",
        "entries": [
            {
                "position": position,
                "submission": entry.submission_id,
                "pull_request": entry.submission.pull_request.number,
                "title": entry.submission.pull_request.title,
                "author": entry.submission.author,
                "head_sha": entry.head_sha,
                "state": entry.state,
                "sentence": entry.sentence,
                "entered_at": entry.entered_at,
            }
            for position, entry in enumerate(entries, start=1)
        ],
    }


@api.get("/workers", response=list[schemas.Worker], summary="Workers seen in the last two days")
def workers(request: HttpRequest) -> Any:
    names = ("name", "machine_class", "state", "isolation", "description", "seen_at")
    return [{name: getattr(shown.row, name) for name in names} | {"alive": shown.alive} for shown in queries.workers()]
