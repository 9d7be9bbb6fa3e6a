"""A cloud-init seed: the volume ``cidata`` of its NoCloud data source, an ISO 9660 image made in memory.

Source: cloud-init's documentation, "NoCloud".  The names are in Rock Ridge and Joliet extensions, since
``user-data`` cannot be written in ISO 9660 itself.
"""

from __future__ import annotations

import hashlib
import io
import os

from nemu.errors import ConfigError, HostError

OPTION = "--cloud-init"
LABEL = "cidata"
USER_DATA, META_DATA = "user-data", "meta-data"
NAMES = (USER_DATA, META_DATA, "network-config", "vendor-data")
MAX_SIZE = 16 << 20  # bytes of all files; a seed is text, and this one is kept in memory


class Seed:
    """The image of the seed in ``directory``, in a memory file at ``path`` until ``close``.

    Raises ConfigError for a directory that is none, HostError without the package pycdlib.
    """

    def __init__(self, directory: str) -> None:
        image = _image(read(directory))
        self.fd = os.memfd_create("nemu-cidata", os.MFD_CLOEXEC)
        # By the process's number: another program of this user (QEMU) opens it as well.
        self.path = f"/proc/{os.getpid()}/fd/{self.fd}"
        with open(self.fd, "wb", closefd=False) as file:
            file.write(image)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def read(directory: str) -> dict[str, bytes]:
    """The files of the seed by name.  ``meta-data`` is made where there is none.  Raises ConfigError.

    Its instance-id then depends on the other files alone: cloud-init runs anew when they change.
    """
    if not os.path.isdir(directory):
        problem = "must be a directory" if os.path.exists(directory) else "no such directory"
        raise ConfigError(OPTION, directory, f"{problem}, with the file {USER_DATA}")
    files: dict[str, bytes] = {}
    for name in NAMES:
        path = os.path.join(directory, name)
        if os.path.lexists(path):
            files[name] = _read(path, MAX_SIZE - sum(map(len, files.values())))
    if USER_DATA not in files:
        raise ConfigError(OPTION, directory, f"has no file {USER_DATA} (an empty one would do)")
    if META_DATA not in files:
        digest = hashlib.sha256(b"".join(name.encode() + b"\0" + data for name, data in files.items()))
        files[META_DATA] = f"instance-id: nemu-{digest.hexdigest()[:16]}\n".encode()
    return files


def _read(path: str, room: int) -> bytes:
    try:
        # A pipe in the place of the file would keep us waiting.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            data = file.read(room + 1)
    except OSError as error:
        raise ConfigError(OPTION, path, (error.strerror or str(error)).lower()) from None
    if len(data) > room:
        raise ConfigError(OPTION, path, f"is too large: a seed has at most {MAX_SIZE >> 20} MiB in all")
    return data


def _image(files: dict[str, bytes]) -> bytes:
    try:
        import pycdlib
    except ImportError:
        raise HostError(f"{OPTION} needs the Python package pycdlib: pip install pycdlib") from None
    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=1, vol_ident=LABEL, rock_ridge="1.09", joliet=3)
    for number, (name, data) in enumerate(files.items()):
        iso.add_fp(io.BytesIO(data), len(data), f"/FILE{number}.;1", rr_name=name, joliet_path=f"/{name}")
    image = io.BytesIO()
    iso.write_fp(image)
    iso.close()
    return image.getvalue()
