"""Texts and series in the gallery: tokens are shaded, lines and bars drawn, by what was stored."""

import csv
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import text_toys
from explainers.models.modality import MODALITIES
from runs import completed, tiny_job
from storage.maps import read
from storage.run import Run
from storage.samples import read_samples
from tasks.metrics.preparation import prepare
from tasks.page.gallery import gallery_of
from tasks.page.picture_data import inline
from tasks.page.rendering import render
from tasks.page.sample import samples_of
from tasks.page.sequences import Token, series_of, token_texts
from tasks.page.shown_maps import named

METRICS = [{"name": "insertion", "steps": 2}]
TEXTS = ["The film was good.", "", "a very dull film, a bad plot, a very dull film"]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Three texts: one is empty, and one is longer than the model reads."""
    folder = tmp_path_factory.mktemp("texts")
    text_toys.saved(folder / "model", "bert")
    with (folder / "texts.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["text", "label"], *([text, "1"] for text in TEXTS)])
    model = {
        "source": "huggingface",
        "name": str(folder / "model"),
        "weights": "pretrained",
        "max_length": 12,
    }
    return completed(
        tiny_job(
            folder / "run",
            dataset={"kind": "text", "path": str(folder / "texts.csv")},
            model=model | {"max_length": 12},
            explainers=[{"name": "erasure"}],
            metrics=METRICS,
        )
    )


def test_each_token_has_the_shade_of_its_prepared_map(texts: Run) -> None:
    for row, sample in zip((0, 2), samples_of(texts, [0, 2], inline), strict=True):
        stored = torch.from_numpy(read(texts.inputs, row, row + 1))
        (target,) = sample.targets
        assert [shown.by.name for shown in target.maps] == list(texts.explainers)
        for name, shown in zip(texts.explainers, target.maps, strict=True):
            raw = torch.from_numpy(read(texts.saliency(name) / "maps", row, row + 1))
            wanted = prepare(raw, texts.input_size, MODALITIES["text"].sites(stored))[0][0]
            seen = wanted[stored[0, 0] >= 0].tolist()
            assert len(shown.tokens) == len(seen)
            assert not any(
                value == -np.inf and token.shade for token, value in zip(shown.tokens, seen, strict=True)
            )
            shades = [float(token.shade) for token in shown.tokens if token.shade]
            assert shades == pytest.approx([value for value in seen if value >= 0], abs=0.00501)


def test_tokens_of_one_word_are_joined_and_words_are_apart() -> None:
    found = token_texts(["[CLS]", "un", "##believ", "##able", "!", "[SEP]"], [-1, 0, 0, 0, 1, -1])
    assert "".join(" " * apart + text for text, apart in found) == "[CLS] unbelievable ! [SEP]"


def test_a_text_can_be_read_on_the_page(texts: Run) -> None:
    page = render("gallery.html", gallery=gallery_of(texts))
    told = [re.sub(r"<[^>]*>", "", line) for line in re.findall(r'<p class="tokens">(.*?)</p>', page)]
    for sample in read_samples(texts.root):
        if sample["status"] == "ok":
            words = "".join(sample["tokens"]).replace("##", "")
            assert [line.replace(" ", "") for line in told].count(words) == len(texts.explainers)
    whole = read_samples(texts.root)[2]["width"]
    assert whole > 12
    assert f"the model reads the first 12 of {whole} tokens" in page


def test_tokens_are_text_and_no_markup(texts: Run) -> None:
    (sample,) = samples_of(texts, [0], inline)
    (target,) = sample.targets
    nasty = replace(target.maps[0], tokens=[Token('</b><script>"', False, "0.5")])
    changed = replace(sample, targets=[replace(target, maps=[nasty])])
    page = render("sample.html", sample=changed, explainers=named(texts), reasons=[], kinds=[])
    assert "<script" not in page
    assert "&lt;/b&gt;&lt;script&gt;&#34;" in page


def test_few_numbers_are_bars_from_zero() -> None:
    series = series_of(np.array([[1.0, -1.0, 3.0]], np.float32))
    assert (series.width, series.bars, series.told) == (3, True, "values from -1.000 to 3.000")
    found = re.findall(r"M([\d.]+) ([\d.]+)V([\d.]+)h\.8V([\d.]+)z", series.paths[0])
    zero = 75.0  # 0 lies three quarters below 3 on the way to -1
    assert [tuple(map(float, each)) for each in found] == [
        (0.1, zero, 50, zero),
        (1.1, zero, 100, zero),
        (2.1, zero, 0, zero),
    ]


def test_a_long_series_keeps_its_extremes() -> None:
    values = np.sin(np.arange(10_000) / 300)[None].astype(np.float32)
    values[0, 7777] = 5
    series = series_of(values)
    points = [tuple(map(float, point.split())) for point in series.paths[0][1:].split("L")]
    assert len(points) <= 600
    assert (7777.5, 0.0) in points
    assert [x for x, _ in points] == sorted(x for x, _ in points)


def test_a_series_is_drawn_once_and_its_maps_behind_it(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).random((4, 3, 8)).astype(np.float32) + 0.1
    rows[3, 0, 5] = np.inf
    np.savez(tmp_path / "rows.npz", inputs=rows, labels=np.ones(4, int))
    run = completed(
        tiny_job(
            tmp_path / "run",
            dataset={"kind": "tensors", "path": str(tmp_path / "rows.npz")},
            model={"source": "sequences:series", "weights": "none"},
            explainers=[{"name": "pami", "windows": [1]}],
            metrics=METRICS,
            target=1,
        )
    )
    sample = samples_of(run, [0], inline)[0]
    assert sample.series is not None
    low, high = rows[0].min(), rows[0].max()
    for channel, path in zip(rows[0], sample.series.paths, strict=True):
        points = [tuple(map(float, point.split())) for point in path[1:].split("L")]
        assert [x for x, _ in points] == [step + 0.5 for step in range(8)]
        assert [y for _, y in points] == pytest.approx(100 * (high - channel) / (high - low), abs=0.06)
    page = render("gallery.html", gallery=gallery_of(run))
    for key, row in (("sample-0", 0), ("sample-1", 1)):
        series = samples_of(run, [row], inline)[0].series
        assert series is not None
        assert page.count(series.paths[0]) == 1
        assert page.count(f'href="#{key}-series"') == len(run.explainers)
    (broken,) = samples_of(run, [3], inline)
    assert broken.error
    assert broken.series is None
