"""The plot on a model's card."""

from __future__ import annotations

from pathlib import Path

from torchorbit.extras import is_installed
from zoo.manifest import Manifest

PLOT_FILE = "widths.png"

_MOST_LAYERS = 400
_GREY, _BLUE, _TEXT = "#d5d9e0", "#2f6fde", "#4a5261"


def write_plot(manifest: Manifest, path: Path) -> None:
    """Draw the width of every layer before and after, where matplotlib is installed; a card does without it.

    Args:
        manifest: of the model.
        path: of the image, a PNG. The same manifest gives the same bytes.
    """
    if not is_installed("matplotlib"):
        return
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    widths = [width for width in manifest.widths if width.after][:_MOST_LAYERS]
    figure = Figure(figsize=(9, 3), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    places = range(len(widths))
    bars = [
        axes.bar(places, [width.before for width in widths], width=0.9, color=_GREY),
        axes.bar(places, [width.after for width in widths], width=0.9, color=_BLUE),
    ]
    axes.set_xlabel("convolutions and linear layers, from input to output", color=_TEXT)
    axes.set_ylabel("output channels", color=_TEXT)
    axes.set_xticks([])
    axes.margins(x=0.01)
    axes.tick_params(colors=_TEXT)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    names = [_label(manifest.source.model), _label(manifest.name)]
    legend = figure.legend(
        handles=bars, labels=names, loc="outside upper left", ncols=2, frameon=False, labelcolor=_TEXT
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    # Without the version of what drew it, which would make other bytes of the same picture.
    figure.savefig(path, metadata={"Software": None})


def _label(name: str) -> str:
    """A name for the legend: of what the font has, and no longer than there is room."""
    text = "".join(character if " " <= character <= "~" else "?" for character in name[:60])
    return f" {text}"  # what begins with an underscore is taken for hidden
