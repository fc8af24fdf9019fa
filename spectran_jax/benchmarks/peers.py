"""Peers run as scripts of their own, with their own interpreter, and print one JSON line."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spectran_jax.benchmarks.rows import Settings
from spectran_jax.digest import json_digest
from spectran_jax.errors import RunError
from spectran_jax.writing import write_json

FIGURES = ("examples_per_second", "ndcg@10")


def parse(output: str) -> dict[str, Any]:
    """The last line of a peer's output that is a JSON object with the figures wanted.

    Raises:
      RunError: where there is none.
    """
    for line in reversed(output.splitlines()):
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict) and all(isinstance(found.get(name), int | float) for name in FIGURES):
            return found
    raise RunError(f"The peer printed no JSON line with {' and '.join(FIGURES)}.")


def run(settings: Settings, script: str, *arguments: str) -> dict[str, Any]:
    """Runs a peer and returns what its JSON line holds.

    Raises:
      Unavailable: without the script or its interpreter.
      RunError: where it fails; the message ends with its last line.
    """
    path = settings.peer(script)
    try:
        done = subprocess.run(
            [settings.peer_python, str(path), *arguments], capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise RunError(f"--peer_python={settings.peer_python} can't be run: {error.strerror}.") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RunError(f"{script} {' '.join(arguments)} ended with status {done.returncode}: {last}")
    return parse(done.stdout)


def remembered(settings: Settings, script: str, *arguments: str, files: Sequence[Path] = ()) -> dict[str, Any]:
    """`run`, or what it gave before for the same script, arguments and content of the files that it reads: for what
    does not depend on time."""
    contents = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (settings.peer(script), *files)]
    key = json_digest([contents, settings.peer_python, list(arguments)])
    path = settings.workdir / "peers" / f"{Path(script).stem}-{key[:16]}.json"
    if path.is_file():
        return parse(json.dumps(json.loads(path.read_text(encoding="utf-8"))))
    found = run(settings, script, *arguments)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, found)
    return found


def best_mode(settings: Settings, script: str, arguments: Sequence[str], modes: Sequence[str]) -> tuple[str, str]:
    """The fastest of a peer's modes, each tried once, and a note on all of them; "" is the default mode.

    Raises:
      RunError: where none runs.
    """
    speeds: dict[str, float] = {}
    notes = []
    for mode in modes:
        try:
            speeds[mode] = run(settings, script, *arguments, *mode.split())["examples_per_second"]
            notes.append(f"{mode or 'default'} {speeds[mode]:,.0f}/s")
        except RunError as error:
            notes.append(f"{mode or 'default'} failed ({error})")
    if not speeds:
        raise RunError(f"No mode of {script} runs: {'; '.join(notes)}")
    return max(speeds, key=lambda mode: speeds[mode]), "; ".join(notes)
