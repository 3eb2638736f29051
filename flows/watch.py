"""What people ask of a flow run while it works, on Prefect's pages or by its API: cancel, suspend, pause.

Prefect stops only runs that a worker started, by a signal in the middle of the work; nobody tells a run of
``floodlit run``, and a paused run is to stop by itself. Hence a flow looks at its own state now and then.
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

LOOK_SECONDS = 3.0  # between two looks at the state, one small request each
ANSWER_SECONDS = 10.0  # for the server to answer one
# For the steps under way to end. A suspended run has lost its place among the runs of its deployment, and
# Prefect ends it as crashed where it stays for minutes.
GRACE_SECONDS = 60.0


class NotResumedError(RuntimeError):
    """The flow run was paused for a limited time, which is over."""


class Watch:
    """Looks at the state of the flow run it is made in, as long as it is entered.

    A server that does not answer changes nothing.

    Attributes
    ----------
    told
        Whether :meth:`stopping` has said yes since the last :meth:`settle`.
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
        # A thread starts without Prefect's settings, which are of the context.
        looking = contextvars.copy_context()
        threading.Thread(target=looking.run, args=(self._look,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left.set()

    def stopping(self) -> bool:
        """Whether no more work is to be begun."""
        state = self._state
        asked = state is not None and (state.is_paused() or state.is_cancelling() or state.is_cancelled())
        self.told = self.told or asked
        return asked

    def hurrying(self) -> bool:
        """Whether steps under way are not to be waited for any longer."""
        return self.stopping() and not self._paused() and time.monotonic() - self._since > GRACE_SECONDS

    def settle(self) -> State | None:
        """Do what was asked for: returns the state to end in, or None to go on. Waits while paused.

        Raises
        ------
        prefect.exceptions.Pause
            If the run is suspended: its process ends, and resuming starts another one.
        NotResumedError
            If nobody resumed a paused run in time.
        """
        if self._paused():
            get_run_logger().info("paused: nothing is under way, and the store stays held; resume or cancel")
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
        """Whether to wait here until the run is resumed; a suspended one is resumed by another process."""
        state = self._state
        return state is not None and state.is_paused() and not state.state_details.pause_reschedule

    def _check_timeout(self) -> None:
        until = self._state and self._state.state_details.pause_timeout
        if until and until.timestamp() < time.time():
            raise NotResumedError("the run was paused and not resumed in time; run the same job to continue")

    def _look(self) -> None:
        while not self._left.wait(LOOK_SECONDS):
            # Not the flow's own client, which the flow uses meanwhile.
            with (
                suppress(Exception),
                get_client(httpx_settings={"timeout": ANSWER_SECONDS}, sync_client=True) as client,
            ):
                while not self._left.is_set():
                    self._note(client.read_flow_run(self._id).state)
                    self._left.wait(LOOK_SECONDS)

    def _note(self, state: State | None) -> None:
        known = self._state
        if known is not None and known.state_details.pause_reschedule:
            return  # suspended: whoever resumes it starts another process, and this one is to leave
        if known is None or state is None or known.type != state.type:
            self._since = time.monotonic()
        self._state = state
