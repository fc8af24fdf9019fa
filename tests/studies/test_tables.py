"""Tables as text, CSV, Markdown and LaTeX; pages; and the section of RESULTS.md."""

import csv
import io
import json
import re
import threading

import pytest
from conftest import REPO
from rich.console import Console

from spectran_jax import writing
from spectran_jax.config import Config
from spectran_jax.errors import InputError
from spectran_jax.report import figures
from spectran_jax.report.figures import Plot
from spectran_jax.report.terminal import print_table
from spectran_jax.studies import results_md, tables
from spectran_jax.studies.publish import Result, publish, unique_names
from spectran_jax.studies.results_md import refresh, section
from spectran_jax.studies.tables import Spread, Table
from spectran_jax.training.workdir import locked

TABLE = Table(
    "Test_metrics <b>",
    ["Method", "NDCG@10", "p", "Items"],
    [["a|b_c", Spread(0.04021, 0.00031), 0.00123456, 12101], ["100 % & <x>", Spread(0.05, None), None, 7]],
    note="Two_notes.",
    bold={(1, 1)},
)


def test_csv_keeps_values_as_they_are():
    rows = list(csv.reader(io.StringIO(tables.to_csv(TABLE))))
    assert rows == [
        ["Method", "NDCG@10", "NDCG@10 s.d.", "p", "Items"],
        ["a|b_c", "0.04021", "0.00031", "0.00123456", "12101"],
        ["100 % & <x>", "0.05", "", "", "7"],
    ]


def test_markdown():
    assert tables.to_markdown(TABLE).splitlines() == [
        "| Method | NDCG@10 | p | Items |",
        "|---|---:|---:|---:|",
        r"| a\|b_c | 0.0402 ± 0.0003 | 0.001235 | 12,101 |",
        r"| 100 % & \<x> | **0.0500** | – | 7 |",
        "",
        "Two_notes.",
    ]


def test_latex_is_escaped():
    lines = tables.to_latex(TABLE).splitlines()
    assert r"\caption{Test\_metrics \textless{}b\textgreater{}}" in lines
    assert r"\begin{tabular}{lrrr}" in lines
    assert r"a\textbar{}b\_c & 0.0402 $\pm$ 0.0003 & 0.001235 & 12,101 \\" in lines
    assert r"100 \% \& \textless{}x\textgreater{} & \textbf{0.0500} & -- & 7 \\" in lines
    assert tables.escape_latex(r"\{$#^~") == r"\textbackslash{}\{\$\#\textasciicircum{}\textasciitilde{}"


@pytest.mark.parametrize(
    ("mean", "std", "column", "shown"),
    [
        (63.83, 0.001196, "Breadth", "63.830 ± 0.001"),
        (0.009749, 9.664e-05, "Live", "0.009749 ± 0.000097"),
        (0.5, 0.0996, "Tail", "0.50 ± 0.10"),
        (12345.6, 12.3, "Seconds of training", "12,346 ± 12"),
        (12345.6, 1234.5, "Steps", "12,346 ± 1,234"),
        (3.0, 0.0, "Half", "3 ± 0"),
        (1 / 3, 1e-17, "Tail", "0.3333 ± 0"),
        (0.04021, 0.00031, "Test NDCG@10", "0.0402 ± 0.0003"),
        (7.0, None, "Half", "7"),
    ],
)
def test_a_mean_has_the_decimals_of_its_deviation(mean, std, column, shown):
    assert tables.show(Spread(mean, std), column) == shown


def test_text_for_latex_needs_no_other_font_encoding():
    assert tables.escape_latex('a "b" → c…') == r"a ''b'' $\rightarrow$ c\ldots{}"
    assert tables.escape_latex("“d’s” — e") == "``d's'' --- e"


def test_notes_in_markdown_are_shown_as_they_are():
    note = "x/seed_0 failed: <lambda>() got *args* and __init__ [1](2) `c`\nmore"
    table = Table("t", ["a"], [["*b* | _c_ d_e [0, 1]"]], note=note)
    _, *rest, last = tables.to_markdown(table).splitlines()
    assert rest[1] == r"| \*b\* \| \_c\_ d_e [0, 1] |"
    assert last == r"x/seed_0 failed: \<lambda>() got \*args\* and \_\_init\_\_ [1\](2) \`c\` more"


def test_the_best_cells_are_those_of_the_largest_mean():
    rows = [
        ["a", Spread(0.2, 0.9), Spread(0.0, None), None, "text"],
        ["b", Spread(0.3, None), Spread(0.0, None), Spread(0.1, None), 7],
        ["c", Spread(0.3, 0.1), None, None, 9],
        ["another place", Spread(0.9, None), Spread(0.9, None), Spread(0.9, None), None],
    ]
    assert tables.best_cells(rows, range(3), range(1, 5)) == {(1, 1), (2, 1), (1, 3)}
    assert tables.best_cells(rows, [], range(1, 5)) == set()


def test_terminal():
    console = Console(file=io.StringIO(), width=100)
    console.print(tables.to_terminal(TABLE))
    text = console.file.getvalue()
    assert re.search(r"a\|b_c +0\.0402 ± 0\.0003 +0\.001235 +12,101", text)
    assert "Two_notes." in text


def test_a_log_has_rows_in_one_line(capsys):
    row = ["position_encoding=false", *[Spread(0.04, 0.001)] * 6, "-0.0009 [-0.0016, -0.0001]"]
    print_table(tables.to_terminal(Table("t", ["Variant", *[f"NDCG@{k}" for k in range(6)], "Difference"], [row] * 2)))
    lines = [line for line in capsys.readouterr().out.splitlines() if "0.04" in line]
    assert len(lines) == 2
    assert re.search(r"position_encoding=false +0\.0400 ± 0\.0010 .* -0\.0009 \[-0\.0016, -0\.0001\]", lines[0])


def test_rows_must_fit_their_columns():
    with pytest.raises(ValueError, match="1 cells for 2 columns"):
        Table("t", ["a", "b"], [["x"]])


def result(text="First.\n\nSecond <i>."):
    figure = figures.figure(*figures.HALF)
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color=figures.BLUE)
    figures.style(axes)
    plot = figures.Plot(figures.svg(figure, "line", "A line"), "A line", "It rises.")
    return Result("Things & more", [TABLE, TABLE], [plot], text, "python -m experiments.x", {"cells": [1]})


def test_everything_is_written(tmp_path, capsys):
    publish(result(), tmp_path)
    assert "0.0402 ± 0.0003" in capsys.readouterr().out
    assert sorted(p.name for p in (tmp_path / "tables").iterdir()) == [
        f"test-metrics-b{number}.{kind}" for number in ("-2", "") for kind in ("csv", "md", "tex")
    ]
    drawn = (tmp_path / "figures" / "a-line.svg").read_text()
    assert drawn.startswith('<svg xmlns="http://www.w3.org/2000/svg"')
    assert "var(" not in drawn
    page = (tmp_path / "index.html").read_text()
    for part in ("Things &amp; more", "Second &lt;i&gt;.", "0.0402 ± 0.0003", "It rises.", "var(--blue)", "Two_notes."):
        assert part in page
    assert "http" not in page.replace("http://www.w3.org", "")
    held = json.loads((tmp_path / "result.json").read_text())
    assert held["cells"] == [1]
    assert held["tables"][0]["rows"][0] == ["a|b_c", {"mean": 0.04021, "std": 0.00031}, 0.00123456, 12101]


def test_what_an_earlier_result_wrote_and_this_one_does_not_is_removed(tmp_path):
    publish(result(), tmp_path)
    (tmp_path / "tables" / "mine.csv").write_text("")
    publish(Result("x", [Table("Trials", ["n"], [[1]])]), tmp_path)
    names = sorted(path.name for path in (tmp_path / "tables").iterdir())
    assert names == ["mine.csv", "trials.csv", "trials.md", "trials.tex"]
    assert not list((tmp_path / "figures").iterdir())
    (tmp_path / "result.json").write_text("[]")
    publish(result(), tmp_path)


def test_sections_are_told_apart_by_data_sets_backbones_and_encoders():
    sets = {"office": Config(), "beauty": Config()}
    other = {"office": Config().replace(backbone="hstu")}
    assert section("compare", sets, backbones=["sasrec"]) == "compare-office-beauty"
    assert section("compare", {"office": Config()}, backbones=["sasrec", "hstu"]) == "compare-office-sasrec-hstu"
    assert section("ablation", {"office": Config()}) == "ablation-office"
    assert section("ablation", other) == "ablation-office-hstu"
    assert section("sweep", {"office": Config()}, encoders=["svd"]) == "sweep-office-svd"
    assert section("compare", other, own="defaults", backbones=["sasrec", "hstu"]) == "compare-defaults"


def test_commands_in_results_refresh_the_section_that_they_stand_in():
    """Where a section is not the one of its study and data sets, --section says so."""
    text = (REPO / "RESULTS.md").read_text()
    found = re.findall(r"<!-- begin (\S+) -->\n## .*\n\n    python -m experiments\.(\w+)( .*)", text)
    assert len(found) > 10
    for name, study, options in found:
        given = dict(re.findall(r"--(\w+)=(\S+)", options))
        sets = dict.fromkeys(
            given.get("dataset", "").split(","), Config().replace(backbone=given.get("backbone", "sasrec"))
        )
        if study == "efficiency":
            sets = {}
        backbones = given["backbones"].split(",") if "backbones" in given else ()
        assert section(study, sets, own=given.get("section", ""), backbones=backbones) == name


def test_an_appendix_is_for_the_record_only(tmp_path, capsys):
    long = Table("Trials", ["n"], [[123456]], appendix=True)
    publish(Result("x", [long]), tmp_path)
    refresh(tmp_path / "R.md", "x", Result("x", [long]))
    assert "123,456" not in capsys.readouterr().out + (tmp_path / "R.md").read_text()
    assert "<details" in (tmp_path / "index.html").read_text()
    assert (tmp_path / "tables" / "trials.csv").read_text() == "n\n123456\n"


def test_names_of_files_are_unique():
    assert unique_names(["A b", "a-b", "??", "NDCG@10 on x"]) == ["a-b", "a-b-2", "untitled", "ndcg@10-on-x"]


def test_a_section_is_added_then_replaced(tmp_path):
    path = tmp_path / "RESULTS.md"
    path.write_text("# Mine\n\nBefore.\n")
    refresh(path, "x", result("Old."))
    path.write_text(path.read_text() + "\nAfter.\n")
    refresh(path, "x", result("New."))
    text = path.read_text()
    assert text.startswith("# Mine\n\nBefore.\n\n<!-- begin x -->\n## Things & more\n\n    python -m experiments.x\n")
    assert text.endswith("<!-- end x -->\n\nAfter.\n")
    assert "New." in text
    assert "Old." not in text
    assert tables.to_markdown(TABLE) in text
    refresh(tmp_path / "new" / "R.md", "x", result())
    assert (tmp_path / "new" / "R.md").exists()


def test_figures_lie_beside_the_file_and_are_those_of_the_last_result(tmp_path):
    def refreshed(*titles):
        drawn = [Plot('<svg viewBox="0 0 1 1"></svg>', title, f"What {title} shows.") for title in titles]
        refresh(tmp_path / "RESULTS.md", "x", Result("Things", [TABLE], drawn))
        return (tmp_path / "RESULTS.md").read_text()

    refresh(tmp_path / "RESULTS.md", "x-2", Result("Other", [], [Plot("<svg></svg>", "Old", "")]))
    refreshed("Old", "Rank & more")
    text = refreshed("Rank & more", "New")
    assert "![Rank & more](results/x/rank-more.svg)\n\nWhat Rank & more shows.\n" in text
    assert sorted(p.name for p in (tmp_path / "results" / "x").iterdir()) == ["new.svg", "rank-more.svg"]
    assert "http://www.w3.org/2000/svg" in (tmp_path / "results" / "x" / "new.svg").read_text()
    assert (tmp_path / "results" / "x-2" / "old.svg").exists()
    assert not (tmp_path / "results" / ".lock").exists()


def test_two_studies_that_end_together_both_have_their_section(tmp_path, monkeypatch):
    """The second begins while the first, which has read the file, is about to write it."""
    path, others = tmp_path / "RESULTS.md", []

    def write_text(file, text):
        if file == path and not others:
            others.append(threading.Thread(target=refresh, args=(path, "second", Result("Of the second"))))
            others[0].start()
            others[0].join(0.2)
        writing.write_text(file, text)

    monkeypatch.setattr(results_md, "write_text", write_text)
    refresh(path, "first", Result("Of the first"))
    others[0].join()
    assert "## Of the first\n" in path.read_text()
    assert "## Of the second\n" in path.read_text()
    assert [file.name for file in tmp_path.iterdir()] == ["RESULTS.md"], "nothing of the lock stays"


def test_a_file_that_another_study_goes_on_writing_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(results_md, "PATIENCE", 0.0)
    with locked(tmp_path / "results"), pytest.raises(InputError, match=r"--results=.*RESULTS.md: .*results is in use"):
        refresh(tmp_path / "RESULTS.md", "x", result())


@pytest.mark.parametrize(
    "text",
    ["<!-- begin x -->\n", "<!-- end x -->\n<!-- begin x -->\n", "<!-- begin x -->\n<!-- end x -->\n<!-- end x -->\n"],
)
def test_broken_marks_are_refused(tmp_path, text):
    path = tmp_path / "RESULTS.md"
    path.write_text(text)
    with pytest.raises(InputError, match="needs one line <!-- begin x -->"):
        refresh(path, "x", result())
    assert path.read_text() == text
