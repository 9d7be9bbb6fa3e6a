"""``nemu guest build``: make the small guest."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser], name: str) -> None:
    """Add the ``guest`` command."""
    parser = subparsers.add_parser(name, help="build the small guest that `nemu run` boots without --kernel")
    commands = parser.add_subparsers(dest="guest_command", required=True, metavar="COMMAND")
    build = commands.add_parser(
        "build",
        help="make its kernel and initramfs from distribution packages",
        description="Make the small guest (a cloud kernel, busybox, virtio modules, a tiny init) from Debian "
        "packages, without root.  It is kept in the cache; `nemu run` builds it by itself on first use.",
    )
    build.add_argument("--rebuild", action="store_true", help="make it anew from the packages of today")
    build.set_defaults(run=build_guest)


def build_guest(args: argparse.Namespace) -> int:
    """Build, and say where it is and how to boot it."""
    from nemu.host import guest

    print(guest.summary(guest.ensure(rebuild=args.rebuild)))
    return 0
