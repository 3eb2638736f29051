"""Distributions that look installed, for plug-ins that are found through their entry points."""

from __future__ import annotations

from pathlib import Path


def install(folder: Path, module: str, text: str, group: str, entry: str) -> None:
    """Write a distribution of one module, of version 1.2 and with one entry point, into a folder."""
    (folder / f"{module}.py").write_text(text)
    about = folder / f"{module}-1.2.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.2\n")
    (about / "entry_points.txt").write_text(f"[{group}]\n{entry}\n")
