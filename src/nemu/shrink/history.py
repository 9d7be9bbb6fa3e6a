"""Attack surface in history: how many past security fixes touched only code that is gone now.

Two sources of fixes, both of which come with the source: commits of a git history that name a CVE, with the
files that they changed; and the distribution's changelog, whose entries name the part that was repaired
("hw/ide/ahci: ...", "vmsvga-move-fifo-sanity-checks-CVE-2016-4454.patch").  A fix whose files cannot be told
is counted apart and not used.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from nemu.shrink import process

CVE = re.compile(r"CVE-\d{4}-\d{4,}")
_CHANGELOG = "debian/changelog"
_SOURCE = (".c", ".h", ".c.inc", ".S", ".cpp", ".cc")
_NOT_PRODUCT = ("tests/", "docs/", "debian/", "roms/", "scripts/")
_PATCH = re.compile(r"([a-z0-9][\w.+/-]*?)[.-]+(CVE-\d{4}-\d+)[\w.-]*", re.IGNORECASE)
_REMARK = re.compile(r"(CVE-\d{4}-\d+)(?:\s+\(|: )([^)]*?)(?:\)|Closes|$)")
_ITEM = re.compile(r"^\s+[*-] ")
_FRONT = re.compile(r"[*-] (\w+(?:/[\w.-]+)+): ")
_WORD = re.compile(r"[a-z0-9]+")
# Parts of QEMU whose everyday name is not that of a file.
_ALIASES = {
    "9pfs": "hw/9pfs/", "virtfs": "hw/9pfs/", "virtio-9p": "hw/9pfs/", "ati-vga": "hw/display/ati",
    "cirrus": "hw/display/cirrus_vga", "pvrdma": "hw/rdma/", "sdcard": "hw/sd/sd.c",
    "usb-redir": "hw/usb/redirect.c",
    "usbredir": "hw/usb/redirect.c", "vmsvga": "hw/display/vmware_vga", "vmware-vga": "hw/display/vmware_vga",
    "vmw-pvscsi": "hw/scsi/vmw_pvscsi", "pvscsi": "hw/scsi/vmw_pvscsi", "lsi": "hw/scsi/lsi53c895a.c",
    "usb-ccid": "hw/usb/dev-smartcard-reader.c", "ccid": "hw/usb/dev-smartcard-reader.c",
    "ide": "hw/ide/core.c", "usb-mtp": "hw/usb/dev-mtp.c", "mtp": "hw/usb/dev-mtp.c",
    "mptconfig": "hw/scsi/mptconfig.c", "sdhci": "hw/sd/sdhci.c", "xen-pt": "hw/xen/xen_pt.c",
    "xen-block": "hw/block/xen-block.c", "nvme": "hw/nvme/", "vga": "hw/display/vga.c", "vnc": "ui/vnc.c",
    "i6300esb": "hw/watchdog/wdt_i6300esb.c", "tulip": "hw/net/tulip.c", "fdc": "hw/block/fdc.c",
    "virtio-crypto": "hw/virtio/virtio-crypto.c", "spice": "ui/spice-core.c",
    "vhost-user-gpu": "contrib/vhost-user-gpu/",
}  # fmt: skip
_EVERYDAY = frozenset(
    "block bus core dma error exec generic hw ide loader memory net null pci queue reset ring scsi sd serial "
    "stream timer trace usb vga via watchdog".split()
)


@dataclass
class Surface:
    """CVE identifiers by what became of the code that their fixes changed."""

    gone: list[str] = field(default_factory=list)
    partly: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    files: dict[str, list[str]] = field(default_factory=dict)
    source: str = ""

    @property
    def known(self) -> int:
        return len(self.gone) + len(self.partly) + len(self.kept)


def measure(root: str, checkout: str, names: list[str], kept: set[str]) -> Surface:
    """The surface of a source with the files ``names``, of which ``kept`` are left."""
    if checkout and (fixes := from_git(checkout)):
        return judge(fixes, kept, f"commits in {checkout} that name a CVE")
    path = os.path.join(root, _CHANGELOG)
    if not os.path.exists(path):
        return Surface()
    with open(path, encoding="utf-8", errors="replace") as file:
        fixes = from_changelog(file.read(), names)
    return judge(fixes, kept, f"{_CHANGELOG} of the source package")


def judge(fixes: dict[str, set[str]], kept: set[str], source: str) -> Surface:
    """Sort ``fixes`` (CVE -> changed files) by how many of their files are among ``kept``."""
    surface = Surface(source=source)
    for cve, files in sorted(fixes.items()):
        left = files & kept
        group = surface.unknown if not files else surface.kept if left == files else surface.partly
        if files and not left:
            group = surface.gone
        group.append(cve)
        surface.files[cve] = sorted(files)
    return surface


def from_git(checkout: str) -> dict[str, set[str]]:
    """CVE -> sources changed by the commits that name it."""
    text = process.output(
        [
            "git",
            "-C",
            checkout,
            "log",
            "--no-merges",
            "-i",
            "--grep=CVE-[0-9]",
            "--name-only",
            "--format=%x00%B%x01",
        ]
    )
    fixes: dict[str, set[str]] = defaultdict(set)
    for commit in text.split("\0")[1:]:
        message, _, files = commit.partition("\1")
        changed = {name for name in files.split("\n") if _is_product(name)}
        for cve in CVE.findall(message):
            fixes[cve] |= changed
    return dict(fixes)


def from_changelog(text: str, names: Iterable[str]) -> dict[str, set[str]]:
    """CVE -> files that the entries which name it are about."""
    index = _Index(name for name in names if _is_product(name))
    fixes: dict[str, set[str]] = {cve: set() for cve in CVE.findall(text)}
    for item in _items(text):
        for cve, about in _subjects(item):
            fixes[cve] |= index.find(about)
    return fixes


def _items(text: str) -> Iterator[str]:
    """The items of all entries; what is set apart below an item belongs to it."""
    item: list[str] = []
    for line in text.splitlines():
        if _ITEM.match(line) or not line.strip():
            if item:
                yield " ".join(item)
            item = [line.strip()] if line.strip() else []
        elif item or line.startswith(" "):
            item.append(line.strip())
    if item:
        yield " ".join(item)


def _subjects(item: str) -> Iterator[tuple[str, str]]:
    """(CVE, what the item says it is about): a patch's name, a remark in brackets, or the whole item."""
    left = set(CVE.findall(item))
    front = _FRONT.match(item)
    if front:
        yield from ((cve, front[1]) for cve in left)
        return
    for match in _PATCH.finditer(item):
        yield match[2], match[1]
        left.discard(match[2])
    for match in _REMARK.finditer(item):
        yield match[1], match[2]
        left.discard(match[1])
    if len(left) <= 3:  # an item with a long list of them says nothing about each
        plain = _REMARK.sub("", _PATCH.sub("", item)).removeprefix("* ").removeprefix("- ")
        for cve in left:
            yield cve, plain


class _Index:
    """Finds the file that a text is about: by its path, its first words, or the name of a driver."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = sorted(names)
        self.by_path: dict[str, set[str]] = defaultdict(set)
        self.by_stem: dict[str, set[str]] = defaultdict(set)
        for name in self.names:
            path = os.path.splitext(name)[0]
            self.by_path[path].add(name)
            if name.endswith(".c"):
                stem = os.path.basename(path).replace("_", "-").lower()
                self.by_stem[stem].add(name)
                if stem.startswith("hcd-"):  # USB host controllers are known without it
                    self.by_stem[stem.removeprefix("hcd-")].add(name)

    def find(self, text: str) -> set[str]:
        subject = text.partition(": ")[0]
        for part in re.split(r", ?", subject):
            if part in self.by_path:
                return self.by_path[part]
        words = _WORD.findall(text.lower().replace("_", "-"))
        return self._driver(words) or self._starting(words, 0)

    def _starting(self, words: list[str], start: int) -> set[str]:
        """The file whose name is made of as many as possible of the words from ``start`` on."""
        for end in range(min(len(words), start + 4), start, -1):
            name = "-".join(words[start:end])
            if name in _ALIASES:
                return {one for one in self.names if one.startswith(_ALIASES[name])}
            if len(self.by_stem.get(name, ())) == 1:
                return self.by_stem[name]
        return set()

    def _driver(self, words: list[str]) -> set[str]:
        """The first file of a device that ``words`` name, if its name is no everyday word."""
        for start in range(len(words)):
            found = self._starting(words, start)
            if any(name.startswith("hw/") for name in found) and words[start] not in _EVERYDAY:
                return found
        return set()


def _is_product(name: str) -> bool:
    return name.endswith(_SOURCE) and not name.startswith(_NOT_PRODUCT)
