"""The report of a run: the page is whole, self-contained and safe; its plots say what the data says."""

import dataclasses
import os
import re
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from report_sample import sample

from spectran_jax.config import Config, fields
from spectran_jax.errors import InputError, RunError
from spectran_jax.report import (
    Recommended,
    ReportData,
    UserExample,
    effective_rank,
    plots,
    render,
    sections,
    spectral_plots,
    write_report,
)

VOID = {"meta", "br", "img", "hr", "link", "input"}
EVIL = "<script>alert('x')</script> & \"Sons\""


class Page(HTMLParser):
    """Checks that tags nest, and collects what the tests ask for."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.texts: list[str] = []
        self.feed(source)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self._seen(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert tag in VOID or "svg" in self.open, f"<{tag}/> does not close in HTML"
        self._seen(tag, attrs)

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def _seen(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            assert not name.startswith("on"), f"{name} runs a script"
            if name == "id":
                self.ids.append(value)
            if name in ("href", "src", "xlink:href", "action", "data", "srcset"):
                self.links.append(value)

    @property
    def text(self) -> str:
        return " ".join(self.texts)


def without_plots() -> ReportData:
    names = ("text_singular_values", "item_singular_values", "initial_item_singular_values")
    arrays = ("attention", "diagonal", "weights", "sigma", "taylor")
    return dataclasses.replace(sample(), history=[], **dict.fromkeys(names + arrays))


@pytest.fixture(scope="module")
def page() -> str:
    return render(sample())


def test_page_is_well_formed_and_complete(page):
    parsed = Page(page)
    assert parsed.tags.count("svg") == 9
    assert [i for i in parsed.ids if f'<section id="{i}"' in page] == [
        "results", "training", "adapter", "spectrum", "examples", "cost", "configuration",
    ]  # fmt: skip
    assert len(parsed.ids) == len(set(parsed.ids))
    for shown in (
        "NDCG@10", "HR@50", "MRR", "Head", "Cold", "943", "100,000", "Tied targets, test", "415",
        "u7", "Ünï ☃ 千", "Hit me", "Old one",
        "target ranked 2", "target ranked 4,321", "--dropout", "0.45", "item_encoder/key", "[24, 4]", "61.0 s",
        "0.123", "a9" * 32, "3f" * 32, "python -m experiments.train --seed=3",
    ):  # fmt: skip
        assert shown in parsed.text, shown


def test_page_asks_nobody_for_anything(page):
    parsed = Page(page)
    assert "script" not in parsed.tags
    assert "link" not in parsed.tags
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", re.sub(r"data:image/png;base64,[^\"]*", "", page))
    for link in parsed.links:
        assert link.startswith(("#", "data:image/png;base64,"))
        if link.startswith("#"):
            assert link[1:] in parsed.ids
    for reference in re.findall(r"url\(#([^)]*)\)", page):
        assert reference in parsed.ids


def test_colours_follow_the_page_in_light_and_dark(page):
    drawings = "".join(re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL))
    assert not re.search(r"#0[1-6]0[1-6]0[1-6]", drawings)
    for name in set(re.findall(r"var\((--[a-z-]+)\)", page)):
        assert page.count(f"{name}: ") == 2, f"{name} must be set for light and for dark"
    assert set(re.findall(r"(?:fill|stroke): (#\w+)", drawings)) <= {"#ffffff", "#000000"}


def test_whatever_comes_from_data_is_escaped():
    rows = [(EVIL, (1,), EVIL, 1, EVIL)]
    data = dataclasses.replace(
        without_plots(),
        title=EVIL,
        command=f"python '{EVIL}'",
        config={EVIL: {EVIL: EVIL}, "data": {"dataset": EVIL}},
        dataset={EVIL: EVIL},
        metrics={
            "test": {EVIL: 1.0},
            "test_slices": {EVIL: {"users": EVIL}},
            "digest": EVIL,
            "parameters": {EVIL: EVIL},
        },
        parameters=rows,
        examples=[UserExample(EVIL, [EVIL], EVIL, 1, [Recommended(EVIL, 0.5, True)])],
        timings={EVIL: 1.0},
    )
    source = render(data)
    parsed = Page(source)
    assert "script" not in parsed.tags
    assert "<script" not in source.lower()
    assert parsed.text.count("<script>alert('x')</script>") >= 10


def test_odd_characters_can_be_written(tmp_path):
    example = UserExample("\x00u\x1b", ["lone \ud800 surrogate"], "right\u202eto left", 1, [])
    path = tmp_path / "report.html"
    write_report(dataclasses.replace(without_plots(), examples=[example]), path)
    parsed = Page(path.read_text("utf-8"))
    assert "lone ? surrogate" in parsed.text
    assert "\x00" not in parsed.text
    assert "\x1b" not in parsed.text


def test_missing_parts_are_left_out():
    bare = ReportData(title="Bare", command="", config={}, dataset={})
    source = render(bare)
    parsed = Page(source)
    assert parsed.tags.count("section") == 0
    assert "svg" not in parsed.tags
    assert "None" not in parsed.text
    assert "nan" not in parsed.text.lower().replace("finance", "")


def test_without_text_there_is_no_adapter_and_no_text_spectrum():
    names = ("text_singular_values", "attention", "diagonal", "weights", "sigma", "taylor", "threshold")
    data = dataclasses.replace(sample(), history=[], **dict.fromkeys(names))
    source = render(data)
    Page(source)
    assert 'id="adapter"' not in source
    assert '"#adapter"' not in source
    assert "Learned item vectors" in source
    assert "of the text" not in source


def test_without_test_metrics_the_first_screen_shows_validation():
    data = without_plots()
    source = render(dataclasses.replace(data, metrics={"valid": {"ndcg@10": 0.0317}}))
    parsed = Page(source)
    cards = "".join(re.findall(r'<dl class="cards">.*?</dl>', source))
    assert "0.0317" in cards
    assert "validation" in cards
    assert "test" not in cards
    assert "Test" not in [text.strip() for text in parsed.texts]


def test_changed_fields_come_first_with_their_defaults(page):
    changed = page.split("Changed from the defaults")[1].split("</table>")[0]
    assert re.findall(r"--(\w+)", changed) == ["dropout", "seed"]
    assert "0.3" in changed
    assert "Dropout rate" in changed
    for _, field in fields():
        assert f"<code>--{field.name}</code>" in page


def test_the_hit_is_told_in_words_not_by_colour_alone(page):
    hits = re.findall(r'<li class="hit">(.*?)</li>', page)
    assert len(hits) == 1
    assert "Hit me" in hits[0]
    assert "✓ hit" in hits[0]


def test_long_commands_are_folded_so_that_a_shell_reads_the_same():
    command = "python -m experiments.train --interactions='my files/a b.tsv' " + " ".join(
        f"--flag{i}=1" for i in range(9)
    )
    source = render(dataclasses.replace(without_plots(), command=command))
    shown = "".join(Page(re.search(r"<pre>.*?</pre>", source, re.DOTALL).group()).texts)
    assert shown.count("\n") == 9
    echoed = [
        subprocess.run(
            ["sh", "-c", c.replace("python", "printf '%s\\n'", 1)], capture_output=True, text=True, timeout=120
        ).stdout
        for c in (command, shown)
    ]
    assert echoed[0] == echoed[1]
    assert "my files/a b.tsv" in echoed[0]


def test_writing_is_atomic(tmp_path, monkeypatch):
    path = tmp_path / "new" / "report.html"
    path.parent.mkdir()
    write_report(without_plots(), path)
    before = path.read_bytes()
    assert os.listdir(path.parent) == ["report.html"]

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match=r"report\.html.*No space left on device"):
        write_report(dataclasses.replace(without_plots(), title="Another"), path)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["report.html"]


def test_the_same_data_gives_the_same_page(page):
    assert render(sample()) == page


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention": np.zeros(3)}, r"attention must be \[d, r\], got the shape \(3,\)"),
        ({"weights": np.zeros((8, 23))}, r"weights must have the shape \[8, 24\].*got \(8, 23\)"),
        ({"diagonal": np.zeros(9)}, r"diagonal must have the shape \[8\]"),
        ({"sigma": np.ones(8)}, r"sigma must have the shape \[24\]"),
        ({"item_singular_values": np.ones((2, 2))}, r"item_singular_values must have the shape \[any\]"),
    ],
)
def test_arrays_that_disagree_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(sample(), **change)


def test_numbers_that_are_not_finite_break_no_plot():
    data = sample()
    odd = dataclasses.replace(
        data,
        history=[*data.history, {"kind": "train", "step": 60, "loss": float("nan")}, {"kind": "valid", "step": 60}, {}],
        text_singular_values=np.array([1.0, 0.0, np.nan]),
        item_singular_values=np.zeros(8),
        attention=np.zeros_like(data.attention),
        metrics={"test": {"ndcg@10": float("nan")}},
    )
    source = render(odd)
    Page(source)
    assert "0 % of the entries are live" in source
    assert "Learned item vectors" not in source
    assert "nan" not in "".join(re.findall(r"<svg.*?</svg>", source, flags=re.DOTALL))


def test_a_history_of_one_validation_is_drawn():
    data = sample()
    assert plots.loss(data.history[:1]) is not None
    assert "the last validation" in plots.validation(data.history[:2]).caption
    assert plots.loss([]) is plots.validation([]) is None


def test_captions_state_the_numbers_of_the_data():
    data = sample()
    best = plots.validation(data.history)
    assert "0.0400, was reached at step 40 (ringed), with one validation after it" in best.caption
    assert "best 0.0400" in best.svg
    rank = effective_rank(data.item_singular_values)
    assert f"Effective rank {rank:.1f} of 8" in spectral_plots.item_spectrum(data.item_singular_values, None).caption
    share = np.square(data.text_singular_values[8:]).sum() / np.square(data.text_singular_values).sum()
    text = spectral_plots.text_spectrum(data.text_singular_values, 8).caption
    assert f"{100 * share:.0f} % of the text's variance" in text
    text = spectral_plots.text_spectrum(data.text_singular_values, 8, cut=True).caption
    assert f"{100 * share:.0f} % of the variance of the kept components" in text
    for max_rank in (0, 24):
        config = Config().replace(max_rank=max_rank, dimension=8).to_dict()
        shown = sections.spectrum(dataclasses.replace(data, config=config))
        assert ("of the kept components" in shown) == bool(max_rank)
    live = np.zeros((8, 24))
    live[:, 20] = 3.0
    live[0, 0] = 4.0
    caption = spectral_plots.attention_map(live).caption
    assert caption.startswith("4.7 % of the entries are live")
    assert "82 % of the attention's energy" in caption


def test_the_caption_of_the_position_encoding_says_whom_training_favoured():
    sigma = np.linspace(1, 0.1, 20)
    for taylor, said in (
        ([0.7], "made no difference between them"),
        ([0.5, 0.5], "gave more weight to the principal components"),
        ([1.0, -0.5], "gave more weight to the weaker of the first d components"),
    ):
        diagonal = (sigma[:8, None] ** np.arange(len(taylor))) @ taylor
        caption = spectral_plots.position_encoding(np.array(taylor), sigma, diagonal).caption
        assert f"training {said}. Flat at 1 is the SVD, weighted by --spectral_power." in caption


def test_a_wide_attention_map_is_binned():
    attention = np.zeros((4, 4096))
    attention[1, 4000] = -2.0
    shown = spectral_plots.attention_map(attention)
    assert "strongest of 9 neighbours" in shown.caption
    assert len(shown.svg) < 60_000
