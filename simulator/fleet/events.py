"""What happens in a simulated federation: one line of the run record each.

An event is a JSON array: its kind, then its fields in the order below. Times are virtual
milliseconds since the start of the run, devices are indices; both are whole numbers. A task is
named by its device and its round.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from fedtide.measures import Natural

Rate = Annotated[float, Meta(ge=0)]
Kind = Literal["train", "evaluate"]
Absence = Literal["away", "power cut"]
Closing = Literal["enough", "answered", "deadline"]
"""The updates that were wanted are here; no device is at work any more, and they are fewer; the
time is over, and they are fewer."""
Phase = Literal["before download", "training", "before upload", "upload"]


class On(Struct, frozen=True, array_like=True, tag="on"):
    """A device starts, or comes back: it is there from now on."""

    at_ms: Natural
    device: Natural


class Off(Struct, frozen=True, array_like=True, tag="off"):
    """A device is gone."""

    at_ms: Natural
    device: Natural
    why: Absence
    """As its availability says; a dropout, and then it comes back at `On`."""


class RoundOpened(Struct, frozen=True, array_like=True, tag="round"):
    """A round opens. After the last training round, one more only evaluates the final model."""

    at_ms: Natural
    round_id: Natural
    kind: Kind
    version: Natural
    """Of the global model that it starts from."""
    wanted: Natural
    quorum: Natural
    online: Natural
    """Devices that could be invited."""


class Invited(Struct, frozen=True, array_like=True, tag="invite"):
    """These devices are asked to take part in the open round; who is not there hears nothing."""

    at_ms: Natural
    round_id: Natural
    devices: tuple[Natural, ...]


class TaskGiven(Struct, frozen=True, array_like=True, tag="task"):
    """A device takes a task up. Said again to one at work on it, it is no event."""

    at_ms: Natural
    device: Natural
    round_id: Natural
    version: Natural


class DownloadBegan(Struct, frozen=True, array_like=True, tag="down"):
    """Of what a device has not got: the bundle, a model."""

    at_ms: Natural
    device: Natural
    size_bytes: Natural


class DownloadEnded(Struct, frozen=True, array_like=True, tag="downed"):
    """It is here, or broke off: then so many bytes were carried, and stay on the device."""

    at_ms: Natural
    device: Natural
    size_bytes: Natural
    whole: bool = True


class TrainingBegan(Struct, frozen=True, array_like=True, tag="train"):
    """Also when it goes on after a pause, from the last epoch that was saved."""

    at_ms: Natural
    device: Natural
    round_id: Natural
    epochs_before: Natural = 0


class TrainingEnded(Struct, frozen=True, array_like=True, tag="trained"):
    """Done, or interrupted. Time spent is that since `TrainingBegan`."""

    at_ms: Natural
    device: Natural
    round_id: Natural
    epochs: Natural
    """Done or, if it was interrupted, saved; those of before a pause included."""
    steps: Natural
    """Of the epochs that are kept, in all."""
    done: bool = True
    """False: the device went, or its task was given up."""
    lost_ms: Natural = 0
    """Of the time since it began: spent on an epoch that has to be done again."""


class GivenUp(Struct, frozen=True, array_like=True, tag="given up"):
    """A device gives a task up for a newer one."""

    at_ms: Natural
    device: Natural
    round_id: Natural


class Declined(Struct, frozen=True, array_like=True, tag="declined"):
    """A device says that it cannot do a task."""

    at_ms: Natural
    device: Natural
    round_id: Natural
    reason: str


class DroppedOut(Struct, frozen=True, array_like=True, tag="drop"):
    """A device fails at its task, in this phase."""

    at_ms: Natural
    device: Natural
    round_id: Natural
    phase: Phase
    returns: bool
    """Whether it comes back to finish the task; otherwise the task is lost."""


class UploadBegan(Struct, frozen=True, array_like=True, tag="up"):
    """Of what the coordinator has not got of an update."""

    at_ms: Natural
    device: Natural
    round_id: Natural
    size_bytes: Natural


class UploadEnded(Struct, frozen=True, array_like=True, tag="upped"):
    """It is all there, or broke off: then so many bytes were carried, and stay there."""

    at_ms: Natural
    device: Natural
    round_id: Natural
    size_bytes: Natural
    whole: bool = True


class Verdict(Struct, frozen=True, array_like=True, tag="verdict"):
    """The coordinator's word on an update."""

    at_ms: Natural
    device: Natural
    round_id: Natural
    verdict: Literal["accepted", "discarded", "rejected"]
    name: str
    """One of a short list (`coordinator.vetting.Name`): "in time", "late" ..."""
    reason: str = ""


class Counted(Struct, frozen=True, array_like=True):
    """An update in a model."""

    device: Natural
    round_id: Natural
    """Of its task."""
    weight: Rate
    """Its examples, less for staleness (`coordinator.aggregation.weight_of`): not yet divided by
    the sum of all. With `rounds.weights = "fednova"`, too: that scales the delta by its steps."""
    staleness: Natural = 0
    """Versions between the model it started from and the one it is added to."""


class RoundClosed(Struct, frozen=True, array_like=True, tag="closed"):
    """These updates make the next model, or judge this one."""

    at_ms: Natural
    round_id: Natural
    parts: tuple[Counted, ...]
    """In the order of aggregation."""
    why: Closing | Literal[""] = ""
    """Empty: of a record from before it was written down."""


class RoundAbandoned(Struct, frozen=True, array_like=True, tag="abandoned"):
    """A round came to nothing."""

    at_ms: Natural
    round_id: Natural
    reason: str
    lost: tuple[tuple[Natural, Natural], ...] = ()
    """Device and round of the accepted updates that are in no model, and will be in none."""


class ModelMade(Struct, frozen=True, array_like=True, tag="model"):
    """A version of the global model is there."""

    at_ms: Natural
    version: Natural
    round_id: Natural


class Evaluated(Struct, frozen=True, array_like=True, tag="quality"):
    """How good a version is. It is measured beside the next round: the line may come later than
    that version's time."""

    at_ms: Natural
    """When that version was made."""
    version: Natural
    loss: float | None = None
    accuracy: float | None = None


class Finished(Struct, frozen=True, array_like=True, tag="finished"):
    """The federation has ended, or the time it was given."""

    at_ms: Natural
    reason: str
    succeeded: bool


Event = (
    On
    | Off
    | RoundOpened
    | Invited
    | TaskGiven
    | DownloadBegan
    | DownloadEnded
    | TrainingBegan
    | TrainingEnded
    | GivenUp
    | Declined
    | DroppedOut
    | UploadBegan
    | UploadEnded
    | Verdict
    | RoundClosed
    | RoundAbandoned
    | ModelMade
    | Evaluated
    | Finished
)
