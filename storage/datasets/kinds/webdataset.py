"""Images in tar files, as WebDataset writes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import pyarrow as pa
from pydantic import Field

from storage.datasets.column_facts import facts_in, of_encoded
from storage.datasets.column_keys import ColumnKeys
from storage.datasets.dataset import Dataset
from storage.datasets.index import with_state
from storage.datasets.reading import RGB, Bands
from storage.datasets.shard_files import Unchanged, shard_files
from storage.datasets.spec import register
from storage.datasets.tar_samples import described, scan
from storage.files import UnreadableError, sha256_of_json
from storage.places import Place, read_part


@register
class WebDataset(ColumnKeys):
    """Images in tar files, with labels, boxes and ids in members beside them.

    The members of a sample have one name up to its first dot. Keys name a member by what follows, and a field
    of a JSON member after a further dot: ``label = "cls"``, ``label = "json.class"``. The tars must not be
    compressed. Their headers are read once, when the run is created.
    """

    kind: Literal["webdataset"] = "webdataset"
    path: Place = Field(
        description="the tar, a folder of them, or a pattern: shard-*.tar, shard-{000000..000009}.tar"
    )
    image: str | None = Field(
        None,
        min_length=1,
        description="ending of the images' names, e.g. jpg or input.png; by default that of an image format",
    )
    id: str | None = Field(
        None,
        min_length=1,
        description="member or field that holds the samples' ids; by default ids are the names of the images",
    )

    def state_of_files(self) -> str:
        """The sizes and times of the files, and the keys that say what is read of them."""
        files = [(file.name, file.stat()) for file in shard_files(self.path, ".tar")]
        keys = self.model_dump(mode="json", exclude={"path", "limit", "numbering"})
        return sha256_of_json([[(name, about.st_size, about.st_mtime) for name, about in files], keys])

    def open(self, bands: Bands = RGB, found: pa.Table | None = None) -> Dataset:
        """Open the samples that a pass over the headers found, or make such a pass."""
        files, where = shard_files(self.path, ".tar"), str(self.path)
        index = with_state(scan(files, self), self.state_of_files()) if found is None else found
        choice, left_out = described(index)
        tars, names = index["tar"].to_numpy(), index["name"].to_pylist()
        offsets, sizes, changed = (index[name].to_numpy() for name in ("offset", "size", "changed"))

        def place(row: int) -> str:
            return f"{files[tars[row]].name}#{names[row]}"

        unchanged = Unchanged(files)

        def read(row: int) -> bytes:
            unchanged.check(files[tars[row]])
            size = int(sizes[row])
            data = read_part(files[tars[row]], int(offsets[row]), size)
            if len(data) < size:
                raise UnreadableError("its tar ends before the image does; it changed since it was looked at")
            return data

        def origin(rows: Any) -> list[Any]:
            # The time in the header tells an image from another one of the same size.
            return [(int(sizes[row]), int(changed[row])) for row in rows]

        facts = facts_in(index, choice, self, where, place)
        if choice.id is None:
            facts = replace(facts, ids=_ids([files[tar].name for tar in tars], names))
        return of_encoded(facts, read, place, origin, self, bands, index, left_out, parallel=True)


def _ids(tars: Sequence[str], names: list[str]) -> list[str]:
    """The names of the images, after those of their tars if an image of the same name is in two of them."""
    if len(set(names)) == len(names):
        return names
    ids = [f"{tar}/{name}" for tar, name in zip(tars, names, strict=True)]
    if len(set(ids)) < len(ids):
        twice = next(name for name in ids if ids.count(name) > 1)
        raise ValueError(f"dataset.path: two tars of one name hold {twice}; rename a tar, or set dataset.id")
    return ids
