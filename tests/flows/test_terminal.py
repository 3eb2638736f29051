"""What comes from data is printed as it is: neither Rich nor the terminal reads anything in it."""

import io
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import boards
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner, Result

from flows import terminal
from flows.cli import app
from flows.terminal import comparison_tables, fail, tell
from runs import explained, prepared, tiny_job
from storage.characters import shown
from storage.datasets import digits
from storage.run import Run
from tasks.pictures.contact_sheet import draw_contact_sheet
from tasks.pictures.drawing import heading
from tasks.results.remarks import unusual_maps
from tasks.results.statistics import PairedScores, result_rows

# A folder k[ of one class, whose images are red].png and so on.
HOSTILE = [f"k[/{name}.png" for name in ("red]", "[bold]b", ":smile:", "e\x1b[31m", "u\u202egnp", "a$b$")]
NAME = "[/red]x \x1b]0;title\x07 :warning: $a$"
runner = CliRunner()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose name, store and images have markup and control characters in their names."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "photos[/b]/k[").mkdir(parents=True)
    for index, name in enumerate(HOSTILE):
        Image.fromarray(digits.sample("test", index).image).save(folder / "photos[/b]" / name, format="PNG")
    (folder / "photos[/b]" / "k[/broken\x1b[2J[bold].png").write_text("no image")
    data = {"kind": "folder", "path": str(folder / "photos[/b]")}
    raw = tiny_job(
        folder / "st[/b]ore\x1b[1m",
        name=NAME,
        dataset=data,
        explainers=[{"name": "gradcam"}],
        metrics=[{"name": "deletion"}],
    )
    return explained(prepared(raw))


def printed(*words: str) -> Result:
    """What a command prints; it neither fails nor prints a control character."""
    done = runner.invoke(app, list(words))
    assert done.exception is None or isinstance(done.exception, SystemExit), repr(done.exception)
    for stream in (done.stdout, done.stderr):
        assert all(shown(line) == line for line in stream.split("\n")), ascii(stream)
    return done


def test_maps_without_a_value_are_told_by_explainer(run: Run) -> None:
    records = run.records()
    assert unusual_maps(run, records) == []  # the map of the image that cannot be read does not count
    (record,) = (each for each in run.records("saliency") if each.step.explainer == "gradcam")
    assert record.statuses["failed"] == 1
    found = replace(record, statuses={"ok": 1, "failed": 3, "not_finite": 1, "all_zero": 2, "constant": 1})
    records[records.index(record)] = found
    told = "2 failed, 1 with NaN or infinity, 2 zero everywhere"
    assert unusual_maps(run, records) == [f"gradcam: of 7 maps of readable images {told}"]


def test_query_prints_markup_and_control_characters_as_text(run: Run) -> None:
    escaped = "'a' || chr(27) || '[31m', '\u202eb', chr(9)"
    sql = f"SELECT '[/INST] hello', 'x[red]y', ':smile:', {escaped}, 'é日本😀', 7"
    table = printed("query", str(run.root), sql).stdout
    cells = [cell.strip() for cell in table.splitlines()[3].strip("│┃").split("│")]
    assert cells == ["[/INST] hello", "x[red]y", ":smile:", "a\\x1b[31m", "\\u202eb", "\\t", "é日本😀", "7"]


def test_a_long_cell_is_folded_and_columns_of_one_name_are_both_printed(run: Run) -> None:
    table = printed("query", str(run.root), f"SELECT '{'x' * 400}[/b]' AS a, 1 AS b, 2 AS b").stdout
    assert table.count("x") == 400
    cells = [cell.strip() for cell in table.splitlines()[3].strip("│┃").split("│")]
    assert cells[1:] == ["1", "2"]


def test_data_stay_data_in_csv_and_json(run: Run) -> None:
    sql = "SELECT '[/b]' || chr(27) AS a"
    assert runner.invoke(app, ["query", str(run.root), sql, "--format", "csv"]).stdout == '"a"\n"[/b]\x1b"\n'
    assert runner.invoke(app, ["query", str(run.root), sql, "--format", "json"]).stdout == (
        '[{"a": "[/b]\\u001b"}]\n'
    )


def test_every_sample_is_named_as_it_is(run: Run) -> None:
    table = printed("query", str(run.root), "SELECT sample_id FROM samples").stdout
    assert all(shown(name) in table for name in HOSTILE)


def test_the_commands_that_inspect_print_names_as_they_are(run: Run, tmp_path: Path) -> None:
    root = str(run.root)
    status = printed("status", root).stdout
    assert f"{shown(NAME)}: 7 images" in status
    assert "gradcam" in status
    assert "in st" not in printed("verify", root).stdout
    refused = printed("components", root, "--sample", "no[/b]\x1b[1m")
    assert refused.exit_code == 2
    assert "st[/b]ore\\x1b[1m decomposes" in refused.stderr
    assert "is not a run folder" in printed("status", str(tmp_path / "[/b]\x1b")).stderr
    assert shown(NAME) in printed("doctor", root).stdout
    nonsense = printed("query", root, "SELEC [/b] \x1b[1m FROM")
    assert (nonsense.exit_code, nonsense.stderr.count("\n")) == (2, 1)


def test_a_job_file_of_any_name_is_refused_as_it_is_called(tmp_path: Path) -> None:
    file = tmp_path / "j[/red]\x1b[1m.toml"
    file.parent.mkdir()
    file.write_text("name = '[/b]'\n")
    refused = printed("run", str(file))
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert "j[/red]\\x1b[1m.toml: store: Field required" in refused.stderr


@pytest.mark.parametrize("command", ["run", "train"])
def test_an_empty_store_is_refused(tmp_path: Path, command: str) -> None:
    (tmp_path / "job.toml").write_text("name = 'x'\n")
    refused = printed(command, str(tmp_path / "job.toml"), "--store", "")
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert "store: is empty" in refused.stderr


def test_doctor_shows_no_password(tmp_path: Path) -> None:
    told = printed("doctor", str(tmp_path), "--tracking", "http://me:hunter2@127.0.0.1:9/").stdout
    assert "hunter2" not in told
    assert "http://***@127.0.0.1:9/" in told


@given(st.text(st.characters(), max_size=40))
def test_tell_prints_any_text_as_one_line(told: str) -> None:
    written = on(lambda: tell(told), "utf-8")
    assert written == f"{shown(told)}\n"
    assert on(lambda: tell(told), "ascii").isascii()


def on(action: Callable[[], object], encoding: str, width: int = 80) -> str:
    """What an action writes to a terminal with this encoding, without the codes for colours."""
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, newline="")
    with pytest.MonkeyPatch.context() as patch:
        there = Console(file=file, width=width, markup=False, emoji=False, highlight=False)
        patch.setattr(terminal, "console", there)
        action()
    file.flush()
    return raw.getvalue().decode(encoding)


def test_a_leaderboard_of_ten_explainers_fits_a_hundred_columns() -> None:
    """Each mark stands beside its own number, and the line below explains the marks that occur."""
    names = ["increase_in_confidence_100", "energy_pointing_game", "randomisation_ssim", "sparseness"]
    made = boards.board(
        {f"explainer-{i}": {name: {} for name in names} for i in range(10)}, ["random", "sobel"]
    )
    made.columns[names[0]] = replace(made.columns[names[0]], best_control="sobel", better="lower")
    rows = {row.name: row for row in made.explainers}
    won = replace(boards.cell(over={"random": True, "sobel": True}), mean=0.9, best=True)
    rows["explainer-3"].cells[names[0]] = won
    rows["explainer-4"].cells[names[1]] = replace(boards.cell(n=1234), fewer=True, mean=2e-5)
    rows["explainer-5"].cells[names[2]] = boards.cell(n=0)
    lines = on(lambda: terminal.tell_board(made), "utf-8", width=100).splitlines()
    assert max(map(len, lines)) <= 100
    table = {line.split()[0]: line.split() for line in lines if line.strip()}
    assert table["explainer-3"][1:] == ["0.900", "+*", "0.500", "0.500", "0.500", "-"]
    assert table["explainer-4"][1:] == ["0.500", "2.00e-05", "0.500", "0.500", "-"]
    assert table["explainer-5"][1:] == ["0.500", "0.500", "-", "0.500", "-"]
    assert table["best"] == ["best", "control", "0.500", "-", "-", "-"]
    assert table["n=1,234"] == ["n=1,234"]
    assert table["sobel"] == ["sobel"]
    assert lines[-3:] == [
        "means; explainers in the order of their mean rank in the headline metrics, best first",
        "+ beats every control (Wilcoxon, Holm, p < 0.05); * best of its column; n= fewer images",
        "- no value, for a reason below; - as ms per map: no map was timed",
    ]
    assert len(lines) < 25


def test_marks_that_do_not_occur_are_not_explained_and_data_are_text() -> None:
    made = boards.board({"[/red]\x1b[1m:smile:": {"a_[bold]": {}}}, [], inputs="texts")
    lines = on(lambda: terminal.tell_board(made), "utf-8").splitlines()
    assert lines[-2:] == ["means", "- as ms per map: no map was timed"]
    assert any("[/red]\\x1b[1m:smile:" in line for line in lines)
    assert any("a_[bold]" in line for line in lines)
    assert not any("best control" in line for line in lines)


def compared(images: int) -> str:
    """What is printed of two explainers, the second of which is always better, in one metric."""
    values = np.linspace(0.1, 0.4, images) * np.array([[1], [2]])
    scores = PairedScores("insertion", "higher", np.ones((2, images), bool), values)
    summary, pairs = (pa.Table.from_pylist(rows) for rows in result_rows([scores], ["one", "two"], [], 0))
    tables = comparison_tables(summary, pairs, images)
    return on(lambda: [terminal.console.print(table) for table in tables], "utf-8", width=120)


def test_a_comparison_on_one_image_prints_no_interval_and_no_test() -> None:
    cells = [re.findall(r"[^┃│]+", line) for line in compared(1).splitlines() if line[0] in "┃│"]
    assert [[cell.strip() for cell in row] for row in cells] == [
        ["explainer", "rank", "value", "difference to the best"],
        ["two", "1", "0.200", "0.000"],
        ["one", "2", "0.100", "-0.100"],
    ]
    assert {"mean", "95 %", "wins", "p (Holm)"} <= set(re.split(r" *[┃│] *", compared(9)))


def test_an_error_is_one_line_without_passwords(capsys: pytest.CaptureFixture[str]) -> None:
    assert fail("[/b] at\nhttp://me:hunter2@host \x1b[1m", 1).exit_code == 1
    assert capsys.readouterr().err == "floodlit: [/b] at\\nhttp://***@host \\x1b[1m\n"


def test_progress_of_a_step_with_markup_is_text(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    there = Console(file=file, width=200, force_terminal=True, markup=False, emoji=False, highlight=False)
    monkeypatch.setattr(terminal, "console", there)
    with terminal.Progress(2, 0) as progress:
        progress.advance("[/red] \x1b[5m :smile:")
    assert "[/red] \\x1b[5m :smile:" in file.getvalue()
    assert "\x1b[5m" not in file.getvalue()


def test_pictures_of_hostile_names_are_drawn(run: Run) -> None:
    draw_contact_sheet(run)
    with Image.open(run.report / "contact_sheet.png") as picture:
        assert picture.width > 100
    told = heading(
        {"sample_id": "a\x1b\n$b$\udcff", "label": None, "target": 1, "prediction": 1, "confidence": 1}
    )
    assert told == "a\\x1b\\n$b$\\udcff: class 1, 100 %"
