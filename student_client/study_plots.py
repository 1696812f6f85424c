"""Draws a study as SVG: results against labels, paired differences, cost beside gain.

Figures are as wide as a phone, so that their text is as large there as the page's.
"""

from __future__ import annotations

import html
import io
import re
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from student_client.study_statistics import difference, mean, names_of, paired, select
from student_client.study_table import comparisons_of, cost_per_example, in_units, unit_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from student_client.study_config import StudyConfig
    from student_client.study_statistics import Difference, Line
    from student_client.study_table import Comparison

__all__ = ["Plot", "plots"]

_WIDTH_IN = 4.8
_OURS = "#0f766e"
_BASELINES = ("#1e3a8a", "#b91c1c", "#f59e0b", "#7c3aed", "#0ea5e9", "#be185d", "#65a30d", "#0f172a")
_CONTROL = "#94a3b8"
_MARKERS = "osD^vP*X"
_NAME_WIDTH = 19
_SETTINGS = {
    "svg.fonttype": "none",  # text stays text: it can be searched and read out
    "svg.hashsalt": "preceptor",  # the same study gives the same file
    "font.family": "sans-serif",
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


@dataclass(frozen=True)
class Plot:
    """A figure: its title, what it shows in words, an SVG element of a page, and an SVG file."""

    title: str
    text: str
    element: str
    file: str


def plots(study: StudyConfig, lines: Sequence[Line]) -> list[Plot]:
    """Returns the figures of a study, those of a task after each other.

    Args:
        study: says what is compared.
        lines: of finished cells, each cell once.
    """
    import matplotlib as mpl  # noqa: PLC0415 - heavy

    with mpl.rc_context(_SETTINGS):
        return [
            plot
            for task in names_of(lines, "task")
            for plot in _plots_of(study, select(lines, task=task), task)
        ]


def _plots_of(study: StudyConfig, lines: Sequence[Line], task: str) -> Iterator[Plot]:
    yield _labels_plot(study, lines, task)
    metric = lines[0]["metric"]
    found = [
        (each, difference([in_units(value, metric) for value in paired(lines, each.method, each.other)]))
        for each in comparisons_of(study)
    ]
    compared = [(each, gain) for each, gain in found if gain.num_pairs]
    if compared:
        yield _differences_plot(study, compared, metric, task)
    methods = names_of(lines, "method")
    if study.none in methods and len(methods) > 1:
        yield _costs_plot(study, lines, task)


def _labels_plot(study: StudyConfig, lines: Sequence[Line], task: str) -> Plot:
    methods, budgets = names_of(lines, "method"), names_of(lines, "labels")
    metric = lines[0]["metric"]
    figure, axes = _figure(3.4 + 0.16 * len(methods))
    told = []
    for number, method in enumerate(methods):
        means = [
            mean([in_units(cell["test"], metric) for cell in select(lines, method=method, labels=labels)])
            for labels in budgets
        ]
        at = [position + 0.3 * (number / len(methods) - 0.5) for position in range(len(budgets))]
        axes.errorbar(
            at,
            [found.value for found in means],
            yerr=[0.0 if found.num < 2 else found.standard_error for found in means],  # noqa: PLR2004
            label=_name(method),
            **_style(study, method),
        )
        told.append(f"{method} " + ", ".join(f"{found.value:.4g}" for found in means))
    names = ["all" if labels is None else str(labels) for labels in budgets]
    axes.set_xticks(range(len(budgets)), names)
    axes.set_xlabel("labels")
    axes.set_ylabel(f"test {unit_of(metric)}")
    figure.legend(loc="outside lower center", ncols=2, fontsize=10, frameon=False)
    text = f"Test {unit_of(metric)} with {', '.join(names)} labels: {'; '.join(told)}."
    return _plot(f"{task}: {unit_of(metric)} against labels", text, figure)


def _differences_plot(
    study: StudyConfig, compared: Sequence[tuple[Comparison, Difference]], metric: str, task: str
) -> Plot:
    figure, axes = _figure(1.0 + 0.5 * len(compared))
    told = []
    for row, (each, gain) in enumerate(compared):
        color = _OURS if each.method == study.ours else _CONTROL
        axes.plot([gain.low, gain.high], [row, row], color=color, linewidth=2)
        axes.plot([gain.value], [row], color=color, marker="o")
        told.append(f"{each.title} {gain.value:+.3g} [{gain.low:+.3g}, {gain.high:+.3g}]")
    axes.axvline(0, color="#0f172a", linewidth=0.8)
    axes.set_yticks(range(len(compared)), [_name(each.title) for each, _ in compared], fontsize=10)
    axes.set_ylim(len(compared) - 0.5, -0.5)
    axes.set_xlabel(f"gain in {unit_of(metric)}")
    text = f"Paired differences with 95 % bootstrap intervals: {'; '.join(told)}."
    return _plot(f"{task}: paired differences", text, figure)


def _costs_plot(study: StudyConfig, lines: Sequence[Line], task: str) -> Plot:
    metric = lines[0]["metric"]
    methods = [method for method in names_of(lines, "method") if method != study.none]
    figure, (left, middle, right) = _figure(1.0 + 0.5 * len(methods), columns=3)
    told = []
    for row, method in enumerate(methods):
        cells = select(lines, method=method)
        gain = difference([in_units(value, metric) for value in paired(lines, method, study.none)])
        tokens = mean([cost_per_example(cell, "tokens") for cell in cells]).value
        kilobytes = mean(
            [
                (cost_per_example(cell, "bytes_sent") + cost_per_example(cell, "bytes_received")) / 1000
                for cell in cells
            ]
        ).value
        color = _style(study, method)["color"]
        for panel, value in ((left, gain.value), (middle, tokens), (right, kilobytes)):
            panel.barh(row, value, color=color, height=0.6)
        told.append(f"{method} gains {gain.value:+.3g} for {tokens:.3g} tokens and {kilobytes:.3g} kB")
    left.set_yticks(range(len(methods)), [_name(method) for method in methods], fontsize=10)
    left.set_ylim(len(methods) - 0.5, -0.5)
    left.axvline(0, color="#0f172a", linewidth=0.8)
    names = (f"gain,\n{unit_of(metric)}", "tokens an\nexample", "kB an\nexample")
    for panel, name in zip((left, middle, right), names, strict=True):
        panel.set_xlabel(name, fontsize=10)
        panel.locator_params(axis="x", nbins=2)
    text = (
        f"Gain over {study.none}, and teacher's tokens and bytes an example of training: {'; '.join(told)}."
    )
    return _plot(f"{task}: cost beside gain", text, figure)


def _figure(height_in: float, columns: int = 1) -> tuple[Any, Any]:
    # Without pyplot: no state that other users of matplotlib in this process would share.
    from matplotlib.figure import Figure  # noqa: PLC0415 - heavy

    figure = Figure(figsize=(_WIDTH_IN, height_in), layout="constrained")
    return figure, figure.subplots(1, columns, sharey=columns > 1)


def _style(study: StudyConfig, method: str) -> dict[str, Any]:
    """Returns how a method is drawn: ours stands out, controls stand back."""
    if method == study.ours:
        return {"color": _OURS, "marker": "o", "linewidth": 2.4, "zorder": 3}
    others = [name for name in study.methods if name != study.ours]
    number = others.index(method) if method in others else len(others)
    marker = _MARKERS[number % len(_MARKERS)]
    if method in study.controls:
        return {"color": _CONTROL, "marker": marker, "linewidth": 1, "linestyle": ":", "markersize": 4}
    color = _BASELINES[number % len(_BASELINES)]
    return {"color": color, "marker": marker, "linewidth": 1, "linestyle": "--", "markersize": 4}


def _name(text: str) -> str:
    """Returns a name on several lines if it is long; a dollar starts no formula."""
    return textwrap.fill(text, _NAME_WIDTH).replace("$", r"\$")


def _plot(title: str, text: str, figure: Any) -> Plot:
    label = html.escape(f"{title}. {text}")
    # An element of a page is as wide as there is room; its names are no other figure's, its title the page's.
    element = _svg(figure, label)
    element = re.sub(r' (?:width|height)="[\d.]+pt"', "", element[element.index("<svg") :], count=2)
    prefix = re.sub(r"\W+", "-", title)
    element = re.sub(r'\bid="', f'id="{prefix}-', element)
    element = re.sub(r"(url\(|href=\")#", rf"\g<1>#{prefix}-", element)
    figure.suptitle(title.replace("$", r"\$"), fontsize=11, fontweight="bold")
    return Plot(title, text, element, _svg(figure, label))


def _svg(figure: Any, label: str) -> str:
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return file.getvalue().replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
