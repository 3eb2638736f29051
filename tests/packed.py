"""A small folder of photographs that are hard to read alike, and the same files packed in other ways."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import webdataset
from PIL import Image, ImageOps
from pydicom.dataset import Dataset as Header
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

CLASSES = ("bird", "cat", "dog")


def photographs(root: Path) -> Path:
    """Write three class folders: images turned by EXIF, transparent, deep, animated and damaged ones."""
    rng = np.random.default_rng(5)

    def noise(height: int, width: int, channels: int = 3, kind: str = "uint8") -> np.ndarray:
        top = np.iinfo(kind).max
        return rng.integers(0, top, (height, width, channels), kind, endpoint=True).squeeze()

    for name in CLASSES:
        (root / name).mkdir(parents=True)
    for orientation in (1, 3, 6, 8):
        exif = Image.Exif()
        exif[274] = orientation
        Image.fromarray(noise(20, 33)).save(root / "bird" / f"{orientation}.jpg", exif=exif, quality=90)
    Image.fromarray(noise(31, 17)).save(root / "cat" / "tall.webp", lossless=True)
    Image.fromarray(noise(18, 18, 4)).save(root / "cat" / "transparent.png")
    Image.fromarray(noise(19, 23, 1, "uint16")).save(root / "cat" / "grey16.png")
    frames = [Image.fromarray(noise(21, 16, 1)) for _ in range(2)]
    frames[0].save(root / "dog" / "two.gif", save_all=True, append_images=frames[1:])
    Image.fromarray(noise(40, 16)).save(root / "dog" / "plain.bmp")
    whole = io.BytesIO()
    Image.fromarray(noise(30, 30)).save(whole, "PNG")
    (root / "dog" / "cut.png").write_bytes(whole.getvalue()[:400])
    return root


def files(root: Path) -> Iterator[tuple[str, str, bytes]]:
    """Yield the path from ``root``, the class and the bytes of every file in class folders, in order."""
    for path in sorted(root.glob("*/*")):
        yield path.relative_to(root).as_posix(), path.parent.name, path.read_bytes()


def as_csv(root: Path, path: Path) -> Path:
    """Write a listing of the files, to be read with ``images = root``."""
    lines = [f"{name},{label}" for name, label, _ in files(root)]
    path.write_text("\n".join(["file,label", *lines]) + "\n")
    return path


def as_table(root: Path) -> pa.Table:
    """The files as a table: the image, the name of its class, and its path as the id."""
    names, labels, contents = zip(*files(root), strict=True)
    return pa.table({"id": names, "image": pa.array(contents, pa.binary()), "label": labels})


def as_parquet(root: Path, folder: Path, rows: int = 4, group: int = 2) -> Path:
    """Write the files as Parquet files of some rows, in row groups of fewer."""
    folder.mkdir(parents=True)
    table = as_table(root)
    for number, start in enumerate(range(0, len(table), rows)):
        part = table.slice(start, rows)
        pq.write_table(part, folder / f"part-{number:02d}.parquet", row_group_size=group)
    return folder


def as_tars(root: Path, folder: Path, rows: int = 4) -> Path:
    """Write the files as tars of some samples, with the name of the class beside each image."""
    folder.mkdir(parents=True)
    every = list(files(root))
    for number, start in enumerate(range(0, len(every), rows)):
        with webdataset.TarWriter(str(folder / f"shard-{number:06d}.tar"), encoder=False) as writer:
            for name, label, contents in every[start : start + rows]:
                key, _, ending = name.partition(".")
                writer.write({"__key__": key, ending: contents, "cls": label.encode()})
    return folder


def as_saved(root: Path, folder: Path) -> Path:
    """Write the files as a dataset of Hugging Face's library, in two shards, with the classes declared."""
    import datasets  # takes seconds, and few tests need it

    names, labels, contents = zip(*files(root), strict=True)
    classes = sorted(set(labels))
    features = {
        "id": datasets.Value("string"),
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=classes),
    }
    images = [
        {"bytes": data, "path": name.rpartition("/")[2]} for name, data in zip(names, contents, strict=True)
    ]
    columns = {"id": names, "image": images, "label": [classes.index(label) for label in labels]}
    made = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    made.save_to_disk(str(folder), num_shards=2)
    return folder


def write_dicom(path: Path, values: np.ndarray, bits: int | None = None, **elements: Any) -> Path:
    """Write a file of these values: (H, W), or (H, W, 3) in colours."""
    file = Header()
    file.file_meta = FileMetaDataset()
    file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file.file_meta.MediaStorageSOPClassUID = file.SOPClassUID = SecondaryCaptureImageStorage
    file.file_meta.MediaStorageSOPInstanceUID = file.SOPInstanceUID = generate_uid()
    file.Rows, file.Columns = values.shape[:2]
    file.SamplesPerPixel = 3 if values.ndim == 3 else 1
    file.PhotometricInterpretation = "RGB" if values.ndim == 3 else "MONOCHROME2"
    if values.ndim == 3:
        file.PlanarConfiguration = 0
    file.BitsAllocated = 8 * values.dtype.itemsize
    file.BitsStored = bits or file.BitsAllocated
    file.HighBit = file.BitsStored - 1
    file.PixelRepresentation = int(values.dtype.kind == "i")
    file.PixelData = values.tobytes()
    for name, value in elements.items():
        setattr(file, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    file.save_as(path, enforce_file_format=True)
    return path


def as_dicom(root: Path, folder: Path) -> Path:
    """Write the images that can be read as DICOM files in colours, with the same class folders."""
    for name, _, data in files(root):
        with contextlib.suppress(OSError), Image.open(io.BytesIO(data)) as image:
            pixels = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
            write_dicom(folder / name.replace(".", "-"), pixels)
    return folder
