"""Compiled programs are kept where all hosts keep them in one folder, and by none where they don't."""

import jax
import pytest

from spectran_jax.training import consensus
from spectran_jax.training.consensus import share_compiled


class Process:
    """One of two processes, which hears of the other what the test says."""

    alone = False

    def __init__(self, index, token=None, other=True):
        self.is_first, self.token, self.other, self.said = index == 0, token, other, None

    def of_first(self, key, value):
        return value() if self.is_first else self.token

    def gather(self, key, value):
        self.said = value
        return [value, self.other]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(consensus, "_CACHE_SECONDS", 0.0)
    before, folder = jax.config.values["jax_compilation_cache_dir"], tmp_path / "data" / "compiled"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    yield folder
    jax.config.update("jax_compilation_cache_dir", before)


def kept():
    return jax.config.values["jax_compilation_cache_dir"]


def test_one_folder_for_all_is_kept(cache):
    said = []

    class Second(Process):
        """Looks while the first waits for it, and another run begins."""

        def gather(self, key, value):
            said.append(value)
            return [value, True]

    class First(Process):
        def of_first(self, key, value):
            token = value()
            share_compiled(Process(0))
            share_compiled(Second(1, token=token))
            return token

    share_compiled(First(0))
    assert said == [True]
    assert kept() == str(cache)
    assert not list(cache.iterdir())


def test_a_folder_of_ones_own_is_not(cache):
    second = Process(1, token="what process 0 wrote elsewhere")
    share_compiled(second)
    assert not second.said
    assert kept() is None


def test_where_another_does_not_see_it_nobody_keeps_it(cache, caplog):
    share_compiled(Process(0, other=False))
    assert kept() is None
    assert f"{cache} is not one folder for all hosts: programs are compiled anew" in caplog.text


def test_a_folder_that_can_not_be_written_to_is_none_for_all(cache):
    cache.parent.mkdir()
    cache.write_text("a file")
    share_compiled(first := Process(0))
    assert not first.said
    assert kept() is None


def test_a_bucket_is_one_for_all():
    jax.config.update("jax_compilation_cache_dir", "gs://bucket/compiled")
    share_compiled(first := Process(0))
    assert first.said
    assert kept() == "gs://bucket/compiled"
