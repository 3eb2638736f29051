"""Texts and plain numbers in the rows of a file: what is read, what is refused, and what a bad row does."""

import csv
import io
import time
import tracemalloc
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.datasets import arrays, columns
from storage.datasets.dataset import Dataset
from storage.datasets.opening import open_dataset
from storage.datasets.spec import DatasetSpec
from storage.files import UnreadableError


def table(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]], **dialect: Any) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, **dialect).writerows([header, *rows])
    return path


def parquet(path: Path, **columns: object) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def texts(path: Path, **keys: object) -> Dataset:
    return open_dataset(DatasetSpec.model_validate({"kind": "text", "path": path, **keys}))


def tensors(path: Path, **keys: object) -> Dataset:
    return open_dataset(DatasetSpec.model_validate({"kind": "tensors", "path": path, **keys}))


def ids(dataset: Dataset) -> list[str]:
    return [sample.sample_id for sample in dataset.samples]


def labels(dataset: Dataset) -> list[int | None]:
    return [sample.label for sample in dataset.samples]


def refusal(opened: Any, path: Path, **keys: object) -> str:
    with pytest.raises(ValueError) as refused:  # noqa: PT011
        opened(path, **keys)
    assert "\n" not in str(refused.value)
    assert path.name in str(refused.value)
    return str(refused.value)


HARD = [
    'She said "no", twice',
    "two\nlines\r\nand a third",
    "naïve 文章 👍🏽 \u202eright to left",
    "null",
    "NA",
    " blanks around ",
    "a,b,c",
    '"',
    "007",
    "x" * 3_000_000,
]


@pytest.mark.parametrize("dialect", [{}, {"quoting": csv.QUOTE_ALL}, {"lineterminator": "\n"}])
def test_texts_of_a_csv_file_come_back_character_by_character(
    tmp_path: Path, dialect: dict[str, Any]
) -> None:
    path = table(tmp_path / "a.csv", ["n", "text"], [(n, text) for n, text in enumerate(HARD)], **dialect)
    dataset = texts(path)
    assert (dataset.modality, dataset.classes, dataset.features) == ("text", [], [])
    assert [dataset.load(index) for index in range(len(HARD))] == HARD
    assert labels(dataset) == [None] * len(HARD)
    assert ids(dataset) == [f"{row:06d}" for row in range(len(HARD))]
    assert dataset.samples[3].uri == "a.csv#000003"


def test_csv_and_parquet_agree_with_pandas_and_with_each_other(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"text": HARD, "label": [f"class {n % 3}" for n in range(len(HARD))]})
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_parquet(tmp_path / "a.parquet")
    frame["label"] = frame["label"].astype("category")
    frame.to_parquet(tmp_path / "categories.PARQUET")
    read = pandas.read_csv(tmp_path / "a.csv", keep_default_na=False, dtype=str)
    all_three = [texts(tmp_path / name) for name in ("a.csv", "a.parquet", "categories.PARQUET")]
    for dataset in all_three:
        assert [dataset.load(index) for index in range(len(HARD))] == read["text"].tolist()
        assert [dataset.classes[label] for label in labels(dataset)] == read["label"].tolist()
    assert len({dataset.fingerprint for dataset in all_three}) == 1


def test_the_byte_order_mark_empty_lines_and_blanks_in_the_header_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("\ufefftext , label,id\n\none,3, u1\r\n\r\ntwo,  4 ,007\n\n", "utf-8")
    dataset = texts(tmp_path / "a.csv")
    assert [dataset.load(0), dataset.load(1)] == ["one", "two"]
    assert (labels(dataset), ids(dataset), dataset.classes) == ([3, 4], ["u1", "007"], [])


def test_a_missing_or_blank_text_is_a_sample_that_cannot_be_loaded(tmp_path: Path) -> None:
    in_csv = texts(table(tmp_path / "a.csv", ["text", "n"], [("a", 0), ("", 1), (" \t\n", 2), ("b", 3)]))
    in_parquet = texts(parquet(tmp_path / "a.parquet", text=["a", None, "\u3000", "b"]))
    for dataset in (in_csv, in_parquet):
        assert ids(dataset) == ["000000", "000001", "000002", "000003"]
        assert (dataset.load(0), dataset.load(3)) == ("a", "b")
        for index in (1, 2):
            with pytest.raises(UnreadableError, match=r"^the text is empty$"):
                dataset.load(index)
    nothing = texts(parquet(tmp_path / "null.parquet", text=[None, None]))
    with pytest.raises(UnreadableError, match="the text is empty"):
        nothing.load(1)


@pytest.mark.parametrize(
    ("given", "expected", "classes"),
    [
        (["65", "7", "7"], [65, 7, 7], []),
        (["spam", "ham", "spam"], [1, 0, 1], ["ham", "spam"]),
        (["007", "7", "2147483647"], [7, 7, 2147483647], []),
        (["1.5.2", "-x", "10th"], [1, 0, 2], ["-x", "1.5.2", "10th"]),
    ],
)
def test_labels_are_whole_numbers_or_names_in_sorted_order(
    tmp_path: Path, given: list[str], expected: list[int], classes: list[str]
) -> None:
    in_csv = table(tmp_path / "a.csv", ["label", "text", "x"], [(label, "t", 1) for label in given])
    in_parquet = parquet(tmp_path / "a.parquet", text=["t"] * 3, label=given)
    listed = table(tmp_path / "l.csv", ["file", "label"], [(n, label) for n, label in enumerate(given)])
    numbers = table(tmp_path / "t.csv", ["label", "x"], [(label, 1) for label in given])
    opened = [texts(in_csv), texts(in_parquet), tensors(numbers), tensors(in_csv_without_text(in_csv))]
    opened.append(open_dataset(DatasetSpec.model_validate({"kind": "csv", "path": listed})))
    for dataset in opened:
        assert (labels(dataset), dataset.classes) == (expected, classes)


@pytest.mark.parametrize("opened", [texts, tensors])
def test_rows_may_have_several_labels_between_semicolons_or_in_lists(tmp_path: Path, opened: Any) -> None:
    def several(dataset: Dataset) -> list[tuple[int, ...]]:
        assert labels(dataset) == [None] * 4
        return [sample.labels for sample in dataset.samples]

    cells, rows = ["cat; dog", "", "owl", "dog;cat"], ["1", "2", "3", "4"]
    value = "text" if opened is texts else "x"
    written = table(tmp_path / "a.csv", [value, "labels"], list(zip(rows, cells, strict=True)))
    given = rows if opened is texts else [1.0, 2.0, 3.0, 4.0]
    split = [["cat", "dog"], None, ["owl"], ["dog", "cat"]]
    lists = parquet(tmp_path / "a.parquet", **{value: given, "labels": pa.array(split)})
    for dataset in (opened(written), opened(lists)):
        assert several(dataset) == [(0, 1), (), (2,), (1, 0)]
        assert (dataset.classes, dataset.features) == (
            ["cat", "dog", "owl"],
            [] if opened is texts else ["x"],
        )
    numbers = pa.array([[7, 300], [], None, [0]], pa.large_list(pa.uint16()))
    dataset = opened(parquet(tmp_path / "b.parquet", **{value: given, "labels": numbers}))
    assert (several(dataset), dataset.classes) == ([(7, 300), (), (), (0,)], [])
    assert [sample.sample_id for sample in opened(written, limit=2).samples] == ["000000", "000002"]
    assert [sample.labels for sample in opened(written, limit=2).samples] == [(0, 1), (2,)]


@pytest.mark.parametrize(
    ("header", "row", "told"),
    [
        ("text,labels", "a,cat;", "line 2: a label is missing beside a semicolon in cat;"),
        ("text,labels", "a,cat;dog;cat", "line 2: label cat is written twice in cat;dog;cat"),
        ("text,labels", "a,cat;3", "line 2: label 'cat' is a name, but 3 in line 2 is a number"),
        ("text,labels", "a,1.5;2", "line 2: label 1.5 is no class index"),
        ("text,label,labels", "a,1,1", "has the columns label and labels; rename or remove one"),
    ],
)
def test_wrong_lists_of_labels_are_told_with_their_line(
    tmp_path: Path, header: str, row: str, told: str
) -> None:
    (tmp_path / "a.csv").write_text(f"{header}\n{row}\n")
    assert told in refusal(texts, tmp_path / "a.csv")


def in_csv_without_text(path: Path) -> Path:
    rows = list(csv.DictReader(io.StringIO(path.read_text())))
    return table(path.with_name("n.csv"), ["x", "label"], [(row["x"], row["label"]) for row in rows])


def test_labels_of_parquet_may_be_of_any_whole_type(tmp_path: Path) -> None:
    for kind in (pa.int8(), pa.uint64()):
        path = parquet(tmp_path / "a.parquet", text=["a", "b"], label=pa.array([2, 0], kind))
        assert (labels(texts(path)), texts(path).classes) == ([2, 0], [])
    truths = parquet(tmp_path / "b.parquet", text=["a", "b"], label=[True, False])
    assert "b.parquet, row 0: label true is a truth value; write a whole number" in refusal(texts, truths)
    missing = parquet(tmp_path / "d.parquet", text=["a", "b"], label=[1, None])
    assert "d.parquet, row 1: the label is missing" in refusal(texts, missing)
    words = parquet(tmp_path / "e.parquet", text=["a", "b"], label=pa.array(["x", "nan"]).dictionary_encode())
    assert "e.parquet, row 1: label nan stands for a missing value" in refusal(texts, words)
    large = parquet(tmp_path / "f.parquet", text=["a", "b"], label=pa.array([2**63, 0], pa.uint64()))
    assert "f.parquet, row 0: label 9223372036854775808 is larger than 2147483647" in refusal(texts, large)
    floats = parquet(tmp_path / "c.parquet", text=["a", "b"], label=[1.0, 0.5])
    assert "column label holds double; it must hold whole numbers or texts" in refusal(texts, floats)


@pytest.mark.parametrize("opened", [texts, tensors])
@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ("1,a,x\n2,b,\n", "line 3: the label is missing"),
        ("1,a,0\n2,b,-1\n", "line 3: label -1 is negative"),
        ("1,a,0\n\n2,b,cat\n", "line 4: label 'cat' is a name, but 0 in line 2 is a number"),
        ("1,a,0\n2,b,0\n3,a,0\n", "line 4: id a is also in line 2; ids must be unique"),
        ('1,"a\nb",0\n2,c,0\n3,c ,0\n', "line 5: id c is also in line 4"),
        ("1,a,0\n2, ,0\n", "line 3: the id is missing"),
        ("1,a,0\n2,b\n", "line 3: the number of cells is not that of the header, 3"),
        ("1,a,0\n2,b,0,5\n", "line 3: the number of cells is not that of the header, 3"),
        ('1,a,0\n2,b,"0\n3,c,0\n', "is not a CSV file in UTF-8: line 3"),
    ],
)
def test_a_wrong_row_is_told_with_its_line(tmp_path: Path, opened: Any, rows: str, told: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"{'text' if opened is texts else 'x'},id,label\n{rows}")
    assert told in refusal(opened, path)


def test_a_wrong_row_of_parquet_is_told_with_its_number(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", text=["a"] * 3, id=[4, 5, 4])
    assert "a.parquet, row 2: id 4 is also in row 0" in refusal(texts, path)
    path = parquet(tmp_path / "b.parquet", text=["a"] * 2, label=[0, None])
    assert "b.parquet, row 1: the label is missing" in refusal(texts, path)


def test_a_quote_that_is_not_closed_does_not_swallow_the_rest_of_the_texts(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('label,text\n1,fine\n2,"open\n3,swallowed\n4,swallowed\n')
    assert "line 3: unexpected end of data" in refusal(texts, tmp_path / "a.csv")
    (tmp_path / "b.csv").write_text('label,text\n1,a 5" disk\n2,fine\n')
    assert texts(tmp_path / "b.csv").load(0) == 'a 5" disk'


def test_long_texts_do_not_hide_what_is_wrong_behind_them(tmp_path: Path) -> None:
    path = table(tmp_path / "a.csv", ["text", "id"], [("x" * 300_000, 1), ("y", 1)])
    assert "line 3: id 1 is also in line 2" in refusal(texts, path)
    (tmp_path / "b.csv").write_text(f'text,n\na 5" disk,1\n{"x" * 300_000},2\n')
    assert len(texts(tmp_path / "b.csv").samples) == 2


def test_a_column_of_another_name(tmp_path: Path) -> None:
    path = table(tmp_path / "a.csv", ["review", "stars"], [("good", 5), ("bad", 1)])
    assert texts(path, column="review").load(1) == "bad"
    assert refusal(texts, path) == f"dataset.column: {path} has no column text; it has review, stars"
    assert "has no column body; it has review, stars" in refusal(texts, path, column="body")
    stars = parquet(tmp_path / "a.parquet", stars=[5, 1])
    assert "column stars holds int64; it must hold texts" in refusal(texts, stars, column="stars")


@pytest.mark.parametrize("opened", [texts, tensors])
def test_files_that_are_not_what_their_name_says_are_refused_in_one_line(tmp_path: Path, opened: Any) -> None:
    def junk(name: str, data: bytes) -> Path:
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    assert "is neither" in refusal(opened, junk("a.json", b"[]"))
    assert "is empty" in refusal(opened, junk("empty.csv", b""))
    assert "is not a CSV file in UTF-8" in refusal(opened, junk("latin.csv", b"id,text\ncaf\xe9,caf\xe9\n"))
    assert "is not a Parquet file" in refusal(opened, junk("a.parquet", b"PAR1 and then nothing"))
    assert "two columns 'x'" in refusal(opened, junk("two.csv", b"x,y, x\n1,2,3\n"))
    assert "there is no file" in refusal(opened, tmp_path / "absent.csv")
    assert "there is no row in" in refusal(opened, junk("norow.csv", b"text\n"))
    whole = parquet(tmp_path / "whole.parquet", text=[str(n) for n in range(999)], x=range(999)).read_bytes()
    damaged = junk("damaged.parquet", whole[:4] + bytes(len(whole) // 2) + whole[4 + len(whole) // 2 :])
    assert "damaged.parquet" in refusal(opened, damaged)


def test_a_limit_spreads_over_the_rows_and_keeps_their_numbers_and_classes(tmp_path: Path) -> None:
    rows = [(f"text {n}", "early" if n < 6 else "late", n) for n in range(8)]
    path = table(tmp_path / "a.csv", ["text", "label", "id"], rows)
    some = texts(path, limit=3)
    assert [some.load(index) for index in range(3)] == ["text 0", "text 2", "text 5"]
    assert (ids(some), labels(some), some.classes) == (["0", "2", "5"], [0, 0, 0], ["early", "late"])
    assert len(texts(path, limit=99).samples) == 8
    np.save(tmp_path / "a.npy", np.arange(8).reshape(8, 1))
    array = tensors(tmp_path / "a.npy", limit=3)
    assert ids(array) == ["000000", "000002", "000005"]
    assert [sample.uri for sample in array.samples] == ["a.npy#000000", "a.npy#000002", "a.npy#000005"]
    assert [array.load(index).tolist() for index in range(3)] == [[0], [2], [5]]


def test_the_fingerprint_of_texts_follows_every_character_and_not_the_folder(tmp_path: Path) -> None:
    rows = [("one", "a", "u"), ("two", "b", "v"), ("", "b", "w")]
    header = ("text", "label", "id")
    first = texts(table(tmp_path / "a.csv", header, rows)).fingerprint
    (tmp_path / "elsewhere").mkdir()
    elsewhere = table(tmp_path / "elsewhere" / "b.csv", header, rows)
    assert texts(elsewhere).fingerprint == first
    others = [
        [("onE", "a", "u"), *rows[1:]],
        [("onet", "a", "u"), ("wo", "b", "v"), rows[2]],  # the same characters, cut elsewhere
        [("one", "b", "u"), *rows[1:]],
        [("one", "a", "x"), *rows[1:]],
        [("one", "A", "u"), *rows[1:]],
        rows[:2],
    ]
    prints = [texts(table(tmp_path / "c.csv", header, other)).fingerprint for other in others]
    assert len({first, texts(elsewhere, limit=2).fingerprint, *prints[:5]}) == 7
    assert prints[5] not in {first, *prints[:5]}


def test_fifty_thousand_texts_open_in_a_moment(tmp_path: Path) -> None:
    rows = [(f'review {n}, "quoted"\nand ' + "word " * 40, n % 2, f"r{n}") for n in range(50_000)]
    path = table(tmp_path / "a.csv", ["text", "label", "id"], rows)
    started = time.perf_counter()
    dataset = texts(path)
    took = time.perf_counter() - started
    assert (len(dataset.samples), dataset.load(49_999)) == (50_000, rows[-1][0])
    assert took < 5  # 0.1 seconds on an idle core


def test_every_column_but_label_and_id_is_a_feature_in_the_order_of_the_file(tmp_path: Path) -> None:
    rows = [("3", "b", 1.5, "u", "True"), ("-4", "a", "1e3", "v", "False"), ("5", "a", " 2 ", "w", "True")]
    dataset = tensors(table(tmp_path / "a.csv", ["z", "label", "a", "id", "flag"], rows))
    assert (dataset.modality, dataset.features) == ("tensor", ["z", "a", "flag"])
    assert (ids(dataset), labels(dataset), dataset.classes) == (["u", "v", "w"], [1, 0, 0], ["a", "b"])
    assert [dataset.load(index).tolist() for index in range(3)] == [[3, 1.5, 1], [-4, 1000, 0], [5, 2, 1]]
    assert dataset.load(0).dtype == np.float32


def test_numbers_agree_with_pandas(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    rng = np.random.default_rng(0)
    frame = pandas.DataFrame(rng.normal(size=(200, 7)), columns=list("gfedcba"))
    frame["count"] = rng.integers(-(2**40), 2**40, 200)
    frame["yes"] = rng.random(200) > 0.5
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_parquet(tmp_path / "a.parquet")
    expected = frame.to_numpy(np.float64).astype(np.float32)
    for name in ("a.csv", "a.parquet"):
        dataset = tensors(tmp_path / name)
        assert dataset.features == list(frame.columns)
        assert np.array_equal(np.stack([dataset.load(i) for i in range(200)]), expected)


def test_numbers_of_parquet_may_be_of_any_numeric_type(tmp_path: Path) -> None:
    kinds = [pa.int8(), pa.uint64(), pa.float16(), pa.float64(), pa.decimal128(21, 2)]
    columns = {str(place): pa.array([1, 2]).cast(kind) for place, kind in enumerate(kinds)}
    assert tensors(parquet(tmp_path / "a.parquet", **columns)).load(1).tolist() == [2] * 5


def test_a_column_without_numbers_is_refused_by_name_and_line(tmp_path: Path) -> None:
    def told(*cells: str) -> str:
        return refusal(tensors, table(tmp_path / "a.csv", ["age", "city"], [(1, cell) for cell in cells]))

    assert "column city holds 'Berlin' in line 2; write numbers" in told("Berlin", "Rome")
    assert "column city holds '?' in line 5" in told("1", "NA", "", "?", "2")
    assert "column city holds date32[day]" in told("2024-01-01", "2024-01-02")
    path = parquet(tmp_path / "a.parquet", age=[1, 2], city=["1", "Rome"])
    assert "column city holds 'Rome' in row 1" in refusal(tensors, path)
    path = parquet(tmp_path / "b.parquet", age=[1, 2], city=[[1], [2]])
    assert "column city holds list<" in refusal(tensors, path)
    path = table(tmp_path / "c.csv", ["label", "id"], [(1, 1)])
    assert "no column of numbers besides label, labels, id" in refusal(tensors, path)


def test_the_row_numbers_pandas_writes_are_no_feature(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"age": [1, 2, 3]}).iloc[[2, 0, 1]]
    frame.to_csv(tmp_path / "a.csv")
    frame.to_parquet(tmp_path / "a.parquet")
    assert "column '' holds only row numbers" in refusal(tensors, tmp_path / "a.csv")
    assert "column '__index_level_0__' holds only row numbers" in refusal(tensors, tmp_path / "a.parquet")
    pandas.read_csv(tmp_path / "a.csv").to_csv(tmp_path / "b.csv", index=False)
    assert "column 'Unnamed: 0' holds only row numbers" in refusal(tensors, tmp_path / "b.csv")


@pytest.mark.parametrize("name", ["Label", "ID"])
def test_a_column_spelt_almost_as_the_label_or_the_id_is_no_feature(tmp_path: Path, name: str) -> None:
    path = table(tmp_path / "a.csv", ["age", name], [(1, 0), (2, 1)])
    assert f"rename the column {name!r}: is it {name.lower()}, or a feature?" in refusal(tensors, path)


def test_arrays_are_series_of_one_or_several_channels(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for shape in [(5, 7), (5, 3, 7)]:
        values = rng.normal(size=shape)
        np.savez(tmp_path / "a.npz", inputs=values, labels=np.array([4, 0, 1, 1, 4], np.uint8))
        np.savez_compressed(tmp_path / "b.npz", inputs=values)
        np.save(tmp_path / "a.npy", np.asfortranarray(values.astype(">f8")))
        opened = [tensors(tmp_path / name) for name in ("a.npz", "b.npz", "a.npy")]
        assert [labels(dataset) for dataset in opened] == [[4, 0, 1, 1, 4], [None] * 5, [None] * 5]
        assert opened[1].fingerprint == opened[2].fingerprint != opened[0].fingerprint
        for dataset in opened:
            assert (dataset.modality, dataset.features, dataset.classes) == ("tensor", [], [])
            for index in range(5):
                row = dataset.load(index)
                assert row.dtype == np.float32
                assert np.array_equal(row, values[index].astype(np.float32))


def test_an_npy_file_stays_on_the_disk_and_a_loaded_row_is_a_copy(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((1 << 14, 1024), np.float32))  # 64 MiB
    tracemalloc.start()
    dataset = tensors(tmp_path / "a.npy")
    dataset.load(5)[:] = 1
    assert dataset.load(5).tolist() == [0] * 1024
    assert dataset.fingerprint
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 40 << 20


def test_a_row_with_a_bad_number_is_a_sample_that_cannot_be_loaded(tmp_path: Path) -> None:
    path = table(tmp_path / "a.csv", ["x", "age"], [(1, 2), (1, ""), (1, "NaN"), ("-inf", ""), ("1e300", 1)])
    values = np.ones((4, 2, 30))
    values[1, 1, 17], values[1, 1, 20], values[2, 0, 3], values[3, 1, 0] = np.inf, np.nan, np.nan, 1e300
    np.save(tmp_path / "channels.npy", values)
    np.save(tmp_path / "flat.npy", values[:, 1])
    expected = [
        (
            path,
            [None, "feature age is NaN", "feature age is NaN"] + ["feature x is not finite as float32"] * 2,
        ),
        (
            tmp_path / "channels.npy",
            [
                None,
                "number 17 of channel 1 is not finite as float32",
                "number 3 of channel 0 is NaN",
                "number 0 of channel 1 is not finite as float32",
            ],
        ),
        (
            tmp_path / "flat.npy",
            [None, "number 17 is not finite as float32", None, "number 0 is not finite as float32"],
        ),
    ]
    for name, messages in expected:
        dataset = tensors(name)
        assert len(dataset.samples) == len(messages)
        for index, message in enumerate(messages):
            if message is None:
                assert np.isfinite(dataset.load(index)).all()
            else:
                with pytest.raises(UnreadableError, match=f"^{message}$"):
                    dataset.load(index)


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"x": np.ones((2, 2)), "y": np.ones(2)}, "has no array inputs; it has: x, y"),
        ({"inputs": np.ones(3)}, r"inputs are float64 (3,); they must be numbers (N, T) or (N, C, T)"),
        ({"inputs": np.ones((3, 2, 2, 2))}, "they must be numbers"),
        ({"inputs": np.ones((3, 0))}, "they must be numbers"),
        ({"inputs": np.ones((3, 2), complex)}, "inputs are complex128 (3, 2)"),
        ({"inputs": np.array([["a", "b"]])}, "they must be numbers"),
        ({"inputs": np.array([[1, None]], object)}, "Object arrays cannot be loaded"),
        ({"inputs": np.ones((3, 2)), "labels": np.ones(2, int)}, "must be whole numbers (3,)"),
        ({"inputs": np.ones((3, 2)), "labels": np.ones(3)}, "labels are float64 (3,); they must be whole"),
        ({"inputs": np.ones((3, 2)), "labels": np.array([0, 1, -1])}, "row 2: label -1 is negative"),
        ({"inputs": np.ones((0, 2))}, "there is no row in"),
    ],
)
def test_arrays_that_are_not_rows_of_numbers_are_refused(
    tmp_path: Path, arrays: dict[str, np.ndarray], told: str
) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    assert told in refusal(tensors, tmp_path / "a.npz")


def test_damaged_arrays_are_refused(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", inputs=np.random.default_rng(0).normal(size=(40, 5)))
    np.save(tmp_path / "a.npy", np.ones((4, 5)))
    np.save(tmp_path / "objects.npy", np.array([[1, None]], object))
    whole = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "bits.npz").write_bytes(whole[:300] + b"damaged!" + whole[308:])
    (tmp_path / "half.npz").write_bytes(whole[:300])
    (tmp_path / "half.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:200])
    (tmp_path / "junk.npy").write_bytes(b"junk")
    assert "bits.npz: " in refusal(tensors, tmp_path / "bits.npz")
    assert "is not an .npz file" in refusal(tensors, tmp_path / "half.npz")
    for name in ("half.npy", "junk.npy", "objects.npy"):
        assert "is not an .npy file of numbers" in refusal(tensors, tmp_path / name)


def test_the_fingerprint_of_numbers_follows_every_number_and_not_the_folder(tmp_path: Path) -> None:
    def fingerprint(inputs: np.ndarray, name: str = "a.npz", **arrays: np.ndarray) -> str:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        np.savez(tmp_path / name, inputs=inputs, **arrays)
        return tensors(tmp_path / name).fingerprint

    values = np.random.default_rng(2).normal(size=(3000, 6))
    other = values.copy()
    other[2999, 5] += 1e-6
    first = fingerprint(values)
    assert fingerprint(values, "elsewhere/b.npz") == first
    assert fingerprint(values.astype(np.float32)) == first
    different = [
        fingerprint(other),
        fingerprint(values.reshape(3000, 2, 3)),
        fingerprint(values.reshape(3000, 3, 2)),
        fingerprint(values, labels=np.zeros(3000, int)),
        fingerprint(values, labels=np.ones(3000, int)),
    ]
    assert len({first, tensors(tmp_path / "a.npz", limit=2999).fingerprint, *different}) == 7
    renamed = [tensors(table(tmp_path / "a.csv", [name], [(1,)])).fingerprint for name in ("x", "y")]
    assert renamed[0] != renamed[1]


def test_a_column_that_is_whole_for_long_and_then_is_not_keeps_its_fractions(tmp_path: Path) -> None:
    rows = [(n, 1) for n in range(50_000)]
    dataset = tensors(table(tmp_path / "a.csv", ["x", "y"], [*rows, (0.5, 1)]))
    assert dataset.load(50_000).tolist() == [0.5, 1]
    path = table(tmp_path / "a.csv", ["x", "y"], [*rows, ("end", 1)])
    assert "column x holds 'end' in line 50002" in refusal(tensors, path)


def claiming(shape: tuple[int, ...]) -> bytes:
    """An ``.npy`` file whose header claims a shape, with 64 bytes of numbers."""
    data = io.BytesIO()
    np.lib.format.write_array_header_1_0(data, {"descr": "<f8", "fortran_order": False, "shape": shape})
    return data.getvalue() + bytes(64)


@pytest.mark.parametrize("shape", [(3 << 30, 128), (9, 1), (10**30, 2), (-1, 8)])
def test_an_array_that_claims_more_than_its_file_holds_is_refused(
    shape: tuple[int, ...], tmp_path: Path
) -> None:
    (tmp_path / "a.npy").write_bytes(claiming(shape))
    assert "cannot hold" in refusal(tensors, tmp_path / "a.npy")
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(tmp_path / "a.npz", "w", compression) as archive:
            archive.writestr("inputs.npy", claiming(shape))
        assert "cannot hold" in refusal(tensors, tmp_path / "a.npz")


def test_an_archive_that_claims_a_size_is_refused_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez_compressed(tmp_path / "a.npz", inputs=np.zeros((1000, 1000)))
    assert len(tensors(tmp_path / "a.npz").samples) == 1000
    monkeypatch.setattr(arrays, "memory_bytes", lambda: 10**6)
    assert "has 8000128 bytes, and this machine 1000000 of memory" in refusal(tensors, tmp_path / "a.npz")


def test_a_parquet_file_that_claims_too_many_rows_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(pa.table({"a": pa.array(np.zeros(5000))}), tmp_path / "a.parquet")
    assert len(tensors(tmp_path / "a.parquet").samples) == 5000
    monkeypatch.setattr(columns, "memory_bytes", lambda: 4999)
    assert "claims 5000 rows, which do not fit" in refusal(tensors, tmp_path / "a.parquet")
