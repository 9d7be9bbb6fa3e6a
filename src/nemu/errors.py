"""Every error that nemu raises on purpose.

    NemuError
    ├── ConfigError      what the user asked for is wrong: exit status 2
    ├── HostError        the host cannot do what is needed: exit status 1
    ├── GuestError       the guest gave a device a bad value: that device stops
    └── GuestCrashError  the guest itself can not go on: exit status 3

A user sees ``str(error)`` as one line and never a traceback. A GuestError never leaves
the VMM: the transport that called the device catches it and stops the device.
"""


class NemuError(Exception):
    """The root of the tree; ``status`` is the exit status of the process."""

    status = 1


class ConfigError(NemuError):
    """A setting is wrong.  ``ConfigError("--memory", "12", "must be at least 64M")``."""

    status = 2

    def __init__(self, option: str, value: object, problem: str) -> None:
        super().__init__(f"{option} {value}: {problem}" if value != "" else f"{option}: {problem}")
        self.option = option
        self.value = value
        self.problem = problem


class HostError(NemuError):
    """The host lacks something or a system call failed; the text says what would help."""


class GuestError(NemuError):
    """The guest wrote something that the specification forbids or that would hurt the host."""


class GuestCrashError(NemuError):
    """The guest can not go on: panic, triple fault, or a state that the CPU refuses."""

    status = 3
