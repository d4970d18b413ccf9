"""The words of the pages for codes of the protocol: what a status means, whose fault it is and what comes next."""

from dataclasses import dataclass

from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _


@dataclass(frozen=True)
class Word:
    """A code for people. `tone` names a colour of the design system; the words alone must say the same."""

    label: str | Promise
    tone: str = "calm"
    meaning: str | Promise = ""
    whose: str | Promise = ""
    next_step: str | Promise = ""


STATUSES = {
    "passed": Word(
        _("Passed"),
        "good",
        _("Correct in every test, within its quality class, and not slower than what it replaces."),
        "",
        _("Nothing to do. What is measurably faster enters the merge queue by itself."),
    ),
    "failed": Word(
        _("Failed"),
        "bad",
        _("A test found the submission wrong, too coarse for its class, or slower than what it replaces."),
        _("This is the submission's own doing."),
        _("Mend what the reasons say and push; a new head commit is judged by itself."),
    ),
    "timed_out_code": Word(
        _("Timed out (code)"),
        "bad",
        _("The submission's code did not answer before the deadline of its stage."),
        _("This is the submission's own doing: the machine was free and answered."),
        _("Run the stage at home with the command below and look for a loop, a lock or a very slow case."),
    ),
    "timed_out_infrastructure": Word(
        _("Timed out (infrastructure)"),
        "ours",
        _("The worker went away or was too slow, so that the attempt could not be finished."),
        _("This is our infrastructure's fault, not the submission's. It costs the contributor nothing."),
        _("Nothing to do. The attempt is made again by itself, at most twice; then a maintainer looks."),
    ),
    "invalid_environment": Word(
        _("Invalid environment"),
        "ours",
        _("The machine was not fit to judge: the attempt says nothing about the submission."),
        _("This is our infrastructure's fault, not the submission's. It costs the contributor nothing."),
        _("Nothing to do. The attempt is made again by itself, at most twice; then a maintainer looks."),
    ),
    "inconclusive": Word(
        _("Inconclusive"),
        "calm",
        _("Correct, but the machine was too noisy to say whether it is faster or slower."),
        _("Nobody's fault: the measurements scatter more than the difference."),
        _("Ask for another attempt when the machine is quieter, or look at the cases where the difference is largest."),
    ),
    "impossible": Word(
        _("Impossible"),
        "alarm",
        _("Faster than the hardware can be for the work that was asked: some of it was not done."),
        _("This is the submission's own doing."),
        _("Make sure that every output is computed from the inputs of its own call."),
    ),
    "tampered": Word(
        _("Tampered"),
        "alarm",
        _("The submission tried to change how it is judged, or did what the sandbox refuses."),
        _("This is the submission's own doing. A maintainer looks at every such verdict."),
        _("Take out what the reason names. If you think that this is wrong, say so in the pull request."),
    ),
}

SUBMISSION_STATES = {
    "refused": Word(
        _("Not judged"),
        "bad",
        _("This commit cannot be judged as it is."),
        _("This is the submission's own doing."),
        _("Mend what the reasons say and push; the new head commit is taken in by itself."),
    ),
    "waiting": Word(
        _("Waits for a maintainer"),
        "ours",
        _("A maintainer has to look at this commit before it runs."),
        "",
        _("Nothing to do but wait. An approval holds for this commit only; a new push needs another one."),
    ),
    "judging": Word(_("Being judged"), "live", _("A worker judges it now, or will as soon as one is free.")),
    "judged": Word(_("Judged"), "calm", _("The verdict is below.")),
    "superseded": Word(_("Superseded"), "calm", _("A newer commit of the same pull request took its place.")),
    "cancelled": Word(_("Cancelled"), "calm", _("It was called off by a person, or with its pull request.")),
}

ATTEMPT_STATES = {
    "queued": Word(_("Waiting"), "calm", _("Waiting for a free worker.")),
    "running": Word(_("Running"), "live", _("A worker is judging it now.")),
    "finished": Word(_("Finished"), "calm"),
    "lost": Word(_("Lost"), "ours", _("The worker went away. The attempt is made again by itself.")),
    "cancelled": Word(_("Cancelled"), "calm"),
}

SPEEDS = {
    "faster": Word(_("Faster"), "good"),
    "no_difference": Word(_("No difference"), "calm"),
    "slower": Word(_("Slower"), "bad"),
    "inconclusive": Word(_("Inconclusive"), "calm"),
    "not_measured": Word(_("Not measured"), "calm"),
}

STAGES = {
    "checkout": _("Checkout"),
    "unit": _("Unit"),
    "integration": _("Integration"),
    "performance": _("Performance"),
    "report": _("Report"),
}
STAGE_NAMES = tuple(STAGES)

UNITS = {"tests": _("tests"), "texts": _("texts"), "pairs": _("pairs")}

KINDS = {
    "attention": _("Attention"),
    "quantization": _("Quantization"),
    "normalization": _("Normalization"),
    "activation": _("Activation"),
    "adapter": _("Hardware adapter"),
}

CLASSES = {
    "E": _("exact"),
    "Q8": _("8-bit quality"),
    "Q4": _("4-bit quality"),
    "S": _("sparse"),
}


@dataclass(frozen=True)
class Metric:
    """A quality metric and its limit per class (DESIGN section 6). `worse` says in which direction it gets worse."""

    label: str | Promise
    worse: str
    limits: dict[str, float]
    digits: int = 2


# Class E's limit on the mean KL is twice the noise floor, which is measured and not a constant.
METRICS = {
    "delta_ppl": Metric(_("Perplexity, change"), "more", {"E": 0.001, "Q8": 0.012, "Q4": 0.065, "S": 0.01}, 3),
    "mean_kl": Metric(_("Mean KL divergence"), "more", {"Q8": 0.01, "Q4": 0.08, "S": 0.02}),
    "top1": Metric(_("Same top-1 token"), "less", {"E": 0.999, "Q8": 0.98, "Q4": 0.93, "S": 0.98}),
    "needle": Metric(_("Needle recall, of dense"), "less", {"S": 0.95}),
}


@dataclass(frozen=True)
class Fact:
    """A number beside the metrics, without a limit of its own."""

    label: str | Promise
    unit: str = ""


QUALITY_FACTS = {
    "noise_floor_kl": Fact(_("Noise floor of the KL"), "nat"),
    "perplexity": Fact(_("Perplexity")),
    "tokens": Fact(_("Tokens scored")),
}


def status_word(code: str) -> Word:
    """The word of a status or of an attempt's state; an unknown code is shown as it is, so that nothing is hidden."""
    return STATUSES.get(code) or ATTEMPT_STATES.get(code) or Word(code.replace("_", " "))


def submission_word(code: str) -> Word:
    """The word of a submission's state."""
    return SUBMISSION_STATES.get(code) or Word(code.replace("_", " "))


def speed_word(code: str) -> Word:
    """The word of a decision of the performance suite."""
    return SPEEDS.get(code) or Word(code.replace("_", " "))
