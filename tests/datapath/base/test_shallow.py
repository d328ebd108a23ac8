"""The fields of a dataclass as they are."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from datapath.base.shallow import shallow


@dataclass(frozen=True, slots=True)
class Inner:
    number: int


@dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner
    more: tuple[Inner, ...] = ()


def test_values_are_the_same_objects() -> None:
    outer = Outer("x", Inner(1), (Inner(2),))
    found = shallow(outer)
    assert found == {"name": "x", "inner": Inner(1), "more": (Inner(2),)}
    assert found["inner"] is outer.inner
    assert list(found) == list(asdict(outer))
    assert shallow(outer.inner) == asdict(outer.inner)
