"""Sample data for tests and pictures of the pages: clearly samples, made through the real models.

`fill()` makes a platform in the middle of its day: attempts that run and wait, verdicts of every sort, a queue, workers,
a history of merges. All numbers are drawn from a fixed seed.
"""

import hashlib
import math
import random
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.conf import settings
from django.utils import timezone

from swapbench.mergequeue.models import BranchState, Build, QueueEntry, QueueEvent
from swapbench.submissions.models import Attempt, AuditEvent, PullRequest, Submission, Verdict, Worker
from swapbench.submissions.record import record
from workers.protocol import (
    CaseSpeed,
    ImplementationOutcome,
    Interval,
    Outcome,
    PairRecord,
    Performance,
    Reason,
    StageReport,
    TestReport,
    WholeStep,
    encode,
    sign,
)

FORGE = "local"
SUITE = "sample-suite-1"
MACHINE = "cpu"
CASES = {
    "attention": {
        "prefill b1 x 512, d64": 41e-3,
        "prefill b4 x 128..512, d64": 63e-3,
        "decode b16, kv 1024, d64": 5.8e-3,
        "decode b1, kv 4096, d128": 2.9e-3,
        "mixed 3 prefill + 9 decode": 24e-3,
    },
    "quantization": {
        "linear 1 x 2048 x 2048": 1.7e-3,
        "linear 16 x 2048 x 5504": 9.8e-3,
        "linear 256 x 2048 x 2048": 38e-3,
    },
    "normalization": {"1 x 2048": 21e-6, "64 x 2048": 190e-6, "2048 x 2048": 5.1e-3},
    "activation": {"16 x 5504": 96e-6, "1024 x 5504": 7.7e-3},
}
TESTS = {
    "unit": [
        "matches the reference",
        "sees no future token",
        "paging changes nothing",
        "order of the batch changes nothing",
        "leaves its inputs alone",
        "says what it cannot do",
    ],
    "integration": ["generates the same tokens", "perplexity within the class", "KL divergence within the class"],
    "performance": ["pairs", "no case slower than the floor"],
}


def sha(*parts: object) -> str:
    """A commit id that stays the same from run to run."""
    return hashlib.sha1(" ".join(map(str, parts)).encode(), usedforsecurity=False).hexdigest()


@dataclass(frozen=True)
class Sample:
    """One pull request to make up."""

    number: int
    title: str
    author: str
    kind: str
    name: str
    quality_class: str = "E"
    effect: float = 0.0
    status: str = "passed"
    speed: str = "faster"
    summary: str = ""
    hours_ago: float = 1.0
    quality: tuple[tuple[str, float], ...] = ()
    figures: tuple[tuple[str, float], ...] = ()
    reason: Reason | None = None
    failing: str = ""


SAMPLES = [
    Sample(1, "Attention that skips empty pages", "dave", "attention", "skip-empty", effect=0.08, hours_ago=48, summary="Correct in every test, and 8 % faster than the default over 5 cases.", quality=(("delta_ppl", 0.00001), ("mean_kl", 0.0000018), ("top1", 0.9998))),
    Sample(2, "Decode grouped by page table", "charlie", "attention", "decode-grouped", effect=0.17, hours_ago=37, summary="Correct in every test, and 17 % faster than the default over 5 cases.", quality=(("delta_ppl", 0.00002), ("mean_kl", 0.000002), ("top1", 0.9997))),
    Sample(3, "Attention without a materialised KV repeat", "alice", "attention", "varlen-grouped", effect=0.34, hours_ago=26, summary="Correct in every test, and 34 % faster than the default over 5 cases.", quality=(("delta_ppl", 0.00002), ("mean_kl", 0.0000021), ("top1", 0.9997))),
    Sample(4, "Same attention, other names", "bob", "attention", "varlen-renamed", effect=0.001, speed="no_difference", hours_ago=25, summary="Correct; no difference in speed to the default was found.", quality=(("delta_ppl", 0.0), ("mean_kl", 0.0), ("top1", 1.0))),
    Sample(5, "Tile the causal mask", "charlie", "attention", "tiled-mask", status="failed", speed="not_measured", hours_ago=22, summary="It sees the future: changing token 7 changed the output at position 6.", failing="sees no future token", reason=Reason("sees-the-future", "Changing the token at position 7 changed the output at position 6.", "unit", "prefill b1 x 17, d32", (6, 0, 3), 0.4121, 0.3987, "Compare key position <= query position, not < query position + 2.", "swapbench check --suite unit --base 3f1c0a9d2b47")),
    Sample(6, "Recompute scores to save memory", "bob", "attention", "recompute", effect=-0.14, status="failed", speed="slower", hours_ago=20, summary="Correct, but 14 % slower than the default.", quality=(("delta_ppl", 0.00001), ("mean_kl", 0.0000019), ("top1", 0.9998)), reason=Reason("slower", "It is 14.0 % slower than the default over all cases, 95 % interval -15.9 to -12.2 %.", "performance", next_step="Look at the decode cases, where most of the time is lost.")),
    Sample(7, "Int8 weights, one scale per channel", "alice", "quantization", "int8-channel", "Q8", effect=0.21, hours_ago=18, summary="Meets Q8 and is 21 % faster than the default, at 8.1 bits per weight.", quality=(("delta_ppl", 0.0031), ("mean_kl", 0.0024), ("top1", 0.9912)), figures=(("bits per weight", 8.06), ("memory ratio", 0.506))),
    Sample(8, "Int4 weights, group of 64", "charlie", "quantization", "int4-group64", "Q8", status="failed", speed="not_measured", hours_ago=15, summary="Too coarse for Q8; it meets Q4.", quality=(("delta_ppl", 0.0418), ("mean_kl", 0.0437), ("top1", 0.9511)), figures=(("bits per weight", 4.25),), failing="KL divergence within the class", reason=Reason("quality", "Mean KL is 0.0437 nat; class Q8 allows 0.01. It meets the limits of Q4.", "integration", next_step="Declare class Q4 in the header, or use smaller groups.")),
    Sample(9, "Fused RMSNorm", "alice", "normalization", "fused-rms", effect=0.052, hours_ago=12, summary="Correct, and 5.2 % faster than the default over 3 cases."),
    Sample(10, "Keep the results of earlier calls", "mallory", "attention", "replay", status="tampered", speed="not_measured", hours_ago=9, summary="It answered before the output was written.", reason=Reason("early-acknowledgement", "The output still held the judge's poison when the host said that it was done.", "performance", "decode b16, kv 1024, d64", next_step="Write the whole output before forward returns.")),
    Sample(11, "SiLU with a polynomial", "bob", "activation", "poly-silu", effect=0.018, status="inconclusive", speed="inconclusive", hours_ago=6, summary="Correct; the machine was too noisy to tell the speed."),
    Sample(12, "Attention in one pass over pages", "bob", "attention", "paged-onepass", effect=0.31, hours_ago=4, summary="Correct in every test, and 31 % faster than the default over 5 cases.", quality=(("delta_ppl", 0.00003), ("mean_kl", 0.0000024), ("top1", 0.9996))),
    Sample(13, "Int8 weights with outlier columns", "bob", "quantization", "int8-outlier", "Q8", effect=0.12, hours_ago=3, summary="Meets Q8 and is 12 % faster than the default, at 8.4 bits per weight.", quality=(("delta_ppl", 0.0012), ("mean_kl", 0.0009), ("top1", 0.9952)), figures=(("bits per weight", 8.41), ("memory ratio", 0.528))),
]  # fmt: skip


SENTINELS = 2
"""Pairs of identical code after each decision."""


def performance_of(sample: Sample, pairs: int = 20) -> Performance | None:
    """Pairs whose log-ratios scatter by 2.5 % around the sample's effect."""
    if sample.speed == "not_measured":
        return None
    draw = random.Random(sample.number)
    cases = CASES[sample.kind]
    log_effect = math.log1p(sample.effect)
    lean = {case: log_effect * draw.uniform(0.75, 1.25) for case in cases}
    noise = 0.08 if sample.speed == "inconclusive" else 0.02
    records = []
    for index in range(pairs):
        base = {case: seconds * math.exp(draw.gauss(0, 0.01)) for case, seconds in cases.items()}
        shift = draw.gauss(0, noise)
        head = {case: seconds / math.exp(lean[case] + shift + draw.gauss(0, noise)) for case, seconds in base.items()}
        records.append(
            PairRecord(
                index,
                draw.choice(["AB", "BA"]),
                "stop" if index < pairs - 8 else "confirm",
                base,
                head,
                repeated=("Another process used 31 % of a core.",) if index == 5 else (),
            )
        )
    half = noise * 1.1

    def interval(center: float, width: float) -> Interval:
        return Interval(math.expm1(center), math.expm1(center - width), math.expm1(center + width))

    return Performance(
        sample.speed,  # type: ignore[arg-type]
        "Stopped at the look after 12 pairs, confirmed by 8 fresh ones.",
        records,
        0.0004 if sample.speed in ("faster", "slower") else 0.41,
        interval(log_effect, half),
        [
            CaseSpeed(case, seconds, seconds / math.exp(lean[case]), interval(lean[case], half * 1.5), 0.002)
            for case, seconds in cases.items()
        ],
        "default",
        interval(log_effect, half),
        [_same(draw, cases, index) for index in range(32, 32 + SENTINELS)],
        steps=[
            WholeStep(step, share, interval(share * log_effect, share * half))
            for step, share in (
                ("a prompt of 8192 tokens, the shape of a model of 8B, bfloat16", 0.09),
                ("a token of each of 16 sequences after 2048, the shape of a model of 8B, bfloat16", 0.16),
            )
        ],
    )


def _same(draw: random.Random, cases: dict[str, float], index: int) -> PairRecord:
    """Base beside itself."""
    shift = draw.gauss(0, 0.02)
    head = {case: seconds * math.exp(shift + draw.gauss(0, 0.02)) for case, seconds in cases.items()}
    return PairRecord(index, draw.choice(["AB", "BA"]), "same", dict(cases), head)


def outcome_of(sample: Sample, attempt: str = "0") -> Outcome:
    """What a worker would have sent for the sample."""
    performance = performance_of(sample)
    stopped = sample.reason.stage if sample.reason and sample.status != "passed" else None
    ran = ["unit", "integration", "performance"]
    if stopped in ran:
        ran = ran[: ran.index(stopped) + 1]
    draw = random.Random(sample.number * 7)
    tests = [
        TestReport(
            suite,
            name,
            "failed" if name == sample.failing else "passed",
            draw.uniform(0.05, 4.0),
            sample.reason.sentence if sample.reason and name == sample.failing else "",
        )
        for suite in ran
        for name in TESTS[suite]
    ]
    implementation = ImplementationOutcome(
        path_of(sample), sample.kind, sample.name, sample.quality_class, sample.status, [sample.reason] if sample.reason else [], tests,  # type: ignore[arg-type]
        sample.speed, performance, quality_of(sample), tuple(c for c in ("E", "Q8", "Q4") if sample.status == "passed" or c == "Q4"), dict(sample.figures), sample.summary,  # type: ignore[arg-type]
    )  # fmt: skip
    seconds = {"checkout": 1.2, "unit": 21.0, "integration": 48.0, "performance": 118.0, "report": 0.3}
    stages = [StageReport(name, seconds[name]) for name in ("checkout", *ran, "report")]  # type: ignore[arg-type]
    return Outcome(
        attempt,
        sample.status,  # type: ignore[arg-type]
        [implementation],
        stages,
        environment={"processor": "Sample CPU, 2 cores", "memory": "24 GiB", "python": "3.11", "torch": "2.13.0"},
        isolation="full",
        seed=sha("seed", sample.number) + sha("more", sample.number)[:24],
        artifacts={"benchmark.json": '{"benchmarks": []}'},
    )


def quality_of(sample: Sample) -> dict[str, float]:
    """The sample's quality with the intervals and facts that the judge adds."""
    quality = dict(sample.quality)
    if not quality:
        return {}
    loss, divergence, same = quality["delta_ppl"], quality["mean_kl"], quality["top1"]
    return quality | {
        "delta_ppl_low": loss - 0.0004,
        "delta_ppl_high": loss + 0.0004,
        "mean_kl_high": divergence * 1.1,
        "top1_low": max(same - 0.0008, 0.0),
        "noise_floor_kl": 1.4e-6,
        "perplexity": 8.31,
        "tokens": 24576.0,
    }


def path_of(sample: Sample) -> str:
    return f"engine/{sample.kind}/{sample.name.replace('-', '_')}.py"


def submit(sample: Sample, *, state: str = Submission.State.JUDGED) -> Submission:
    """The pull request and submission of a sample, without an attempt."""
    moment = timezone.now() - timedelta(hours=sample.hours_ago)
    pull, _made = PullRequest.objects.get_or_create(
        forge=FORGE,
        number=sample.number,
        defaults={
            "title": sample.title,
            "author": sample.author,
            "author_email": f"{sample.author}@example.org",
            "head_sha": sha("head", sample.number),
            "head_ref": f"refs/pull/{sample.number}/head",
            "base_ref": "main",
        },
    )
    file = {
        "path": path_of(sample),
        "kind": sample.kind,
        "status": "added",
        "name": sample.name,
        "quality_class": sample.quality_class,
        "summary": sample.summary,
        "blob": "",
        "tree_hash": "",
    }
    submission = Submission.objects.create(
        pull_request=pull,
        head_sha=pull.head_sha,
        base_sha=sha("base"),
        files=[file],
        state=state,
        judged_at=moment if state == Submission.State.JUDGED else None,
    )
    Submission.objects.filter(pk=submission.pk).update(created_at=moment - timedelta(minutes=4))
    submission.refresh_from_db()
    return submission


def start(
    submission: Submission,
    stage: str = "performance",
    done: int = 7,
    total: int = 24,
    unit: str = "pairs",
    sentence: str = "Pair 8, order BA: measuring head.",
) -> Attempt:
    """A running attempt of the submission."""
    now = timezone.now()
    order = ["checkout", "unit", "integration", "performance"]
    entered = order[: order.index(stage) + 1]
    ago = {"checkout": 96, "unit": 94, "integration": 71, "performance": 24}
    return Attempt.objects.create(
        submission=submission,
        suite_version=SUITE,
        machine_class=MACHINE,
        suites=["unit", "integration", "performance"],
        state=Attempt.State.RUNNING,
        token=sha("token", submission.pk) + "0" * 24,
        worker="sample-worker-1",
        lease_until=now + timedelta(seconds=30),
        heartbeat_at=now,
        deadline_at=now + timedelta(minutes=13),
        started_at=now - timedelta(seconds=96),
        stage=stage,
        stages=[{"stage": name, "since": now.timestamp() - ago[name]} for name in entered],
        sentence=sentence,
        done=done,
        total=total,
        unit=unit,
        progress_at=now,
    )


def finish(submission: Submission, sample: Sample, attempt: Attempt | None = None) -> Verdict:
    """Ends the attempt (or a new one) with the sample's outcome, recorded as a worker's is."""
    moment = submission.created_at + timedelta(minutes=4)
    if attempt is None:
        attempt = start(submission)
        Attempt.objects.filter(pk=attempt.pk).update(
            created_at=submission.created_at, started_at=submission.created_at + timedelta(seconds=4)
        )
    text = encode(outcome_of(sample, str(attempt.pk)))
    Submission.objects.filter(pk=submission.pk).update(state=Submission.State.JUDGING)
    assert record(str(attempt.pk), text, sign(attempt.token, text))
    Attempt.objects.filter(pk=attempt.pk).update(finished_at=moment)
    Verdict.objects.filter(attempt=attempt).update(created_at=moment)
    Submission.objects.filter(pk=submission.pk).update(judged_at=moment)
    AuditEvent.objects.filter(submission=submission).update(at=moment)
    return Verdict.objects.get(attempt=attempt)


def enqueue(
    branch: BranchState, submission: Submission, state: str, sentence: str, at: datetime | None = None
) -> QueueEntry:
    """A place in the queue, or a merge that has happened."""
    entry = QueueEntry.objects.create(
        branch=branch, submission=submission, head_sha=submission.head_sha, state=state, sentence=sentence
    )
    if at is not None:
        QueueEntry.objects.filter(pk=entry.pk).update(
            entered_at=at - timedelta(minutes=3), ended_at=at, merge_sha=sha("merge", submission.pk)
        )
        PullRequest.objects.filter(pk=submission.pull_request_id).update(state=PullRequest.State.MERGED)
    event = QueueEvent.objects.create(
        branch=branch, entry=entry, kind=state, sentence=f"#{submission.pull_request.number} {sentence}"
    )
    if at is not None:
        QueueEvent.objects.filter(pk=event.pk).update(at=at)
    return entry


def worker(name: str, state: str, ago: float = 2.0, machine_class: str = MACHINE, attempt: str = "") -> Worker:
    return Worker.objects.create(
        name=name,
        machine_class=machine_class,
        state=state,
        isolation="full",
        description="Sample CPU, 2 cores, 24 GiB",
        attempt=attempt,
        seen_at=timezone.now() - timedelta(seconds=ago),
    )


def fill() -> dict[int, Submission]:
    """The whole day; submissions by the number of their pull request."""
    made = {}
    for sample in SAMPLES:
        made[sample.number] = submission = submit(sample)
        finish(submission, sample)
    branch = BranchState.objects.create(
        forge=FORGE, name=settings.SWAPBENCH_BRANCH, tip_sha=sha("tip"), ticked_at=timezone.now()
    )
    now = timezone.now()
    for number, hours in ((1, 47.5), (2, 36.5), (3, 25.5), (7, 17.5), (9, 11.5)):
        enqueue(
            branch,
            made[number],
            QueueEntry.State.MERGED,
            "Merged: the exact merge result passed.",
            now - timedelta(hours=hours),
        )
        merged = Build.objects.create(
            branch=branch, base_sha=sha("tip", number), merge_sha=sha("merge", number), state=Build.State.MERGED
        )
        at = now - timedelta(hours=hours)
        Build.objects.filter(pk=merged.pk).update(created_at=at - timedelta(seconds=95), ended_at=at)
        merged.entries.add(made[number].queue_entry)
    building = enqueue(branch, made[12], QueueEntry.State.BUILDING, "Its merge result is being tested.")
    enqueue(branch, made[13], QueueEntry.State.WAITING, "Waits for 1 approval by a maintainer.")
    build = Build.objects.create(
        branch=branch, base_sha=sha("tip"), merge_sha=sha("build"), sentence="Functional suites are running."
    )
    build.entries.add(building)
    Attempt.objects.create(
        build=build,
        suite_version=SUITE,
        machine_class=MACHINE,
        suites=["unit", "integration"],
        token=sha("t") + "0" * 24,
    )

    running = Sample(14, "Sliding window over pages", "alice", "attention", "window-pages", hours_ago=0.05)
    made[14] = submit(running, state=Submission.State.JUDGING)
    attempt = start(made[14])
    waiting = Sample(15, "GELU by table", "charlie", "activation", "table-gelu", hours_ago=0.02)
    made[15] = submit(waiting, state=Submission.State.JUDGING)
    Attempt.objects.create(submission=made[15], suite_version=SUITE, machine_class=MACHINE, token=sha("w") + "0" * 24)
    outside = Sample(16, "Speed up the scheduler", "charlie", "attention", "scheduler", hours_ago=2)
    made[16] = submit(outside, state=Submission.State.WAITING)
    Submission.objects.filter(pk=made[16].pk).update(
        files=[], outside=[{"path": "engine/runner/scheduler.py", "status": "modified", "why": "It is no slot file."}],
        approval_needed=True,
        reasons=[{"code": "outside-slots", "sentence": "It changes 1 file outside the slots.", "next_step": "A maintainer decides whether it is judged.", "path": "engine/runner/scheduler.py"}],
    )  # fmt: skip
    lying = Sample(17, "Header without a class", "dave", "attention", "headerless", hours_ago=1.5)
    made[17] = submit(lying, state=Submission.State.REFUSED)
    Submission.objects.filter(pk=made[17].pk).update(
        files=[], reasons=[{"code": "header", "sentence": "engine/attention/headerless.py has no “class” in its header.", "next_step": 'Add class = "E" (or Q8, Q4, S) to the header.', "path": "engine/attention/headerless.py"}]
    )  # fmt: skip
    lost = Sample(18, "Norm in blocks of 8", "dave", "normalization", "blocked-norm", hours_ago=0.3)
    made[18] = submit(lost, state=Submission.State.JUDGING)
    gone = start(made[18], "integration", 3, 12, "texts", "Scoring text 4.")
    Attempt.objects.filter(pk=gone.pk).update(
        state=Attempt.State.LOST,
        failure_kind=Attempt.Failure.LEASE,
        failure="The worker sample-worker-3 was not heard of for 30 s.",
        finished_at=now,
    )
    Attempt.objects.create(
        submission=made[18], suite_version=SUITE, machine_class=MACHINE, n=2, token=sha("x") + "0" * 24
    )
    worker("sample-worker-1", "busy", 1, attempt=str(attempt.pk))
    worker("sample-worker-2", "idle", 3)
    worker("sample-worker-3", "busy", 900)
    AuditEvent.objects.create(
        actor="swapbench",
        action="requeue",
        sentence="Attempt 1 was lost with its worker and is made again.",
        submission=made[18],
    )
    return made
