"""The picture of a sample's components shows what was stored, in order of weight."""

from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

from runs import Quadrants, decomposed, explained, prepared, tiny_job
from storage.maps import read
from storage.records import Step, drop_record
from storage.run import Run
from storage.samples import read_samples, read_samples_of_shard, write_sample_predictions
from tasks.pictures.component_sheet import components_figure, draw_components
from tasks.pictures.contact_sheet import draw_contact_sheet
from tasks.pictures.map_components import components_of, decomposing

QUADRANTS = "runs:Quadrants"
SIDE = 64


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two targets an image; the third of six images is broken."""
    return decomposed(tmp_path_factory.mktemp("components"), target={"top": 2})


def cubic(size: int, cells: int) -> np.ndarray:
    """(size, cells) bicubic interpolation (Keys, a = -0.75) along one axis, edge cells repeated."""
    matrix = np.zeros((size, cells))
    for pixel in range(size):
        position = (pixel + 0.5) * cells / size - 0.5
        for cell in range(int(np.floor(position)) - 1, int(np.floor(position)) + 3):
            x = abs(position - cell)
            near = 1.25 * x**3 - 2.25 * x**2 + 1
            far = -0.75 * (x**3 - 5 * x**2 + 8 * x - 4)
            matrix[pixel, min(max(cell, 0), cells - 1)] += near if x <= 1 else far
    return matrix


def in_quadrant(quadrant: int) -> np.ndarray:
    """What a map that is positive in one of 2x2 cells alone looks like: (64, 64), at most 1."""
    cells = np.zeros((2, 2))
    cells[divmod(quadrant, 2)] = 1
    across = cubic(SIDE, 2)
    upsampled = (across @ cells @ across.T).clip(0)
    return upsampled / upsampled.max()


def order_of(target: int) -> list[int]:
    """Quadrants by the stand-in's weights for a class, descending."""
    weights = Quadrants.WEIGHTS[target].tolist()
    return sorted(range(4), key=lambda quadrant: -weights[quadrant])


def drawn(figure: Figure, place: int) -> np.ndarray:
    """The map laid over the image in one cell."""
    return np.asarray(figure.axes[place].images[1].get_array())


def test_explainers_with_components_and_weights_decompose(run: Run) -> None:
    assert list(run.explainers) == ["gradcam", QUADRANTS]
    assert decomposing(run) == [QUADRANTS]


def test_components_come_by_weight_upsampled_bicubically_to_their_own_maximum(run: Run) -> None:
    samples = read_samples(run.root)
    orders = set()
    for image in (0, 1, 3, 4, 5):
        for place, target in enumerate(samples[image]["targets"]):
            found = components_of(run, QUADRANTS, 2 * image + place)
            order = order_of(target)
            orders.add(tuple(order))
            assert [c.weight for c in found] == [1.0, 0.5, 0.25, 0.0]
            assert [c.gain for c in found] == [pytest.approx(Quadrants.GAINS[q].item()) for q in order]
            assert [c.share for c in found] == [pytest.approx((4 - q) / 10) for q in order]
            for component, quadrant in zip(found, order, strict=True):
                np.testing.assert_allclose(component.saliency, in_quadrant(quadrant), atol=1e-5)
    assert len(orders) > 1


def test_components_of_equal_weight_stay_in_their_order_and_an_empty_one_is_zero(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = {
        "components": np.stack([-np.ones((2, 2)), np.eye(2), 2 - np.eye(2)])[None],
        "weights": np.array([[0.5, 0.5, 0.5]]),
        "d": np.zeros((1, 3)),
        "singular_values": np.zeros((1, 3)),
    }
    monkeypatch.setattr("tasks.pictures.map_components.read", lambda path, start, stop: stored[path.name])
    found = components_of(run, QUADRANTS, 0)
    assert [c.saliency.max() for c in found] == [0, 1, 1]
    assert found[0].saliency.shape == (SIDE, SIDE)
    assert found[1].saliency[0, 0] > found[2].saliency[0, 0]
    assert {c.share for c in found} == {0.0}


def test_a_component_that_is_not_finite_is_no_map(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    real = read

    def damaged(path: Path, start: int, stop: int) -> np.ndarray:
        values = real(path, start, stop)
        return np.full_like(values, np.nan) if "details" in path.parts else values

    monkeypatch.setattr("tasks.pictures.map_components.read", damaged)
    figure = components_figure(run, QUADRANTS, 0, read_samples(run.root)[0])
    assert [axis.get_xlabel() for axis in figure.axes[2:6]] == ["no map"] * 4
    assert all(len(axis.images) == 1 for axis in figure.axes[2:6])


def test_each_target_is_a_row_of_image_map_and_components_with_their_numbers(run: Run) -> None:
    sample = read_samples(run.root)[1]
    figure = components_figure(run, QUADRANTS, 1, sample)
    assert len(figure.axes) == 2 * (2 + 4)
    one, other = sample["targets"]
    titles = [axis.get_title() for axis in figure.axes[:6]]
    assert titles == ["", "map", "rank 1", "rank 2", "rank 3", "rank 4"]
    labels = [axis.get_xlabel() for axis in figure.axes]
    assert labels[0] == f"class {one}, {100 * sample['confidence']:.0f} %"
    assert labels[6] == f"class {other} (predicted {one})\nlabel {one}"
    for row, target in enumerate((one, other)):
        order = order_of(target)
        for rank, quadrant in enumerate(order):
            np.testing.assert_allclose(drawn(figure, 6 * row + 2 + rank), in_quadrant(quadrant), atol=1e-5)
        gains = [f"{Quadrants.GAINS[quadrant].item():.3g}" for quadrant in order]
        assert labels[6 * row + 2 : 6 * row + 6] == [
            f"weight {weight}\nd {gain}, $\\sigma$ {40 - 10 * quadrant} %"
            for weight, gain, quadrant in zip(("1", "0.5", "0.25", "0"), gains, order, strict=True)
        ]
    pixels = np.asarray(figure.axes[0].images[0].get_array())
    np.testing.assert_array_equal(pixels, np.moveaxis(read(run.inputs, 1, 2)[0], 0, -1))
    box = figure.axes[0].patches[0]
    corners = (*box.get_xy(), box.get_width(), box.get_height())
    xmin, ymin, xmax, ymax = sample["boxes"][0]
    assert corners == pytest.approx((xmin - 0.5, ymin - 0.5, xmax - xmin, ymax - ymin))


def test_gains_and_singular_values_are_told_where_they_are_stored_alone(run: Run) -> None:
    without = Run.open(run.root)
    for detail in ("d", "singular_values"):
        del without.explainers[QUADRANTS].details[detail]  # type: ignore[attr-defined]
    figure = components_figure(without, QUADRANTS, 0, read_samples(run.root)[0])
    labels = [axis.get_xlabel() for axis in figure.axes[2:6]]
    assert labels == ["weight 1", "weight 0.5", "weight 0.25", "weight 0"]


def test_the_whole_map_is_drawn_as_the_metrics_read_it(run: Run) -> None:
    sample = read_samples(run.root)[4]
    figure = components_figure(run, QUADRANTS, 4, sample)
    weights = Quadrants.WEIGHTS[sample["targets"][1]].numpy().reshape(2, 2)
    cells = weights * np.array([[1, 2], [3, 4]])
    steps = ((np.arange(SIDE) + 0.5) * 2 / SIDE - 0.5).clip(0, 1)  # bilinear, between two cells an axis
    across = np.stack([1 - steps, steps], 1)
    upsampled = across @ cells @ across.T
    expected = (upsampled - upsampled.min()) / (upsampled.max() - upsampled.min())
    np.testing.assert_allclose(drawn(figure, 7), expected, atol=1e-5)


def test_the_picture_is_a_png_of_a_cell_for_each_map_under_a_name_of_its_own(
    run: Run, tmp_path: Path
) -> None:
    path = draw_components(run, "b/0.png")
    assert path == run.root / "report" / "components" / "runs%3aQuadrants-b%2f0.png.png"
    height, width, _ = matplotlib.image.imread(path).shape
    assert width == pytest.approx(6 * 165, abs=2)
    assert 2 * 165 < height < 2 * 165 * 1.4
    chosen = draw_components(run, "b/0.png", QUADRANTS, tmp_path / "new" / "mine.png")
    assert chosen.read_bytes() == path.read_bytes()
    with pytest.raises(ValueError, match=f"cannot write {tmp_path}: "):
        draw_components(run, "b/0.png", output=tmp_path)


@pytest.mark.parametrize(
    ("sample", "explainer", "said"),
    [
        ("b/0.png", "ddcam", r"has no explainer 'ddcam'; it has gradcam, runs:Quadrants$"),
        ("b/0.png", "gradcam", r"^gradcam does not decompose its maps; choose from runs:Quadrants$"),
        ("b/9.png", None, r"has no sample 'b/9\.png'; there are (b/\d\.png(, |$)){3}"),
        ("zzz", None, r"has no sample 'zzz'; there are b/0\.png, b/1\.png, b/broken\.png$"),
        ("b/broken.png", None, r"^the image of b/broken\.png could not be read: Unreadable"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_one_line(
    run: Run, sample: str, explainer: str | None, said: str
) -> None:
    with pytest.raises(ValueError, match=said) as refused:
        draw_components(run, sample, explainer)
    assert "\n" not in str(refused.value)


def test_a_sample_whose_shard_is_not_done_has_no_picture_yet_and_the_others_have(tmp_path: Path) -> None:
    run = decomposed(tmp_path)
    drop_record(run.root, Step("saliency", 1, QUADRANTS))
    with pytest.raises(ValueError, match=r"^b/2\.png has no map of runs:Quadrants yet: its shard 2/2 is not"):
        draw_components(run, "b/2.png")
    assert draw_components(run, "b/1.png").exists()
    drop_record(run.root, Step("inputs", 1))
    with pytest.raises(ValueError, match=r"no sample 'b/2\.png' among the 3 of 6 listed so far; there are"):
        draw_components(run, "b/2.png")
    drop_record(run.root, Step("inputs", 0))
    with pytest.raises(ValueError, match="has no samples yet"):
        draw_components(run, "b/1.png")


def test_a_sample_that_failed_after_it_was_read_has_no_picture(tmp_path: Path) -> None:
    run = decomposed(tmp_path)
    first, *rest = read_samples_of_shard(run.root, 0)
    lost = {"sample_id": first["sample_id"], "targets": [], "probabilities": [], "error": "too large"}
    keys = ("sample_id", "prediction", "confidence", "target", "targets", "probabilities")
    write_sample_predictions(run.root, 0, [lost, *({key: row[key] for key in keys} for row in rest)])
    with pytest.raises(ValueError, match=r"^b/0\.png has no target: too large$"):
        draw_components(run, "b/0.png")
    assert draw_components(run, "b/1.png").exists()


def test_a_run_where_nothing_decomposes_says_so(tmp_path: Path) -> None:
    run = decomposed(tmp_path, explainers=[{"name": "gradcam"}])
    for explainer in (None, "gradcam"):
        with pytest.raises(ValueError, match=r"no explainer of .* decomposes its maps; it has gradcam; add"):
            draw_components(run, "b/0.png", explainer)


def test_where_several_decompose_one_has_to_be_named(tmp_path: Path) -> None:
    run = decomposed(tmp_path, explainers=[{"name": "decomcam", "components": 3}, {"name": QUADRANTS}])
    with pytest.raises(ValueError, match=r"name one: decomcam, runs:Quadrants"):
        draw_components(run, "b/0.png")
    assert draw_components(run, "b/0.png", "decomcam").exists()


def test_the_contact_sheet_shows_the_three_strongest_components_after_the_map(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr("tasks.pictures.contact_sheet.save", lambda figure, path: figures.append(figure))
    draw_contact_sheet(run)
    (figure,) = figures
    columns = 1 + 1 + 1 + 3
    titles = [axis.get_title() for axis in figure.axes[:columns]]
    assert titles == ["", "gradcam", QUADRANTS, *(f"component, rank {rank}" for rank in (1, 2, 3))]
    usable = [sample for sample in read_samples(run.root) if sample["status"] == "ok"]
    assert len(figure.axes) == 5 * columns
    for row, sample in enumerate(usable):
        cells = figure.axes[row * columns + 3 : (row + 1) * columns]
        assert [axis.get_xlabel() for axis in cells] == ["weight 1", "weight 0.5", "weight 0.25"]
        for rank, quadrant in enumerate(order_of(sample["target"])[:3]):
            np.testing.assert_allclose(
                drawn(figure, row * columns + 3 + rank), in_quadrant(quadrant), atol=1e-5
            )


def test_the_contact_sheet_shows_fewer_components_where_there_are_fewer(tmp_path: Path) -> None:
    job = tiny_job(
        tmp_path / "run",
        dataset={"kind": "digits", "limit": 2},
        explainers=[{"name": "decomcam", "components": 2}],
        controls=False,
    )
    run = explained(prepared(job))
    draw_contact_sheet(run)
    height, width, _ = matplotlib.image.imread(run.report / "contact_sheet.png").shape
    assert width == pytest.approx(4 * 165, abs=2)
    assert 2 * 165 < height < 2 * 165 * 1.2
