"""Which errors end a flow run although its deployment has retries left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext


@contextmanager
def not_retried(*kinds: type[Exception]) -> Iterator[None]:
    """Errors of these ``kinds`` are final: the next attempt would end as this one.

    Prefect has conditions for the retries of tasks, and none for those of flows.
    """
    try:
        yield
    except kinds:
        context = FlowRunContext.get()
        assert context is not None
        assert context.flow_run is not None
        with get_client(sync_client=True) as client:
            policy = client.read_flow_run(context.flow_run.id).empirical_policy
            if policy.retries:
                once = policy.model_copy(update={"retries": 0})
                client.update_flow_run(context.flow_run.id, empirical_policy=once)
        raise
