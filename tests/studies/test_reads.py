"""Which fields are read: every one of the tables is varied, and what is built of it is the same, or is not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spectran_jax import backbones, item_encoders, objectives, spectral
from spectran_jax.config import Config
from spectran_jax.data import Histories
from spectran_jax.errors import InputError
from spectran_jax.item_encoders import ItemSource, StepView
from spectran_jax.layout import SequenceLayout
from spectran_jax.objectives.registry import LOSSES as ALL_LOSSES
from spectran_jax.studies.reads import BACKBONES, ENCODERS, LOSSES, OWN, UNLESS, refuse_unread, unread_because
from spectran_jax.synthetic import bare_spectrum, training_setup
from spectran_jax.text.spectrum_store import decompose_options

N, M, D = 30, 12, 8
BASE = Config().replace(
    dimension=D,
    heads=2,
    attention_dimension=4,
    max_length=4,
    negatives=8,
    sampling="popularity",
    decomposition="gram",
    decomposition_precision="float32",
    max_rank=M - 1,
    pad_rank=True,  # some read the first components alone, so that fewer make a difference
)
OTHER = {
    "normalize_rows": False, "center": False, "rtol": 0.8, "max_rank": 3, "decomposition": "exact",
    "decomposition_precision": "float64", "spectrum_dtype": "int8",
    "fusion": "gate", "learn_scale": True, "semantic_scale": 0.4, "spectral_power": 0.25, "attention": "softmax",
    "attention_dimension": 5, "attention_live": 0.4, "attention_energy": 0.3, "position_encoding": False,
    "taylor_order": 1, "spectral_norm": "rows", "adapter_width": 6, "experts": 3, "whiten_groups": 2,
    "null_share": 0.25, "alignment": "generative", "alignment_weight": 0.7, "alignment_temperature": 0.4,
    "negatives": 9, "sampling": "uniform", "popularity_power": 0.3, "mask_negatives": "history",
    "history_negatives": False, "gbce_t": 0.4, "mask_ratio": 0.4, "prefixes": 3, "ffn_multiplier": 3,
}  # fmt: skip
OF_THE_OPTIMIZER = ("spectral_lr_multiplier", "spectral_epochs", "adapter_lr_multiplier")
"""How fast some parameters learn: no encoder is built otherwise."""
OF_NO_ENCODER = ("embeddings", "text_encoder", "text_columns", "spectrum_memory", "pad_rank", "cold_scale")
"""Where text comes from and lies, whether a spectrum may be short, how vectors are scored: of the same items the same
encoder is made."""
TEXT = np.random.default_rng(0).normal(size=(N, M)).astype(np.float32)


def source_of(config):
    """As `setup.prepare` makes it of these text embeddings."""
    spectrum, counts = spectral.decompose(TEXT, **decompose_options(config.spectrum)), np.ones(N, np.int32)
    rows = {name: config.get(name) for name in ("normalize_rows", "center")}
    return ItemSource(num_items=N, counts=counts, spectrum=spectrum, text=TEXT, **rows)


def encoder(config):
    """Module and frozen arrays: what an encoder computes, and starts with, follows from them."""
    module, frozen = item_encoders.build(config.encoder, source_of(config))
    return module, {name: np.asarray(array).tobytes() for name, array in frozen.items()}


@pytest.mark.parametrize("name", item_encoders.REGISTRY)
def test_an_encoder_reads_the_fields_that_it_is_said_to_and_no_others(name):
    base = BASE.replace(item_encoder=name)
    before = encoder(base)
    for field in (field for field in ENCODERS if field not in (*OF_THE_OPTIMIZER, *OF_NO_ENCODER)):
        read = name in ENCODERS[field]
        assert (unread_because(base, field) == "") == read
        if field == "fusion" and not read:
            with pytest.raises(InputError, match="has no such two"):
                encoder(base.replace(fusion="gate"))
        else:
            assert (encoder(base.replace(**{field: OTHER[field]})) != before) == read, field


@pytest.mark.parametrize("name", item_encoders.REGISTRY)
def test_an_encoder_needs_what_it_is_said_to(name):
    made_by = item_encoders.lookup(name)
    for field in ("embeddings", "text_encoder", "text_columns"):
        assert (name in ENCODERS[field]) == (made_by.needs_spectrum or made_by.needs_text)
    assert (name in ENCODERS["spectrum_memory"]) == bool(made_by.wide_arrays)
    assert (name in ENCODERS["cold_scale"]) == made_by.knows_cold_items()
    short = BASE.replace(item_encoder=name, max_rank=D - 1, pad_rank=False)
    if name in ENCODERS["pad_rank"]:
        with pytest.raises(InputError, match="--pad_rank"):
            encoder(short)
        encoder(short.replace(pad_rank=True))
    else:
        assert encoder(short.replace(pad_rank=True)) == encoder(short)


def test_precomputed_embeddings_leave_no_text_to_encode():
    config = Config().replace(dataset="files", interactions="a.tsv", items="b.jsonl")
    for field in ("text_encoder", "text_columns"):
        assert unread_because(config, field) == ""
        assert unread_because(config.replace(embeddings="x.npy"), field) == "embeddings=x.npy"
    assert unread_because(config.replace(embeddings="x.npy"), "embeddings") == ""


@pytest.mark.parametrize("loss", ALL_LOSSES)
def test_a_loss_reads_the_fields_that_it_is_said_to_and_no_others(loss):
    base = BASE.replace(loss=loss, mask_negatives="history")
    counts = np.arange(1, N + 1, dtype=np.int32)
    before = objectives.build(base.objective, counts)
    for field in LOSSES:
        changed = base.replace(**{field: "positive" if field == "mask_negatives" else OTHER[field]})
        read = loss in LOSSES[field]
        assert (objectives.build(changed.objective, counts) != before) == read, field
        assert unread_because(base, field) == ("" if read else f"loss={loss}")


@pytest.mark.parametrize("name", backbones.BACKBONES)
def test_a_backbone_reads_the_fields_that_it_is_said_to_and_no_others(name):
    base = BASE.replace(backbone=name)

    def built(config):
        histories = Histories.from_lists([list(range(5))] * 4)
        spectrum = bare_spectrum(np.zeros((N, M), np.float32), np.ones(M), M)
        setup = training_setup(config, N, histories, spectrum)
        return setup.model.backbone, setup.plan.slot_supervised.tolist()

    for field, readers in BACKBONES.items():
        assert (built(base.replace(**{field: OTHER[field]})) != built(base)) == (name in readers), field


def start_and_losses(config):
    """The parameters at start, the vectors that they give and the losses beside the recommendation's."""
    module, frozen = item_encoders.build(config.encoder, source_of(config))
    ids = jnp.arange(4)[None]
    view = SequenceLayout(ids >= 0, ids * 0 + 1, ids)

    def everything(module):
        rows = module.rows(None)
        vectors = module.encode(rows)
        seen = StepView(vectors, ids, view, jnp.ones((1, 4, D)), ids[0], jnp.ones(4))
        return vectors, module.auxiliary(rows, seen)

    made = module.apply({"frozen": frozen}, rngs={"params": jax.random.key(0)}, mutable=["params"], method=everything)
    return [np.asarray(leaf).tolist() for leaf in jax.tree.leaves(made)]


@pytest.mark.parametrize(
    ("field", "off"), [(f, {other: v}) for f, (other, values) in UNLESS.items() if f in ENCODERS for v in values]
)
def test_a_field_that_another_switches_off_changes_neither_the_start_nor_a_loss(field, off):
    base = BASE.replace(item_encoder=ENCODERS[field][0])
    changed = {field: OTHER[field]}
    assert unread_because(base, field) == ""
    assert unread_because(base.replace(**off), field) == "{}={}".format(*next(iter(off.items()))).lower()
    assert start_and_losses(base.replace(**changed)) != start_and_losses(base)
    alike = [start_and_losses(base.replace(**off, **more)) for more in ({}, changed)]
    if field == "alignment":  # another loss has other parameters, which nothing then trains
        alike = [[leaves[0], leaves[-1]] for leaves in alike]
    assert alike[0] == alike[1]


@pytest.mark.parametrize("name", item_encoders.REGISTRY)
def test_a_field_that_is_not_read_switches_no_other_off(name):
    """`fusion=none` takes the IDs only from those that read it."""
    base = BASE.replace(item_encoder=name, fusion="none")
    assert unread_because(base, "id_scale") == ("fusion=none" if name in ENCODERS["fusion"] else "")


@pytest.mark.parametrize("sampling", ["uniform", "in_batch"])
def test_the_power_of_popularity_is_that_of_one_sampler(sampling):
    counts = np.arange(1, N + 1, dtype=np.int32)
    configs = [BASE.replace(sampling=sampling, popularity_power=power) for power in (0.3, 0.6)]
    first, second = (objectives.build(config.objective, counts) for config in configs)
    assert first == second
    assert unread_because(configs[0], "popularity_power") == f"sampling={sampling}"
    assert unread_because(BASE, "popularity_power") == ""


def test_a_field_that_nothing_reads_is_refused_by_name():
    datasets = {"one": Config(), "two": Config().replace(item_encoder="svd")}
    refuse_unread(datasets, ["dropout", "spectral_power", "negatives"], "changes")
    with pytest.raises(
        InputError, match=r"--changes moves attention_live, which nothing reads at item_encoder=svd \(data set two\)"
    ):
        refuse_unread(datasets, ["dropout", "attention_live"], "changes")


def test_what_a_method_of_ones_own_reads_is_not_known_here():
    """So its fields are searched, and may be moved."""
    off = {other: values[0] for other, values in UNLESS.values()}
    mine = BASE.replace(**off, item_encoder="of_ones_own", loss="of_ones_own", backbone="of_ones_own")
    assert not any(unread_because(mine, field) for field in (*ENCODERS, *LOSSES, *BACKBONES, *UNLESS))
    for owner, table in (("item_encoder", ENCODERS), ("loss", LOSSES), ("backbone", BACKBONES)):
        assert {name for readers in table.values() for name in readers} <= set(OWN[owner])
    assert set(OWN["item_encoder"]) == set(item_encoders.REGISTRY)
    assert set(OWN["loss"]) == set(ALL_LOSSES)
    assert set(OWN["backbone"]) == set(backbones.BACKBONES)
