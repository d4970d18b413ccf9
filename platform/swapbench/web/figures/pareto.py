"""Speed against quality against memory, as Plotly's JSON. Colours are tokens ("token:--ink") that plot.js looks up."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from django.utils.translation import gettext as _

from swapbench.web.quantities import interval_range, plain, signed_percent
from workers.protocol import Interval


@dataclass(frozen=True)
class FrontPoint:
    """An entry of a track: its speed-up over the track's baseline, its quality loss (mean KL in nat, less is better)
    and its memory ratio (less is better); None where it was not measured."""

    name: str
    author: str
    speedup: Interval
    loss: float | None = None
    memory: float | None = None
    on_front: bool = False


def pareto_figure(points: Sequence[FrontPoint]) -> dict[str, Any]:
    """Speed to the right, quality loss upwards, memory as the size of the mark; entries on the front are filled."""
    return {
        "data": [
            _trace([point for point in points if point.on_front], _("on the front"), "token:--mark-accent"),
            _trace([point for point in points if not point.on_front], _("dominated"), "token:--mark-calm"),
        ],
        "layout": {
            "autosize": True,
            "height": 416,
            "margin": {"l": 72, "r": 16, "t": 8, "b": 56},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "font": {"family": "token:--sans", "size": 12, "color": "token:--soft"},
            "hoverlabel": {
                "bgcolor": "token:--panel",
                "bordercolor": "token:--line-strong",
                "font": {"family": "token:--sans", "color": "token:--ink"},
            },
            "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
            "xaxis": {**_axis(_("speed-up over the track’s baseline")), "tickformat": "+,.0%"},
            "yaxis": {**_axis(_("mean KL divergence, nat")), "exponentformat": "power", "rangemode": "tozero"},
        },
    }


def _axis(title: str) -> dict[str, Any]:
    return {
        "title": {"text": title},
        "gridcolor": "token:--line",
        "zerolinecolor": "token:--line-strong",
        "linecolor": "token:--line",
        "automargin": True,
    }


def _trace(points: Sequence[FrontPoint], name: str, colour: str) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers+text" if len(points) <= 12 else "markers",
        "name": name,
        "x": [point.speedup.estimate for point in points],
        "y": [point.loss or 0.0 for point in points],
        "text": [point.name for point in points],
        "textposition": "top center",
        "cliponaxis": False,
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [point.speedup.high - point.speedup.estimate for point in points],
            "arrayminus": [point.speedup.estimate - point.speedup.low for point in points],
            "color": colour,
            "thickness": 1.5,
            "width": 0,
        },
        "marker": {"color": colour, "size": [_diameter(point.memory) for point in points], "opacity": 0.9},
        "customdata": [[point.author, _numbers(point)] for point in points],
        "hovertemplate": "<b>%{text}</b>, %{customdata[0]}<br>%{customdata[1]}<extra></extra>",
    }


def _diameter(memory: float | None) -> float:
    return 12.0 if memory is None else min(max(8.0 + 14.0 * memory, 8.0), 30.0)


def _numbers(point: FrontPoint) -> str:
    lines = [f"{signed_percent(point.speedup.estimate)} ({interval_range(point.speedup)})"]
    lines.append(
        _("KL %(loss)s nat") % {"loss": plain(point.loss)} if point.loss is not None else _("quality not measured")
    )
    if point.memory is not None:
        lines.append(_("memory × %(ratio)s") % {"ratio": plain(point.memory)})
    return "<br>".join(lines)
