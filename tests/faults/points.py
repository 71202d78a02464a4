"""The steps at which processes are killed: every named one of each side, and the disk's."""

from __future__ import annotations

from fedtide.failpoints import STEPS

NEEDS_A_STORY = {
    "client: decline",  # a device that cannot do its task
    "coordinator: round abandoned",  # a round without updates
    "coordinator: finished",  # the end
}
"""Steps that ordinary rounds never reach."""


def of(side: str) -> list[str]:
    """Every step of `client` or `coordinator` that ordinary rounds reach, armed to kill."""
    return [
        f"{step}=kill"
        for step in STEPS
        if step.startswith(f"{side}: ") and step not in NEEDS_A_STORY
    ]


CLIENT_DISK = [
    f"disk: {step}=kill@{times}"
    for step, counts in {
        "write": (1, 2, 3, 5),
        "sync": (1, 2, 4),
        "rename": (1,),
        "remove": (1, 2),
    }.items()
    for times in counts
]
COORDINATOR_DISK = [
    f"disk: {step}=kill@{times}"
    for step, counts in {
        "write": (1, 4),
        "sync": (1, 2, 3),
        "rename": (1, 2),
        "commit": (1, 2, 3, 6, 10),
    }.items()
    for times in counts
]
REPEATED = ["client: chunk sent=kill@3", "client: chunk stored=kill@4", "client: offer=kill@2"]
"""Later than the first time: half way through a transfer, in the second round of a life."""
