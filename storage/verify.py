"""Checks that a run folder holds what was written, and nothing else.

Every file that a reader may read is in a record with its size and SHA-256: those of a shard in the record of
its step, the metadata of arrays in ``done/arrays.json``, the tables and pictures of the whole run in
``done/summary.json``. Records and ``run.json`` hold their own checksum.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from storage.contents import Entry, blocked, listed
from storage.datasets.index import NAME as INDEX
from storage.datasets.index import is_whole
from storage.errors import LONGEST, one_line
from storage.files import FILE, FOLDER, LINK, UnreadableError, make_room, regular, sha256_of_file
from storage.layout import DRAWN, FOUND, PAGE, TABLES
from storage.metadata import content, earlier, expected
from storage.places import is_away
from storage.records import (
    ARRAYS,
    FINDINGS,
    STAGES,
    SUMMARY,
    SUSPICIONS,
    CoveredFile,
    DamagedRecordError,
    DoneRecord,
    Step,
    drop_failure,
    drop_record,
    read_failure,
    read_record,
)
from storage.run import Run
from storage.run_json import job_facts, read_manifest

THREADS = 4  # that compute checksums, which releases Python's lock; on S3 they also wait for answers
UNSIGNED = "is not signed by any record; run the job again, which writes and signs it"
FOREIGN = "is foreign: the run has no such file; move it away if it is not yours"


@dataclass(frozen=True)
class Problem:
    """Something that is wrong in a run folder.

    Attributes
    ----------
    step
        The step that writes the file and has to run again; None if no step does.
    path
        The file or folder, relative to the run folder.
    reason
        What is wrong, and what to do where running the job again does not help.
    """

    step: Step | None
    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def verify(root: Path) -> list[Problem]:
    """Check everything in a run folder; return the problems by path.

    Every file that is signed is read once, and every other file is named.

    Raises
    ------
    ValueError
        If there is no run, or its ``run.json`` is damaged.
    """
    run = Run.open(root)
    job_facts(run.root, run.manifest)
    return sorted(_Check(run).problems(), key=lambda problem: problem.path.parts)


def check_results(root: Path, names: Iterable[str] = (*TABLES, *FOUND)) -> None:
    """Check the run's tables, as far as it has them and their record, before they are read.

    Parameters
    ----------
    names
        Which of :data:`storage.layout.TABLES` and :data:`storage.layout.FOUND`.

    Raises
    ------
    UnreadableError
        If a table is no file, or not the one that was written.
    DamagedRecordError
        If the record of the tables is damaged.
    """
    records = [record for step in (SUMMARY, FINDINGS) if (record := read_record(root, step))]
    signed = {file.path: file for record in records for file in record.files}
    for name in names:
        path, file = root / name, signed.get(name)
        if not regular(path).exists() or file is None:
            continue
        if path.stat().st_size != file.size or sha256_of_file(path) != file.sha256:
            raise UnreadableError(
                f"{path} has other contents than were written; run the job again to repair it"
            )


def repair(root: Path, problems: Iterable[Problem]) -> set[Step]:
    """Delete the records of the damaged steps, so that the next run does them again; return the steps.

    What is no file in the place of a file is removed too, but neither a foreign file nor a full folder is.
    A repeated step writes the same bytes, so later stages stay valid.

    Raises
    ------
    UnreadableError
        If a folder in the place of a file is not empty.
    """
    steps = set()
    for problem in problems:
        if problem.step is None:
            continue
        steps.add(problem.step)
        drop_record(root, problem.step)
        if problem.path == problem.step.failure_path:
            drop_failure(root, problem.step)
        _clear(root / problem.path)
    return steps


def _clear(path: Path) -> None:
    """Remove a link, a pipe or an empty folder in the place of a file."""
    try:
        regular(path)
        link = path.is_symlink()
    except UnreadableError:
        link = True
    if link:
        make_room(path)


def _unread(error: OSError) -> str:
    """Return that a file cannot be read; raise the error if it is a server's that does not answer now."""
    if is_away(error):
        raise error
    return f"cannot be read: {one_line(error, LONGEST)}"


class _Check:
    """One check of a run."""

    def __init__(self, run: Run) -> None:
        self._run, self._layout = run, run.layout
        self._entries = listed(run.root)
        self._obstacles = blocked(self._layout, self._entries)
        self._signed: dict[str, tuple[Step, CoveredFile]] = {}
        self._earlier = earlier(run.layout)  # what every run has, whatever version made it
        self._cached = False  # whether a record says that activations are stored
        self._damaged: set[Step] = set()  # steps whose record cannot be read
        self._tables_of: tuple[str, ...] | None = None  # the explainers in the tables of the whole run
        self._findings_of: tuple[str, ...] = ()  # those whose findings are in the tables

    def problems(self) -> Iterator[Problem]:
        """Yield what is wrong with records, with signed files, and with all other files."""
        if not read_manifest(self._run.root)[1]:
            yield Problem(None, Path("run.json"), UNSIGNED)
        yield from (Problem(None, Path(path), reason) for path, reason in self._obstacles.items())
        for path, entry in self._entries.items():
            step = self._layout.recorded(path)
            if step is None:
                continue
            if entry.kind == FILE:
                yield from self._of_record(step, path)
            elif path == step.path.as_posix():
                self._damaged.add(step)  # what lies there is named with the other strangers
        if ARRAYS.path.as_posix() not in self._entries:
            yield Problem(None, ARRAYS.path, "is missing; run the job again, which writes it")
        yield from self._lost_records()
        yield from self._of_signed_files()
        yield from self._of_metadata()
        if self._entries.get(INDEX) is not None and not is_whole(self._run.root):
            yield Problem(None, Path(INDEX), "is damaged; run the job again, which writes it anew")
        for path, entry in self._entries.items():
            known = path in self._obstacles or path in self._signed
            reason = None if known else self._stranger(path, entry)
            if reason:
                yield Problem(self._writer(path), Path(path), reason)

    def _of_record(self, step: Step, path: str) -> Iterator[Problem]:
        """Check a record or the description of a failure, and note the files that a record signs."""
        try:
            if path == step.failure_path.as_posix():
                read_failure(self._run.root, step)
                return
            record = read_record(self._run.root, step)
        except DamagedRecordError as error:
            self._damaged.add(step)
            yield Problem(step, Path(path), str(error).removeprefix(f"{path} "))
            return
        except OSError as error:
            self._damaged.add(step)
            yield Problem(step, Path(path), _unread(error))
            return
        if record is None:
            return  # deleted a moment ago
        reason = self._misfit(record)
        if reason:
            yield Problem(step, step.path, reason)
        self._cached |= bool(record.facts.cached)
        if step == SUMMARY:
            self._tables_of = record.facts.explainers
        if step == FINDINGS:
            self._findings_of = record.facts.explainers or ()
        self._signed |= {f.path: (step, f) for f in record.files if self._layout.is_file(f.path)}

    def _misfit(self, record: DoneRecord) -> str | None:
        """Return how a record contradicts the manifest; None if it does not."""
        layout, step = self._layout, record.step
        files = [file.path for file in record.files]
        if step == ARRAYS:
            # Activations are deleted at the end of a job, so their metadata may be gone. The records of the
            # stage activations come before this one.
            wanted = {p for p in self._earlier if self._cached or not p.startswith("activations.zarr/")}
            lacking, foreign = wanted - set(files), {p for p in files if not p.endswith("/zarr.json")}
        elif step == SUMMARY:
            lacking, foreign = set(TABLES) - set(files), set(files) - layout.results
        elif step == FINDINGS:
            lacking, foreign = set(FOUND) - set(files), set(files) - layout.found
        else:
            wanted_files = layout.files_of(step, cached=bool(record.facts.cached))
            lacking, foreign = wanted_files - set(files), set(files) - wanted_files
            if record.rows != layout.rows_of(step) or sum(record.statuses.values()) != record.rows:
                return (
                    f"has {record.rows} rows and statuses of {sum(record.statuses.values())}, but the "
                    f"step writes {layout.rows_of(step)}"
                )
        if foreign:
            return f"signs {min(foreign)[:LONGEST]}, which the step does not write"
        return f"does not sign {min(lacking)}" if lacking else None

    def _lost_records(self) -> Iterator[Problem]:
        """Name the records of steps whose results are in the run's tables, and which are gone."""
        needed: list[Step] = []
        if self._tables_of is not None:
            own = [(stage, name) for stage in STAGES[2:] for name in self._tables_of]
            for stage, explainer in [*((stage, "") for stage in STAGES[:2]), *own]:
                needed += [Step(stage, shard, explainer) for shard in range(self._layout.shards)]
        parts = range(self._layout.parts)
        needed += [Step(SUSPICIONS, part, name) for name in self._findings_of for part in parts]
        for step in needed:
            paths = (step.path.as_posix(), step.failure_path.as_posix())
            if self._layout.has(step) and not any(path in self._entries for path in paths):
                yield Problem(step, step.path, "is missing, and the tables of the run need its step")

    def _of_signed_files(self) -> Iterator[Problem]:
        """Compare every signed file with its record; each is read once."""
        with ThreadPoolExecutor(THREADS) as pool:
            reasons = pool.map(self._difference, [file for _, file in self._signed.values()])
            for (path, (step, _)), reason in zip(self._signed.items(), reasons, strict=True):
                if reason and path not in self._obstacles:
                    yield Problem(step, Path(path), reason)

    def _difference(self, file: CoveredFile) -> str | None:
        """Return how a file differs from its record; None if it does not."""
        entry = self._entries.get(file.path)
        if entry is None:
            return "is missing"
        if entry.kind != FILE:
            return f"is {entry.kind}, not a file"
        if entry.size != file.size:
            return f"has {entry.size} bytes instead of {file.size}"
        try:
            same = sha256_of_file(self._run.root / file.path) == file.sha256
        except OSError as error:
            return _unread(error)
        return None if same else "has other contents than were written (the SHA-256 differs)"

    def _of_metadata(self) -> Iterator[Problem]:
        """Compare the metadata that no record signs with the manifest."""
        for path, wanted in expected(self._layout).items():
            if path in self._signed:
                continue
            found = content(self._run.root / path)
            needed = path in self._earlier and (self._cached or not path.startswith("activations.zarr/"))
            if found is None and needed:
                yield Problem(ARRAYS, Path(path), "is missing, or is no file of metadata")
            elif found is not None and found not in {wanted, self._earlier.get(path)}:
                yield Problem(ARRAYS, Path(path), "is not the metadata that run.json describes")

    def _stranger(self, path: str, entry: Entry) -> str | None:
        """Return what is wrong with something that no record signs; None if nothing is."""
        recorded = self._layout.recorded(path) is not None
        expected_file = recorded or self._layout.is_file(path)
        if entry.kind == FOLDER:
            return "is a folder, not a file" if expected_file else None
        if entry.kind == LINK:
            return "is a link, which may lead out of the run; the run replaces it only where it needs a file"
        if entry.kind != FILE:
            return f"is {entry.kind}, not a file"
        known = path in {"run.json", INDEX, PAGE} or (path.endswith("/zarr.json") and expected_file)
        if known or recorded or path.startswith(f"{DRAWN}/"):
            return None
        if self._writer(path) in self._damaged:
            return None  # its record is named already
        return UNSIGNED if expected_file else FOREIGN

    def _writer(self, path: str) -> Step | None:
        """Return the step that writes the file at ``path``; None if none does."""
        if path in self._layout.results:
            return SUMMARY
        if path in self._layout.found:
            return FINDINGS
        if path in self._layout.single_files and path.endswith("/zarr.json"):
            return ARRAYS
        return self._layout.recorded(path) or self._layout.owner(path)
