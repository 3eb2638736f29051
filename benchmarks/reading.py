"""Measures what reading inputs costs: the stage "inputs" of a job beside a plain loop, and three decoders.

    python benchmarks/reading.py [--images FOLDER] [--threads 1] [--rounds 9]

The loop opens, resizes and cuts the same photographs with the same library on the same cores, into an array
in memory, and stores nothing. The stage reads them as a worker does, and also compresses, writes and signs
its array. Both give the same pixels, or the program ends with an error. They take turns, so that other work
on the machine disturbs both alike, and the medians are printed.

Without a folder, photographs of 500x375 pixels are made. The program also prints where the time goes, and
how far the pixels of other decoders lie from Pillow's.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

# The allocator's settings of the workers, and one thread for everything but the reading, must be set before
# the process starts. Without -P, the benchmark explainers.py beside this file would hide the package.
SETTINGS = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "68719476736",
    "MALLOC_ARENA_MAX": "1",
    "OMP_NUM_THREADS": "1",
}
if __name__ == "__main__" and not (SETTINGS.items() <= os.environ.items() and sys.flags.safe_path):
    os.execve(sys.executable, [sys.executable, "-P", *sys.argv], os.environ | SETTINGS)
sys.path.insert(0, str(Path(__file__).parents[1]))

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from statistics import median
from typing import Any

import cv2
import numpy as np
import torch
import torchvision
from numpy.typing import NDArray
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg

from storage.datasets.decoding import contents, decoded, rgb
from storage.datasets.geometry import prepare_image
from storage.datasets.opening import open_dataset
from storage.datasets.spec import DatasetSpec
from storage.files import sha256_of_file
from storage.manifest import Manifest
from storage.maps import read, shard_file, write_shard
from storage.records import Step, drop_record
from storage.run import Run
from tasks.inputs import inputs

RESIZE, CROP = 256, 224
GEOMETRY = {"resize": RESIZE, "crop": CROP, "interpolation": "bilinear"}
LEAST = 512  # images of a shard; the photographs are read several times if they are fewer
Pixels = NDArray[np.uint8]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the stage and the loop in turns, then the parts and the decoders."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, help="folder of photographs; by default they are made")
    parser.add_argument("--threads", type=int, default=1, help="threads and cores, as one worker has them")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--least", type=int, default=LEAST, help="least number of images in a round")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(asked.threads)
    if hasattr(os, "sched_setaffinity") and asked.threads < len(os.sched_getaffinity(0)):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: asked.threads])
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        files = sorted(path for path in (asked.images or made(root / "made")).iterdir() if path.is_file())
        paths = linked(files, root / "photographs", asked.least)
        run = run_of(root / "run", root / "photographs", len(paths))
        compare(run, paths, asked.threads, asked.rounds)
        parts(run, paths)
        decoders([path for path in files if path.read_bytes()[:2] == b"\xff\xd8"])


def made(folder: Path, count: int = 32) -> Path:
    """Write photographs of 500x375 pixels: coarse and fine noise, which JPEG keeps about as large."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC))
        pixels = (smooth + rng.normal(0, 12, smooth.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03d}.jpg", quality=90)
    return folder


def linked(files: Sequence[Path], folder: Path, least: int) -> list[Path]:
    """Link the files into class folders, often enough to have ``least``; returns the links in order."""
    paths = [folder / f"{turn:03d}" / file.name for turn in range(-(-least // len(files))) for file in files]
    for path, file in zip(paths, list(files) * len(paths), strict=False):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(file.absolute())
    return paths


def run_of(root: Path, folder: Path, rows: int) -> Run:
    """Create a run of one shard, of which only the stage inputs is wanted."""
    job = {"name": "reading", "seed": 0, "target": "predicted", "tolerance": 0}
    dataset = {"kind": "folder", "path": str(folder)}
    job |= {"batch": {"images": 16, "forwards": 64}, "dataset": dataset}
    manifest = Manifest(
        job=job,
        identity={},
        versions={},
        model_fingerprint="",
        dataset_fingerprint=open_dataset(DatasetSpec.model_validate(dataset)).fingerprint,
        rows=rows,
        shard_rows=-(-rows // 16) * 16,
        input_shape=(3, CROP, CROP),
        geometry=GEOMETRY,
        explainers={},
        metrics={},
    )
    return Run.create_or_open(root, manifest)


def fresh(run: Run) -> None:
    """Remove what the stage wrote, since a job writes new files and the removal takes time too."""
    drop_record(run.root, Step("inputs", 0))
    shard_file(run.inputs, 0).unlink(missing_ok=True)


def loop(paths: Sequence[Path], threads: int) -> Pixels:
    """Read the images as a good loop does that keeps them in memory."""
    out = np.empty((len(paths), 3, CROP, CROP), np.uint8)

    def one(index: int) -> None:
        with Image.open(paths[index]) as image:
            image.load()
        if image.mode != "RGB":
            image = image.convert("RGB")
        short = min(image.size)
        width, height = (RESIZE if side == short else int(RESIZE * side / short) for side in image.size)
        left, top = round((width - CROP) / 2), round((height - CROP) / 2)
        small = image.resize((width, height), Image.Resampling.BILINEAR)
        out[index] = np.asarray(small.crop((left, top, left + CROP, top + CROP))).transpose(2, 0, 1)

    if threads == 1:
        for index in range(len(paths)):
            one(index)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(one, range(len(paths))))
    return out


def compare(run: Run, paths: Sequence[Path], threads: int, rounds: int) -> None:
    """Print the times of the stage and of the loop, and the median of their ratios."""
    inputs.fn(str(run.root), 0)
    pixels = loop(paths, threads)
    if not np.array_equal(read(run.inputs, 0, run.rows), pixels):
        raise SystemExit("the stage and the loop read other pixels")
    bare, ours = [], []
    for _ in range(rounds):
        fresh(run)
        bare.append(timed(lambda: loop(paths, threads)))
        ours.append(timed(lambda: inputs.fn(str(run.root), 0)))
    print(f"{run.rows} images, {threads} threads, {rounds} rounds; milliseconds per image")
    print(f"{'':<24} {'time':>7} {'CPU':>7}")
    for name, spent in (("plain loop", bare), ('stage "inputs"', ours)):
        print(f"{name:<24}", *(f"{median(each) * 1e3 / run.rows:7.2f}" for each in zip(*spent, strict=True)))
    ratios = [[us / loop for us, loop in zip(*pair, strict=True)] for pair in zip(ours, bare, strict=True)]
    print(f"{'ratio':<24}", *(f"{median(each):7.2f}" for each in zip(*ratios, strict=True)))
    print()


def timed(call: Callable[[], Any]) -> tuple[float, float]:
    """The seconds that a call takes, by the clock and of this process's CPU time."""
    began, busy = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - began, time.process_time() - busy


def parts(run: Run, paths: Sequence[Path]) -> None:
    """Print where the time of the stage goes, by calling its parts one after the other."""
    spent: dict[str, float] = {}

    def add(name: str, call: Callable[[], Any]) -> Any:
        began = time.process_time()
        found = call()
        spent[name] = spent.get(name, 0.0) + time.process_time() - began
        return found

    pixels = read(run.inputs, 0, run.rows)
    for index, path in enumerate(paths):
        data = add("read the file", lambda: contents(path))  # noqa: B023
        image = add("decode", lambda: decoded(data, rgb))  # noqa: B023
        cut, _ = add("resize and cut", lambda: prepare_image(image, [], **GEOMETRY))  # noqa: B023
        add("copy into the shard", lambda: pixels[index].__setitem__(slice(None), cut))  # noqa: B023
    fresh(run)
    add("compress and write", lambda: write_shard(run.inputs, 0, pixels))
    add("SHA-256 of the file", lambda: sha256_of_file(shard_file(run.inputs, 0)))
    print(f"{'where it goes':<24} milliseconds of CPU per image")
    for name, seconds in spent.items():
        print(f"{name:<24} {seconds * 1e3 / run.rows:7.3f}")
    print()


def decoders(files: Sequence[Path], rounds: int = 3) -> None:
    """Print the time of each decoder, and how far its pixels lie from Pillow's, as decoded and as inputs."""
    cv2.setNumThreads(1)
    known: dict[str, Callable[[bytes], Image.Image]] = {
        f"Pillow {Image.__version__}": of_pillow,
        f"torchvision.io {torchvision.__version__}": of_torchvision,
        f"OpenCV {cv2.__version__}": of_opencv,
    }
    data = [path.read_bytes() for path in files]
    spent: dict[str, list[float]] = {name: [] for name in known}
    for _ in range(rounds):
        for name, call in known.items():
            spent[name].append(timed(lambda: [call(each) for each in data])[1])  # noqa: B023
    print(f"{len(files)} JPEG files           CPU ms each    difference of pixels (0 to 255): mean, largest")
    print(f"{'':<38} {'decoded':>17} {'as inputs':>19}")
    for name, call in known.items():
        told = [differences(of_pillow(each), call(each)) for each in data]
        decoded, prepared = (
            (np.mean([d[part][0] for d in told]), max(d[part][1] for d in told)) for part in (0, 1)
        )
        milliseconds = median(spent[name]) * 1e3 / len(files)
        columns = f"{decoded[0]:10.4f} {decoded[1]:6d}   {prepared[0]:10.4f} {prepared[1]:6d}"
        print(f"{name:<30} {milliseconds:7.2f} {columns}")


def of_pillow(data: bytes) -> Image.Image:
    """Decode with Pillow."""
    with Image.open(BytesIO(data)) as image:
        return image.convert("RGB")


def of_torchvision(data: bytes) -> Image.Image:
    """Decode with torchvision."""
    pixels = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def of_opencv(data: bytes) -> Image.Image:
    """Decode with OpenCV."""
    how = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    return Image.fromarray(cv2.imdecode(np.frombuffer(data, np.uint8), how))


def differences(one: Image.Image, other: Image.Image) -> list[tuple[float, int]]:
    """The mean and the largest difference of two images, as they are and as inputs of the network."""
    pairs = [(np.asarray(one), np.asarray(other))]
    pairs.append((prepare_image(one, [], **GEOMETRY)[0], prepare_image(other, [], **GEOMETRY)[0]))
    apart = [np.abs(a.astype(int) - b) for a, b in pairs]
    return [(float(each.mean()), int(each.max())) for each in apart]


if __name__ == "__main__":
    main()
