"""What ends a command with one line and a status, and what stays a defect."""

import errno
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from spectran_jax.config import Config
from spectran_jax.config_checks import check
from spectran_jax.errors import InputError, Interrupted, exit_with_message, unknown_name


def ended(capsys, error):
    def main():
        raise error

    with pytest.raises(SystemExit) as left:
        exit_with_message(main)
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return left.value.code, err


def test_what_the_system_says_of_a_file(capsys):
    assert ended(capsys, PermissionError(errno.EACCES, "Permission denied", "/x/y")) == (
        2,
        "error: /x/y: Permission denied.\n",
    )
    status, _ = ended(capsys, OSError(errno.ENOSPC, "No space left on device", "/x/y"))
    assert status == 1
    with pytest.raises(BrokenPipeError):
        exit_with_message(lambda: (_ for _ in ()).throw(BrokenPipeError(errno.EPIPE, "Broken pipe")))


@pytest.mark.parametrize(
    "error", [Interrupted("Stopped by SIGINT; start the same command again."), KeyboardInterrupt()]
)
def test_a_stop_on_request_is_no_error(capsys, error):
    with pytest.raises(SystemExit) as left:
        exit_with_message(lambda: (_ for _ in ()).throw(error))
    assert left.value.code == 75
    assert capsys.readouterr().err == "Stopped by SIGINT; start the same command again.\n"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE])
def test_what_the_system_says_of_an_open_file(capsys, number):
    status, err = ended(capsys, OSError(number, "It has had enough"))
    assert (status, err) == (1, "error: Can't go on writing or reading: It has had enough.\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no disk that is always full")
def test_a_stdout_that_is_full_ends_in_one_line():
    """Also where only the end of the command writes what was printed."""
    program = "from spectran_jax.errors import exit_with_message\nexit_with_message(lambda: print('x'))"
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (1, "error: Can't go on writing or reading: No space left on device.\n")


def test_no_stdout_is_no_fault(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)  # as Python has it behind >&-
    exit_with_message(lambda: print("x"))
    with pytest.raises(SystemExit):
        exit_with_message(lambda: (_ for _ in ()).throw(InputError("no")))


def test_memory_that_is_used_up(capsys):
    class JaxRuntimeError(RuntimeError):
        """As JAX names it."""

    told = "RESOURCE_EXHAUSTED: Out of memory allocating 4000000000000 bytes.\nDetails"
    on_tpu = "RESOURCE_EXHAUSTED: Attempting to reserve 15.10G at the bottom of HBM."
    for error in (JaxRuntimeError(told), JaxRuntimeError(on_tpu), MemoryError("Unable to allocate 7.28 TiB")):
        status, err = ended(capsys, error)
        assert status == 1
        assert "--batch_size, --max_length" in err
    with pytest.raises(MemoryError) as caught:
        np.zeros(2**55)
    assert ended(capsys, caught.value)[0] == 1
    with pytest.raises(ZeroDivisionError):
        exit_with_message(lambda: 1 / 0)


def test_a_limit_of_the_network_is_not_one_of_memory(capsys):
    told = "RESOURCE_EXHAUSTED: SERVER: Received message larger than max (5000000 vs. 4194304)\nAdditional GRPC error"
    assert ended(capsys, RuntimeError(told)) == (
        1,
        f"error: A limit of the network or of a service is reached ({told.partition(chr(10))[0]}).\n",
    )


def test_a_reader_that_has_gone_is_no_defect():
    """As in `python -m experiments.recommend --output=/dev/stdout ... | head`."""
    program = "from spectran_jax.errors import exit_with_message\nexit_with_message(lambda: print('x' * 10**6))"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 1


def test_many_names_do_not_hide_the_one_that_was_meant():
    many = [f"field_{n}" for n in range(80)]
    assert str(unknown_name("field", "Dimention", [*many, "dimension"])) == (
        "Unknown field 'Dimention'. Did you mean 'dimension'?"
    )
    assert "Known: field_0, " in str(unknown_name("field", "zzz", many))
    assert str(unknown_name("loss", "softmx", ["softmax", "bce"])) == (
        "Unknown loss 'softmx'. Known: bce, softmax. Did you mean 'softmax'?"
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_length": 10**20}, "--max_length must be at most 2147483647"),
        ({"epochs": 2**31}, "--epochs must be at most"),
        ({"interactions": "~nobody-at-all/c.tsv"}, "--interactions=~nobody-at-all/c.tsv: "),
        ({"data_dir": "gs://bucket/cache"}, "--data_dir=gs://bucket/cache: this is an address and no path"),
    ],
)
def test_values_that_nothing_can_hold(values, message):
    with pytest.raises(InputError, match=message):
        check(Config().replace(**values))
