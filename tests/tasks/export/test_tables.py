"""Tables for papers: digits, bold, marks against the best control, the band of controls, escaped names."""

from __future__ import annotations

import math
from typing import Any

from storage.run import Run
from tasks.export.latex import _lines, escaped
from tasks.export.markdown import _told
from tasks.export.tables import _leaderboard, _metrics
from tasks.results.leaderboard import BoardColumn, Cell, Leaderboard, Row


def cell(mean: float, best: bool = False, **over: bool | None) -> Cell:
    return Cell(mean, mean - 0.01, mean + 0.02, 9, False, best, over, None)


def board(**more: Any) -> Leaderboard:
    """Two explainers and two controls; "edges" is the best control, which the first explainer beats."""
    columns = {
        "ins_1": BoardColumn("ins_1", "higher", 9, "edges", {}, False),
        "box": BoardColumn("box", "lower", 9, "edges", {}, True),
    }
    explainers = [
        Row(
            "a_b",
            {
                "ins_1": cell(0.91234, True, noise=True, edges=True),
                "box": cell(12.3, True, noise=None, edges=None),
            },
            1.0,
        ),
        Row("c", {"ins_1": cell(0.8, noise=True, edges=False), "box": cell(math.nan)}, None),
    ]
    controls = [
        Row("noise", {"ins_1": cell(0.1), "box": cell(40.0)}, 1.0),
        Row("edges", {"ins_1": cell(0.7)}, 1.0),
    ]
    return Leaderboard(columns, explainers, controls, 9, "images")


def test_numbers_are_marked_as_the_leaderboard_says(exported_run: Run) -> None:
    table = _leaderboard(exported_run, board())
    assert table.heads == ["ins_1 ↑", "box ↓"]
    assert table.band == 2
    found = {name: [(n.mean, n.best, n.mark) for n in cells] for name, cells in table.lines}
    assert found == {
        "a_b": [("0.912", True, True), ("12.3", True, False)],
        "c": [("0.800", False, False), ("-", False, False)],
        "noise": [("0.100", False, False), ("40.0", False, False)],
        "edges": [("0.700", False, False), ("-", False, False)],
    }
    assert table.lines[0][1][0].interval == ("0.902", "0.932")
    assert "Without tests: box." in table.title
    across = _metrics(exported_run, board())
    assert across.heads == ["a_b", "c", "noise", "edges"]
    assert [cells[0].mean for _, cells in across.lines] == ["0.912", "12.3"]


def test_a_table_without_controls_does_not_speak_of_them(exported_run: Run) -> None:
    alone = Leaderboard(board().columns, board().explainers, [], 9, "images")
    assert "control" not in _leaderboard(exported_run, alone).title
    assert "controls" not in "\n".join(_lines(_leaderboard(exported_run, alone)))


def test_latex_writes_bold_marks_and_a_band(exported_run: Run) -> None:
    lines = list(_lines(_leaderboard(exported_run, board())))
    assert r"explainer & ins\_1 $\uparrow$ & box $\downarrow$ \\" in lines
    assert (
        r"a\_b & \textbf{0.912}$^{\dagger}$ {\scriptsize [0.902, 0.932]} & "
        r"\textbf{12.3} {\scriptsize [12.3, 12.3]} \\" in lines
    )
    assert r"c & 0.800 {\scriptsize [0.790, 0.820]} & - \\" in lines
    band = lines.index(r"\multicolumn{3}{l}{\textit{controls}} \\")
    assert lines[band - 1] == r"\midrule"
    assert [line.split(" ")[0] for line in lines[band + 1 : band + 3]] == ["noise", "edges"]


def test_every_special_character_of_latex_is_escaped() -> None:
    assert escaped(r"a\b{c}_$&#^~%<>|" + '"') == (
        r"a\textbackslash{}b\{c\}\_\$\&\#\textasciicircum{}\textasciitilde{}\%\textless{}\textgreater{}"
        r"\textbar{}\textquotedbl{}"
    )
    assert "\n" not in escaped("two\nlines")


def test_markdown_keeps_its_columns_and_shows_names_as_text(exported_run: Run) -> None:
    text = _told(_leaderboard(exported_run, board()))
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert rows[0] == r"| explainer | ins\_1 ↑ | box ↓ |"
    assert rows[2] == r"| a\_b | **0.912**† (0.902 to 0.932) | **12.3** (12.3 to 12.3) |"
    assert rows[4].startswith("| *noise* | 0.100 (")
    assert r"100% \<digits\> \& 漢字\_\$x: means over up to 9 images" in text
