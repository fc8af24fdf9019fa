"""What a bar is, what came of measuring it, and the registry of all of them."""

from __future__ import annotations

import dataclasses
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax

from spectran_jax.errors import InputError, RunError, unknown_name
from spectran_jax.progress import stderr_console

Curves = dict[str, dict[str, Any]]
"""Plots by name: `title`, `xlabel`, `ylabel`, and `series` of [x, y] pairs by label."""


class Unavailable(Exception):
    """A bar that can't be measured here; the message says what it needs."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the flags of the benchmark say."""

    workdir: Path
    data: Path | None = None
    """Holds beauty/ and office/."""
    peers: Path | None = None
    """Holds the peers' scripts."""
    peer_python: str = ""
    """The interpreter that has the peers installed."""
    repeats: int = 5
    full: bool = False

    def dataset(self, name: str) -> Path:
        """The folder of a data set; raises `Unavailable` where it is not there."""
        if self.data is None:
            raise Unavailable(f"needs --data=FOLDER with {name}/")
        if not (self.data / name / "interactions.tsv").is_file():
            raise Unavailable(f"{self.data / name} holds no interactions.tsv")
        return self.data / name

    def peer(self, script: str) -> Path:
        """A peer's script; raises `Unavailable` where it, or its interpreter, is not there."""
        if self.peers is None or not self.peer_python:
            raise Unavailable(f"needs --peers=FOLDER with {script} and --peer_python=PYTHON")
        if not (self.peers / script).is_file():
            raise Unavailable(f"{self.peers} holds no {script}")
        return self.peers / script

    def to_dict(self) -> dict[str, Any]:
        """What a row's figures may depend on, as JSON values."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "workdir"}
        return {name: str(value.resolve()) if isinstance(value, Path) else value for name, value in values.items()}


class ReadSettings(Settings):
    """Settings that know which of them were read, so that a row depends on no others."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(**{f.name: getattr(settings, f.name) for f in dataclasses.fields(settings)})
        object.__setattr__(self, "names", set())

    def __getattribute__(self, name: str) -> Any:
        values = super().__getattribute__("__dict__")
        if "names" in values:
            values["names"].add(name)
        return super().__getattribute__(name)

    def read(self) -> dict[str, Any]:
        """Those of `to_dict` that were read before."""
        names = frozenset(self.__dict__["names"])
        return {name: value for name, value in self.to_dict().items() if name in names}


@dataclasses.dataclass(frozen=True)
class Measured:
    """What measuring a bar gave."""

    ratio: float
    """The figure that the limit holds for."""
    ours: float | None = None
    other: float | None = None
    spread: tuple[float, float] | None = None
    """Lowest and highest of the ratio's repetitions, or its interval."""
    note: str = ""
    holds: bool = True
    """False where a condition beside the limit is broken; the note says which."""
    curves: Curves = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Bar:
    """A figure to reach, and how it is measured."""

    name: str
    what: str
    """One line, with units."""
    limit: float
    at_least: bool
    """Whether the ratio must not fall below the limit; else it must not rise above."""
    measure: Callable[[Settings], Measured]
    quick: bool = True
    """Whether it is measured when neither --full nor its name asks for it."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of the table; every field is a JSON value."""

    name: str
    what: str
    ours: float | None
    other: float | None
    ratio: float | None
    limit: float
    at_least: bool
    met: bool | None
    """None where the bar could not be measured here."""
    spread: list[float] | None
    note: str
    settings: dict[str, Any]
    """Those that the figures depend on."""
    machine: dict[str, Any]
    curves: Curves = dataclasses.field(default_factory=dict)

    @property
    def bar(self) -> str:
        """The limit as a person writes it."""
        return f"{'≥' if self.at_least else '≤'} {self.limit:g}"

    @property
    def verdict(self) -> str:
        """yes, no, or that it could not run."""
        return {True: "yes", False: "no", None: "not run"}[self.met]

    def stands_for(self, other: Row) -> bool:
        """Whether this row, measured before, need not be measured again; one without a figure always is."""
        fields = ("name", "machine", "limit", "at_least")
        same = all(getattr(self, f) == getattr(other, f) for f in fields)
        return self.ratio is not None and same and self.settings.items() <= other.settings.items()


REGISTRY: dict[str, Bar] = {}


def bar(
    name: str, what: str, *, at_least: float | None = None, at_most: float | None = None, quick: bool = True
) -> Callable[[Callable[[Settings], Measured]], Callable[[Settings], Measured]]:
    """Registers the function below as the measurement of a bar; give one of the two limits."""
    limit = at_least if at_least is not None else at_most
    assert limit is not None

    def register(measure: Callable[[Settings], Measured]) -> Callable[[Settings], Measured]:
        REGISTRY[name] = Bar(name, what, limit, at_least is not None, measure, quick)
        return measure

    return register


def chosen(names: Iterable[str], *, full: bool, registry: dict[str, Bar] | None = None) -> list[Bar]:
    """The bars of these names, in the order of the registry; where there are none the quick ones, or all if `full`.

    Raises:
      InputError: for a name that no bar has.
    """
    known = REGISTRY if registry is None else registry
    names = list(names)
    for name in names:
        if name not in known:
            raise unknown_name("row", name, known)
    return [b for b in known.values() if (b.name in names if names else b.quick or full)]


def pending(bar: Bar, settings: Settings, machine: dict[str, Any]) -> Row:
    """The row of a bar before it is measured."""
    return Row(
        name=bar.name,
        what=bar.what,
        ours=None,
        other=None,
        ratio=None,
        limit=bar.limit,
        at_least=bar.at_least,
        met=None,
        spread=None,
        note="",
        settings=settings.to_dict(),
        machine=machine,
    )


def measure(bar: Bar, settings: Settings, machine: dict[str, Any]) -> Row:
    """Measures a bar. One that fails misses its limit, says so in its note, and stops no other."""
    row, settings = pending(bar, settings, machine), ReadSettings(settings)
    try:
        found = bar.measure(settings)
    except Unavailable as reason:
        return dataclasses.replace(row, note=str(reason))
    except (InputError, RunError) as error:
        return dataclasses.replace(row, met=False, note=f"failed: {error}")
    except Exception as error:
        stderr_console().print(traceback.format_exc(), markup=False, highlight=False)
        return dataclasses.replace(row, met=False, note=f"failed: {type(error).__name__}: {error}"[:500])
    finally:
        jax.clear_caches()  # programs of the row hold on to memory that the next one measures
    kept = found.ratio >= bar.limit if bar.at_least else found.ratio <= bar.limit
    return dataclasses.replace(
        row,
        ours=found.ours,
        other=found.other,
        ratio=found.ratio,
        met=bool(kept and found.holds),
        spread=None if found.spread is None else list(found.spread),
        note=found.note,
        settings=settings.read(),
        curves=found.curves,
    )
