"""Types: checks, encoding and introspection agree."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any, NamedTuple

import pytest

from nemu.qmp.errors import QmpError
from nemu.qmp.schema import INT_MAX, INT_MIN, Introspection, Nothing, Wire, dump, load, members


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Point(NamedTuple):
    x_axis: Annotated[int, "how far right"]
    y: Annotated[float, "how far up"] = 0.0


class Shape(NamedTuple):
    points: Annotated[list[Point], "corners"]
    class_: Annotated[Colour, "colour", Wire("class")]
    open: Annotated[bool | None, "no area"] = None
    note: Annotated[Any, "anything"] = None


GOOD = {"points": [{"x-axis": 1}, {"x-axis": -2, "y": 1.5}], "class": "red", "note": {"k": [None]}}


def test_what_is_loaded_is_dumped_again() -> None:
    shape = load(Shape, GOOD)
    assert shape == Shape([Point(1), Point(-2, 1.5)], Colour.RED, None, {"k": [None]})
    assert dump(shape) == {**GOOD, "points": [{"x-axis": 1, "y": 0.0}, {"x-axis": -2, "y": 1.5}]}


def test_members_are_described() -> None:
    found = {one.name: (one.optional, one.doc) for one in members(Shape)}
    assert found["class"] == (False, "colour")
    assert found["open"] == (True, "no area")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"points": {}}, "Invalid parameter type for 'points', expected: array"),
        ({"points": [1]}, "Invalid parameter type for 'points[0]', expected: object"),
        ({"points": [{}]}, "Parameter 'points[0].x-axis' is missing"),
        ({"points": [{"x-axis": True}]}, "Invalid parameter type for 'points[0].x-axis', expected: integer"),
        ({"points": [{"x-axis": 1.0}]}, "Invalid parameter type for 'points[0].x-axis', expected: integer"),
        (
            {"points": [{"x-axis": INT_MAX + 1}]},
            "Invalid parameter type for 'points[0].x-axis', expected: integer",
        ),
        ({"points": [{"x-axis": 1, "y": "1"}]}, "Invalid parameter type for 'points[0].y', expected: number"),
        ({"points": [{"x-axis": 1, "z": 1}]}, "Parameter 'points[0].z' is unexpected"),
        ({"class": "green"}, "Parameter 'class' does not accept value 'green'"),
        ({"class": 1}, "Invalid parameter type for 'class', expected: string"),
        ({"open": 1}, "Invalid parameter type for 'open', expected: boolean"),
        ({"open": None}, "Invalid parameter type for 'open', expected: boolean"),
        ({"class_": "red"}, "Parameter 'class_' is unexpected"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place(change: dict[str, Any], problem: str) -> None:
    with pytest.raises(QmpError) as raised:
        load(Shape, GOOD | change)
    assert str(raised.value) == problem


def test_integers_have_64_bits() -> None:
    assert [load(int, value, "v") for value in (INT_MIN, INT_MAX)] == [INT_MIN, INT_MAX]


def test_introspection_says_the_same() -> None:
    schema = Introspection()
    schema.add(
        "draw", "command", **{"arg-type": schema.type_name(Shape), "ret-type": schema.type_name(Nothing)}
    )
    by_name = {one["name"]: one for one in schema.entities}
    shape = by_name[by_name["draw"]["arg-type"]]
    types = {one["name"]: (by_name[one["type"]], one.get("default", "needed")) for one in shape["members"]}
    assert [default for _, default in types.values()] == ["needed", "needed", None, None]
    assert types["points"][0]["meta-type"] == "array"
    point = by_name[types["points"][0]["element-type"]]
    assert [(one["name"], by_name[one["type"]]["json-type"]) for one in point["members"]] == [
        ("x-axis", "int"),
        ("y", "number"),
    ]
    assert types["class"][0]["values"] == ["red", "blue"]
    assert (types["open"][0]["json-type"], types["note"][0]["json-type"]) == ("boolean", "value")
    assert by_name[by_name["draw"]["ret-type"]]["members"] == []
