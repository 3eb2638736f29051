"""The contact sheets of texts and tensors show each token and step on the colour of its saliency."""

import warnings
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from storage.manifest import ExplainerEntry, Manifest
from storage.maps import write_shard
from storage.run import Run
from storage.samples import merge_samples, write_sample_inputs, write_sample_predictions
from tasks.pictures.contact_sheet import draw_contact_sheet
from tasks.pictures.drawing import BEHIND, DPI, caption, draw_image
from tasks.pictures.tensor_sheet import BARS
from tasks.pictures.text_sheet import ACROSS, COLUMNS, DOWN, LINES, SPECIAL


def run_of(
    root: Path, modality: str, inputs: np.ndarray, maps: dict[str, np.ndarray], samples: list[dict[str, Any]]
) -> Run:
    """A run of one shard with these inputs (N, C, T), maps (N * targets, T) and samples, and nothing else."""
    targets = len(next(iter(maps.values()))) // len(inputs)
    manifest = Manifest(
        job={},
        identity={},
        versions={},
        model_fingerprint="",
        dataset_fingerprint="",
        modality=modality,
        input_dtype=str(inputs.dtype),
        rows=len(inputs),
        shard_rows=len(inputs),
        targets_per_image=targets,
        input_shape=inputs.shape[1:],
        explainers={name: ExplainerEntry(parameters={}, grid=inputs.shape[2:]) for name in maps},
        metrics={},
    )
    run = Run.create_or_open(root, manifest)
    write_shard(run.inputs, 0, inputs)
    for name, values in maps.items():
        write_shard(run.saliency(name) / "maps", 0, values.astype(np.float32))
    known = [{"sample_id": f"sample {i}", "status": "ok"} | sample for i, sample in enumerate(samples)]
    told = [{"prediction": 1, "confidence": 0.931, "target": 1, "targets": [1]} | sample for sample in known]
    write_sample_inputs(run.root, 0, known)
    write_sample_predictions(run.root, 0, told)
    merge_samples(run.root, run.shards)
    return run


def drawn(run: Run, monkeypatch: pytest.MonkeyPatch) -> Figure:
    """The contact sheet, before it is saved."""
    figures: list[Figure] = []
    monkeypatch.setattr("tasks.pictures.contact_sheet.save", lambda figure, path: figures.append(figure))
    draw_contact_sheet(run)
    (figure,) = figures
    return figure


def pixels(figure: Figure) -> np.ndarray:
    """(H, W, 3) in [0, 1], the figure as it is saved."""
    canvas = FigureCanvasAgg(figure)
    figure.set_dpi(DPI)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3] / 255


def behind(figure: Figure, word: str, paragraph: int = 0) -> np.ndarray:
    """Colour of the pixel at the upper left of a word, where no letter is."""
    shown = pixels(figure)
    text = [text for text in figure.axes[0].texts if text.get_text() == word][paragraph]
    x, y = text.get_position()
    return shown[round((y - 0.73) * DOWN) + 2, int(x * ACROSS) + 1]


def words(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def colour(saliency: float) -> Any:
    return pytest.approx(BEHIND(float(saliency))[:3], abs=0.01)


GREY = pytest.approx(SPECIAL[:3], abs=0.01)
REVIEW = ["[CLS]", "a", "dull", "##ish", "film", "[SEP]"]


def text_run(root: Path, maps: dict[str, list[list[float]]], **sample: Any) -> Run:
    """One text of six tokens on eight sites, the last two padding; a map is eight numbers a target."""
    ids, of_word = [101, 5, 6, 7, 8, 102, -1, -1], [-1, 0, 1, 1, 2, -1, -1, -1]
    inputs = np.array([[ids, of_word]], dtype=np.int32)
    known = {"tokens": REVIEW, "width": 6, "text": "a dullish film"} | sample
    return run_of(root, "text", inputs, {name: np.array(rows) for name, rows in maps.items()}, [known])


# What stands at special tokens and padding is no saliency, whatever it is.
FILM = [9.0, 0.0, 1.0, -1.0, 2.0, 9.0, 9.0, 9.0]


def test_each_token_stands_on_the_colour_of_its_saliency_and_special_ones_on_grey(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figure = drawn(text_run(tmp_path, {"rise": [FILM]}), monkeypatch)
    found = [behind(figure, word) for word in ("[CLS]", "a", "dull", "ish", "film", "[SEP]")]
    assert found == [GREY, colour(0), colour(0.5), colour(0), colour(1), GREY]
    assert found[1].tolist() == [1, 1, 1]
    assert words(figure)[1:] == [
        "sample 0: class 1, 93 %",
        "rise",
        "[CLS]",
        "a",
        "dull",
        "ish",
        "film",
        "[SEP]",
    ]


def test_every_explainer_has_a_paragraph_and_says_so_where_it_has_no_map(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = [0.0, 3.0, *[0.0] * 6]
    maps = {"rise": [FILM], "pami": [[np.nan] * 8], "a_longer_name": [other]}
    figure = drawn(text_run(tmp_path, maps), monkeypatch)
    assert words(figure).count("film") == 2
    assert words(figure).count("no map") == 1
    assert words(figure)[words(figure).index("pami") + 1] == "no map"
    assert [behind(figure, "film", i) for i in range(2)] == [colour(1), colour(0)]
    assert [behind(figure, "a", i) for i in range(2)] == [colour(0), colour(1)]
    lefts = {text.get_text(): text.get_position()[0] for text in figure.axes[0].texts}
    assert lefts["[CLS]"] == lefts["no map"] > lefts["a_longer_name"] + len("a_longer_name")


def test_of_several_targets_the_first_ones_map_of_each_text_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = np.array([[[5, 6, 7, -1], [0, 1, 2, -1]]] * 2, dtype=np.int32)
    maps = np.array([[0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0]])
    samples = [{"tokens": ["the", "dull", "film"], "width": 3}] * 2
    figure = drawn(run_of(tmp_path, "text", inputs, {"rise": maps}, samples), monkeypatch)
    assert [behind(figure, "film", i) for i in range(2)] == [colour(1), colour(0)]
    assert [behind(figure, "dull", i) for i in range(2)] == [colour(0), colour(1)]


@pytest.mark.parametrize(
    ("sample", "said"),
    [
        ({"label": 0}, "sample 0: class 1, 93 %, label 0"),
        ({"target": 4, "label": 4}, "sample 0: class 4 (predicted 1), label 4"),
        ({"target_names": ["fine"]}, "sample 0: class 1 fine, 93 %"),
        (
            {"targets": [4], "target": 4, "target_names": ["a\nb"], "prediction_name": "fine", "label": 1},
            "sample 0: class 4 a\\nb (predicted 1 fine), label 1",
        ),
        ({"label": 4, "label_name": "dull"}, "sample 0: class 1, 93 %, label 4 dull"),
        ({"label": None, "label_name": "odd"}, "sample 0: class 1, 93 %, label odd"),
        ({"label": 4, "label_name": "4"}, "sample 0: class 1, 93 %, label 4"),
        ({"width": 300}, "sample 0: class 1, 93 %, 6 of 300 tokens read"),
        ({"sample_id": "a\nb$c$"}, "a\\nb$c$: class 1, 93 %"),
        ({"sample_id": 200 * "x"}, 115 * "x" + "…"),
    ],
)
def test_the_heading_names_the_text_its_class_its_label_and_what_was_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sample: dict[str, Any], said: str
) -> None:
    figure = drawn(text_run(tmp_path, {"rise": [FILM]}, **sample), monkeypatch)
    assert words(figure)[1] == said


def test_the_caption_of_an_image_has_short_lines_and_no_mathematics() -> None:
    axis = Figure().subplots()
    sample: dict[str, Any] = {"prediction": 1, "confidence": 0.5, "targets": [1], "boxes": [], "label": 1}
    long = sample | {"target_names": ["a $x$ class with a long name"]}
    draw_image(axis, np.zeros((4, 4, 3), np.uint8), long, 1)
    assert axis.get_xlabel() == "class 1, 50 %\na $x$ class with a long…"
    assert not axis.xaxis.label.get_parse_math()


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        ({}, ["class 1, 50 %"]),
        ({"label": 3}, ["class 1, 50 %", "label 3"]),
        ({"label": None, "label_name": "odd"}, ["class 1, 50 %", "label odd"]),
        ({"targets": [2], "label": 2}, ["class 2 (predicted 1)"]),
        (
            {"targets": [2], "target_names": ["tabby"], "prediction_name": "tiger cat", "label_name": "fox"},
            ["class 2", "tabby", "predicted 1 tiger cat", "label 1 fox"],
        ),
        ({"target_names": [None]}, ["class 1, 50 %"]),
    ],
)
def test_the_caption_of_an_image_tells_the_prediction_and_the_label_apart(
    changes: dict[str, Any], lines: list[str]
) -> None:
    sample = {"prediction": 1, "confidence": 0.5, "targets": [1], "label": 1} | changes
    assert caption(sample, sample["targets"][0]).split("\n") == lines


def test_a_long_text_is_cut_and_the_tokens_left_out_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 300
    inputs = np.stack([np.arange(count), np.arange(count)])[None].astype(np.int32)
    maps = {name: np.ones((1, count)) for name in ("rise", "pami")}
    samples = [{"tokens": ["nine_long"] * count, "width": count}]
    figure = drawn(run_of(tmp_path, "text", inputs, maps, samples), monkeypatch)
    fit = LINES * ((COLUMNS + 1) // 10)
    assert words(figure).count("nine_long") == 2 * fit
    assert words(figure).count(f"... {count - fit} more tokens") == 2
    lines = [text.get_position()[1] for text in figure.axes[0].texts]
    assert lines[1:] == sorted(lines[1:])
    assert pixels(figure).shape[0] > DOWN * lines[-1]


def test_eight_usable_texts_spread_over_the_run_are_shown_and_damaged_ones_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = np.full((20, 2, 3), -1, dtype=np.int32)
    inputs[1::2, :, 0] = 0
    good, bad = {"tokens": ["word"], "width": 1}, {"status": "failed", "error": "unreadable"}
    figure = drawn(
        run_of(tmp_path, "text", inputs, {"rise": np.ones((20, 3))}, [bad, good] * 10), monkeypatch
    )
    headings = [word.split(":")[0] for word in words(figure) if word.startswith("sample ")]
    assert headings == [f"sample {i}" for i in (1, 3, 7, 9, 11, 13, 17, 19)]


def test_a_run_without_a_usable_sample_has_no_sheet(tmp_path: Path) -> None:
    run = text_run(tmp_path, {"rise": [FILM]}, status="failed")
    draw_contact_sheet(run)
    assert not (run.report / "contact_sheet.png").exists()


def test_letters_that_no_font_has_are_drawn_without_a_word(tmp_path: Path) -> None:
    tokens = ["[CLS]", "中", "\U0001f3ac", "a\u0301\n", "$x_", "[SEP]"]
    run = text_run(tmp_path, {"rise": [FILM]}, tokens=tokens, sample_id="文 $x^$")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_contact_sheet(run)
    height, width, _ = matplotlib.image.imread(run.report / "contact_sheet.png").shape
    assert width == ACROSS * (1 + len("rise") + 1 + COLUMNS + 2)
    assert height == pytest.approx((0.25 + 1.5 + 1.25 + 1 + 0.5) * DOWN, abs=1)


def tensor_run(root: Path, inputs: np.ndarray, maps: dict[str, np.ndarray], **sample: Any) -> Run:
    return run_of(root, "tensor", inputs.astype(np.float32), maps, [{"label": 0} | sample] * len(inputs))


def at(figure: Figure, axis: Any, x: float, height: float) -> np.ndarray:
    """Colour of a pixel: ``x`` in the axis's data, ``height`` as a share of the axis."""
    shown = pixels(figure)
    across, down = axis.get_xaxis_transform().transform((x, height))
    return shown[len(shown) - 1 - int(down), int(across)]


def test_a_series_is_a_line_per_channel_on_the_colours_of_the_map(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = np.zeros((2, 3, 5))
    inputs[1] = np.arange(15).reshape(3, 5)
    peak, none = np.array([[0, 0, 0, 4, 2.0]] * 2), np.full((2, 5), np.nan)
    figure = drawn(tensor_run(tmp_path, inputs, {"rise": peak, "pami": none}), monkeypatch)
    headings = [part.get_suptitle() for part in figure.subfigs]
    assert headings == [f"sample {i}: class 1, 93 %, label 0" for i in range(2)]
    assert [axis.get_title() for axis in figure.axes] == ["rise", "pami: no map"] * 2
    for axis in figure.axes[2:]:
        np.testing.assert_array_equal([line.get_ydata() for line in axis.lines], inputs[1])
    for x, saliency in ((1, 0), (3, 1), (4.25, 0.5)):
        faded = 0.4 + 0.6 * np.array(BEHIND(float(saliency))[:3])
        assert at(figure, figure.axes[0], x, 0.9) == pytest.approx(faded, abs=0.02)
        assert at(figure, figure.axes[1], x, 0.9).tolist() == [1, 1, 1]


def test_a_tabular_row_is_a_bar_per_feature_in_its_colour_and_a_feature_of_zero_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values, saliency = np.array([[[4, -2, 0, 1.0]]]), np.array([[0, 1, 2, 4.0]])
    figure = drawn(tensor_run(tmp_path, values, {"rise": saliency}), monkeypatch)
    (axis,) = figure.axes
    assert [bar.get_height() for bar in axis.patches] == [4, -2, 0, 1]
    assert [bar.get_facecolor() for bar in axis.patches] == [
        pytest.approx(BEHIND(s)) for s in (0.0, 0.25, 0.5, 1.0)
    ]
    zero = 0.7 + 0.3 * np.array(BEHIND(0.5)[:3])
    assert at(figure, axis, 2, 0.9) == pytest.approx(zero, abs=0.02)


@pytest.mark.parametrize(("shape", "bars"), [((1, BARS), BARS), ((1, BARS + 1), 0), ((2, BARS), 0)])
def test_bars_are_for_few_features_of_one_channel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int], bars: int
) -> None:
    run = tensor_run(tmp_path, np.ones((1, *shape)), {"rise": np.full((1, shape[1]), np.nan)})
    (axis,) = drawn(run, monkeypatch).axes
    assert len(axis.patches) == bars


def test_the_sheet_of_tensors_is_a_png(tmp_path: Path) -> None:
    run = tensor_run(tmp_path, np.ones((3, 2, 9)), {"rise": np.ones((3, 9))}, sample_id="$x^$")
    draw_contact_sheet(run)
    height, width, _ = matplotlib.image.imread(run.report / "contact_sheet.png").shape
    assert width == pytest.approx(5 * DPI, abs=2)
    assert 3 * 1.5 * DPI < height < 3.5 * 1.5 * DPI
