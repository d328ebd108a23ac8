"""A history as a picture: each metric over commits, with its steps, in one SVG file that needs nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from lab.report.trends import change_of, said_of
from lab.results.compare import Verdict
from lab.results.history import Track
from lab.results.subject import short
from lab.results.trends import Checked, Finding

WIDTH, HEIGHT = 900, 150
"""Of the picture, and of one metric in it, in pixels."""

_LEFT, _RIGHT, _TOP, _BOTTOM = 90, 20, 30, 22
_HEADING = 40
_STYLE = """
text { font: 12px system-ui, sans-serif; fill: #1a1a1a } .title { font-weight: 600 } .axis { fill: #5f5f5f }
.page { fill: #ffffff } .frame { fill: none; stroke: #c8c8c8 }
.course { fill: none; stroke: #1f5fa8; stroke-width: 1.5 }
.point { fill: #1f5fa8 } .worse { stroke: #b3261e; stroke-width: 2 } .better { stroke: #1b7f3b; stroke-width: 2 }
text.worse { fill: #b3261e; stroke: none } text.better { fill: #1b7f3b; stroke: none }
@media (prefers-color-scheme: dark) {
 text { fill: #ececec } .axis { fill: #a8a8a8 } .page { fill: #16181b } .frame { stroke: #4a4d52 }
 .course { stroke: #7db4f0 } .point { fill: #7db4f0 } .worse { stroke: #ff8a80 } .better { stroke: #7bd88f }
 text.worse { fill: #ff8a80 } text.better { fill: #7bd88f }
}
"""


def plot(checked: Sequence[Checked]) -> str:
    """Return the picture of series and their steps."""
    rows = [(each, each.lineage.tracks()) for each in checked]
    height = sum(_HEADING + HEIGHT * len(tracks) for _, tracks in rows)
    size = {"width": str(WIDTH), "height": str(height), "viewBox": f"0 0 {WIDTH} {height}"}
    picture = Element("svg", {"xmlns": "http://www.w3.org/2000/svg", "role": "img", **size})
    SubElement(picture, "title").text = "Benchmarks over commits"
    SubElement(picture, "style").text = _STYLE
    SubElement(picture, "rect", {"class": "page", "width": "100%", "height": "100%"})
    y = 0.0
    for each, tracks in rows:
        newest = each.lineage.entries[-1].result
        heading = f"{newest.bench} on {newest.machine.cpu_model}, kernel {newest.machine.kernel} ({each.lineage.name})"
        _text(picture, 10, y + 26, heading, "title")
        y += _HEADING
        for track in tracks:
            part = SubElement(picture, "g", {"transform": f"translate(0 {y:g})"})
            _draw(part, track, [found for found in each.findings if found.metric == track.name])
            y += HEIGHT
    indent(picture, " ")
    return tostring(picture, encoding="unicode") + "\n"


def _draw(part: Element, track: Track, findings: Sequence[Finding]) -> None:
    """Draw a metric: frame, values, steps; what a point stands for is told when one points at it."""
    across, down = _axes(track)
    inner = HEIGHT - _TOP - _BOTTOM
    _text(part, _LEFT, _TOP - 8, f"{track.name} ({track.unit}; {track.better} is better)", "title")
    frame = {"x": _LEFT, "y": _TOP, "width": WIDTH - _LEFT - _RIGHT, "height": inner}
    SubElement(part, "rect", {"class": "frame", **{name: str(value) for name, value in frame.items()}})
    for value, y in ((max(track.values), _TOP + 10.0), (min(track.values), _TOP + float(inner))):
        _text(part, _LEFT - 6, y, f"{value:.4g}", "axis", anchor="end")
    _text(part, _LEFT, HEIGHT - 6, short(track.commits[0]), "axis")
    _text(part, WIDTH - _RIGHT, HEIGHT - 6, short(track.commits[-1]), "axis", anchor="end")
    places = [(across(number), down(value)) for number, value in enumerate(track.values)]
    SubElement(part, "polyline", {"class": "course", "points": " ".join(f"{x:.1f},{y:.1f}" for x, y in places)})
    for (x, y), commit, value in zip(places, track.commits, track.values, strict=True):
        point = SubElement(part, "circle", {"class": "point", "cx": f"{x:.1f}", "cy": f"{y:.1f}", "r": "2.5"})
        SubElement(point, "title").text = _printable(f"{commit}: {value:.6g} {track.unit}")
    for found in findings:
        _mark(part, found, across(found.at - 0.5))


def _mark(part: Element, found: Finding, x: float) -> None:
    kind = "worse" if found.verdict is Verdict.WORSE else "better"
    ends = {"x1": f"{x:.1f}", "x2": f"{x:.1f}", "y1": str(_TOP), "y2": str(HEIGHT - _BOTTOM)}
    line = SubElement(part, "line", {"class": kind, **ends})
    SubElement(line, "title").text = _printable(said_of(found))
    # Where the course does not go.
    y = HEIGHT - _BOTTOM - 6.0 if found.change.middle > 0 else _TOP + 12.0
    _text(part, min(x + 4, WIDTH - _RIGHT - 50), y, change_of(found), kind)


def _axes(track: Track) -> tuple[Callable[[float], float], Callable[[float], float]]:
    """Return the functions from a number of a commit, and from a value, to pixels."""
    low, high = min(track.values), max(track.values)
    margin = (high - low) * 0.1 or abs(high) * 0.1 or 1.0
    bottom, inner = low - margin, HEIGHT - _TOP - _BOTTOM
    width = (WIDTH - _LEFT - _RIGHT - 20) / max(len(track.values) - 1, 1)
    return (
        lambda number: _LEFT + 10 + number * width,
        lambda value: _TOP + inner * (1 - (value - bottom) / (high - low + 2 * margin)),
    )


def _text(part: Element, x: float, y: float, text: str, kind: str, *, anchor: str = "start") -> None:
    place = {"x": f"{x:g}", "y": f"{y:g}", "class": kind, "text-anchor": anchor}
    SubElement(part, "text", place).text = _printable(text)


def _printable(text: str) -> str:
    """Return text of which XML has every character."""
    return "".join(character if character.isprintable() else "?" for character in text)
