"""What is read out of ninja's own files."""

from __future__ import annotations

from nemu.shrink import ninja

TEXT = """\
rule c_COMPILER
 command = cc -o $out -c $in

build a.o: c_COMPILER ../src/a.c | gen.h || order.stamp
 DEPFILE = a.o.d
build gen.h other.h: CUSTOM_COMMAND ../src/my$ file.json $
  ../src/gen.py
build prog: LINK a.o
build C$:/x: CUSTOM_COMMAND prog
"""


def test_build_statements_have_outputs_rule_and_every_kind_of_input() -> None:
    assert dict(ninja.statements(TEXT)) == {
        "a.o": ("c_COMPILER", ("../src/a.c", "gen.h", "order.stamp")),
        "gen.h": ("CUSTOM_COMMAND", ("../src/my file.json", "../src/gen.py")),
        "other.h": ("CUSTOM_COMMAND", ("../src/my file.json", "../src/gen.py")),
        "prog": ("LINK", ("a.o",)),
        "C:/x": ("CUSTOM_COMMAND", ("prog",)),
    }
