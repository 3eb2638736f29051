"""Errors that end a flow run although its deployment has retries left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext


@contextmanager
def not_retried(*kinds: type[Exception]) -> Iterator[None]:
    """Switch the flow run's retries off if the block raises an error of these ``kinds``.

    Such an error is final: the next attempt would end with the same error. Prefect has conditions for the
    retries of tasks, but not for those of flows, so the policy of the flow run is changed on the server.
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
