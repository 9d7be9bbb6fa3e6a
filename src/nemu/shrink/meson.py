"""Build descriptions of Meson: take out what names files that are gone.

The parser is Meson's own; what is removed is cut out of the text, so that all the rest stays as it was.  A
value is *gone* when all that it is made of is gone: a literal that names a deleted file, a list or
``files()`` of such, a target with such a source, a variable that only ever held one.  Nobody proves here that
this is right: the pruned tree is configured again and has to give the same commands.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

from nemu.errors import HostError

if TYPE_CHECKING:
    pass

FILE = "meson.build"
# Functions that make something out of files: without one of them, it cannot be made.
_TARGETS = frozenset(
    "executable static_library shared_library shared_module both_libraries library build_target jar "
    "custom_target run_target find_program test benchmark configure_file run_command vcs_tag "
    "declare_dependency".split()
)
# Functions and methods that take as many files as there are.
_LISTS = frozenset("files install_data install_headers install_man add extend add_all".split())
_NAMED = frozenset(("executable", "static_library", "shared_library", "custom_target", "test", "run_target"))


@cache
def parse(text: str, name: str) -> Any:
    """The syntax tree of ``text``.  Raises HostError when Meson's parser is missing or refuses it."""
    try:
        from mesonbuild import mparser
    except ImportError:
        raise HostError("the Python package meson is not there: pip install 'nemu[shrink]'") from None
    try:
        return mparser.Parser(text, name).parse()
    except Exception as error:  # Meson's own exceptions have no common public name
        raise HostError(f"{name}: Meson's parser refuses it: {error}") from None


class Pruner:
    """Prunes all descriptions of one tree together: variables reach from one file to another.

    ``gone(folder, literal)`` says whether a string in the description of ``folder`` names something deleted.
    Variables in ``protected`` keep their assignments.
    """

    def __init__(
        self,
        texts: dict[str, str],
        gone: Callable[[str, str], bool],
        protected: frozenset[str] | set[str] = frozenset(),
    ) -> None:
        self.texts = texts
        self.gone = gone
        self.protected = protected
        self.trees = {name: parse(text, name) for name, text in texts.items()}
        self.dead: set[str] = set()
        self.assignments = Counter(name for text in texts.values() for name in _ASSIGNED.findall(text))

    def run(self) -> dict[str, str]:
        """The new texts; "" for a description in which nothing is left."""
        while True:
            before = len(self.dead)
            cuts = {name: _File(self, name).cuts() for name in self.trees}
            if len(self.dead) == before:
                break
        texts = {name: _without(self.texts[name], spans) for name, spans in cuts.items()}
        return {name: text if _says_something(text) else "" for name, text in texts.items()}


class _File:
    """One walk over one description."""

    def __init__(self, pruner: Pruner, name: str) -> None:
        self.pruner = pruner
        self.name = name
        self.folder = os.path.dirname(name)
        self.spans: list[tuple[int, int, str]] = []

    def cuts(self) -> list[tuple[int, int, str]]:
        self._block(self.pruner.trees[self.name])
        return self.spans

    def _block(self, block: Any) -> bool:
        """Reduce every statement; whether none is left."""
        left = 0
        for statement in block.lines:
            if self._reduce(statement):
                self._cut(statement)
            else:
                left += 1
        return left == 0

    def _cut(self, node: Any, replacement: str = "") -> None:
        self._cut_span(*span(node), replacement)

    def _cut_span(self, start: int, end: int, replacement: str = "") -> None:
        """Cut from ``start`` to ``end``; smaller cuts in there are part of it."""
        self.spans = [one for one in self.spans if not (start <= one[0] and one[1] <= end)]
        self.spans.append((start, end, replacement))

    def _reduce(self, node: Any) -> bool:
        """Cut what is gone out of ``node``; True when all of it is gone (the caller cuts it out then)."""
        handler = getattr(self, "_" + type(node).__name__.removesuffix("Node").lower(), None)
        return bool(handler(node)) if handler else False

    def _string(self, node: Any) -> bool:
        plain = not getattr(node, "is_fstring", False)
        return plain and isinstance(node.value, str) and self.pruner.gone(self.folder, node.value)

    def _id(self, node: Any) -> bool:
        return node.value in self.pruner.dead

    def _array(self, node: Any) -> bool:
        had = len(node.args.arguments)
        return had > 0 and self._arguments(node.args) == 0

    def _dict(self, node: Any) -> bool:
        had = len(node.args.kwargs)
        return had > 0 and self._arguments(node.args) == 0

    def _parenthesized(self, node: Any) -> bool:
        return self._reduce(node.inner)

    def _arithmetic(self, node: Any) -> bool:
        left, right = self._reduce(node.left), self._reduce(node.right)
        if left and right:
            return True
        if right:
            self._cut_span(span(node.left)[1], span(node.right)[1])
        elif left:
            self._cut_span(span(node.left)[0], span(node.right)[0])
        return False

    def _ternary(self, node: Any) -> bool:
        return self._would_go(node.trueblock) and self._would_go(node.falseblock)

    def _function(self, node: Any) -> bool:
        name = node.func_name.value
        if name == "subdir":
            return self._all_gone(node.args)
        if name in _TARGETS:
            return self._target(node.args, 1 if name in _NAMED else 0)
        if name in _LISTS:
            return len(node.args.arguments) > 0 and self._positional_left(node.args) == 0
        return False

    def _method(self, node: Any) -> bool:
        name = node.name.value
        if self._would_go(node.source_object):
            return True
        if name == "process":
            return any(self._would_go(argument) for argument in node.args.arguments)
        if name in _LISTS and len(node.args):
            self._arguments(node.args)
            values = [*node.args.arguments, *_keyword_values(node.args, ("if_true", "if_false"))]
            return all(self._would_go(value) for value in values)
        return False

    def _target(self, args: Any, first: int) -> bool:
        values = [*args.arguments[first:], *_keyword_values(args, ("input", "sources", "command", "depends"))]
        return any(self._any_gone(value) for value in values)

    def _assignment(self, node: Any) -> bool:
        if not self._reduce(node.value):
            return False
        if type(node.value).__name__ == "ArrayNode" or _calls(node.value) == "files":
            self._cut(node.value, "[]")  # others may go on adding to it
            return False
        name = node.var_name.value
        if name in self.pruner.protected or self._assigned_elsewhere(name):
            return False
        self.pruner.dead.add(name)
        return True

    def _plusassignment(self, node: Any) -> bool:
        return self._reduce(node.value)

    def _ifclause(self, node: Any) -> bool:
        blocks = [one.block for one in node.ifs]
        if hasattr(node.elseblock, "block"):
            blocks.append(node.elseblock.block)
        had = sum(len(block.lines) for block in blocks)
        empty = [self._block(block) for block in blocks]
        return had > 0 and all(empty)

    def _foreachclause(self, node: Any) -> bool:
        had = len(node.block.lines)
        if self._reduce(node.items):
            return True
        return self._block(node.block) and had > 0

    def _assigned_elsewhere(self, name: str) -> bool:
        """Whether more than one assignment makes the variable: then each one may be the one that counts."""
        return self.pruner.assignments[name] > 1

    def _arguments(self, args: Any) -> int:
        """Cut the gone arguments of ``args``; how many are left.  A ``when:`` is a condition and stays."""
        left = self._positional_left(args)
        for key, value in args.kwargs.items():
            if getattr(key, "value", "") != "when" and self._reduce(value):
                self._cut_argument(args, key, value)
            else:
                left += 1
        return left

    def _positional_left(self, args: Any) -> int:
        left = 0
        for argument in args.arguments:
            if self._reduce(argument):
                self._cut_argument(args, argument, argument)
            else:
                left += 1
        return left

    def _cut_argument(self, args: Any, first: Any, last: Any) -> None:
        start, end = span(first)[0], span(last)[1]
        following = [comma.bytespan[1] for comma in args.commas if comma.bytespan[0] >= end]
        # The next comma goes along; Meson allows one before the closing bracket.
        end = min(following) if following else end
        self._cut_span(start, end)

    def _all_gone(self, args: Any) -> bool:
        return len(args.arguments) > 0 and all(self._would_go(argument) for argument in args.arguments)

    def _would_go(self, node: Any) -> bool:
        """Whether all of ``node`` is gone, without cutting anything."""
        before = list(self.spans)
        gone = self._reduce(node)
        self.spans = before
        return gone

    def _any_gone(self, node: Any) -> bool:
        if type(node).__name__ == "ArrayNode" or _calls(node) == "files":
            return any(self._any_gone(argument) for argument in node.args.arguments)
        return self._would_go(node)


def _keyword_values(args: Any, names: tuple[str, ...]) -> list[Any]:
    return [value for key, value in args.kwargs.items() if getattr(key, "value", "") in names]


def _calls(node: Any) -> str:
    """The name of the function that ``node`` calls, "" when it is no call."""
    return str(node.func_name.value) if type(node).__name__ == "FunctionNode" else ""


def span(node: Any) -> tuple[int, int]:
    """Start and end of ``node`` in the text."""
    spans = list(_spans(node))
    return min(start for start, _ in spans), max(end for _, end in spans)


def _spans(node: Any) -> Iterator[tuple[int, int]]:
    own = getattr(node, "bytespan", None)
    if own and type(node).__name__ != "CodeBlockNode":
        yield own
        return
    for key, value in vars(node).items():
        if key == "whitespaces":
            continue
        parts = [*value.keys(), *value.values()] if isinstance(value, dict) else value
        for part in parts if isinstance(parts, list) else [parts]:
            if hasattr(part, "accept"):
                yield from _spans(part)


def statements(block: Any) -> Iterator[Any]:
    """Every statement in ``block``, those inside conditions and loops too."""
    for statement in block.lines:
        yield statement
        for inner in (
            [*(one.block for one in statement.ifs), getattr(statement.elseblock, "block", None)]
            if hasattr(statement, "ifs")
            else [getattr(statement, "block", None)]
        ):
            if inner is not None:
                yield from statements(inner)


def assigned(tree: Any) -> set[str]:
    """The variables that a description makes: by ``=``, or as what a loop runs over."""
    found = set()
    for one in statements(tree):
        if type(one).__name__ == "AssignmentNode":
            found.add(one.var_name.value)
        found.update(name.value for name in getattr(one, "varnames", ()))
    return found


def surely_used(node: Any) -> set[str]:
    """The variables that are read whenever ``node`` is evaluated: not those in branches and loops."""
    kind = type(node).__name__
    if kind == "IdNode":
        return {node.value}
    parts: dict[str, Callable[[], list[Any]]] = {
        "CodeBlockNode": lambda: node.lines,
        "IfClauseNode": lambda: [node.ifs[0].condition],
        "ForeachClauseNode": lambda: [node.items],
        "TernaryNode": lambda: [node.condition],
        "FunctionNode": lambda: [node.args],
        "MethodNode": lambda: [node.source_object, node.args],
        "AssignmentNode": lambda: [node.value],
        "PlusAssignmentNode": lambda: [node.value],
        "ArgumentNode": lambda: [*node.arguments, *node.kwargs.values()],
        "ArrayNode": lambda: [node.args],
        "DictNode": lambda: [node.args],
        "ParenthesizedNode": lambda: [node.inner],
        "ArithmeticNode": lambda: [node.left, node.right],
        "ComparisonNode": lambda: [node.left, node.right],
        "AndNode": lambda: [node.left],
        "OrNode": lambda: [node.left],
        "NotNode": lambda: [node.value],
        "IndexNode": lambda: [node.iobject, node.index],
    }
    inner = parts[kind]() if kind in parts else []
    return {name for part in inner for name in surely_used(part)}


_ASSIGNED = re.compile(r"^\s*(\w+)\s*\+?=[^=]", re.MULTILINE)
_BLANK = re.compile(r"[ \t]*")


def _without(text: str, spans: list[tuple[int, int, str]]) -> str:
    """``text`` with ``spans`` replaced; a line that has become empty by it goes altogether."""
    for start, end, replacement in sorted(spans, reverse=True):
        first, last = (start, end) if replacement else _widened(text, start, end)
        text = text[:first] + replacement + text[last:]
    return text


def _widened(text: str, start: int, end: int) -> tuple[int, int]:
    """``start`` and ``end`` of a cut, with the rest of its lines when nothing else is on them."""
    line = text.rfind("\n", 0, start) + 1
    blank = _BLANK.match(text, end)
    assert blank
    following = text[blank.end() : blank.end() + 1]
    if text[line:start].strip() or following not in ("\n", ""):
        return start, end if following in ("#", "\n") else blank.end()
    end = min(blank.end() + 1, len(text))
    if text[:line].endswith("\n\n") and text[end:].startswith("\n"):
        end += 1  # one blank line between what was above and below is enough
    return line, end


def _says_something(text: str) -> bool:
    return any(line.strip() and not line.strip().startswith("#") for line in text.splitlines())
