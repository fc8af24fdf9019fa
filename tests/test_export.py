"""What serving gets: the run's own numbers from files and JAX alone, and vectors for items that came later."""

import dataclasses
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import TINY_MODEL, without_report

from spectran_jax import export as exports
from spectran_jax import item_encoders, new_items, spectral, writing
from spectran_jax.backbones import layers
from spectran_jax.config import EncoderConfig
from spectran_jax.errors import InputError, RunError
from spectran_jax.export import export_run
from spectran_jax.item_encoders import REGISTRY, ItemSource
from spectran_jax.recommend import recommend, user_states
from spectran_jax.training.programs import build_programs, build_table
from spectran_jax.training.restore import load_run
from spectran_jax.training.run import train_and_report
from spectran_jax.training.setup import prepare

# Reads an export as a server does, which has JAX and NumPy: `histories` are rows of the table.
SERVER = """
import json, sys
from pathlib import Path
sys.modules["spectran_jax"] = None
import jax, numpy as np
folder = Path(sys.argv[1])
about = json.loads((folder / "export.json").read_text())
program = jax.export.deserialize((folder / "user_states.stablehlo").read_bytes())
vectors, lengths = np.load(folder / "vectors.npy"), np.load(folder / "lengths.npy")
given = np.load(sys.argv[2])
arguments = [given[name] for name in ("items", "counts", "timestamps")[: len(about["arguments"]) - 2]]
np.save(sys.argv[3], program.call(vectors, lengths, *arguments))
"""


@pytest.fixture(scope="module")
def run(tiny_config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    with without_report():
        train_and_report(tiny_config.replace(epochs=1), folder)
    return folder


@pytest.fixture(scope="module")
def loaded(run):
    return load_run(run)


@pytest.fixture
def export(run, loaded, tmp_path, monkeypatch):
    """Exports the run, which is read from disk once for all tests that take it as it is."""

    def read(workdir, files, cold_scale):
        return loaded if cold_scale is None else load_run(workdir, files, cold_scale)

    monkeypatch.setattr(exports, "load_run", read)

    def call(output=tmp_path / "served", **options):
        export_run(run, output, **options)
        return output

    return call


def padded(histories, length):
    """The arguments of the program: newest items of each history from column 0 on, garbage behind them."""
    items = np.full((len(histories), length), 17, np.int32)
    times = np.full((len(histories), length), -5, np.int32)
    counts = np.minimum(histories.lengths, length).astype(np.int32)
    for user, (end, count) in enumerate(zip(histories.offsets[1:], counts, strict=True)):
        items[user, :count] = histories.items[end - count : end]
        times[user, :count] = histories.timestamps[end - count : end] - 1_000
    return {"items": items, "counts": counts, "timestamps": times}


def test_a_server_without_this_library_has_the_states_of_the_run(run, loaded, export, tmp_path):
    setup, params = loaded
    folder, histories = export(), setup.dataset.histories
    np.savez(tmp_path / "given.npz", **padded(histories, TINY_MODEL["max_length"]))
    script = [sys.executable, "-c", SERVER, str(folder), *(str(tmp_path / name) for name in ("given.npz", "out.npy"))]
    done = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    states = np.load(tmp_path / "out.npy")
    np.testing.assert_allclose(states, user_states(setup, params, histories), atol=1e-5)
    # Their products with the vectors rank as the run does, in the same ids.
    vectors = np.load(folder / "vectors.npy")
    scores, _ = recommend(setup, params, histories, 3)
    np.testing.assert_allclose(np.sort(states @ vectors.T, axis=1)[:, :-4:-1], scores, atol=1e-4)
    ids = [json.loads(line) for line in (folder / "item_ids.jsonl").read_text().splitlines()]
    assert ids == list(setup.dataset.item_ids)
    about = json.loads((folder / "export.json").read_text())
    assert about["digest"] == json.loads((run / "metrics.json").read_text())["digest"]
    assert about["items"] == {"all": 40, "new": 0}


@pytest.mark.parametrize("options", [{}, {"backbone": "bert4rec", "item_encoder": "llmesr"}], ids=str)
def test_the_program_holds_no_kernel_of_the_machine_that_exports(tiny_config, options, monkeypatch):
    setup = prepare(tiny_config.replace(precision="bfloat16", **options))
    params = jax.tree.map(lambda p: np.zeros(p.shape, p.dtype), build_programs(setup, 1).state.params)
    monkeypatch.setattr(layers, "fused_attention", lambda *_: "cudnn")  # as on a GPU
    assert exports.serialised(setup, params)


@pytest.mark.parametrize(
    "options",
    [
        {"backbone": "hstu", "score": "dot"},
        {"backbone": "bert4rec", "item_encoder": "llmesr", "table_dtype": "bfloat16"},
    ],
    ids=lambda options: options["backbone"],
)
def test_every_backbone_has_the_states_of_the_run(tiny_config, options):
    setup = prepare(tiny_config.replace(**options))
    params = build_programs(setup, 1).init().params
    program = jax.export.deserialize(bytearray(exports.serialised(setup, params)))
    table, histories = build_table(setup)(params, setup.place()), setup.dataset.histories
    given = padded(histories, TINY_MODEL["max_length"])
    takes_time = options["backbone"] == "hstu"
    arguments = [given[name] for name in ("items", "counts", "timestamps")[: 2 + takes_time]]
    states = program.call(*table, *arguments)
    np.testing.assert_allclose(states, user_states(setup, params, histories, table=table), atol=1e-5)
    items, counts = (given[name].copy() for name in ("items", "counts"))
    rows, length = table.vectors.shape[0], items.shape[1]
    items[0, counts[0] - 1], items[1, 0], counts[2:5] = rows, -1, (0, length + 1, -3)
    items[5:, :][np.arange(length) >= counts[5:, None]] = rows + 50  # is not read
    wrong = np.asarray(program.call(*table, items, counts, *arguments[2:]))
    assert np.isnan(wrong[:5]).all()
    np.testing.assert_array_equal(wrong[5:], states[5:])
    if takes_time:  # and times are read
        given["timestamps"][:, 0] -= 10_000_000
        assert np.abs(np.asarray(program.call(*table, *given.values())) - states).max() > 1e-4


def test_the_program_is_lowered_for_accelerators_and_holds_no_table(loaded):
    exported = jax.export.deserialize(bytearray(exports.serialised(*loaded)))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    assert [str(each.shape) for each in exported.in_avals] == ["(N, 16)", "(N,)", "(B, 8)", "(B,)"]
    assert len(exported.mlir_module_serialized) < 2**20


def text_catalogue(items):
    """Random text of `items` items, one of which has none."""
    text = np.random.default_rng(3).normal(size=(items, 24)).astype(np.float32)
    text[5] = 0
    return text


@pytest.mark.parametrize("storage", ["float32", "int8"])
@pytest.mark.parametrize("name", [name for name, encoder in REGISTRY.items() if encoder.knows_cold_items()])
def test_rows_of_new_items_are_those_of_cold_items_with_the_same_text(name, storage):
    if storage == "int8" and not REGISTRY[name].needs_spectrum:
        pytest.skip("reads no spectrum")
    text = text_catalogue(40)
    counts = np.where(np.arange(40) < 30, 1, 0)
    made = spectral.decompose(text, text.any(axis=1), dtype=storage)
    catalogue = ItemSource(num_items=40, counts=counts, spectrum=made, text=text)
    config = EncoderConfig(item_encoder=name, dimension=8, adapter_width=6, experts=2, whiten_groups=3)
    _, frozen = item_encoders.build(config, catalogue)
    u = spectral.project(made, text, text.any(axis=1))
    u = u if made.u_scale is None else u / made.u_scale
    fresh = ItemSource(
        num_items=40,
        counts=np.zeros(40, int),
        spectrum=spectral.Spectrum(u, made.sigma, made.basis, made.mean, made.scale, made.count, made.u_scale),
        text=text,
    )
    rows = REGISTRY[name].new_rows(fresh, catalogue, config)
    assert set(rows) == set(REGISTRY[name].item_arrays)
    assert not rows["trained"].any()
    for key in set(rows) - {"trained", "number"}:
        cold = slice(30, None) if key == "start" else slice(None)  # trained items without text start at random
        atol = 0.6 if storage == "int8" and key == "u" else 0.02 if storage == "int8" else 1e-5
        np.testing.assert_allclose(rows[key][cold], np.asarray(frozen[key][cold], np.float32), atol=atol)


@pytest.mark.parametrize("cold_scale", [None, 1.5])
def test_new_items_have_the_vectors_of_cold_items_with_their_text(export, loaded, tmp_path, tiny_again, cold_scale):
    lines, text = tiny_again
    (tmp_path / "new.jsonl").write_text(
        "".join(json.dumps({**line, "item_id": f"new-{i}"}) + "\n" for i, line in lines)
    )
    np.save(tmp_path / "new.npy", text)
    folder = export(items=tmp_path / "new.jsonl", embeddings=tmp_path / "new.npy", cold_scale=cold_scale)
    vectors, lengths = np.load(folder / "vectors.npy"), np.load(folder / "lengths.npy")
    assert vectors.shape == (80, 16)
    counts = np.r_[np.asarray(loaded[0].split.item_counts), np.zeros(40)]
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), np.where(counts > 0, 1, cold_scale or 1), rtol=1e-5)
    assert json.loads((folder / "export.json").read_text())["cold_scale"] == (cold_scale or 1)
    cold = np.flatnonzero(~loaded[0].frozen.item_encoder["trained"])
    assert len(cold) >= 2
    np.testing.assert_allclose(vectors[40 + cold], vectors[cold], atol=1e-5)
    np.testing.assert_allclose(lengths[40 + cold], lengths[cold], rtol=1e-4)
    trained = np.flatnonzero(loaded[0].frozen.item_encoder["trained"])
    assert np.abs(vectors[40 + trained] - vectors[trained]).max() > 0.01, "what was learned of an item is its own"
    ids = (folder / "item_ids.jsonl").read_text().splitlines()
    assert ids[39:41] == ['"item-39"', '"new-0"']
    assert json.loads((folder / "export.json").read_text())["items"] == {"all": 80, "new": 40}
    # And again, over what is there: two items, fewer than the last time.
    (tmp_path / "new.jsonl").write_text('{"item_id": "x"}\n{"item_id": "y"}\n')
    np.save(tmp_path / "new.npy", text[:2])
    export(items=tmp_path / "new.jsonl", embeddings=tmp_path / "new.npy", cold_scale=cold_scale)
    again = np.load(folder / "vectors.npy")
    np.testing.assert_allclose(again[40:], vectors[40:42], atol=1e-6)
    assert sorted(path.name for path in folder.parent.iterdir() if "served" in path.name) == ["served"]


@pytest.fixture
def tiny_again(loaded):
    """The items of the run's own file, numbered, and their text embeddings."""
    config = loaded[0].config
    with open(config.data.items) as file:
        lines = list(enumerate(map(json.loads, file)))
    return lines, np.load(config.text.embeddings)


def test_chunks_of_new_items_are_as_one(loaded, tmp_path, monkeypatch, tiny_again):
    lines, text = tiny_again
    (tmp_path / "new.jsonl").write_text("".join(json.dumps({"item_id": f"new-{i}"}) + "\n" for i, _ in lines))
    np.save(tmp_path / "new.npy", text)
    whole = new_items.new_items(*loaded, tmp_path / "new.jsonl", tmp_path / "new.npy")
    monkeypatch.setattr(new_items, "_CHUNK", 16)
    parts = new_items.new_items(*loaded, tmp_path / "new.jsonl", tmp_path / "new.npy")
    np.testing.assert_allclose(parts.vectors, whole.vectors, atol=1e-6)
    np.testing.assert_allclose(parts.lengths, whole.lengths, rtol=1e-5)


@pytest.mark.parametrize("item_encoder", ["spectran", "mlp", "whiten"])
def test_new_items_may_all_lack_text(tiny_config, tmp_path, item_encoder):
    setup = prepare(tiny_config.replace(item_encoder=item_encoder))
    params = build_programs(setup, 1).init().params
    (tmp_path / "new.jsonl").write_text('{"item_id": "x"}\n{"item_id": "y"}\n')
    np.save(tmp_path / "new.npy", np.zeros((2, 24), np.float32))
    found = new_items.new_items(setup, params, tmp_path / "new.jsonl", tmp_path / "new.npy")
    assert not found.vectors.any()


def test_new_histories_may_hold_new_items(export, tmp_path):
    (tmp_path / "new.jsonl").write_text('{"item_id": "x"}\n')
    np.save(tmp_path / "new.npy", np.ones((1, 24), np.float32) * np.arange(24))
    folder = export(items=tmp_path / "new.jsonl", embeddings=tmp_path / "new.npy")
    program = jax.export.deserialize(bytearray((folder / "user_states.stablehlo").read_bytes()))
    vectors, lengths = np.load(folder / "vectors.npy"), np.load(folder / "lengths.npy")
    items = np.zeros((2, 8), np.int32)
    items[:, 0] = 3, 40
    states = np.asarray(program.call(vectors, lengths, items, np.ones(2, np.int32)))
    assert np.isfinite(states).all()
    assert np.abs(states[0] - states[1]).max() > 0.01


def test_text_of_new_items_is_encoded_as_the_run_did(tiny_config, tmp_path):
    setup = prepare(tiny_config.replace(embeddings="", pad_rank=True))
    params = build_programs(setup, 1).init().params
    (tmp_path / "new.csv").write_text("item_id,title\nnew,Thing number 38\nbare,\n")
    found = new_items.new_items(setup, params, tmp_path / "new.csv")
    vectors = build_table(setup)(params, setup.place()).vectors
    np.testing.assert_allclose(found.vectors[0], vectors[38], atol=1e-5)
    assert not found.vectors[1].any(), "no text, no interactions: nothing is known of it"
    (tmp_path / "new.csv").write_text("item_id,title\nbare,\nbarer,\n")
    assert not new_items.new_items(setup, params, tmp_path / "new.csv").vectors.any(), "and so of all of them"
    for name, told in (("name", r"name\.$"), ("Titel", r"Titel\. Rename 'Titel' to 'title'\?")):
        (tmp_path / "new.jsonl").write_text(f'{{"item_id": "new", "{name}": "Thing"}}\n')
        with pytest.raises(InputError, match=rf"no column title, and the run made.*columns found: {told}"):
            new_items.new_items(setup, params, tmp_path / "new.jsonl")
    columns = ("title", "category")
    two = dataclasses.replace(setup, dataset=dataclasses.replace(setup.dataset, text_columns=columns))
    (tmp_path / "new.jsonl").write_text('{"item_id": "new", "title": "Thing number 38"}\n')  # without a category
    lacking = new_items.new_items(two, params, tmp_path / "new.jsonl")
    np.testing.assert_allclose(lacking.vectors, found.vectors[:1], atol=1e-6)
    with pytest.raises(InputError, match=r"no column category, and the run made the text .* of title, category"):
        new_items.new_items(two, params, tmp_path / "new.csv")
    with pytest.raises(InputError, match=r"encoded its text itself, by wordllama.*leave the flag out"):
        new_items.new_items(setup, params, tmp_path / "new.csv", tmp_path / "new.npy")


@pytest.mark.parametrize(
    ("items", "shape", "message"),
    [
        ('{"item_id": "item-3"}', (1, 24), r"has 1 of these items already \('item-3'\)"),
        ('{"item_id": "new"}', None, r"give those of the new items by the same text encoder: --new_embeddings"),
        ('{"item_id": "new"}', (1, 12), r"have dimension 12, those of the run 24"),
        ('{"item_id": "new"}', (2, 24), r"new.npy: .* have 2 rows, but \S*/new.jsonl has 1 items; .* in its"),
        ('{"item": "new"}', (1, 24), r"line 1: no item_id"),
    ],
)
def test_bad_new_items_write_nothing(export, tmp_path, items, shape, message):
    (tmp_path / "new.jsonl").write_text(items + "\n")
    embeddings = tmp_path / "new.npy" if shape else None
    if shape:
        np.save(embeddings, np.ones(shape, np.float32))
    with pytest.raises(InputError, match=message):
        export(items=tmp_path / "new.jsonl", embeddings=embeddings)
    assert not (tmp_path / "served").exists()


def test_encoders_without_text_have_no_new_items(loaded, tmp_path):
    setup, params = loaded
    setup = setup.__class__(**{**vars(setup), "config": setup.config.replace(item_encoder="rlmrec")})
    with pytest.raises(InputError, match="knows an item by its interactions alone"):
        new_items.new_items(setup, params, tmp_path / "new.jsonl")


def test_only_an_export_is_replaced(export, run, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    for output in (tmp_path / "mine", tmp_path / "mine" / "thesis.txt"):
        with pytest.raises(InputError, match="is there already and no export"):
            export(output)
    with pytest.raises(InputError, match="is the run itself"):
        export(run)
    for name in ("report.html", "tensorboard", "checkpoints/export"):
        with pytest.raises(InputError, match="is what the run itself writes"):
            export(run / name)
    with pytest.raises(InputError, match="does not exist"):
        export(tmp_path / "no" / "where")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years"


def test_what_was_put_into_an_export_is_not_deleted_with_it(export, tmp_path):
    folder = export()
    export()  # an export alone gives way
    today = folder / "today.jsonl"
    today.write_text('{"item_id": "x"}\n')
    (folder / "zoo").mkdir()
    with pytest.raises(InputError, match=r"holds 'today\.jsonl' beside an export"):
        export(items=today)
    assert today.read_text() == '{"item_id": "x"}\n'
    assert (folder / "vectors.npy").is_file()


def test_what_can_not_be_read_or_written_is_told_before_the_model_is_loaded(run, tmp_path, monkeypatch):
    monkeypatch.setattr(exports, "load_run", lambda workdir, files, cold_scale: pytest.fail("loads the model"))
    with pytest.raises(InputError, match=r"--output=/proc/served can't be written \(.*\); name another place"):
        export_run(run, Path("/proc/served"))  # where root can't, either
    for options in ({"items": tmp_path / "none"}, {"items": run / "config.json", "embeddings": tmp_path / "none"}):
        with pytest.raises(InputError, match=r"none: no such file"):
            export_run(run, tmp_path / "served", **options)
    assert not list(tmp_path.iterdir())


def test_an_export_that_was_killed_leaves_nothing_after_the_next_ones(export, tmp_path, monkeypatch):
    folder = export()
    before = (folder / "export.json").read_bytes()

    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(exports.np, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            export()
        assert os.listdir(tmp_path) == [folder.name]
        patch.setattr(writing.shutil, "rmtree", lambda *arguments, **options: None)  # a kill cleans nothing up
        with pytest.raises(KeyboardInterrupt):
            export()
    assert (folder / "export.json").read_bytes() == before
    (draft,) = set(tmp_path.iterdir()) - {folder}
    past = time.time() - 2 * 24 * 3600
    for path in (*draft.iterdir(), draft):
        os.utime(path, (past, past))
    export()
    assert os.listdir(tmp_path) == [folder.name]


def test_a_full_disk_names_the_folder_that_was_asked_for(export, tmp_path, monkeypatch):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    told = rf"Could not write --output={tmp_path / 'served'} \(%s\); free some space, or name another folder"
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, hard))
    try:
        with pytest.raises(RunError, match=told % "File too large"):
            export()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    def save(*arguments):
        raise OSError("640 requested and 160 written")  # as NumPy does, of large arrays

    monkeypatch.setattr(exports.np, "save", save)
    with pytest.raises(RunError, match=told % "the disk took a part of it"):
        export()
    assert not list(tmp_path.iterdir())


def test_the_command(run, tmp_path, run_command):
    done = run_command("export", {"workdir": run})
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"40 items: {run / 'export'}\n"
    assert (run / "export" / "vectors.npy").exists()
    done = run_command("export", {"workdir": run, "new_embeddings": "x.npy"})
    assert (done.returncode, done.stderr) == (2, "error: --new_embeddings are those of --new_items; give both.\n")
    done = run_command("export", {"workdir": tmp_path})
    assert done.returncode == 2
    assert "holds no run" in done.stderr
