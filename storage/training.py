"""The folder of a training: its identity, its checkpoint and the trained head."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage.errors import LONGEST, one_line
from storage.files import PARTIAL, read_json, sha256_of_json, write_json
from storage.manifest import RunMismatchError, differences
from storage.places import is_remote, place
from storage.run import refuse_other_files

_NAME = "training.json"


@dataclass(frozen=True)
class TrainingFolder:
    """The folder of a training.

    Attributes
    ----------
    root
        The folder.
    identity
        The settings on which the trained weights depend.
    """

    root: Path
    identity: dict[str, Any]

    @classmethod
    def create_or_open(
        cls, store: str | Path, identity: dict[str, Any], versions: dict[str, str]
    ) -> TrainingFolder:
        """Start a training in ``store``, or resume the same training.

        Parameters
        ----------
        store
            A folder of this machine.
        identity
            The settings on which the trained weights depend.
        versions
            Versions of the code and its libraries; they are recorded and not compared.

        Raises
        ------
        RunMismatchError
            If the folder holds another training or other files. The message is one line with the fields that
            differ.
        ValueError
            If the store is not a folder, or its ``training.json`` cannot be read.
        """
        root = place(store).absolute()
        if is_remote(root):
            raise ValueError(f"store: {root} is on S3; a training needs a folder of this machine")
        path = root / _NAME
        wanted = json.loads(json.dumps(identity))  # as it is read from the file: tuples are lists
        if not path.exists():
            refuse_other_files(root, _NAME)
            write_json(path, {"identity": wanted, "versions": versions})
            return cls(root, wanted)
        try:
            known = dict(read_json(path)["identity"])
        except (ValueError, KeyError, TypeError) as error:
            why = one_line(error, LONGEST)
            raise ValueError(f"{path} cannot be read: {why}; restore it or choose another store") from error
        told = differences(known, wanted)
        if told:
            raise RunMismatchError(
                f"{root} holds another training: {'; '.join(told[:8])}. Choose another store, or restore the "
                "old values"
            )
        # As it was written, since checkpoints hold its hash: later versions add keys that are not given.
        return cls(root, known)

    def remove_partial_files(self) -> None:
        """Remove files that a killed process left while it was writing them."""
        for path in self.root.glob(f"*{PARTIAL}"):
            path.unlink(missing_ok=True)

    @property
    def hash(self) -> str:
        """Hexadecimal SHA-256 of the identity."""
        return sha256_of_json(self.identity)

    @property
    def checkpoint(self) -> Path:
        """File of the last saved state of the training."""
        return self.root / "checkpoint.pt"

    @property
    def head(self) -> Path:
        """File of the trained head; it exists when the training is complete."""
        return self.root / "head.safetensors"

    @property
    def picture(self) -> Path:
        """Picture with the maps of some held-out images, from the last validation."""
        return self.root / "maps.png"
