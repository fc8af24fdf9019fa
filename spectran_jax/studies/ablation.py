"""SpecTran with one part removed or changed at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from spectran_jax.studies.curves import dots, told_bars
from spectran_jax.studies.flags import Study
from spectran_jax.studies.grid import Grid, comparison, finish, run_grid
from spectran_jax.studies.publish import Result
from spectran_jax.studies.variants import Variant, parse_changes, read_changes, single_changes

REFERENCE = "spectran"

DEFAULT = (
    "attention=*, position_encoding=*, spectral_norm=*, center=*, semantic_scale=0.05:0.1:0.2:0.4:0.8, fusion=*, "
    "taylor_order=0:1:2:4, attention_dimension=16:64:256"
)
"""What is tried: every choice of the parts, and values around the defaults."""

TEXT = """
SpecTran as configured, and each variant with one field changed and all else alike: same data, same seeds, same
budget. Removed parts: attention=none leaves the weighted head of the spectrum, position_encoding=false the attention
alone. attention=softmax puts a softmax in Softshrink's place; spectral_norm=rows lets the rows of W turn towards
each other, and none lets them shrink and grow, too.

A difference whose interval holds 0 says that these users can't tell the part from its absence. Every variant reads the
test set, so the table describes and doesn't choose: values are chosen on validation, by experiments.sweep.
"""


def run(study: Study, changes: str = DEFAULT) -> Result:
    """Runs and publishes the ablation; `changes` as `variants.parse_changes` reads them.

    Of the default changes those are left out that the configuration does not read; others are refused.
    """
    configs = {dataset: config.replace(item_encoder=REFERENCE) for dataset, config in study.datasets.items()}
    parsed, left_out = read_changes(configs, parse_changes(changes, "changes"), asked=changes != DEFAULT)
    grid = run_grid(study, variants(study, parsed), "Ablation")
    return finish(study, "ablation", grid, result(grid, left_out, study.command), grid.against(REFERENCE))


def variants(study: Study, changes: Mapping[str, Mapping[str, Sequence[Any]]]) -> dict[str, Sequence[Variant]]:
    """The reference and every single change of it, by data set; all with the encoder spectran."""
    encoder = {"item_encoder": REFERENCE}
    return {
        dataset: [
            Variant(REFERENCE, encoder),
            *(Variant(v.name, {**encoder, **v.values}) for v in single_changes(config, changes[dataset])),
        ]
        for dataset, config in study.datasets.items()
    }


def result(grid: Grid, left_out: str, command: str) -> Result:
    """The table of a grid, and each data set's variants beside the reference."""
    plots = []
    for dataset, some in grid.runs.items():
        found = {name: value for name in some if (value := grid.metric(dataset, name, "ndcg@10")) is not None}
        caption = f"Test NDCG@10, {told_bars(found.values())}. The dashed line is SpecTran as configured."
        reference = found[REFERENCE].mean if REFERENCE in found else None
        title = f"NDCG@10 of each variant, {dataset}"
        plots.append(dots(f"ablation-{dataset}", title, caption, found, xlabel="Test NDCG@10", reference=reference))
    table = comparison(grid, "Ablation of SpecTran", REFERENCE, note=left_out)
    return Result("Ablation of SpecTran", [table], plots, TEXT, command)
