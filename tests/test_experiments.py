"""The list of the experiments."""

import pytest
from conftest import REPO

from experiments.__main__ import main
from spectran_jax.errors import InputError


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_every_experiment_is_listed_with_a_sentence(monkeypatch, capsys, arguments):
    monkeypatch.setattr("sys.argv", ["experiments", *arguments])
    main()
    listed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()[2:])
    assert set(listed) == {path.stem for path in (REPO / "experiments").glob("*.py")} - {"__init__", "__main__"}
    assert all(told.endswith(".") and len(told) < 110 for told in listed.values())


def test_what_follows_the_package_is_told_to_be_part_of_the_name(monkeypatch):
    monkeypatch.setattr("sys.argv", ["experiments", "train", "--epochs=2"])
    with pytest.raises(InputError, match=r"'train': an experiment is python -m experiments\.NAME"):
        main()
