"""What a client is told when a command cannot be done, under QEMU's classes (qapi/error.json)."""

from __future__ import annotations


class QmpError(Exception):
    """``kind`` is the class on the wire; the text is for people."""

    kind = "GenericError"


class CommandNotFoundError(QmpError):
    kind = "CommandNotFound"


class DeviceNotFoundError(QmpError):
    """No such device, type or path."""

    kind = "DeviceNotFound"


class DeviceNotActiveError(QmpError):
    """The machine has no such device, or its driver has not started it."""

    kind = "DeviceNotActive"


class KvmMissingCapError(QmpError):
    """The host's KVM lacks what the command needs."""

    kind = "KVMMissingCap"
