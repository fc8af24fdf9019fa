"""Ids and columns that are not written as they are looked for: nothing is changed, but messages say what to change."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence

from spectran_jax.errors import nearest

_WAYS: dict[str, Callable[[str], str]] = {
    "write whole numbers without .0 (pandas: .astype('Int64'))": lambda item: re.sub(r"^(-?[0-9]+)\.0+$", r"\1", item),
    "write numbers with the same leading zeros": lambda item: re.sub(r"^0+(?=[0-9])", "", item),
    "leave out the blanks around ids": str.strip,
    "write both files in one normal form of Unicode, such as NFC": lambda item: unicodedata.normalize("NFC", item),
    "write letters in the same case": str.casefold,
}
"""What to do about two spellings that one of these makes the same."""

_NAMES, _NAME_LETTERS = 50, 80
"""Names of columns that a message lists at most, and letters of each."""


def alike(others: Sequence[str]) -> Callable[[str], bool]:
    """A test of ids: whether one may be one of the others in another spelling."""
    forms = [(plain, {plain(item) for item in others}) for plain in _WAYS.values()]
    return lambda item: any(plain(item) in there for plain, there in forms)


def remedy(unknown: Sequence[str], known: Iterable[str], otherwise: str, different: int = 0) -> str:
    """What to do about ids that are not known: to spell them as the known ones, if that is all that is wrong.

    Args:
      unknown: different ids, as written.
      known: ids as they are looked for.
      otherwise: what to do about ids that are not there in another spelling either.
      different: how many there are, where `unknown` are the first of them.
    """
    known = list(known)
    best, told = 0, ""
    for advice, plain in _WAYS.items():
        forms = {plain(item) for item in unknown}
        there = {form: item for item in known if (form := plain(item)) in forms}
        found = [item for item in unknown if plain(item) in there]
        if len(found) > best:
            best = len(found)
            # Two forms of Unicode look the same unless they are shown by their codes.
            theirs, ours = map(ascii if "Unicode" in advice else repr, (found[0], there[plain(found[0])]))
            told = f"there in another spelling, {theirs} as {ours}: {advice}"
        if 0 < best == max(len(unknown), different):
            return f"all of them are {told}"
    if not best:
        return otherwise
    return f"{best} of them {'is' if best == 1 else 'are'} {told}; of the others, {otherwise}"


def columns_found(missing: Iterable[str], found: Iterable[str], wanted: Iterable[str] = ()) -> str:
    """The end of a message of missing columns: those found, and which of them may be meant.

    Args:
      missing: columns that are looked for and not there.
      found: columns that are there.
      wanted: all that are looked for; those of them that are there can't be meant by another.
    """
    found, missing = list(found), list(missing)
    free = [name for name in found if name not in {*wanted}]
    pairs = [(near, name) for name in missing if (near := nearest(name, free))]
    if not pairs and missing == ["item_id"] and "id" in free:  # too short to be near
        pairs = [("id", "item_id")]
    hint = f" Rename {' and '.join(f'{near!r} to {name!r}' for near, name in pairs)}?" if pairs else ""
    if not pairs and "user_id" in missing and {"item_id", "timestamp", "position"} & {*found} == {"item_id"}:
        hint = " It looks like a file for --items; are two flags exchanged?"
    return f"columns found: {listed(found)}.{hint}"


def listed(names: Iterable[str]) -> str:
    """Names of columns for a message of one line, whatever a file has for names."""
    names = list(names)
    shown = [" ".join(name.split())[:_NAME_LETTERS] for name in names[:_NAMES]]
    return ", ".join([*shown, *(["..."] if len(names) > _NAMES else [])]) or "none"
