"""``nemu shrink``: remove from a C tree what a profile does not need."""

from __future__ import annotations

import argparse
import signal
import sys
from typing import Any

from nemu.errors import ConfigError

_DESCRIPTION = """\
Build every configuration of a profile while all that it touches is recorded, delete every other file, prune
the build descriptions, build again from what is left, compare, boot, and report what was saved. The source
that is given is only read."""

_EPILOG = """\
PROFILE is the name of a shipped profile (nemu shrink profiles) or a TOML file (docs/shrink.md).

What is in DIR afterwards:
  tree/         the pruned tree          removed.txt   the files that are gone
  report.html   figures with pictures    edits.patch   what was changed in files that stay (patch -p1)
  report.json   the same for programs

examples:
  nemu shrink run qemu-virt --out shrunk
      QEMU's source package of this distribution
  nemu shrink run qemu-virt --level tcg --source ~/qemu --git shrunk --out ../report
      a git checkout: the pruned tree becomes a commit on the branch "shrunk"; the working tree is not touched
  nemu shrink run qemu-virt --functions --install-deps --out shrunk
      functions that nothing calls go too; packages that the build needs are installed first"""


def register(subparsers: Any, name: str) -> None:
    """Add ``shrink`` to the commands."""
    parser = subparsers.add_parser(name, help="remove from a C tree what a profile does not need")
    commands = parser.add_subparsers(dest="shrink_command", required=True, metavar="COMMAND")
    one = commands.add_parser(
        "run",
        help="prune a source for a profile, prove it, report",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    one.add_argument("profile", metavar="PROFILE", help="name of a shipped profile, or a TOML file")
    one.add_argument("--out", metavar="DIR", required=True, help="where the results go")
    one.add_argument("--source", metavar="WHAT", help="a directory, or the name of a source package")
    one.add_argument("--level", metavar="NAME", default="", help="a level of the profile")
    one.add_argument(
        "--git",
        metavar="BRANCH",
        help="put the pruned tree on this branch of the checkout that --source names; without a checkout, "
        "of a new repository in DIR",
    )
    one.add_argument(
        "--functions", action="store_true", help="remove functions that nothing calls from files that stay"
    )
    one.add_argument("--no-boot", action="store_true", help="do not boot what was built")
    one.add_argument("--install-deps", action="store_true", help="install missing packages with apt-get")
    one.add_argument("--refresh", action="store_true", help="fetch the source package again")
    one.add_argument("--force", action="store_true", help="replace what is in DIR")
    one.add_argument("--jobs", metavar="N", default=None, help="compilers at a time (default: one a CPU)")
    one.set_defaults(run=run)
    listing = commands.add_parser("profiles", help="list the shipped profiles and their levels")
    listing.set_defaults(run=profiles)


def run(arguments: argparse.Namespace) -> int:
    """One whole run; prints the summary and where the results are."""
    from nemu.shrink import profile
    from nemu.shrink.publish import report_and_publish
    from nemu.shrink.run import Options, Run

    chosen = profile.load(arguments.profile, arguments.level)
    options = Options(
        out=arguments.out,
        source=arguments.source or "",
        git=arguments.git or "",
        functions=arguments.functions or chosen.functions,
        boot=not arguments.no_boot,
        install=arguments.install_deps,
        refresh=arguments.refresh,
        force=arguments.force,
        jobs=_jobs(arguments.jobs),
    )
    # Builds end with this process, also when it is asked to end.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.stdout.write(report_and_publish(Run(chosen, options)))
    return 0


def profiles(arguments: argparse.Namespace) -> int:
    """Name, levels and purpose of each shipped profile."""
    from nemu.shrink import profile

    for name in profile.shipped():
        about, levels = profile.describe(name)
        print(f"{name:14} {about}" + (f" (levels: {', '.join(levels)})" if levels else ""))
    return 0


def _jobs(text: str | None) -> int:
    import os

    from nemu import syntax

    if text is None:
        return len(os.sched_getaffinity(0))
    try:
        return syntax.integer(1, 1024)(text)
    except ValueError as error:
        raise ConfigError("--jobs", text, str(error)) from None
