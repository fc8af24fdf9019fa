"""The spectrum of item vectors without IDs, against NumPy's on the same parameters."""

import numpy as np
import pytest

from spectran_jax.digest import params_digest
from spectran_jax.studies.text_part import text_singular_values
from spectran_jax.training.checkpoints import Checkpoints
from spectran_jax.training.programs import build_programs
from spectran_jax.training.setup import prepare
from spectran_jax.writing import write_json


@pytest.mark.parametrize("encoder", ["svd", "llminit", "id", "rlmrec"])
def test_ids_do_not_count(tiny_config, tmp_path, encoder):
    config = tiny_config.replace(item_encoder=encoder, semantic_scale=0.5, spectral_power=1.0, id_scale=3.0)
    setup = prepare(config)
    params = build_programs(setup, 1).init().params
    ids = params["item_encoder"]["id_embedding"]
    params["item_encoder"]["id_embedding"] = ids + 0.1  # that of llminit starts at zero
    write_json(tmp_path / "config.json", config.to_dict())
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save_best(5, params, {"data": setup.inputs_digest})
    checkpoints.close()
    digest = params_digest(params)

    found = text_singular_values(tmp_path, digest)
    assert text_singular_values(tmp_path, digest) == found
    if encoder in ("id", "rlmrec"):
        assert found == [0.0] * config.encoder.dimension
        return
    head = setup.spectrum.u[:, : config.encoder.dimension] * setup.spectrum.sigma[: config.encoder.dimension]
    vectors = head[np.asarray(setup.split.item_counts) > 0].astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)  # scores are cosines
    expected = np.linalg.svd(vectors - vectors.mean(axis=0), compute_uv=False)
    np.testing.assert_allclose(np.divide(found, found[0]), expected / expected[0], rtol=1e-4)
