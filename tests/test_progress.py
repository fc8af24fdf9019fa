"""Progress: lines at a bounded pace in a log file, a bar on a terminal, plain numbers only."""

import io

import pytest
from rich.console import Console

from spectran_jax.progress import TrainingProgress, duration, stderr_console, task


class Clock:
    """A clock that stands still until told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def log_file() -> Console:
    return Console(file=io.StringIO(), force_terminal=False, width=40)


def terminal(width: int = 120) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)


def lines(console: Console) -> list[str]:
    return console.file.getvalue().splitlines()


def test_progress_goes_to_stderr():
    assert stderr_console().stderr


def test_training_prints_lines_at_a_bounded_pace():
    clock, console = Clock(), log_file()
    with TrainingProgress(1000, 100, console, interval=10, clock=clock) as progress:
        for step in range(1, 501):
            clock.now += 0.1  # 50 s in all
            progress.update(step, loss=2.0, examples_per_second=5123.4)
    shown = lines(console)
    assert shown[0] == "Training: step 0 of at most 1,000, 100 steps an epoch; the first is compiled before"
    assert 5 <= len(shown) <= 7
    assert all("loss 2.0000, 5,123 examples/s" in line for line in shown[1:])
    assert shown[-1].startswith("step 500/1,000, epoch 5.0/10, ")
    assert shown[-1].endswith("at most 0:00:50 left")


def test_a_number_left_out_keeps_its_last_value():
    clock, console = Clock(), log_file()
    with TrainingProgress(10, 10, console, interval=0, clock=clock) as progress:
        progress.update(1, loss=3.5)
        progress.update(2)
    assert "loss 3.5000" in lines(console)[2]
    assert "examples/s" not in console.file.getvalue()


def test_a_resumed_run_counts_its_own_time_only():
    clock, console = Clock(), log_file()
    with TrainingProgress(1000, 100, console, start=900, interval=0, clock=clock) as progress:
        clock.now += 100  # compiling
        progress.update(910)
        clock.now += 10
        progress.update(950)
    assert lines(console)[0].startswith("Training: step 900")
    assert "at most -:--:-- left" in lines(console)[1]  # nothing is known of the pace yet
    assert "at most 0:00:12 left" in lines(console)[2]


def test_validation_is_always_printed_and_remembers_the_best():
    console = log_file()
    with TrainingProgress(30, 10, console, interval=1e9) as progress:
        progress.validation({"ndcg@20": 0.04, "hr@20": 0.09}, True)
        progress.validation({"ndcg@20": 0.03}, False)
    assert "valid NDCG@20 0.0400, HR@20 0.0900, best so far" in lines(console)[1]
    assert "valid NDCG@20 0.0300, best 0.0400" in lines(console)[2]
    resumed = log_file()
    with TrainingProgress(30, 10, resumed, start=20) as progress:
        progress.validation({"ndcg@20": 0.03}, False)
    assert "not the best" in lines(resumed)[1]


def test_notes_are_one_line_and_no_markup():
    for console in (log_file(), terminal()):
        with TrainingProgress(30, 10, console) as progress:
            progress.note("saved [bold]step 7[/bold] to a rather long path, longer than the console is wide")
        assert (
            "saved [bold]step 7[/bold] to a rather long path, longer than the console is wide"
            in console.file.getvalue()
        )


def test_terminal_shows_a_bar_with_all_numbers():
    console = terminal()
    with TrainingProgress(1000, 100, console) as progress:
        progress.update(250, loss=1.5, examples_per_second=4321.0)
        progress.validation({"ndcg@20": 0.0412}, True)
        with progress.task("Validation", total=50) as task:
            task(25)
    shown = console.file.getvalue()
    assert "step 250/1,000, epoch 2.5/10, ≤ " in shown
    assert "loss 1.5000  ·  4,321 examples/s  ·  valid NDCG@20 0.0412 (best so far)" in shown
    assert "Training" in shown


def test_the_bar_stops_on_an_error():
    console = terminal()
    progress = TrainingProgress(10, 10, console)
    with pytest.raises(KeyError), progress:
        raise KeyError
    before = console.file.getvalue()
    progress.note("after")
    assert console.file.getvalue() == before + "after\n"


def test_short_tasks_are_silent_and_long_ones_are_not():
    clock, console = Clock(), log_file()
    with task("Encoding text", total=400, console=console, interval=10, clock=clock) as progress:
        clock.now += 9
        progress(100)
    assert lines(console) == []
    with task("Encoding text", total=400, console=console, interval=10, clock=clock) as progress:
        for done in (100, 200, 300, 400):
            clock.now += 6
            progress(done)
    assert lines(console) == [
        "Encoding text: 200/400 (50 %)",
        "Encoding text: 400/400 (100 %)",
        "Encoding text: done, 400 in 0:00:24",
    ]


def test_a_task_learns_its_total():
    clock, console = Clock(), log_file()
    with task("Reading", console=console, interval=0, clock=clock) as progress:
        progress(3)
        progress(4, 16)
    assert lines(console)[:2] == ["Reading: 3", "Reading: 4/16 (25 %)"]


def test_a_failed_task_does_not_say_done():
    console = log_file()
    with pytest.raises(KeyError), task("Reading", console=console, interval=0):
        raise KeyError
    assert lines(console) == []


@pytest.mark.parametrize("total", [None, 4])
def test_a_task_on_a_terminal(total):
    console = terminal()
    with task("Decomposing [m x m]", total=total, console=console) as progress:
        progress(2)
    assert "Decomposing [m x m]" in console.file.getvalue()
    assert "✓" in console.file.getvalue()


def test_durations():
    assert duration(3725.4) == "1:02:05"
    assert duration(float("nan")) == duration(float("inf")) == duration(-1) == "-:--:--"
