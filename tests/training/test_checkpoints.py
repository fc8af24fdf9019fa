"""Checkpoints: verified on reading, never lost to a signal, a poisoned state or a reader."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spectran_jax.errors import Diverged, InputError, Interrupted
from spectran_jax.training import checkpoints as module
from spectran_jax.training.checkpoints import Checkpoints

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


def test_a_reader_changes_nothing(saved, monkeypatch):
    folder, checkpoints = saved
    monkeypatch.setattr(module, "inspect", lambda tree: ("other", None))
    assert checkpoints.restore_best({"w": ABSTRACT["w"]}, "d") is None
    assert steps(folder / "best") == [3, 6]


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
    assert steps(folder / "latest") == [3, 6]


def test_a_state_that_overflowed_is_not_saved(saved):
    folder, checkpoints = saved
    with pytest.raises(Diverged, match=r"After step 9 \['w'\] is no longer finite"):
        checkpoints.save(9, {"w": TREE["w"] / 0, "step": TREE["step"]}, RECORD)
    assert steps(folder / "latest") == [3, 6]
    assert checkpoints.kept() == "the checkpoint of step 6 is kept"
