"""One case through the history of main: what each merge measured, and the best that main holds."""

from django.utils.safestring import SafeString
from django.utils.translation import gettext as _

from swapbench.standings.history import CaseHistory
from swapbench.web.figures.axes import percent_lines
from swapbench.web.figures.svg import Scale, drawing, element, span
from swapbench.web.quantities import interval_range, signed_percent

WIDTH, HEIGHT = 380, 130
LEFT, RIGHT, TOP, BOTTOM = 52, 16, 14, 26


def series_plot(history: CaseHistory) -> SafeString:
    """Merges in order, equally spaced, with their intervals; the line is the best so far, dashes mark where it changed."""
    points = history.measurements
    if not points:
        return drawing(WIDTH, 40, [element("text", _("Nothing was merged yet."), x=8, y=24)], label=history.case)
    ends = [value for point in points for value in (point.speedup.low, point.speedup.high)]
    low, high = span(ends, around=0.0, least=0.04, margin=0.1)
    y = Scale(low, high, HEIGHT - BOTTOM, TOP)
    x = Scale(-0.5, len(points) - 0.5, LEFT, WIDTH - RIGHT)
    parts = percent_lines(y, LEFT, WIDTH - RIGHT, about=3)
    best = 0.0
    steps = [f"M{LEFT} {y(best)}"]
    for index, point in enumerate(points):
        steps.append(f"H{x(index)}")
        if point.speedup.estimate > best:
            best = point.speedup.estimate
            steps.append(f"V{y(best)}")
        if point.better:
            parts.append(element("line", class_="change", x1=x(index), x2=x(index), y1=TOP, y2=HEIGHT - BOTTOM))
    steps.append(f"H{WIDTH - RIGHT}")
    parts.append(element("path", class_="line", d="".join(steps)))
    for index, point in enumerate(points):
        at = x(index)
        number = f"#{point.merge.entry.submission.pull_request.number}"
        title = f"{number}: {signed_percent(point.speedup.estimate)} ({interval_range(point.speedup)})"
        parts.append(
            element("line", class_="whisker accent", x1=at, x2=at, y1=y(point.speedup.low), y2=y(point.speedup.high))
        )
        parts.append(
            element("circle", element("title", title), class_="solid", cx=at, cy=y(point.speedup.estimate), r=4)
        )
        if len(points) <= 10 or index in (0, len(points) - 1):
            parts.append(element("text", number, x=at, y=HEIGHT - 8, text_anchor="middle"))
    label = _("%(name)s: best on main %(best)s over the baseline after %(count)d merges") % {
        "name": history.case,
        "best": signed_percent(best),
        "count": len(points),
    }
    return drawing(WIDTH, HEIGHT, parts, label=label)
