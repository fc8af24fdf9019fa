"""Cold items shown more and less, against ranks that NumPy takes from the run's own vectors and states."""

import numpy as np
import pytest

from spectran_jax import item_encoders
from spectran_jax.digest import params_digest
from spectran_jax.errors import InputError
from spectran_jax.recommend import user_states
from spectran_jax.studies import exposure
from spectran_jax.studies.exposure import PLACES, SCALES, exposures
from spectran_jax.training.checkpoints import Checkpoints
from spectran_jax.training.programs import build_programs, build_table
from spectran_jax.training.setup import prepare
from spectran_jax.writing import write_json


@pytest.mark.parametrize(
    "options", [{"item_encoder": "svd"}, {"item_encoder": "svd", "cold_scale": 0.7, "filter_seen": True}]
)
def test_ranks_and_places_of_every_factor(tiny_config, tmp_path, monkeypatch, options):
    config = tiny_config.replace(semantic_scale=1.0, holdout_items=0.3, **options)
    setup = prepare(config)
    params = build_programs(setup, 1).init().params
    write_json(tmp_path / "config.json", config.to_dict())
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save_best(5, params, {"data": setup.inputs_digest})
    checkpoints.close()
    found = exposures(tmp_path, params_digest(params))
    assert [each.scale for each in found] == list(SCALES)

    cold = np.asarray(setup.split.item_counts) == 0
    assert 5 < cold.sum() < 25
    plain = prepare(config.replace(cold_scale=1.0))
    table = build_table(plain)(params, plain.place())
    vectors = np.asarray(table.vectors)[: len(cold)]
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    for split, targets in (("valid", setup.split.valid), ("test", setup.split.test)):
        scores = user_states(plain, params, targets.history, table=table) @ vectors.T
        users = np.arange(len(scores))
        seen = np.zeros(scores.shape, bool)
        if config.training.filter_seen:
            seen[np.repeat(users, targets.history.lengths), targets.history.items] = True
        for each in found:
            scaled = scores * np.where(cold, each.scale, 1)
            own = scaled[users, targets.target]
            scaled[seen] = -9
            better = (scaled > own[:, None] + 1e-6).sum(axis=1)
            tied = (np.abs(scaled - own[:, None]) <= 1e-6).sum(axis=1) - ~seen[users, targets.target]
            ranks = getattr(each, split)
            assert ((better <= ranks.rank) & (ranks.rank <= better + tied)).all()
            np.testing.assert_array_equal(ranks.item, targets.target)
            if split == "test":
                tops = np.argsort(-scaled, axis=1, kind="stable")[:, :PLACES]
                assert each.share == pytest.approx(cold[tops].mean(), abs=0.01)
    monkeypatch.setattr(exposure, "SCALES", (1.0, 1.4))
    assert [each.scale for each in exposures(tmp_path, params_digest(params))] == [1.0, 1.4], "others were kept"
    shares = [each.share for each in found]
    assert shares == sorted(shares)
    assert shares[0] < shares[-1]


def test_an_encoder_that_does_not_say_what_is_trained_takes_no_factor(tiny_config, monkeypatch):
    monkeypatch.setattr(item_encoders.lookup("svd"), "item_arrays", ("u",))
    prepare(tiny_config.replace(item_encoder="svd"))
    with pytest.raises(
        InputError, match=r"--cold_scale=1\.2 needs to know which items training sees.*leave the flag out"
    ):
        prepare(tiny_config.replace(item_encoder="svd", cold_scale=1.2))
