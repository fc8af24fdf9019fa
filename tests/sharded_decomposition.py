"""One of the processes of `test_sharded_decomposition.py`: FOLDER ADDRESS COUNT INDEX."""

import json
import os
import sys
import time
from pathlib import Path

import jax
import numpy as np


def main(folder, address, count, index):
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, count, index)
    from spectran_jax.config import Config
    from spectran_jax.errors import InputError
    from spectran_jax.text import TextEmbeddings, encoders, item_embeddings, load_or_decompose, store

    def memory(name):
        """Bytes by /proc: VmRSS now, VmHWM the most since it was reset."""
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

    def embeddings(name):
        matrix = np.load(folder / f"{name}.npy", mmap_mode="r")
        has_text = np.load(folder / f"{name}.has_text.npy")
        return TextEmbeddings(matrix, has_text, name * 8, "test")

    def decomposed(name, cache="cache", **options):
        config = Config().replace(**{"decomposition": "gram", **options})
        return load_or_decompose(config, embeddings(name), folder / cache)

    def refused(action):
        try:
            action()
        except InputError as error:
            return str(error)
        raise AssertionError("not refused")

    report = {}
    for dtype in ("float32", "bfloat16", "int8"):
        decomposed("small", spectrum_dtype=dtype)
    decomposed("small", decomposition_precision="float32", rtol=1e-3)
    load_or_decompose(Config(), embeddings("tiny"), folder / "cache")  # exact, by process 0
    again = decomposed("small")
    report["sigma"] = again.sigma.tolist()

    report["randomized"] = refused(lambda: decomposed("small", decomposition="randomized", max_rank=4))
    report["bad"] = refused(lambda: decomposed("bad"))
    store._SEEN_SECONDS = 1.0  # what is not there stays away
    report["unshared"] = refused(lambda: decomposed("small", cache=f"cache-of-{index}"))

    class Letters:
        """How often each of four letters occurs; one process is slow, one fails on the word "fail"."""

        name, version, dimension = "letters", "1", 4
        seen = 0

        def encode(self, texts):
            time.sleep(0.05 * (index == 1))
            if index == 2 and any(text.startswith("fail") for text in texts):
                raise OSError("the model is gone")
            self.seen += len(texts)
            return np.array([[text.count(letter) for letter in "abcd"] for text in texts], np.float32)

    encoder = Letters()
    encoders.ENCODERS["letters"] = lambda argument: encoder
    config = Config().replace(text_encoder="letters")
    texts = json.loads((folder / "texts.json").read_text())
    ids = list(range(len(texts)))

    def encoded(texts):
        return item_embeddings(
            config, item_ids=ids, item_text=texts, items_row=np.array(ids, np.int32), cache_dir=folder / "cache"
        )

    found = encoded(texts)
    report["encoded"], report["digest"] = encoder.seen, found.digest
    try:
        encoded(["fail" + text for text in texts])
    except Exception as error:
        report["failed"] = f"{type(error).__name__}: {error}"

    # The user's own file, picked in another order.
    own = Config().replace(embeddings=str(folder / "small.npy"))
    rows = np.load(folder / "rows.npy")
    found = item_embeddings(
        own,
        item_ids=rows.tolist(),
        item_text=[""] * len(rows),
        items_row=rows,
        items_file_rows=20_000,
        cache_dir=folder / "cache",
    )
    report["picked"] = [found.digest, bool((found.matrix == embeddings("small").matrix[rows]).all())]

    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    before = memory("VmRSS")
    decomposed("large", max_rank=8)
    report["peak"] = memory("VmHWM") - before
    (folder / f"report-{index}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    os.environ["JAX_PLATFORMS"] = "cpu"
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
