"""Labels of an axis on which the layers of a model stand."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

PIXELS_PER_LABEL = 24.0

_STRIDES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


def labels(layers: Sequence[int], room: int) -> list[tuple[int, str]]:
    """Choose labels: of every layer where there is room, else of every second, fifth, tenth and so on.

    Args:
        layers: what stands on the axis, in order; a layer may come several times, and its first place is labeled.
        room: how many labels there is room for.

    Returns:
        Places on the axis, counted from 0, with their labels.
    """
    firsts: dict[int, int] = {}
    for place, layer in enumerate(layers):
        firsts.setdefault(layer, place)
    stride = next((step for step in _STRIDES if len(firsts) <= step * max(1, room)), _STRIDES[-1])
    return [(place, str(layer)) for layer, place in firsts.items() if layer % stride == 0]


def horizontal(axes: Axes, layers: Sequence[int], width: float) -> None:
    """Lay out a horizontal axis of layers, from 0 on; few layers leave room to the right, so that bars stay slim."""
    shown = labels(layers, int(width / PIXELS_PER_LABEL))
    axes.set_xticks([place for place, _ in shown], [text for _, text in shown])
    axes.set_xlim(-0.6, max(len(layers) - 0.4, 2.6))
    axes.set_xlabel("layer")
