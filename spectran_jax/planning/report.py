"""What a plan prints, writes and draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from spectran_jax.planning.account import Account
from spectran_jax.training.memory import GIB

if TYPE_CHECKING:
    from rich.table import Table

TARGET = {"without_overlap": 0.55, "with_overlap": 0.90}
"""Shares of a step's time that should be computing."""

_ROUNDS = ", such as rounds of an exchange after the first, of which few steps have any"
"""What these loops of a train step are."""


def tables(plan: Account) -> list[Table]:
    """The tables of one slice: memory, programs, exchanges of the train step."""
    return [_memory(plan), _programs(plan), _exchanges(plan)]


def sentences(plan: Account) -> list[str]:
    """What the tables come to, in words."""
    free = plan["hbm_bytes"] - plan["peak_bytes"]
    unit = _unit(plan)
    verdict = f"{plan['peak_bytes'] / GIB:.2f} GiB of {plan['hbm_bytes'] / GIB:.2f} GiB on each {unit}"
    if unit != "chip":
        verdict += f", {plan['devices'] // plan['chips']} of which are a chip"
    lines = [f"{plan['topology']}: {verdict}; {'it fits' if plan['fits'] else 'it does not fit'}."]
    if not plan["fits"] or free < plan["hbm_bytes"] / 16:
        lines += ["What makes it smaller, beside more chips:", *(f"  {line}" for line in plan["advice"])]
    pay, step = plan["payload"], plan["programs"]["train step"]
    least = _at_least(step)
    if pay["needed"] and not step["refused"]:
        lines.append(
            f"A step exchanges {least}{pay['exchanged'] / 1e6:.2f} MB a {unit}, {least}{pay['ratio']:.2f} times what "
            f"it can't but: {pay['touched_rows']:,} rows there and back over all {unit}s, "
            f"{pay['rows_bytes'] / 1e6:.2f} MB a {unit}, and "
            f"{pay['replicated_gradients'] / 1e6:.2f} MB of gradients of what all hold."
        )
    if step["seconds"]:
        seconds = {name: f"{least}{1e3 * value:.3f} ms" for name, value in step["seconds"].items()}
        share = step["efficiency"]
        lines.append(
            f"Step: {seconds['compute']} computing + {seconds['network']} exchanging = "
            f"{seconds['without_overlap']}, {share['without_overlap']:.1%} computing; "
            f"{seconds['with_overlap']} with the overlap of the schedule, {share['with_overlap']:.1%}."
        )
    for name, each in plan["programs"].items():
        if count := each["open_loops"]:
            loops = f"{count} loop{'s that run' if count > 1 else ' that runs'} as often as the data needs"
            lines.append(f"≥ in {name}: without {loops}{_ROUNDS if each is step else ''}.")
    return lines


def weak_scaling(plans: Sequence[Account]) -> list[Account]:
    """Step times of growing slices with a constant share a chip, and efficiencies.

    `efficiency` is the share of a step that computes: a slice whose network took no time has 1. `weak` is the step
    time of the smallest slice over that of this one, both of which exchange.
    """
    steps = [(plan, plan["programs"]["train step"]) for plan in sorted(plans, key=lambda plan: plan["chips"])]
    steps = [(plan, step) for plan, step in steps if step["seconds"]]
    return [
        {
            "topology": plan["topology"],
            "chips": plan["chips"],
            "open_loops": step["open_loops"],
            **step["seconds"],
            "efficiency": step["efficiency"],
            "weak": {name: steps[0][1]["seconds"][name] / step["seconds"][name] for name in TARGET},
        }
        for plan, step in steps
    ]


def scaling_table(rows: Sequence[Account]) -> Table:
    """The arithmetic of weak scaling."""
    table = _table("Weak scaling of the train step", "Slice")
    for name in ("Chips", "Compute, ms", "Network, ms", "Step, ms", "Computing", "Overlapped, ms", "Computing"):
        table.add_column(name, justify="right")
    table.add_column("Against the smallest", justify="right")
    for row in rows:
        own, least = row["efficiency"], _at_least(row)
        table.add_row(
            row["topology"],
            f"{row['chips']:,}",
            *(f"{least}{1e3 * row[name]:.3f}" for name in ("compute", "network", "without_overlap")),
            f"{own['without_overlap']:.1%}",
            f"{least}{1e3 * row['with_overlap']:.3f}",
            f"{own['with_overlap']:.1%}",
            f"{row['weak']['without_overlap']:.1%}, {row['weak']['with_overlap']:.1%}",
        )
    return table


def plot(rows: Sequence[Account]) -> Any:
    """A Matplotlib figure: step time and efficiency over chips."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    chips = [row["chips"] for row in rows]
    left.bar([str(n) for n in chips], [1e3 * row["compute"] for row in rows], label="computing")
    bottom = [1e3 * row["compute"] for row in rows]
    left.bar([str(n) for n in chips], [1e3 * row["network"] for row in rows], bottom=bottom, label="exchanging")
    left.plot([str(n) for n in chips], [1e3 * row["with_overlap"] for row in rows], "ko", label="with overlap")
    left.set(xlabel="Chips", ylabel="Step, ms (roofline)")
    for name, label in (("without_overlap", "without overlap"), ("with_overlap", "with overlap")):
        right.plot(chips, [row["efficiency"][name] for row in rows], marker="o", label=label)
        right.axhline(TARGET[name], color="0.6", linewidth=1, linestyle=":")
    right.set(xlabel="Chips", ylabel="Share of a step that computes", ylim=(0, 1.05))
    right.set_xscale("log", base=2)
    for axes in (left, right):
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _unit(plan: Account) -> str:
    """What the figures of a plan are of."""
    return "chip" if plan["devices"] == plan["chips"] else "device"


def _at_least(program: Account) -> str:
    """What stands before the figures of a program of which something is not counted."""
    return "≥ " if program["open_loops"] else ""


def _memory(plan: Account) -> Table:
    table = _table(f"Memory of a {_unit(plan)}: {plan['topology']}, {plan['num_items']:,} items", "Array")
    table.add_column("GiB", justify="right")
    for name, size in sorted(plan["arrays"].items(), key=lambda item: -item[1]):
        table.add_row(name, f"{size / GIB:.3f}")
    table.add_section()
    for name, program in plan["programs"].items():
        for part, size in program["bytes"].items():
            if part != "arguments":
                table.add_row(f"{name}: {part}", f"{size / GIB:.3f}")
    return table


def _programs(plan: Account) -> Table:
    table = _table(f"Programs, per {_unit(plan)}", "Program")
    for name in ("Peak GiB", "TFLOP", "HBM, GB", "Sent, MB", "Compute, ms", "Network, ms", "Overlapped, ms"):
        table.add_column(name, justify="right")
    for name, each in plan["programs"].items():
        seconds, least = each["seconds"], _at_least(each)
        figures = (
            (
                f"{least}{each['flops'] / 1e12:.4f}",
                f"{least}{each['hbm_bytes'] / 1e9:.3f}",
                f"{least}{each['collective_bytes'] / 1e6:.3f}",
                *(f"{least}{1e3 * seconds[part]:.3f}" for part in ("compute", "network", "with_overlap")),
            )
            if seconds
            else ("does not fit",)
        )
        table.add_row(name, f"{each['peak_bytes'] / GIB:.2f}", *figures)
    return table


def _exchanges(plan: Account) -> Table:
    table = _table(f"Exchanges of the train step, per {_unit(plan)}", "Kind")
    for name in ("Axes", "Bytes", "Runs", "ms each"):
        table.add_column(name, justify="right")
    table.add_column("From", overflow="fold")
    for each in plan["programs"]["train step"]["collectives"]:
        table.add_row(
            each["kind"],
            ",".join(each["axes"]),
            f"{each['bytes']:,}",
            "as needed" if each["runs"] is None else f"{each['runs']:,}",
            f"{1e3 * each['seconds']:.4f}",
            each["source"].rpartition("jit(train_step)/")[2][-48:],
        )
    return table


def _table(title: str, first: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, box=box.SIMPLE_HEAVY, title_style="bold")
    table.add_column(first, no_wrap=True)
    return table
