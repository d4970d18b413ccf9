"""What templates need to show protocol structs: numbers with units, words of codes, figures and times."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from django import template
from django.utils import formats, timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from swapbench.web import evidence, quantities, queries, wording
from swapbench.web.figures import intervals, limits, pairs, same, series, svg
from workers.protocol import Interval, Performance, WholeStep

register = template.Library()

register.filter("signed_percent", quantities.signed_percent)
register.filter("percent", quantities.percent)
register.filter("interval_range", quantities.interval_range)
register.filter("seconds", quantities.seconds)
register.filter("duration", quantities.duration)
register.filter("size", quantities.size)
register.filter("probability", quantities.probability)
register.filter("exact", quantities.exact)
register.filter("plain", quantities.plain)
register.filter("status_word", wording.status_word)
register.filter("speed_word", wording.speed_word)
register.filter("submission_word", wording.submission_word)
register.simple_tag(queries.speedup_of, name="speedup_of")
register.simple_tag(evidence.case_table, name="case_rows")
register.simple_tag(evidence.quality_table, name="quality_table")
register.simple_tag(evidence.test_groups, name="test_groups")

_MARKS = {
    "good": '<path d="M2.2 6.4l2.5 2.6 5.1-6" fill="none" stroke="currentColor" stroke-width="1.9" stroke-linecap="round" stroke-linejoin="round"/>',
    "bad": '<path d="M3 3l6 6M9 3l-6 6" fill="none" stroke="currentColor" stroke-width="1.9" stroke-linecap="round"/>',
    "ours": '<path d="M6 1.5v5M6 9.4v.2" fill="none" stroke="currentColor" stroke-width="2.1" stroke-linecap="round"/>',
    "alarm": '<path d="M6 1.2l4.9 8.9H1.1z" fill="none" stroke="currentColor" stroke-width="1.5" stroke-linejoin="round"/>',
    "live": '<circle cx="6" cy="6" r="4" fill="currentColor"/>',
    "calm": '<circle cx="6" cy="6" r="3.6" fill="none" stroke="currentColor" stroke-width="1.6"/>',
}


def _tag(word: wording.Word) -> SafeString:
    mark = SafeString(f'<svg viewBox="0 0 12 12" aria-hidden="true">{_MARKS[word.tone]}</svg>')
    return format_html('<span class="tag {}">{}{}</span>', word.tone, mark, word.label)


@register.simple_tag
def status(code: str) -> SafeString:
    """A status or state as a tag: mark and word in the colour of its tone."""
    return _tag(wording.status_word(code))


@register.simple_tag
def speed(code: str) -> SafeString:
    """A decision of the performance suite as a tag."""
    return _tag(wording.speed_word(code))


@register.simple_tag
def submission_state(code: str) -> SafeString:
    """The state of a submission as a tag."""
    return _tag(wording.submission_word(code))


@register.simple_tag
def duration_between(start: datetime, end: datetime) -> str:
    return quantities.duration((end - start).total_seconds())


@register.filter
def kind_label(code: str) -> str:
    return str(wording.KINDS.get(code, code))


@register.filter
def class_label(code: str) -> str:
    """A quality class with what it means: "Q8, 8-bit quality"."""
    meaning = wording.CLASSES.get(code)
    return f"{code}, {meaning}" if meaning else code


@register.filter
def stage_label(code: str) -> str:
    return str(wording.STAGES.get(code, code))


@register.filter
def unit_label(code: str) -> str:
    return str(wording.UNITS.get(code, code))


@register.filter
def sentence(text: str) -> SafeString:
    """A sentence of the platform or the judge: what it sets in backticks is code."""
    parts = str(text).split("`")
    if len(parts) % 2 == 0:
        return format_html("{}", text)
    return SafeString(
        "".join(format_html("<code>{}</code>" if index % 2 else "{}", part) for index, part in enumerate(parts))
    )


@register.filter
def fact(value: object) -> str:
    """A fact of an environment: numbers without a pointless ".0", texts as they are."""
    return quantities.plain(value) if isinstance(value, int | float) else str(value)


@register.filter
def short_sha(sha: str) -> str:
    return sha[:10]


@register.filter
def figure_value(value: float, name: str) -> str:
    return quantities.figure(name, value)


@register.simple_tag
def ago(moment: datetime | None) -> SafeString | str:
    """A moment as "3 min. ago", with the exact time on hover; live.js lets it age."""
    if moment is None:
        return quantities.NOTHING
    passed = timezone.now() - moment
    exact = formats.date_format(timezone.localtime(moment), "Y-m-d H:i:s e")
    return format_html('<time datetime="{}" title="{}" data-ago>{}</time>', moment.isoformat(), exact, _ago(passed))


def _ago(passed: timedelta) -> str:
    seconds = max(0, int(passed.total_seconds()))
    if seconds < 60:
        return ngettext("%(count)d second ago", "%(count)d seconds ago", seconds) % {"count": seconds}
    if seconds < 3600:
        return ngettext("%(count)d minute ago", "%(count)d minutes ago", seconds // 60) % {"count": seconds // 60}
    if seconds < 86400:
        return ngettext("%(count)d hour ago", "%(count)d hours ago", seconds // 3600) % {"count": seconds // 3600}
    days = seconds // 86400
    return ngettext("%(count)d day ago", "%(count)d days ago", days) % {"count": days}


@register.simple_tag
def left(moment: datetime | None) -> SafeString | str:
    """The time until a deadline as minutes and seconds, counted down by live.js."""
    if moment is None:
        return quantities.NOTHING
    seconds = max(0, round((moment - timezone.now()).total_seconds()))
    text = f"{seconds // 60}:{seconds % 60:02d}"
    return format_html(
        '<time datetime="{}" title="{}" data-left>{}</time>', moment.isoformat(), _("until the deadline"), text
    )


@register.simple_tag
def shared_scale(measured: list[Interval]) -> svg.Scale:
    return intervals.shared_scale(measured)


@register.simple_tag
def scale_of_steps(steps: Sequence[WholeStep]) -> svg.Scale:
    return intervals.shared_scale([step.speedup for step in steps])


@register.simple_tag
def interval_row(interval: Interval, scale: svg.Scale | None = None) -> SafeString:
    return intervals.interval_row(interval, scale or intervals.shared_scale([interval]))


@register.simple_tag
def interval_axis(scale: svg.Scale) -> SafeString:
    return intervals.interval_axis(scale)


@register.simple_tag
def pair_plot(performance: Performance) -> SafeString:
    return pairs.pair_plot(performance)


register.simple_tag(series.series_plot, name="series_plot")
register.simple_tag(same.same_plot, name="same_plot")


@register.simple_tag
def limit_bar(code: str, value: float, quality_class: str) -> SafeString | str:
    metric = wording.METRICS.get(code)
    return limits.limit_bar(metric, value, quality_class) if metric else ""


@register.simple_tag
def limit_text(code: str, quality_class: str) -> str:
    """The limit of a class on a metric, with its sign."""
    return evidence.limit_text(code, quality_class)


@register.simple_tag(takes_context=True)
def page_link(context: template.RequestContext, number: int) -> str:
    """The query string of another page of the same list with the same filters."""
    query = context["request"].GET.copy()
    query["page"] = str(number)
    return f"?{query.urlencode()}"
