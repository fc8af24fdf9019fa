"""What a trained model says of histories, of the data set's users or ones never seen before: top items, user states."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from spectran_jax import backbones, evaluation
from spectran_jax.data import Histories, Targets
from spectran_jax.data.text_files import require_file
from spectran_jax.errors import InputError, RunError
from spectran_jax.layout import EvalBatch
from spectran_jax.progress import print_line, stderr_console, task
from spectran_jax.recommender import ItemTable, Recommender
from spectran_jax.training import partitioning
from spectran_jax.training.item_table import Access, make_last_states
from spectran_jax.training.programs import build_table
from spectran_jax.training.setup import Setup
from spectran_jax.training.step import Params
from spectran_jax.training.workdir import refuse_own
from spectran_jax.writing import require_writable, write_text

_OTHER_KINDS = (".gz", ".parquet", ".csv", ".tsv")
FETCH_EVERY = 4
"""Batches whose lists are fetched together: few, since over millions of items each takes seconds."""


def recommend(
    setup: Setup,
    params: Params,
    histories: Histories,
    k: int,
    *,
    filter_seen: bool = False,
    recall: float | None = None,
    table: ItemTable | None = None,
) -> tuple[Float[np.ndarray, "U k"], Int[np.ndarray, "U k"]]:
    """Scores (float32) and dense item ids (int32) of the k best items after each history, best first.

    The scores are those of the evaluation: the same table, the same states, the same product.

    Args:
      setup: the run's set-up.
      params: its parameters, on the devices.
      histories: none may be empty.
      k: items a history, at most the size of the catalogue.
      filter_seen: leave out the items of the history.
      recall: expected share of the true k best that suffices, up to 1; 0 or None is exact (see `top_k`).
      table: of all item vectors, `training.programs.build_table(setup)(params, setup.place())`. Without it, each call
        builds it anew from all items: whoever calls again with the same parameters builds it once and gives it here.

    Raises:
      InputError: k or recall out of range, no history, an empty one, or an item that the run does not have.
    """
    items = setup.dataset.num_items
    if not 1 <= k <= items:
        raise InputError(f"--k must be between 1 and the {items} items of the catalogue, got {k}.")
    _check_recall(recall)
    best = _best_step(setup.model, setup.access, k, recall or None)
    scores, ids = _of_histories(setup, best, params, histories, table, filter_seen=filter_seen)
    _check_finite(scores)
    return scores, ids


def user_states(
    setup: Setup, params: Params, histories: Histories, *, table: ItemTable | None = None
) -> Float[np.ndarray, "U d"]:
    """The state after each history, float32: its inner products with the vectors of the item table are the scores.

    For a vector index of one's own; `recommend` gives the lists themselves.

    Args:
      setup: the run's set-up.
      params: its parameters, on the devices.
      histories: none may be empty.
      table: of all item vectors, `training.programs.build_table(setup)(params, setup.place())`. Without it, each call
        builds it anew from all items: whoever calls again with the same parameters builds it once and gives it here.

    Raises:
      InputError: no history, an empty one, or an item that the run does not have.
    """
    states = _of_histories(setup, _states_step(setup.model, setup.access), params, histories, table)
    _check_finite(states)
    return states


# A server asks again and again: what was compiled for a model is kept, whatever histories come.
_KEPT = 16


@functools.lru_cache(_KEPT)
def _states_step(model: Recommender, access: Access) -> Callable[..., Any]:
    return jax.jit(make_last_states(model, access), out_shardings=partitioning.replicated(access.mesh))


@functools.lru_cache(_KEPT)
def _best_step(model: Recommender, access: Access, k: int, recall: float | None) -> Callable[..., Any]:
    last_states = make_last_states(model, access)

    def best(params: Params, table: ItemTable, batch: EvalBatch) -> Any:
        return access.top_k(table, last_states(params, table, batch), k, batch.left_out, recall)

    return jax.jit(best, out_shardings=partitioning.replicated(access.mesh))


def _of_histories(
    setup: Setup,
    step: Callable[[Params, ItemTable, Any], Any],
    params: Params,
    histories: Histories,
    table: ItemTable | None,
    *,
    filter_seen: bool = False,
) -> Any:
    """What `step(params, table, batch)`, under jit, gives of each history, as NumPy."""
    items = setup.dataset.num_items
    if (histories.lengths == 0).any():
        raise InputError(f"History {int(np.flatnonzero(histories.lengths == 0)[0])} is empty: nothing to go on from.")
    if not len(histories):
        raise InputError("There is no history to go on from.")
    if histories.items.min() < 0 or histories.items.max() >= items:
        other = histories.items[(histories.items < 0) | (histories.items >= items)][0]
        raise InputError(f"The histories hold item {other}; dense ids of this run lie between 0 and {items - 1}.")
    table = build_table(setup)(params, setup.place()) if table is None else table
    if not setup.timed:  # a model that was trained without times has no use for them
        histories = dataclasses.replace(histories, timestamps=None)
    users = np.arange(len(histories), dtype=np.int32)
    targets = Targets(history=histories, target=np.zeros_like(users), user=users)
    batches = setup.eval_batches(targets, filter_seen=filter_seen)
    with task("Going through the histories", len(batches)) as progress:
        _, found = evaluation.per_user(
            lambda batch: step(params, table, batch), batches, setup.mesh, progress, fetch_every=FETCH_EVERY
        )
    return found


def _check_recall(recall: float | None) -> None:
    if recall is not None and not 0 <= recall <= 1:
        raise InputError(f"--recall must lie between 0 (exact) and 1, got {recall:g}.")


def _users_are(count: int) -> str:
    return "1 user is" if count == 1 else f"{count:,} users are"


def _tell(note: str) -> None:
    print_line(stderr_console(), note)


def not_finite() -> RunError:
    """What is raised where a model ranks by NaN."""
    return RunError("The model's scores are not finite; its parameters are damaged. Train again.")


def _check_finite(values: np.ndarray) -> None:
    if np.isnan(values).any():
        raise not_finite()


def write_recommendations(
    workdir: Path,
    output: Path,
    *,
    k: int,
    histories: Path | None = None,
    files: Mapping[str, Path] | None = None,
    cold_scale: float | None = None,
    until: str = "test",
    filter_seen: bool | None = None,
    unknown_items: str = "error",
    recall: float | None = None,
) -> int:
    """Writes the k best items as JSONL, `{"user_id": ..., "items": [...], "scores": [...]}` a line, in original ids.

    Args:
      workdir: a trained run.
      output: the file; written whole or not at all.
      k: items a user; fewer where `filter_seen` leaves no more.
      histories: a file of histories; the run's own users if None.
      files: where the run's own files lie now, by field; see `restore.read_run`.
      cold_scale: factor of the scores of items unseen in training; the run's if None.
      until: for the run's own users, "test" goes on from the history before the test target, as the evaluation
        does, "now" from all that is known.
      filter_seen: leave out the items of the history; as the run did if None.
      unknown_items: "drop" passes over items of `histories` that the run does not know, "error" refuses them.
      recall: expected share of the true k best that suffices, up to 1; 0 or None is exact (see `top_k`).

    Returns:
      The number of lines.

    Raises:
      InputError: no trained run, k or recall out of range, or a bad file of histories.
    """
    from spectran_jax.training.restore import load_run, read_run, tell_of_end

    config = read_run(workdir, files)  # a typo there is no fault of --output, which lies in it by default
    read = (config.data.interactions, config.data.items, config.text.embeddings, histories or "")
    _check_output(output, workdir, [Path(path).expanduser() for path in read if path])
    if histories is not None:
        require_file(histories)
    _check_recall(recall)
    setup, params = load_run(workdir, files, cold_scale)
    tell_of_end(workdir)
    if histories is not None:
        user_ids, known = _of_file(setup, histories, unknown_items)
    else:
        user_ids, known = _of_the_run(setup, until)
    filter_seen = setup.config.training.filter_seen if filter_seen is None else filter_seen
    scores, ids = recommend(setup, params, known, k, filter_seen=filter_seen, recall=recall)
    if short := int(((ids >= 0).sum(axis=1) < k).sum()):
        _tell(f"{short:,} of {len(ids):,} lists are shorter than --k={k}: --filter_seen leaves no more items.")
    lines, item_ids = [], list(setup.dataset.item_ids)  # one by one they take long
    for user, row_scores, row_ids in zip(user_ids, scores, ids, strict=True):
        found = row_ids >= 0
        entry = {
            "user_id": user,
            "items": [item_ids[item] for item in row_ids[found]],
            "scores": [round(float(score), 7) for score in row_scores[found]],
        }
        lines.append(json.dumps(entry, ensure_ascii=False) + "\n")
    write_text(output, "".join(lines))
    return len(lines)


def _check_output(output: Path, workdir: Path, read: list[Path]) -> None:
    """Refuses what can't be written, holds no JSON by its name, or is the run's own or one of the files to read."""
    if str(output) == "-":
        raise InputError("--output=- would be a file of that name; name a file, or /dev/stdout for a pipe.")
    if not output.parent.is_dir():
        raise InputError(f"--output={output}: the folder {output.parent} does not exist.")
    if output.is_dir():
        raise InputError(f"--output={output} is a folder; name a file in it.")
    if output.suffix.lower() in _OTHER_KINDS:
        raise InputError(f"--output={output}: recommendations are JSON, an object a line; name a .jsonl file.")
    refuse_own(workdir, output)
    if output.exists() and output.resolve() in {path.resolve() for path in read}:
        raise InputError(f"--output={output} is one of the files that are read; write to another place.")
    require_writable(output)


def _of_file(setup: Setup, path: Path, unknown_items: str) -> tuple[Sequence[Any], Histories]:
    """The users of a file of histories, and these; says what is left out."""
    from spectran_jax.data.history_files import read_histories

    users, known, left_out, unknown = read_histories(path, setup.dataset, unknown_items, setup.config.data.duplicates)
    if unknown:
        entries = unknown + len(known.items)
        _tell(f"{path}: items that the run does not know are passed over, {unknown:,} of {entries:,} entries.")
    if left_out:
        _tell(f"{path}: {_users_are(left_out)} left out, the run knows none of their items.")
    name = setup.config.backbone.backbone
    if backbones.lookup(name).reads_time and setup.timed and known.timestamps is None:
        _tell(f"{path} has no timestamps: {name} leaves its time bias out, and was trained with it.")
    return users, known


def _of_the_run(setup: Setup, until: str) -> tuple[Sequence[Any], Histories]:
    """The run's own users and their histories, as far as `until` says; says who is left out."""
    dataset = setup.dataset
    if until == "test":
        targets = setup.split.test
        if short := dataset.num_users - len(targets.user):
            _tell(f"{_users_are(short)} left out, without a target in the test set; --until=now takes all users.")
        user_ids = list(dataset.user_ids)
        return [user_ids[user] for user in targets.user], targets.history
    if short := dataset.dropped.get("users_too_short", 0):
        _tell(
            f"{_users_are(short)} left out, with too few interactions to train and test on; a file of their "
            "histories (--histories) gets them theirs."
        )
    return dataset.user_ids, dataset.histories
