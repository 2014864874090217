"""How a run of a flow ends: the names of its states, and errors as states."""

from __future__ import annotations

from collections.abc import Callable

from prefect.client.schemas.objects import State
from prefect.states import Cancelled, Failed

from flows.recovery import CheckoutBusyError
from pinspect.core.errors import PinspectError

SKIPPED = "Skipped"  # a Completed run in which nothing had changed
REFUSED = "Refused"  # a Failed run of `promote` in which a rule did not hold


def end_state(work: Callable[[], State]) -> State:
    """Do `work` and return its state; turn an error that pinspect explains into a state.

    Prefect logs a traceback for an error that a flow raises, and none for a state that it returns.

    Args:
        work: The body of a flow.

    Returns:
        The state that `work` returns; Cancelled if another run works in the checkout; Failed, with the error as its
        data, for any other PinspectError.
    """
    try:
        return work()
    except CheckoutBusyError as error:
        return Cancelled(message=str(error))
    except PinspectError as error:
        return Failed(message=str(error), data=error)
