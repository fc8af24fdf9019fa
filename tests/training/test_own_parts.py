"""Losses and encoders of one's own, by what they lack: settings that need it are refused before training."""

import pytest

from spectran_jax import item_encoders, objectives
from spectran_jax.errors import InputError
from spectran_jax.training.setup import prepare


class Untold(item_encoders.REGISTRY["id"]):
    """Knows of no item whether training sees it."""

    item_arrays = ()

    @classmethod
    def frozen(cls, source, config):
        return {}


@pytest.fixture(autouse=True)
def own(monkeypatch):
    monkeypatch.setitem(objectives.LOSSES, "whole", lambda config, counts: objectives.Softmax(config.temperature))
    monkeypatch.setitem(item_encoders.REGISTRY, "untold", Untold)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"loss": "whole", "micro_batches": 2}, "--micro_batches=2 cuts the .*, and --loss=whole has none"),
        (
            {"loss": "whole", "spectrum_memory": "host"},
            "--spectrum_memory=host reads .*, and --loss=whole touches all; take --spectrum_memory=device",
        ),
        (
            {"item_encoder": "untold", "cold_scale": 2.0},
            "--cold_scale=2.0 needs .* --item_encoder=untold has no array `trained`; leave the flag out",
        ),
    ],
    ids=lambda values: ", ".join(values) if isinstance(values, dict) else "",
)
def test_what_a_part_of_ones_own_lacks(tiny_config, values, message):
    with pytest.raises(InputError, match=message):
        prepare(tiny_config.replace(**values))
    needs = {"micro_batches": 1, "spectrum_memory": "device", "cold_scale": 1.0}
    prepare(tiny_config.replace(**(values | {name: needs[name] for name in values if name in needs})))
