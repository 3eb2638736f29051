"""Floodlit's one door for Python and notebooks.

::

    import floodlit

    model = floodlit.load("timm", "resnet18", weights="pretrained")
    found = floodlit.explain(model, "cat.jpg", "gradcam")
    floodlit.score(model, "cat.jpg", found, "insertion").values

    run = floodlit.run("job.toml")
    run.maps("gradcam")
    run.sql("SELECT explainer, mean FROM summary WHERE metric = 'insertion'")

Each name is imported when it is first used, so that ``import floodlit`` takes no time.
"""

from __future__ import annotations

import importlib
import multiprocessing
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa
    import xarray
    from matplotlib.figure import Figure

    from explainers.models.classifier import Classifier
    from flows.job import Job
    from storage.errors import FloodlitError
    from storage.run import Run
    from tasks.in_memory import Found, explain, load, score

    __version__: str

__all__ = [
    "Classifier",
    "FloodlitError",
    "Found",
    "Job",
    "OpenedRun",
    "__version__",
    "explain",
    "load",
    "open",
    "run",
    "score",
]

_MODULE_OF = {
    "Classifier": "explainers.models.classifier",
    "FloodlitError": "storage.errors",
    "Found": "tasks.in_memory",
    "Job": "flows.job",
    "explain": "tasks.in_memory",
    "load": "tasks.in_memory",
    "score": "tasks.in_memory",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("floodlit")
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'floodlit' has no attribute {name!r}")
    found = getattr(importlib.import_module(_MODULE_OF[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return __all__


def _refuse_other_modules() -> None:
    """Refuse to work where another module would be imported in the place of one of Floodlit's packages.

    Raises
    ------
    ImportError
        In one line that names the other module's file or folder.
    """
    here = Path(__file__).resolve().parent
    for name in ("explainers", "flows", "plugins", "storage", "tasks"):
        try:
            spec = find_spec(name)
        except ValueError:  # a module of that name is there, and it does not say where it came from
            spec = None
        places = (
            [] if spec is None else [spec.origin] if spec.origin else spec.submodule_search_locations or []
        )
        found = next(iter(places), None)
        if found is None or Path(found).resolve() != here / name / "__init__.py":
            raise ImportError(
                f"{found or 'something else'} would be imported in the place of Floodlit's package {name}, "
                f"which is in {here}; start Python in another folder, or as `python -P`"
            )


_refuse_other_modules()


class OpenedRun:
    """A run, to be read.

    Attributes
    ----------
    root
        The run's folder.
    explainers, metrics
        Their names.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self.root = run.root
        self.explainers, self.metrics = list(run.explainers), list(run.metrics)

    def __repr__(self) -> str:
        return f"<run {self.root}: {self._run.rows} samples, {', '.join(self.explainers)}>"

    def maps(self, explainer: str) -> xarray.DataArray:
        """(N, \\*grid) raw maps of an explainer, in the order of the samples; NaN where there is none.

        The coordinates `sample_id`, `target`, `label` and `prediction` say what each map is of; a class that
        is not known is NaN. Maps are read when their values are used; `.values` reads all of them.

        Where a run explains k classes per sample, k rows follow each other.
        """
        from plugins.registry import choices
        from storage.labelled import labelled_maps

        if explainer not in self.explainers:
            raise ValueError(f"the run has no explainer {explainer!r}; {choices(explainer, self.explainers)}")
        return labelled_maps(self._run, explainer)

    def samples(self) -> pa.Table:
        """All samples, one row per image, text or array."""
        return self.sql("SELECT * FROM samples")

    def scores(self) -> pa.Table:
        """All scores, one row per map and number."""
        return self.sql("SELECT * FROM scores")

    def summary(self) -> pa.Table:
        """Mean, interval and rank of each explainer and number."""
        return self.sql("SELECT * FROM summary")

    def comparisons(self) -> pa.Table:
        """Pairs of explainers, number by number, with tests."""
        return self.sql("SELECT * FROM comparisons")

    def costs(self) -> pa.Table:
        """Time, forward passes and memory of each explainer."""
        return self.sql("SELECT * FROM costs")

    def sql(self, query: str) -> pa.Table:
        """What the views samples, scores, summary, comparisons and costs answer to a question in SQL."""
        from storage.query import query as ask

        return ask(self.root, query)

    def show(self, sample: str) -> Figure:
        """A Matplotlib figure of a sample with the maps of every explainer, which a notebook shows as it is.

        It shows the maps of the sample's first target. `figure.savefig("sample.pdf")` writes it to a file.
        """
        from tasks.pictures.contact_sheet import draw_sample

        return draw_sample(self._run, sample)


def open(store: str | Path) -> OpenedRun:  # noqa: A001
    """The run in a folder, or at an address ``s3://bucket/prefix``.

    Raises
    ------
    ValueError
        In one line, if there is none.
    """
    from storage.run import Run

    return OpenedRun(Run.open(store))


def run(job: str | Path | Job, store: str | Path | None = None, *, retry_failed: bool = False) -> OpenedRun:
    """Run a job, or what is left of it, as the command ``floodlit run`` does, and open the run.

    Worker processes import the script that starts them, so a script calls this function under
    ``if __name__ == "__main__":``.

    Parameters
    ----------
    job
        A TOML file, or a :class:`Job`.
    store
        Where the results go, in place of the file's ``store``; not beside a :class:`Job`.
    retry_failed
        Whether to do again what failed before.

    Raises
    ------
    FloodlitError
        In one line: what is wrong with the job, or which steps failed.
    RuntimeError
        If a worker process imports a script that calls it at once.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise RuntimeError(
            "a worker process has imported the script that calls floodlit.run; call it under "
            '`if __name__ == "__main__":`'
        )
    from flows.environment import keep_logs_off_the_terminal

    keep_logs_off_the_terminal()  # before the next lines import Prefect
    from flows.explain import explain as flow
    from flows.job import Job, JobError
    from flows.job_file import read_job
    from flows.server import prefect_server

    if isinstance(job, Job) and store is not None:
        raise JobError("store: a Job says itself where its results go; leave store out")
    made = job if isinstance(job, Job) else read_job(Path(job), Job, None if store is None else Path(store))
    with prefect_server() as address:
        address()
        flow(made, retry_failed)
    return open(made.store)
