"""The commands in flight of a SCSI controller, and what a task management function does to them.

virtio 1.2, section 5.6.6.2; SAM-5, 7.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from nemu.scsi.bus import Address, Bus

ABORT_TASK, ABORT_TASK_SET, CLEAR_ACA, CLEAR_TASK_SET, NEXUS_RESET, UNIT_RESET, QUERY_TASK, QUERY_TASK_SET = (
    range(8)
)
COMPLETE, BAD_TARGET, SUCCEEDED, REJECTED, INCORRECT_LUN = 0, 3, 10, 11, 12
ABORTED, RESET = 2, 4  # responses of the commands themselves


@dataclass(slots=True, eq=False)
class Task:
    """A command in flight.  ``aborted`` is the response that it gets instead of its result."""

    address: Address | None
    tag: int
    aborted: int | None = field(default=None, init=False)


class TaskSet:
    """Tasks of all units."""

    def __init__(self) -> None:
        self._tasks: set[Task] = set()
        # (tasks that have to end first, what is called then); bounded by the control queue's size
        self._waiting: list[tuple[set[Task], Callable[[], None]]] = []

    def add(self, task: Task) -> None:
        self._tasks.add(task)

    def remove(self, task: Task) -> None:
        """It has ended."""
        self._tasks.discard(task)
        waiting, self._waiting = self._waiting, []
        for tasks, ended in waiting:
            tasks.discard(task)
            if tasks:
                self._waiting.append((tasks, ended))
            else:
                ended()

    def manage(
        self, bus: Bus, function: int, address: Address | None, tag: int, ended: Callable[[int], None]
    ) -> None:
        """Do ``function``; ``ended`` gets the response, at once or when the last task has ended."""
        if function > QUERY_TASK_SET or function == CLEAR_ACA:  # there is no ACA condition (NORMACA)
            ended(REJECTED)
            return
        if address is None or address[0] not in bus.targets():
            ended(BAD_TARGET)
            return
        if function != NEXUS_RESET and bus.unit(address) is None:
            ended(INCORRECT_LUN)
            return
        tasks = {task for task in self._tasks if self._concerns(task, function, address, tag)}
        if function in (QUERY_TASK, QUERY_TASK_SET):
            ended(SUCCEEDED if tasks else COMPLETE)
            return
        resets = function in (NEXUS_RESET, UNIT_RESET)
        for task in tasks:
            task.aborted = RESET if resets else ABORTED
        if resets:
            for unit_address, unit in bus.units_of(address[0]):
                if function == NEXUS_RESET or unit_address == address:
                    unit.reset()
        if tasks:
            self._waiting.append((tasks, lambda: ended(COMPLETE)))
        else:
            ended(COMPLETE)

    @staticmethod
    def _concerns(task: Task, function: int, address: Address, tag: int) -> bool:
        if function == NEXUS_RESET:
            return task.address is not None and task.address[0] == address[0]
        return task.address == address and (tag == task.tag or function not in (ABORT_TASK, QUERY_TASK))
