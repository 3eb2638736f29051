"""The explainers of a job, made for its classifier before any worker starts."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from explainers.base import Explainer, Need, Parameters
from explainers.control_names import CONTROLS
from explainers.models.black_box import BlackBox
from explainers.registry import explainers
from explainers.requirements import unmet
from explainers.several_layers import make_explainer
from flows.given_maps import with_given_maps
from flows.job import REGISTERED, Job, JobError
from storage.datasets.dataset import Dataset
from storage.files import sha256_of_json, sha256_of_path
from storage.manifest import DetailEntry, ExplainerEntry
from storage.places import is_remote


class Chosen(NamedTuple):
    """An explainer of the job with its own name and parameters; ``given`` tells of maps that were given."""

    name: str
    parameters: Parameters
    explainer: Explainer
    given: str = ""

    def entry(self, called: str, layer: str | tuple[str, ...] | None) -> ExplainerEntry:
        """Return its entry in the manifest; files and folders are recorded by their SHA-256.

        Parameters
        ----------
        called
            What the run calls the explainer.
        layer
            The target layer, or several, if one is in use.
        """
        description = self.explainer.describe()
        return ExplainerEntry(
            parameters=self.parameters.model_dump(mode="json"),
            grid=description.grid,
            layer=layer if Need.ACTIVATIONS in self.explainer.needs else None,
            files={key: sha256_of_path(value) for key, value in self.parameters if isinstance(value, Path)},
            details={key: DetailEntry(**asdict(detail)) for key, detail in description.details.items()},
            name=None if called == self.name else self.name,
            given=self.given,
        )


def choose_explainers(job: Job, classifier: BlackBox, dataset: Dataset, targets: int) -> dict[str, Chosen]:
    """Make the explainers of a job, by what the run calls them.

    Parameters
    ----------
    job, classifier, dataset
        The job, its classifier and its dataset.
    targets
        Maps per image.

    Raises
    ------
    JobError
        If the model, the target, or a file of maps lacks what one of them needs.
    """
    chosen: dict[str, Chosen] = {}
    called_by_job, own = {choice.called for choice in job.explainers}, job.explainer_names()
    for called, given in job.explainer_parameters().items():
        name, parameters, told = own[called], _fetched(job, given), ""
        cls = explainers.get(name)
        lacking = unmet(cls.needs - {Need.GIVEN}, classifier)
        if lacking is not None and called in CONTROLS and called not in called_by_job:
            continue  # the job did not name this control, and e.g. texts have no edges for it
        if lacking is not None:
            raise JobError(f"explainers: {called} {lacking}")
        # Where classes do not exclude each other, each of them is predicted or not for itself.
        fixed = classifier.exclusive and (isinstance(job.target, int) or targets > 1)
        if Need.PREDICTION in cls.needs and fixed:
            raise JobError(
                f'explainers: {called} explains only the predicted class; set target = "predicted"'
            )
        try:
            if Need.GIVEN in cls.needs:
                partial = job.dataset.limit is not None
                parameters, told = with_given_maps(parameters, classifier, dataset, targets, partial)
            chosen[called] = Chosen(name, parameters, make_explainer(cls, classifier, parameters), told)
        except ValueError as error:
            raise JobError(f"explainers: {called}: {error}") from error
    return chosen


def _fetched(job: Job, parameters: Parameters) -> Parameters:
    """Return the parameters with paths of local copies in place of addresses of registered models.

    The copies lie beside the run, in ``heads/NAME-VERSION-REGISTRY``. A copy is made once, because a version
    in a registry never changes.
    """
    found = {}
    for key, value in parameters:
        address = Path(value).as_posix() if isinstance(value, Path) else ""
        if not address.startswith(REGISTERED):
            continue
        if is_remote(job.store):
            raise JobError(f"explainers: {key} = {address}: a store on S3 needs the path of the head instead")
        from storage.tracking import default_uri, registered  # imported late: MLflow takes seconds to import

        uri = job.tracking or default_uri(job.store)
        parts = [*Path(address).parts[1:], sha256_of_json(uri)[:8]]
        folder = job.store.parent / "heads" / "-".join(parts)
        files = sorted(folder.glob("*.safetensors"))
        found[key] = files[0] if files else registered(uri, address, folder)
    return parameters.model_copy(update=found)
