"""Files that a command leaves beside what it prints: paths come in, a refusal or a whole picture goes out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizer_tools.command import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PNG_DPI = 150


def refuse_existing_files(paths: Iterable[Path | None], overwrite: bool) -> None:
    """Raise UserError for a file that exists, unless `overwrite` gives it away."""
    for path in paths:
        if path is not None and path.is_dir():
            raise UserError(f"{path}: is a directory, but the output is a file; choose another name")
        if path is not None and path.exists() and not overwrite:
            raise UserError(f"{path}: exists; add --overwrite to replace it or choose another name")


def check_plot_name(path: Path | None) -> None:
    """Raise UserError for a plot that is not to be a PNG."""
    if path is not None and path.suffix != ".png":
        raise UserError(f"--plot {path}: has to end in .png; name such a file")


def draw(path: Path, inches: tuple[float, float], paint: Callable[[Axes], None]) -> None:
    """Write what `paint` puts on one pair of axes to `path` as PNG, whole or not at all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=inches, layout="constrained")
    FigureCanvasAgg(figure)  # draws in memory: no display, no state of pyplot
    axes = figure.add_subplot()
    paint(axes)
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        figure.savefig(aside, format="png", dpi=PNG_DPI)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def draw_bars(path: Path, groups: Sequence[str], bars: Mapping[str, Sequence[float]], label: str) -> None:
    """Lying bars: a value a group under each name of `bars`, the first group on top."""

    def paint(axes: Axes) -> None:
        height = 0.8 / len(bars)
        for k, (name, values) in enumerate(bars.items()):
            places = [group + (k - (len(bars) - 1) / 2) * height for group in range(len(groups))]
            axes.bar_label(axes.barh(places, values, height, label=name), fmt="%.3f", padding=2, fontsize="small")
        axes.set_yticks(range(len(groups)), groups)
        axes.invert_yaxis()
        axes.margins(x=0.1)
        axes.set_xlabel(label)
        axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1))

    draw(path, (9, 1.5 + 0.22 * len(groups) * (len(bars) + 0.5)), paint)
