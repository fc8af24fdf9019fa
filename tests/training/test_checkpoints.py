"""Checkpoints: verified on reading, never lost to a signal, a poisoned state or a reader."""

import errno
import json
import shutil
from types import SimpleNamespace
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spectran_jax.errors import Diverged, InputError, Interrupted, RunError
from spectran_jax.training import checkpoints as module
from spectran_jax.training.checkpoints import Checkpoints, read_best
from spectran_jax.training.cluster import Cluster

TREE = {"w": jnp.arange(6.0).reshape(2, 3), "step": jnp.int32(3)}
ABSTRACT = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), TREE)
RECORD = {"data": "d", "loop": {"best_step": 3}}


@pytest.fixture
def saved(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step in (3, 6):
        checkpoints.save_best(step, {"w": TREE["w"] + step}, RECORD)
        checkpoints.save(step, jax.tree.map(lambda x, s=step: x + s, TREE), RECORD)
        # A kill right here must find the best parameters that the record of this state speaks of.
        assert (tmp_path / "best" / str(step)).is_dir()
    checkpoints.wait()
    yield tmp_path, checkpoints
    checkpoints.close()


def steps(folder):
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


def assert_all_stay(folder):
    """What was saved lies where it did, and nothing was put aside."""
    assert steps(folder / "latest") == [3, 6]
    assert not list(folder.glob("damaged-*"))


def test_round_trip(saved):
    _, checkpoints = saved
    step, tree, record = checkpoints.restore(ABSTRACT, "d")
    assert step == 6
    assert record["loop"] == RECORD["loop"]
    np.testing.assert_array_equal(tree["w"], TREE["w"] + 6)
    np.testing.assert_array_equal(checkpoints.restore_best({"w": ABSTRACT["w"]}, "d")[1]["w"], TREE["w"] + 6)


def test_bytes_that_changed_are_noticed_and_put_aside(saved, monkeypatch, caplog):
    folder, checkpoints = saved
    real = module.inspect
    broken = np.asarray(TREE["w"] + 6)
    monkeypatch.setattr(
        module, "inspect", lambda tree: ("other", None) if np.array_equal(tree["w"], broken) else real(tree)
    )
    assert checkpoints.restore(ABSTRACT, "d")[0] == 3
    assert "its numbers do not match its checksum" in caplog.text
    assert steps(folder / "latest") == [3]
    assert (folder / "damaged-latest-6").is_dir()


def test_damaged_best_parameters_end_several_processes_for_good(saved, monkeypatch):
    """They are not put aside, so that a start of all would find them again, and again."""
    _, checkpoints = saved
    monkeypatch.setattr(module, "inspect", lambda tree: ("other", None))
    cluster = SimpleNamespace(alone=False, settle=lambda: None, of_first=lambda key, value: value())
    monkeypatch.setattr(checkpoints._best, "_cluster", cluster)
    with pytest.raises(RunError, match=r"best/6 is damaged \(its numbers .*train in a new folder"):
        checkpoints.restore_best({"w": ABSTRACT["w"]}, "d")


def test_where_all_are_damaged_nothing_starts_over(saved, monkeypatch):
    folder, checkpoints = saved
    monkeypatch.setattr(module, "inspect", lambda tree: ("other", None))
    for _ in range(2):  # and not at the next start either
        with pytest.raises(RunError, match=r"All checkpoints in .* are damaged .*damaged-latest-\*\)\. Remove these"):
            checkpoints.restore(ABSTRACT, "d")
    assert steps(folder / "best") == [3, 6]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.EMFILE, "Too many open files"), "Too many open files"),
        (ValueError("UNAVAILABLE: reading /a/b [os_error_code='116']"), "Stale file handle"),
        (MemoryError("no room"), "no room"),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes"), "Out of memory"),
        (jax.errors.JaxRuntimeError("INTERNAL: NCCL operation ncclAllReduce failed: remote process exited"), "NCCL"),
    ],
)
def test_what_the_system_can_not_read_is_no_damage(saved, monkeypatch, error, words):
    folder, checkpoints = saved

    def inspect(tree):
        raise ValueError("outer") from error

    monkeypatch.setattr(module, "inspect", inspect)
    with pytest.raises(RunError, match=f"Could not read checkpoint .*latest/6: .*{words}.*Mend that and start again"):
        checkpoints.restore(ABSTRACT, "d")
    assert_all_stay(folder)


def test_best_parameters_of_steps_that_a_crash_took_back_go(saved):
    folder, checkpoints = saved
    checkpoints.save_best(9, {"w": TREE["w"] + 9}, RECORD)  # and killed before the state of step 9
    checkpoints.wait()
    assert checkpoints.restore(ABSTRACT, "d")[0] == 6
    assert steps(folder / "best") == [6]
    checkpoints.save_best(8, {"w": TREE["w"] + 8}, RECORD)
    checkpoints.wait()
    assert checkpoints.restore_best({"w": ABSTRACT["w"]}, "d", 6)[0] == 6
    assert checkpoints.restore_best({"w": ABSTRACT["w"]}, "d")[0] == 8
    assert checkpoints.restore_best({"w": ABSTRACT["w"]}, "d", 7) is None


def test_processes_agree_on_the_steps_anew_each_time(tmp_path):
    """A key of the store that all read serves once: at the second question the others would read the first answer."""

    class Asked(Cluster):
        keys: ClassVar[set[str]] = set()

        def of_first(self, key, value):
            assert key not in self.keys
            self.keys.add(key)
            return value()

    checkpoints = Checkpoints(tmp_path, Asked())
    assert checkpoints.restore(ABSTRACT, "d") is None
    checkpoints.save_best(3, {"w": TREE["w"]}, RECORD)
    checkpoints.save(3, TREE, RECORD)
    checkpoints.wait()
    assert checkpoints.restore_best({"w": ABSTRACT["w"]}, "d", 3)[0] == 3
    checkpoints.close()
    assert len(Asked.keys) == 3


def test_a_reader_changes_nothing(saved, monkeypatch):
    folder, checkpoints = saved
    monkeypatch.setattr(module, "inspect", lambda tree: ("other", None))
    assert checkpoints.restore_best({"w": ABSTRACT["w"]}, "d") is None
    assert steps(folder / "best") == [3, 6]


def test_best_parameters_are_read_from_a_copy_without_the_rest(saved, tmp_path_factory):
    copy = tmp_path_factory.mktemp("copy") / "checkpoints"
    shutil.copytree(saved[0] / "best", copy / "best")
    for folder in (copy, copy / "best"):
        folder.chmod(0o555)
    before = sorted(copy.rglob("*"))
    try:
        assert read_best(copy, {"w": ABSTRACT["w"]}, "d")[0] == 6
        assert sorted(copy.rglob("*")) == before
    finally:
        for folder in (copy, copy / "best"):
            folder.chmod(0o755)


def test_a_signal_while_reading_is_no_damage(saved, monkeypatch):
    folder, checkpoints = saved

    def stop(tree):
        raise Interrupted("Stopped by SIGTERM.")

    monkeypatch.setattr(module, "inspect", stop)
    with pytest.raises(Interrupted):
        checkpoints.restore(ABSTRACT, "d")
    assert steps(folder / "latest") == [3, 6]


def test_other_data_is_refused_and_the_checkpoint_stays(saved):
    folder, checkpoints = saved
    with pytest.raises(InputError, match="trained on other data"):
        checkpoints.restore(ABSTRACT, "e")
    assert_all_stay(folder)


def test_another_version_is_refused_by_name_and_the_checkpoint_stays(saved):
    folder, checkpoints = saved
    renamed = {"weight": ABSTRACT["w"], "step": ABSTRACT["step"]}
    with pytest.raises(InputError, match=r"of another version of this library.*\['w'\]"):
        checkpoints.restore(renamed, "d")
    assert_all_stay(folder)


def test_tables_of_other_lengths_are_another_version_and_no_damage(saved):
    folder, checkpoints = saved
    longer = {**ABSTRACT, "w": jax.ShapeDtypeStruct((9, *ABSTRACT["w"].shape[1:]), ABSTRACT["w"].dtype)}
    with pytest.raises(InputError, match=r"another version of this library.*\['w'\] is \[\d.*\] there and \[9"):
        checkpoints.restore(longer, "d")
    assert_all_stay(folder)


def test_an_old_record_without_shapes_is_no_damage_either(saved):
    folder, _ = saved
    for path in folder.glob("latest/*/record/metadata"):
        record = json.loads(path.read_text())
        del record["shapes"]
        path.write_text(json.dumps(record))
    again = Checkpoints(folder)
    assert again.restore(ABSTRACT, "d")[0] == 6
    longer = {**ABSTRACT, "w": jax.ShapeDtypeStruct((9, *ABSTRACT["w"].shape[1:]), ABSTRACT["w"].dtype)}
    with pytest.raises(InputError, match=r"another version of this library.*\(w is \[\d.*\] there and \[9"):
        again.restore(longer, "d")
    again.close()
    assert_all_stay(folder)


def test_what_a_crash_left_half_written_goes(saved):
    folder, checkpoints = saved
    torn = [
        folder / kind / f"9.orbax-checkpoint-tmp{end}" / "state" for kind in ("latest", "best") for end in ("", "-1")
    ]
    for each in torn:
        each.mkdir(parents=True)
        (each / "part").write_text("half")
    assert checkpoints.restore_best({"w": ABSTRACT["w"]}, "d")[0] == 6  # a reader lets it be
    assert all(each.exists() for each in torn)
    assert checkpoints.restore(ABSTRACT, "d")[0] == 6
    assert not any(each.parent.exists() for each in torn)


@pytest.mark.parametrize(("code", "advice"), [(errno.ENOSPC, "Free some space"), (errno.EIO, "Mend that")])
def test_a_failed_save_says_what_would_help(saved, monkeypatch, code, advice):
    _, checkpoints = saved

    def save(*arguments, **options):
        raise OSError(code, "no")

    monkeypatch.setattr(checkpoints._latest.manager, "save", save)
    with pytest.raises(RunError, match=f"{advice} and start again; the checkpoint of step 6 is kept"):
        checkpoints.save(9, TREE, RECORD)


def test_a_save_may_take_hours(saved):
    _, checkpoints = saved
    assert checkpoints._latest.manager._options.async_options.timeout_secs >= 12 * 3600


def test_nothing_is_kept_where_nothing_was_saved(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(Diverged, match=r"is no longer finite.*; there is no checkpoint yet"):
        checkpoints.save_best(9, {"w": TREE["w"] / 0}, RECORD)
    checkpoints.close()


def test_a_state_that_overflowed_is_not_saved(saved):
    folder, checkpoints = saved
    with pytest.raises(Diverged, match=r"After step 9 \['w'\] is no longer finite.*; the checkpoint of step 6 is kept"):
        checkpoints.save(9, {"w": TREE["w"] / 0, "step": TREE["step"]}, RECORD)
    assert steps(folder / "latest") == [3, 6]
    assert checkpoints.kept() == "the checkpoint of step 6 is kept"
