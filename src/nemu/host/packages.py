"""Packages of the Debian distribution, without root and without touching this machine's dpkg.

A private apt root lies in the cache: it reads this machine's own Debian sources, keyrings and
proxy settings, keeps its own lists, and believes that nothing is installed, so that a request
resolves to the same packages everywhere.  A request that was answered once needs neither apt nor the network.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import NamedTuple

from nemu.errors import HostError
from nemu.host import cache

OS_RELEASE = "/etc/os-release"
APT_DIRECTORY = "/etc/apt"
LISTS_MAX_AGE = 24 * 3600  # seconds until the package lists are fetched again


class Package(NamedTuple):
    """One .deb file in the cache."""

    name: str
    version: str
    architecture: str
    path: str


def fetch(
    names: Iterable[str],
    *,
    architecture: str = "amd64",
    only: tuple[str, ...] = (),
    refresh: bool = False,
    progress: Callable[[str], None] = lambda step: None,
) -> list[Package]:
    """The packages ``names`` with all that they depend on, as .deb files.

    ``only`` keeps just the packages whose name begins so (a kernel is wanted without its
    initramfs tools).  ``refresh`` asks the distribution again.  ``progress`` is told when something
    is really fetched.  Raises HostError with a remedy.
    """
    wanted = sorted(set(names))

    def build(directory: str) -> None:
        progress("fetching packages")
        _download(directory, wanted, architecture, only)

    key = _key(architecture, *wanted, "only", *only)
    place = cache.entry("packages", key, ("index",), build, rebuild=refresh)
    with open(os.path.join(place, "index"), encoding="ascii") as index:
        rows = [line.split() for line in index]
    packages = [Package(row[0], row[1], row[2], os.path.join(place, row[3])) for row in rows]
    if not refresh and not all(os.path.exists(package.path) for package in packages):
        return fetch(wanted, architecture=architecture, only=only, refresh=True, progress=progress)
    return packages


def unpack(packages: Iterable[Package], directory: str) -> None:
    """Unpack all of ``packages`` over one another into ``directory``; no maintainer script runs."""
    for package in packages:
        _run([_program("dpkg-deb"), "-x", package.path, directory])


def source(name: str, *, refresh: bool = False, progress: Callable[[str], None] = lambda step: None) -> str:
    """The source control file (.dsc) of the source package ``name``, with its archives beside it."""

    def build(directory: str) -> None:
        progress("fetching the source package")
        with cache.locked("apt-source"):
            environment = _apt_root("source", "deb-src")
            _run([_program("apt-get"), "source", "-q", "--download-only", name], environment, cwd=directory)
        (control,) = (file for file in os.listdir(directory) if file.endswith(".dsc"))
        _write(os.path.join(directory, "index"), control)

    place = cache.entry("sources", _key(name, _debian_sources("deb-src")), ("index",), build, rebuild=refresh)
    return os.path.join(place, _read(os.path.join(place, "index")))


def tree(
    names: Iterable[str],
    *,
    architecture: str = "amd64",
    progress: Callable[[str], None] = lambda step: None,
) -> str:
    """A directory with the unpacked packages ``names`` (see fetch); kept in the cache, not to be written."""
    packages = fetch(names, architecture=architecture, progress=progress)
    key = _key(*(os.path.basename(package.path) for package in packages))

    def build(directory: str) -> None:
        unpack(packages, os.path.join(directory, "root"))

    return os.path.join(cache.entry("trees", key, ("root",), build), "root")


def program(name: str, package: str, progress: Callable[[str], None] = lambda step: None) -> list[str]:
    """The start of a command line that runs ``name``: this machine's own, else that of ``package``.

    A program from the cache runs with the dynamic loader and the libraries of its own packages, so
    that it fits whatever this machine has.
    """
    import shutil

    found = shutil.which(name)
    if found:
        return [found]
    base = tree((package,), progress=progress)
    libraries = ":".join(f"{base}/{path}" for path in ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"))
    for directory in ("usr/bin", "usr/sbin", "bin", "sbin"):
        binary = f"{base}/{directory}/{name}"
        if os.path.exists(binary):
            return [f"{base}/lib64/ld-linux-x86-64.so.2", "--library-path", libraries, binary]
    raise HostError(f"{name}: not in the package {package}")


def _key(*parts: str) -> str:
    import hashlib

    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _download(directory: str, names: list[str], architecture: str, only: tuple[str, ...]) -> None:
    """Fill ``directory`` with the .deb files and an ``index`` of name, version, architecture, file."""
    with cache.locked(f"apt-{architecture}"):
        environment = _apt_root(architecture)
        chosen = [row for row in _resolve(names, environment) if not only or row[0].startswith(only)]
        missing = [row for row in chosen if not _take_known(row, directory)]
        if missing:
            targets = [f"{name}:{arch}={version}" for name, version, arch in missing]
            _run([_program("apt-get"), "download", "-q", *targets], environment, cwd=directory)
    rows = []
    for name, version, arch in chosen:
        file = f"{name}_{version.replace(':', '%3a')}_{arch}.deb"
        rows.append(f"{name} {version} {arch} {_by_content(directory, file)}\n")
    with open(os.path.join(directory, "index"), "w", encoding="ascii") as index:
        index.writelines(rows)


def _by_content(directory: str, file: str) -> str:
    """Give ``file`` a name that carries its digest, and lend it to later requests."""
    import hashlib

    path = os.path.join(directory, file)
    with open(path, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()[:16]
    name = f"{file.removesuffix('.deb')}-{digest}.deb"
    os.rename(path, os.path.join(directory, name))
    pool = os.path.join(cache.root(), "pool")
    os.makedirs(pool, exist_ok=True)
    if not os.path.exists(os.path.join(pool, name)):
        os.link(os.path.join(directory, name), os.path.join(pool, name))
    return name


def _take_known(row: tuple[str, str, str], directory: str) -> bool:
    """Link the package ``row`` from the pool into ``directory``; False when the pool has it not."""
    name, version, arch = row
    stem = f"{name}_{version.replace(':', '%3a')}_{arch}"
    pool = os.path.join(cache.root(), "pool")
    known = os.listdir(pool) if os.path.isdir(pool) else []
    for file in known:
        if file.startswith(stem + "-"):
            os.link(os.path.join(pool, file), os.path.join(directory, stem + ".deb"))
            return True
    return False


def _resolve(names: list[str], environment: dict[str, str]) -> list[tuple[str, str, str]]:
    """(name, version, architecture) of ``names`` and their dependencies, onto an empty machine."""
    import re

    text = _run(
        [_program("apt-get"), "install", "-s", "-q", "--no-install-recommends", *names],
        environment,
    )
    rows = re.findall(r"^Inst (\S+) \((\S+) .*\[(\w+)\]\)", text, re.MULTILINE)
    return [(name.partition(":")[0], version, arch) for name, version, arch in sorted(set(rows))]


def _apt_root(architecture: str, types: str = "deb") -> dict[str, str]:
    """Prepare the private apt root with lists of today; the environment that makes apt use it.

    A root for ``deb-src`` has no lists of binary packages, so that its architecture does not matter.
    """
    import time

    place = os.path.join(cache.root(), "apt", architecture)
    for directory in ("lists/partial", "archives/partial", "none"):
        os.makedirs(os.path.join(place, directory), exist_ok=True)
    _write(os.path.join(place, "status"), "")
    sources = _debian_sources(types)
    _write(os.path.join(place, "debian.sources"), sources)
    settings = _apt_settings(place, "amd64" if types == "deb-src" else architecture)
    _write(os.path.join(place, "apt.conf"), settings)
    environment = dict(
        os.environ, APT_CONFIG=os.path.join(place, "apt.conf"), LC_ALL="C", DEBIAN_FRONTEND="noninteractive"
    )
    stamp = os.path.join(place, "updated")
    fresh = os.path.exists(stamp) and time.time() - os.stat(stamp).st_mtime < LISTS_MAX_AGE
    if not fresh or _read(stamp) != sources:
        _run([_program("apt-get"), "update", "-q"], environment)
        _write(stamp, sources)
    return environment


def _apt_settings(place: str, architecture: str) -> str:
    """An apt.conf that leaves nothing of this machine's but how to reach the network and whom to trust."""
    own = [
        line for line in _run([_program("apt-config"), "dump"]).splitlines() if line.startswith("Acquire::")
    ]
    network = [line for line in own if line.split("::")[1].split(" ")[0] in _NETWORK_SETTINGS]
    return "\n".join(
        [
            *network,
            'Dir::Etc::main "/dev/null";',
            f'Dir::Etc::parts "{place}/none";',
            f'Dir::Etc::sourcelist "{place}/debian.sources";',
            f'Dir::Etc::sourceparts "{place}/none";',
            f'Dir::Etc::preferences "{place}/none/preferences";',
            f'Dir::Etc::preferencesparts "{place}/none";',
            f'Dir::State "{place}";',
            f'Dir::State::lists "{place}/lists";',
            f'Dir::State::status "{place}/status";',
            f'Dir::Cache "{place}";',
            'Dir::Cache::pkgcache "";',
            'Dir::Cache::srcpkgcache "";',
            f'APT::Architecture "{architecture}";',
            f'APT::Architectures {{ "{architecture}"; }};',
            'APT::Sandbox::User "root";',
            'APT::Update::Error-Mode "any";',
            'Acquire::Languages "none";',
            "",
        ]
    )


_NETWORK_SETTINGS = frozenset(
    (
        "http",
        "https",
        "Retries",
        "ForceIPv4",
        "ForceIPv6",
        "Check-Valid-Until",
        "Check-Date",
        "Proxy-Auto-Detect",
    )
)


def _debian_sources(types: str = "deb") -> str:
    """This machine's Debian sources, third parties' left out, in deb822 form (sources.list(5)).

    A mirror of binary packages is asked for source packages (``deb-src``) as well.
    """
    codename = _os_release().get("VERSION_CODENAME", "")
    suites = {codename, f"{codename}-updates", f"{codename}-security", f"{codename}/updates"}
    stanzas = []
    for fields in _all_sources():
        wanted = [suite for suite in fields["suites"].split() if suite in suites]
        if wanted and "main" in fields["components"].split() and "deb" in fields["types"].split():
            stanza = f"Types: {types}\nURIs: {fields['uris']}\nSuites: {' '.join(wanted)}\nComponents: main\n"
            stanzas.append(
                stanza + (f"Signed-By: {fields['signed-by']}\n" if fields.get("signed-by") else "")
            )
    if not stanzas:
        raise HostError(
            f"no Debian package source in {APT_DIRECTORY}: nemu builds its small guest and its emulated host "
            "from Debian packages; give --kernel and --initrd, and use a host with KVM"
        )
    return "\n".join(stanzas)


def _all_sources() -> list[dict[str, str]]:
    directory = os.path.join(APT_DIRECTORY, "sources.list.d")
    parts = sorted(os.listdir(directory)) if os.path.isdir(directory) else []
    found = _one_line_sources(_read(os.path.join(APT_DIRECTORY, "sources.list")))
    for part in parts:
        text = _read(os.path.join(directory, part))
        if part.endswith(".list"):
            found += _one_line_sources(text)
        elif part.endswith(".sources"):
            found += _deb822_sources(text)
    return found


def _one_line_sources(text: str) -> list[dict[str, str]]:
    import re

    found = []
    for line in text.splitlines():
        match = re.match(r"\s*deb\s+(?:\[([^]]*)\]\s+)?(\S+)\s+(\S+)\s+([^#]*)", line)
        if match:
            options = dict(word.split("=", 1) for word in (match[1] or "").split() if "=" in word)
            found.append(
                {
                    "types": "deb",
                    "uris": match[2],
                    "suites": match[3],
                    "components": match[4],
                    "signed-by": options.get("signed-by", ""),
                }
            )
    return found


def _deb822_sources(text: str) -> list[dict[str, str]]:
    import re

    found = []
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    for stanza in re.split(r"\n\s*\n", "\n".join(lines)):
        fields: dict[str, str] = {"types": "", "uris": "", "suites": "", "components": "", "enabled": "yes"}
        name = ""
        for line in stanza.splitlines():
            if line[:1].isspace():
                fields[name] = fields.get(name, "") + "\n" + line
            elif ":" in line:
                name, _, value = line.partition(":")
                name = name.strip().lower()
                fields[name] = value.strip()
        if fields["enabled"].lower() != "no":
            found.append(fields)
    return found


def _os_release() -> dict[str, str]:
    pairs = (line.partition("=") for line in _read(OS_RELEASE).splitlines())
    return {name: value.strip('"') for name, _, value in pairs}


def _program(name: str) -> str:
    import shutil

    path = shutil.which(name)
    if path is None:
        raise HostError(
            f"{name} is not there: nemu builds its small guest and its emulated host from Debian packages; "
            "give --kernel and --initrd, and use a host with KVM"
        )
    return path


def _run(argv: list[str], environment: dict[str, str] | None = None, cwd: str | None = None) -> str:
    """Standard output of ``argv``; HostError with its first error line when it fails."""
    import subprocess

    done = subprocess.run(
        argv, env=environment, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode:
        lines = [
            line for line in done.stderr.splitlines() if line.startswith("E:")
        ] or done.stderr.splitlines()
        reason = lines[0].removeprefix("E:").strip() if lines else f"exit status {done.returncode}"
        what = " ".join([os.path.basename(argv[0]), *argv[1:2]])
        raise HostError(f"{what} failed: {reason} (is the network there, and room on the disk?)")
    return done.stdout


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
