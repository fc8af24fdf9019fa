"""What keeps processes from starting as one run: said by each of them in one line, exit status 2."""

import contextlib
from pathlib import Path

import pytest

from spectran_jax.benchmarks.local_run import free_port, started

IMPATIENT = [str(Path(__file__).with_name("impatient_train.py"))]
CASES = {
    "another configuration": ({"batch_size": {1: 32}}, "The processes disagree on --batch_size: 32 for process 1"),
    "a folder of its own": ({"workdir": {1: "elsewhere"}}, "is not shared between the hosts: process 1 on"),
}


def test_processes_that_do_not_fit_together(tiny_flags, tmp_path):
    with contextlib.ExitStack() as stack:
        runs = {}
        for number, (name, (own, _)) in enumerate(CASES.items()):
            own = {
                flag: {i: tmp_path / "elsewhere" if v == "elsewhere" else v for i, v in values.items()}
                for flag, values in own.items()
            }
            flags = {**tiny_flags, "workdir": tmp_path / f"run-{number}"}
            runs[name] = stack.enter_context(started(tmp_path / str(number), 2, flags, own=own, program=IMPATIENT))
        for name, (_, message) in CASES.items():
            run = runs[name]
            assert run.wait(120) == [2, 2], [run.err(index) for index in range(2)]
            for index in range(2):
                assert message in run.last_line(index)
                assert "Traceback" not in run.err(index)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"process_id": 1}, "No coordinator at --coordinator=127.0.0.1:"),
        ({"process_id": 2}, "--process_id=2 must be between 0 and 1"),
        ({}, "--process_id is missing"),
        ({"process_id": 1, "coordinator": "here"}, "--coordinator=here must be HOST:PORT"),
    ],
)
def test_a_coordinator_that_is_not_there(tiny_config, tmp_path, flags, message):
    from spectran_jax.cluster_flags import ClusterOptions
    from spectran_jax.errors import InputError
    from spectran_jax.training.run import train_and_report

    values = {"coordinator": f"127.0.0.1:{free_port()}", "num_processes": 2, "coordinator_timeout": 1, **flags}
    with pytest.raises(InputError, match=message):
        train_and_report(tiny_config, tmp_path, ClusterOptions(**values))
