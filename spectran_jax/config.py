"""The configuration of a run: frozen dataclasses, from which flags, `--help` and config.json come.

Each field states its default, its meaning and, where they are closed, its choices or its bounds: `low` and `high` may
be taken, `above` and `below` not. A field marked `resumable` may differ between the run that wrote a work directory and
the one that resumes it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from spectran_jax.bounds import Bounds
from spectran_jax.errors import InputError, unknown_name

LENGTH = ("epochs", "max_steps", "patience")
"""Fields that say when training ends. They are resumable, and yet decide the numbers that come out."""

FILES = ("interactions", "items", "embeddings")
"""Fields that name files whose content decides the numbers, and not where they lie."""


def _field(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] = (),
    resumable: bool = False,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
    before: Any = None,
) -> Any:
    """`before`: what a configuration meant that was written out whole before there was the field, if not the default."""
    bounds = Bounds(low, high, above, below)
    metadata = {"help": help, "choices": choices, "resumable": resumable, "bounds": bounds, "before": before}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where the interactions come from and how they are split."""

    dataset: str = _field("movielens_100k", "Data set: movielens_100k, or files for your own.")
    interactions: str = _field(
        "", "With --dataset=files: TSV, CSV, JSONL or Parquet with user_id, item_id and timestamp or position."
    )
    items: str = _field("", "With --dataset=files: JSONL, CSV or Parquet with item_id and any text columns.")
    movielens: str = _field(
        "",
        "A copy of MovieLens-100K on disk (RecBole wheel, GroupLens zip or folder); fetched if empty.",
        resumable=True,
    )
    data_dir: str = _field("", "Where prepared data and caches live; ~/.cache/spectran_jax if empty.", resumable=True)
    k_core: int = _field(
        0, "Keep users and items with at least this many interactions, repeatedly; 0 keeps all.", low=0
    )
    unknown_items: str = _field(
        "error", "What to do with interactions that name items missing from --items.", choices=("error", "drop")
    )
    duplicates: str = _field(
        "keep",
        "What to do with interactions of the same user, item and time (and position): drop takes each of them once.",
        choices=("keep", "drop"),
    )
    split: str = _field(
        "leave_one_out",
        "leave_one_out: last item of each user is the test target; temporal: cut at two points in time.",
        choices=("leave_one_out", "temporal"),
    )
    valid_time: float = _field(
        0.0, "With --split=temporal: validation begins at this timestamp; 0 takes the 80 % quantile."
    )
    test_time: float = _field(0.0, "With --split=temporal: test begins at this timestamp; 0 takes the 90 % quantile.")
    holdout_items: float = _field(
        0.0,
        "Share of the items in training to take out of every training history, so that they are known by their text "
        "alone; they stay candidates, targets, and part of the histories that are evaluated. 0 takes none.",
        low=0,
        high=0.9,
    )
    holdout_seed: int = _field(
        0, "Which items --holdout_items takes out; the same for every --seed, others for another --max_length.", low=0
    )
    max_length: int = _field(50, "Longest history that a model sees, in items; older items are left out.", low=1)
    packing: bool = _field(
        True, "Put several short histories into one row of max_length, so that little is computed on padding."
    )


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Where the item text embeddings come from."""

    embeddings: str = _field(
        "", "Precomputed text embeddings, .npy [items, m], rows in the order of --items; encode the text if empty."
    )
    text_encoder: str = _field(
        "wordllama",
        "Text encoder used where --embeddings is empty: wordllama, or sentence-transformers:MODEL (extra [llm]).",
    )
    text_columns: str = _field("", "Comma-separated text columns to encode; all if empty.")


@dataclasses.dataclass(frozen=True)
class SpectrumConfig:
    """How text embeddings are decomposed (X - mean = U diag(S) V^T)."""

    normalize_rows: bool = _field(True, "Scale each text embedding to unit length first.")
    center: bool = _field(True, "Subtract the mean text embedding first.")
    rtol: float = _field(1e-4, "Singular values below rtol times the largest are dropped.", low=0, high=1)
    max_rank: int = _field(0, "Keep at most this many components; 0 keeps all.", low=0)
    spectrum_memory: str = _field(
        "device",
        "Where u lives: on the device; in the host's memory (host) or on disk (disk), from where the rows that a step "
        "touches are read ahead while the device computes.",
        choices=("device", "host", "disk"),
        resumable=True,
    )
    decomposition: str = _field(
        "auto",
        "Route: exact thin SVD, Gram (cost linear in the number of items; two passes over the embeddings), or randomized "
        "(the --max_rank leading components, approximately).",
        choices=("auto", "exact", "gram", "randomized"),
    )
    decomposition_precision: str = _field(
        "float64",
        "Sums and eigenvectors of the Gram route: float64, on the hosts' CPUs; float32, on the accelerators, with singular "
        "values from 1e-3 of the largest on.",
        choices=("float64", "float32"),
    )
    spectrum_dtype: str = _field(
        "float32",
        "How spectral coordinates are stored: float32; bfloat16, half of it, off by 0.4 % at most; int8, a quarter, "
        "off by 1/254 of a component's largest coordinate.",
        choices=("float32", "bfloat16", "int8"),
    )


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """The item encoder: from text and ids to item vectors."""

    item_encoder: str = _field(
        "spectran",
        "Item encoder: id (no text); spectran; svd (frozen head of the spectrum); llminit (the ID table starts "
        "from it); mlp (two layers), moe (whitening experts behind a gate) or whiten (whitened text, two layers) on the "
        "text embedding itself; alphafuse (some dimensions text, the others ID); rlmrec (IDs, pulled towards the text by "
        "a loss of their own); llmesr (a view of text and one of IDs that attend to each other).",
    )
    dimension: int = _field(64, "Dimension d of item vectors and user states.", low=1)
    fusion: str = _field(
        "sum",
        "How the semantic and the ID vector are joined; none leaves the ID table out, so that an item is its text.",
        choices=("sum", "concat", "gate", "none"),
    )
    semantic_scale: float = _field(
        0.2,
        "Root mean square of the semantic vectors' entries at start; of each dimension alone at --spectral_power=0.",
        low=0,
    )
    id_scale: float = _field(0.02, "Standard deviation of each dimension of the ID vectors at start.", low=0)
    learn_scale: bool = _field(
        False, "Let training change the semantic scale of spectran, svd, mlp, moe and whiten; others have a fixed one."
    )
    spectral_power: float = _field(
        0.5,
        "Weight components by sigma to this power: 0 is whitened (all count alike), 1 is PCA (as in the text).",
        low=0,
    )
    attention: str = _field("softshrink", "Spectral attention of spectran.", choices=("softshrink", "softmax", "none"))
    position_encoding: bool = _field(
        True, "Add the learned Taylor map of the singular values on the principal diagonal."
    )
    taylor_order: int = _field(2, "Order P of the Taylor map; it has P + 1 coefficients.", low=0, high=32)
    attention_dimension: int = _field(64, "Dimension k of the spectral queries and keys.", low=1)
    attention_live: float = _field(0.8, "Share of attention entries above the threshold at start.", above=0, below=1)
    attention_energy: float = _field(
        0.1,
        "Energy of the attention at start, relative to the principal diagonal's. At 0 it would never learn.",
        above=0,
    )
    spectral_norm: str = _field(
        "orthonormal",
        "How W of spectran is held. orthonormal: its rows are, so that the output stays whitened, and learning chooses a "
        "subspace of the spectrum; rows: each at unit length, free to turn towards each other; none: free, and the text "
        "can be shrunk away.",
        choices=("orthonormal", "rows", "none"),
    )
    adapter_width: int = _field(256, "Hidden units of the two layers of mlp, whiten, rlmrec and llmesr.", low=1)
    experts: int = _field(8, "Experts of moe.", low=1)
    whiten_groups: int = _field(
        4,
        "Groups of dimensions that the relaxed whitening of whiten treats apart; its result joins that of the full "
        "whitening (WhitenRec+). 1 takes the full whitening alone (WhitenRec).",
        low=1,
    )
    null_share: float = _field(
        0.5,
        "Share of the dimensions that alphafuse learns for each item; the others hold the head of the spectrum, frozen. "
        "More suits catalogues with many interactions an item, less those with many rare items.",
        above=0,
        below=1,
    )
    alignment: str = _field(
        "contrastive",
        "Loss of rlmrec. contrastive: the text, through two layers, must tell its item's ID vector from those of the "
        "batch's other items; generative: a masked ID vector, through two layers, must tell its item's text.",
        choices=("contrastive", "generative"),
    )
    alignment_weight: float = _field(
        0.1,
        "Weight of the auxiliary loss, against the recommendation loss: of rlmrec's alignment, or of llmesr's distillation "
        "from similar users. 0 trains without it.",
        low=0,
    )
    alignment_temperature: float = _field(
        0.2, "Cosines are divided by this in rlmrec's loss; lower looks at the most similar other items only.", above=0
    )
    table_dtype: str = _field(
        "float32",
        "How the ID table is stored; bfloat16 is rounded stochastically, and halves it. Moments stay float32.",
        choices=("float32", "bfloat16"),
    )
    pad_rank: bool = _field(False, "Where the text has fewer components than d, pad with zeros instead of refusing.")


@dataclasses.dataclass(frozen=True)
class BackboneConfig:
    """The sequence model."""

    backbone: str = _field(
        "sasrec",
        "Backbone: sasrec (a causal transformer); bert4rec (a transformer that looks both ways, trained to fill in hidden "
        "items); hstu (gated pointwise attention with relative positions and, where the data has timestamps, "
        "relative times).",
    )
    mask_ratio: float = _field(
        0.3,
        "Share of a history's items that bert4rec must fill in, one at least, where it hides random ones: once an epoch "
        "for half of the users. All else hides the last item only, as prediction does; so does all with 0.",
        low=0,
        below=1,
    )
    prefixes: int = _field(
        10,
        "Sequences that bert4rec is trained on of a user, at most: the newest max_length + 1 items, and beginnings of "
        "these, evenly spread. 1 for the former alone, as in the paper: an epoch is cheaper and teaches less.",
        low=1,
        before=1,
    )
    blocks: int = _field(2, "Blocks of attention.", low=1)
    heads: int = _field(2, "Attention heads; must divide the dimension.", low=1)
    dropout: float = _field(0.3, "Dropout rate on inputs, attention outputs and feed-forward outputs.", low=0, below=1)
    ffn_multiplier: int = _field(4, "Width of the feed-forward layer over the dimension; hstu has none.", low=1)


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """The score and the loss."""

    loss: str = _field(
        "infonce",
        "Loss: infonce or sampled_softmax (sampled negatives; the latter undoes what sampling favours); bce or gbce "
        "(binary cross-entropy over sampled negatives; the latter undoes how sure they make a model); or softmax (whole "
        "catalogue).",
    )
    score: str = _field(
        "cosine", "Score of a user state and an item vector; training and ranking share it.", choices=("cosine", "dot")
    )
    temperature: float = _field(
        0.1,
        "Scores are divided by this before the softmax (and before the logistic function of bce and gbce).",
        above=0,
    )
    cold_scale: float = _field(
        1.0,
        "Factor of the scores that items unseen in training have in rankings and lists. Scores at the top of a list are "
        "above 0 as a rule (refused with bce and gbce, where they are not), so that above 1 such items are shown and found "
        "more often, at the cost of all others; experiments.coldstart says how much. It changes no update, but "
        "validations, and so which parameters are kept.",
        low=0.01,
        high=100,
    )
    negatives: int = _field(512, "Negatives per step, shared by all positions of the batch.", low=1)
    sampling: str = _field(
        "uniform",
        "Negatives: uniform over the items in training; popularity, in proportion to count^popularity_power; or in_batch, "
        "targets of the batch.",
        choices=("uniform", "popularity", "in_batch"),
    )
    popularity_power: float = _field(
        0.75, "With --sampling=popularity: 0 is uniform, 1 in proportion to the counts.", low=0, high=2
    )
    gbce_t: float = _field(
        0.75,
        "Calibration of gbce: 0 is bce, whose probabilities are far too high where few items are drawn; at 1 the best "
        "model's are true (of items outside the history, unless --nohistory_negatives); between, learning is faster.",
        low=0,
        high=1,
    )
    mask_negatives: str = _field(
        "positive",
        "Sampled negatives that don't count for a position: its own target (positive), or all items of its sequence, later "
        "ones too (history).",
        choices=("positive", "history"),
    )
    history_negatives: bool = _field(
        True,
        "Add the items of a position's own history to its sampled negatives: a catalogue's draws hardly ever hold them, "
        "and a model that is not told ranks what users have bought first. Turn it off where people buy a thing twice. "
        "softmax holds them anyway; sampled_softmax takes them with --mask_negatives=history, which leaves them out of "
        "what is drawn.",
    )


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The optimiser and its schedule."""

    optimizer: str = _field(
        "adam",
        "Optimiser; adam and adamw are one: weight decay is decoupled.",
        choices=("adam", "adamw", "adagrad", "sgd"),
    )
    table_updates: str = _field(
        "sparse",
        "sparse: a step reads and writes the item rows that it touches, and no others; dense: all rows, as Optax "
        "would. Losses over all items are dense by nature.",
        choices=("sparse", "dense"),
    )
    table_optimizer: str = _field(
        "same",
        "Rule for the item tables: that of --optimizer, or Adagrad with one accumulator a row (4 bytes of state "
        "where Adam has 8 a dimension).",
        choices=("same", "rowwise_adagrad"),
    )
    table_adam: str = _field(
        "decayed",
        "Adam on sparse item rows, of which a step touches some. decayed: moments decay at the others, too, the second "
        "as in dense Adam, the first by the root of that; lazy: both rest there (PyTorch's SparseAdam); counted: they "
        "rest, and the bias is corrected by the row's own count.",
        choices=("decayed", "lazy", "counted"),
    )
    learning_rate: float = _field(1e-3, "Peak learning rate.", low=0)
    spectral_lr_multiplier: float = _field(
        5.0, "Learning rate of Q, K, the threshold and the Taylor coefficients over that of the rest.", low=0
    )
    spectral_epochs: float = _field(
        8.0,
        "Epochs over which that learning rate falls to zero (a cosine): the attention learns while the text leads, and "
        "is not drawn into what the IDs memorise later. 0: it does not fall.",
        low=0,
    )
    adapter_lr_multiplier: float = _field(
        1.0,
        "Learning rate of what the item encoder trains beside its item tables and the spectral attention, such as the "
        "layers of mlp, the experts of moe, a gate, over that of the rest.",
        low=0,
    )
    weight_decay: float = _field(
        0.0, "Decoupled weight decay; never on thresholds, Taylor coefficients, norms and biases.", low=0
    )
    warmup_steps: int = _field(100, "Steps of linear warm-up.", low=0)
    schedule: str = _field("constant", "Schedule after warm-up.", choices=("constant", "cosine"))
    clip_norm: float = _field(1.0, "Clip the global gradient norm to this; 0 does not clip.", low=0)


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """The loop: how long, how often, on what."""

    seed: int = _field(0, "Seed of initialisation, data order, dropout and negatives.", low=0)
    epochs: int = _field(100, "Train at most this many epochs.", low=1, resumable=True)
    max_steps: int = _field(0, "Train at most this many steps; 0 leaves the end to --epochs.", low=0, resumable=True)
    batch_size: int = _field(256, "Users per update, over all devices.", low=1)
    eval_every: int = _field(1, "Epochs between two validations.", low=1)
    patience: int = _field(
        10,
        "Stop after this many validations without a better validation NDCG@20, from the end of the warm-up on; 0 trains "
        "to the end.",
        low=0,
        resumable=True,
    )
    checkpoint_every: int = _field(
        500,
        "Steps between two checkpoints; one is also written with every validation.",
        low=1,
        resumable=True,
    )
    evaluate: str = _field(
        "both",
        "What is evaluated at the end; a search passes valid, so that the test set is read once.",
        choices=("valid", "test", "both"),
        resumable=True,
    )
    eval_batch_size: int = _field(256, "Users ranked at once.", low=1, resumable=True)
    filter_seen: bool = _field(False, "Leave items of a user's history out of the ranking; targets are never left out.")
    precision: str = _field("float32", "Compute precision; parameters stay float32.", choices=("float32", "bfloat16"))
    mesh: str = _field(
        "auto",
        "Device mesh, e.g. data:4,model:1; auto puts all devices on data. May change on resuming.",
        resumable=True,
    )
    parallelism: str = _field(
        "jit",
        "How a step is spread over devices: jit cuts item tables over all of them; pmap keeps whole tables on each, for "
        "code bases that are built on it. The numbers are the same.",
        choices=("jit", "pmap"),
        resumable=True,
    )
    micro_batches: int = _field(
        1,
        "Cut the batch of each shard into this many parts, so that the vectors of one part travel while another is "
        "computed with; the numbers are the same. For meshes whose exchange takes long (experiments.plan says).",
        low=1,
        resumable=True,
    )
    steps_per_dispatch: int = _field(
        1,
        "Updates that the device makes without asking the host, where steps are small; fewer before a line of the log "
        "(every 50 steps), a validation or a checkpoint.",
        low=1,
        resumable=True,
    )
    profile: int = _field(
        0,
        "Write a trace of this many steps to profile/ in --workdir, for Perfetto or XProf; 0 writes none.",
        low=0,
        resumable=True,
    )
    tensorboard: bool = _field(False, "Also write TensorBoard summaries (extra [tensorboard]).", resumable=True)


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that decides a run. `--config=FILE` reads it back from config.json."""

    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    text: TextConfig = dataclasses.field(default_factory=TextConfig)
    spectrum: SpectrumConfig = dataclasses.field(default_factory=SpectrumConfig)
    encoder: EncoderConfig = dataclasses.field(default_factory=EncoderConfig)
    backbone: BackboneConfig = dataclasses.field(default_factory=BackboneConfig)
    objective: ObjectiveConfig = dataclasses.field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Sections of fields, as config.json holds them."""
        return dataclasses.asdict(self)

    def flat(self) -> dict[str, Any]:
        """Every value by its flat name, in the order of definition."""
        return {field.name: getattr(getattr(self, section), field.name) for section, field in fields()}

    def replace(self, **values: Any) -> Config:
        """A copy with fields set by their flat name, e.g. `config.replace(seed=3, dropout=0.1)`.

        Raises:
          InputError: for a name that no section has.
        """
        owners = {field.name: section for section, field in fields()}
        for name in values:
            if name not in owners:
                raise unknown_name("configuration field", name, owners)
        changed = {
            section: dataclasses.replace(
                getattr(self, section), **{n: v for n, v in values.items() if owners[n] == section}
            )
            for section in {owners[n] for n in values}
        }
        return dataclasses.replace(self, **changed)

    def get(self, name: str) -> Any:
        """The value of a field by its flat name; raises `KeyError` for a name that no section has."""
        return self.flat()[name]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "configuration") -> Config:
        """Reads what `to_dict` wrote; names `source` and the field in every complaint."""
        flat: dict[str, Any] = {}
        known = {(section, field.name): field for section, field in fields()}
        sections = [section.name for section in dataclasses.fields(cls)]
        for section, entries in values.items():
            if section not in sections:
                raise InputError(
                    f"{source}: unknown section {section!r}; a configuration has {', '.join(sections)}. That of a run is "
                    "the file config.json in its --workdir."
                )
            if not isinstance(entries, Mapping):
                raise InputError(f"{source}: section {section!r} must be an object of fields.")
            for name, value in entries.items():
                if (section, name) not in known:
                    raise unknown_name(
                        f"field in {source}, section {section!r}:", name, [n for s, n in known if s == section]
                    )
                kind = type(known[section, name].default)
                if kind is float and type(value) is int and abs(value) < 1e300:
                    value = float(value)
                if type(value) is not kind:
                    choices = known[section, name].metadata["choices"]
                    right = f"one of {', '.join(choices)}" if choices else kind.__name__
                    raise InputError(f"{source}: {section}.{name} must be {right}, got {value!r}.")
                flat[name] = value
            absent = {n: f.metadata["before"] for (s, n), f in known.items() if s == section and n not in entries}
            if None not in absent.values():  # a section that was written out whole
                flat |= absent
        return cls().replace(**flat)

    def differences(self, other: Config, also: Collection[str] = ()) -> list[str]:
        """`name: mine != theirs` for each field that differs and is not resumable, or is one of `also`."""
        theirs, resumable = other.flat(), {field.name for _, field in fields() if field.metadata["resumable"]}
        return [
            f"{name}: {mine!r} != {theirs[name]!r}"
            for name, mine in self.flat().items()
            if mine != theirs[name] and (name not in resumable or name in also)
        ]

    def naming_files_as(self, other: Config) -> Config:
        """A copy that names each file as `other` does, where both name one: whether they hold the same is for the
        digest of a run's inputs to say."""
        names = {name: other.get(name) for name in FILES if self.get(name) and other.get(name)}
        return self.replace(**names)

    def same_results(self, other: Config) -> bool:
        """Whether a finished run of `other` is one of this configuration: of the resumable fields only when training
        ends and what is read then make a difference, and `both` holds what either asks for."""
        return not self.differences(other, LENGTH if other.training.evaluate == "both" else (*LENGTH, "evaluate"))


def fields() -> Iterator[tuple[str, dataclasses.Field[Any]]]:
    """Every field of every section, as (section, field), in the order of definition."""
    defaults = Config()
    for section in dataclasses.fields(Config):
        for field in dataclasses.fields(getattr(defaults, section.name)):
            yield section.name, field
