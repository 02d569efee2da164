"""Labels lie beside their points and keep out of each other's way."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from loraprune.report.comparison.ticks import label_places

AREA = (0.0, 0.0, 300.0, 300.0)
SIZE = (14.0, 10.0)


def box(corner: tuple[float, float]) -> tuple[float, float, float, float]:
    return (corner[0], corner[1], corner[0] + SIZE[0], corner[1] + SIZE[1])


def overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12, unique=True))
def test_labels_of_points_with_room_between_them_cover_nothing(cells: list[tuple[int, int]]) -> None:
    points = [(25.0 + 50 * column, 25.0 + 50 * row) for column, row in cells]
    boxes = [box(place) for place in label_places(points, [SIZE] * len(points), AREA, gap=6)]
    assert not any(overlap(one, other) for one, other in itertools.combinations(boxes, 2))
    assert not any(overlap(one, (x - 4, y - 4, x + 4, y + 4)) for one in boxes for x, y in points)


def test_a_label_at_the_edge_stays_inside() -> None:
    left, bottom, right, top = box(label_places([(298.0, 298.0)], [SIZE], AREA, gap=6)[0])
    assert left >= 0
    assert bottom >= 0
    assert right <= 300
    assert top <= 300


def test_a_label_keeps_off_what_is_taken() -> None:
    taken = (150.0, 150.0, 300.0, 300.0)
    assert not overlap(box(label_places([(150.0, 150.0)], [SIZE], AREA, gap=6, taken=[taken])[0]), taken)


def test_labels_of_points_in_one_place_lie_apart() -> None:
    points = [(100.0, 100.0), (101.0, 100.0), (100.0, 101.0), (101.0, 101.0)]
    boxes = [box(place) for place in label_places(points, [SIZE] * 4, AREA, gap=6)]
    assert not any(overlap(one, other) for one, other in itertools.combinations(boxes, 2))
