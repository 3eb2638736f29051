"""The folder of a training: what it is, its checkpoint, and the head it ends with."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage.files import PARTIAL, sha256_of_json, write_json
from storage.manifest import RunMismatchError, differences
from storage.places import is_remote, place
from storage.run import refuse_other_files

_NAME = "training.json"


@dataclass(frozen=True)
class TrainingFolder:
    """A folder and what its weights depend on."""

    root: Path
    identity: dict[str, Any]

    @classmethod
    def create_or_open(
        cls, store: str | Path, identity: dict[str, Any], versions: dict[str, str]
    ) -> TrainingFolder:
        """Begin a training in ``store``, or go on with the same one.

        Raises
        ------
        RunMismatchError
            If the folder holds another training (one line, with the fields that differ), or other files.
        ValueError
            If the store is not a folder, or its ``training.json`` cannot be read.
        """
        root = place(store).absolute()
        if is_remote(root):
            raise ValueError(f"store: {root} is on S3; a training needs a folder of this machine")
        path = root / _NAME
        wanted = json.loads(json.dumps(identity))
        if not path.exists():
            refuse_other_files(root, _NAME)
            write_json(path, {"identity": wanted, "versions": versions})
            return cls(root, wanted)
        try:
            known = json.loads(path.read_bytes())["identity"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} cannot be read: {error}; restore it or choose another store") from error
        told = differences(known, wanted)
        if told:
            raise RunMismatchError(
                f"{root} holds another training: {'; '.join(told[:8])}. Choose another store, or restore the "
                "old values"
            )
        return cls(root, wanted)

    def remove_partial_files(self) -> None:
        """Remove what writes left that were killed."""
        for path in self.root.glob(f"*{PARTIAL}"):
            path.unlink(missing_ok=True)

    @property
    def hash(self) -> str:
        """SHA-256 of the identity."""
        return sha256_of_json(self.identity)

    @property
    def checkpoint(self) -> Path:
        """The state after the last step that was saved."""
        return self.root / "checkpoint.pt"

    @property
    def head(self) -> Path:
        """The product; there when the training is complete."""
        return self.root / "head.safetensors"

    @property
    def picture(self) -> Path:
        """Maps of some held-out images, as of the last validation."""
        return self.root / "maps.png"
