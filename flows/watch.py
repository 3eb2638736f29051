"""Requests to cancel, suspend or pause a flow run, made on Prefect's pages or by its API.

Prefect itself stops only runs that a Prefect worker started, by a signal in the middle of the work. A run of
``floodlit run`` gets no signal, and a paused run has to stop by itself. Therefore a flow reads its own state
from the server every few seconds.
"""

from __future__ import annotations

import contextvars
import threading
import time
from contextlib import suppress
from types import TracebackType

from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.exceptions import Pause
from prefect.logging import get_run_logger
from prefect.states import Cancelled, State

from storage.errors import FloodlitError

LOOK_SECONDS = 3.0  # between two small requests for the state
ANSWER_SECONDS = 10.0  # time limit for the answer to one request
# Time limit for running steps to end. A suspended run has already lost its slot among the runs of its
# deployment, and Prefect marks it as crashed if it stays for minutes.
GRACE_SECONDS = 60.0


class NotResumedError(FloodlitError):
    """The flow run was paused for a limited time and not resumed in that time."""


class Watch:
    """A context manager that watches the state of the current flow run in a thread.

    The known state stays as it is while the server does not answer.

    Attributes
    ----------
    told
        Whether :meth:`stopping` has returned True since the last :meth:`settle`.
    """

    def __init__(self) -> None:
        context = FlowRunContext.get()
        assert context is not None
        assert context.flow_run is not None
        self._id = context.flow_run.id
        self._state: State | None = None
        self.told = False
        self._since = time.monotonic()
        self._left = threading.Event()

    def __enter__(self) -> Watch:
        # A thread starts with an empty context, and Prefect keeps its settings there.
        looking = contextvars.copy_context()
        threading.Thread(target=looking.run, args=(self._look,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left.set()

    def stopping(self) -> bool:
        """Whether the flow must not start any more work."""
        state = self._state
        asked = state is not None and (state.is_paused() or state.is_cancelling() or state.is_cancelled())
        self.told = self.told or asked
        return asked

    def hurrying(self) -> bool:
        """Whether the flow must not wait any longer for the steps that are running."""
        # A paused run keeps its process, so its steps may take as long as they need.
        return self.stopping() and not self._paused() and time.monotonic() - self._since > GRACE_SECONDS

    def settle(self) -> State | None:
        """Carry out the request after the running steps have ended; wait here while the run is paused.

        Returns
        -------
        State or None
            The state in which the flow has to end; None if it has to continue.

        Raises
        ------
        prefect.exceptions.Pause
            If the run is suspended. Its process ends, and a new process starts when the run is resumed.
        NotResumedError
            If a paused run was not resumed in time.
        """
        if self._paused():
            get_run_logger().info("paused: no step is running, and the store stays locked; resume or cancel")
        while self._paused():
            self._check_timeout()
            time.sleep(0.2)
        stopping, state, self.told = self.stopping(), self._state, False
        if state is None or not stopping:
            return None
        if state.is_paused():
            raise Pause(state=state)
        return Cancelled(message="Cancelled; the same job continues from its store.")

    def _paused(self) -> bool:
        """Whether this process has to wait until the run is resumed.

        A suspended run is not paused in this sense, since another process resumes it.
        """
        state = self._state
        return state is not None and state.is_paused() and not state.state_details.pause_reschedule

    def _check_timeout(self) -> None:
        """Raise NotResumedError if the time limit of the pause is over."""
        until = self._state and self._state.state_details.pause_timeout
        if until and until.timestamp() < time.time():
            raise NotResumedError("the run was paused and not resumed in time; run the same job to continue")

    def _look(self) -> None:
        """Read the state from the server until the context ends; runs in the thread."""
        while not self._left.wait(LOOK_SECONDS):
            # A client of its own, because the flow uses its client at the same time. Any error closes this
            # client, and the outer loop makes a new one.
            with (
                suppress(Exception),
                get_client(httpx_settings={"timeout": ANSWER_SECONDS}, sync_client=True) as client,
            ):
                while not self._left.is_set():
                    self._note(client.read_flow_run(self._id).state)
                    self._left.wait(LOOK_SECONDS)

    def _note(self, state: State | None) -> None:
        """Keep a state that was read, and the time since when the run has been in this kind of state."""
        known = self._state
        if known is not None and known.state_details.pause_reschedule:
            return  # suspended: resuming starts another process, so this one has to end in any case
        if known is None or state is None or known.type != state.type:
            self._since = time.monotonic()
        self._state = state
