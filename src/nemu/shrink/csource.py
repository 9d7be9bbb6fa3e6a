"""C sources as the shrinker sees them: definitions that could be removed, and who names whom.

tree-sitter finds the definitions.  It does not expand macros, so what it says is checked against the text,
and whatever looks unusual is left alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nemu.errors import HostError

if TYPE_CHECKING:
    from tree_sitter import Node, Parser

SUFFIXES = (".c", ".h", ".c.inc", ".h.inc", ".inc")
_WORD = re.compile(
    rb"//[^\n]*|/\*.*?\*/|\"(?:[^\"\\\n]|\\.)*\"|'(?:[^'\\\n]|\\.)*'|([A-Za-z_]\w*)", re.DOTALL
)
# A macro that stands alone on its line, such as type_init(x): no C, and tree-sitter takes it for a type.
_LONE_MACRO = re.compile(rb"^[A-Za-z_]\w*\([^{};\n]*\)[ \t]*$", re.MULTILINE)
_CONDITIONAL = re.compile(rb"^[ \t]*#[ \t]*(if|ifdef|ifndef|elif|else|endif)\b", re.MULTILINE)
_NEXT = re.compile(rb"\s*")


@dataclass(frozen=True)
class Definition:
    """A function, a static variable or a prototype: ``name`` and its bytes, its own comment included."""

    name: str
    start: int
    end: int
    words: frozenset[str] = frozenset()


@dataclass
class Unit:
    """One file.  ``words``: all identifiers outside of what could be removed."""

    definitions: list[Definition] = field(default_factory=list)
    prototypes: list[Definition] = field(default_factory=list)
    words: set[str] = field(default_factory=set)


def parser() -> Parser:
    """tree-sitter's parser for C.  Raises HostError when the package is missing."""
    try:
        import tree_sitter
        import tree_sitter_c
    except ImportError as error:
        raise HostError(f"the Python package {error.name} is not there: pip install 'nemu[shrink]'") from None
    return tree_sitter.Parser(tree_sitter.Language(tree_sitter_c.language()))


def words(text: bytes) -> set[str]:
    """The identifiers in C or similar ``text``, without comments and strings."""
    return {match[1].decode() for match in _WORD.finditer(text) if match[1]}


def read(text: bytes, parse: Parser) -> Unit:
    """What is in the C source ``text``."""
    tree = parse.parse(_LONE_MACRO.sub(lambda match: _blank(text, match), text))
    unit = Unit()
    for node in _top_level(tree.root_node):
        if node.type == "function_definition":
            _add(unit.definitions, _function_name(node), node, text)
        elif node.type == "declaration":
            if name := _prototype_name(node):
                _add(unit.prototypes, name, node, text)
            else:
                _add(unit.definitions, _variable_name(node), node, text)
    unit.words = words(without(text, [*unit.definitions, *unit.prototypes]))
    return unit


def without(text: bytes, parts: list[Definition]) -> bytes:
    """``text`` with ``parts`` cut out, and the blank lines that they leave."""
    for part in sorted(parts, key=lambda one: one.start, reverse=True):
        before, after = text[: part.start], text[part.end :]
        if before.endswith(b"\n\n") or not before:
            after = after.lstrip(b"\n") if after.startswith(b"\n\n") else after.removeprefix(b"\n")
        else:
            after = after.removeprefix(b"\n")
        text = before + after
    return text


def _blank(text: bytes, match: re.Match[bytes]) -> bytes:
    """Blanks instead of a lone macro, unless it begins a function definition or its attributes."""
    following = _NEXT.match(text, match.end())
    assert following
    gap = text[match.end() : following.end()]
    if text[following.end() : following.end() + 1] == b"{" or gap.count(b"\n") < 2:
        return match[0]
    return b" " * len(match[0])


def _top_level(node: Node) -> Iterator[Node]:
    """Everything at file scope, also below #if."""
    for child in node.children:
        if child.type.startswith("preproc_") and child.type not in ("preproc_def", "preproc_function_def"):
            yield from _top_level(child)
        elif child.type == "linkage_specification":
            continue
        else:
            yield child


def _add(parts: list[Definition], name: str, node: Node, text: bytes) -> None:
    if name and _is_plain(node, text):
        start = _with_comment(node, text)
        body = text[node.start_byte : node.end_byte]
        parts.append(Definition(name, start, node.end_byte, frozenset(words(body) - {name})))


def _is_plain(node: Node, text: bytes) -> bool:
    """Whether the bytes of ``node`` are whole lines that can be cut out by themselves."""
    start, end = node.start_byte, node.end_byte
    body = text[start:end]
    line = text.rfind(b"\n", 0, start) + 1
    if line != start or text[end : end + 1] not in (b"\n", b""):
        return False
    opens = [match[1] for match in _CONDITIONAL.finditer(body)]
    if sum(word.startswith(b"if") for word in opens) != opens.count(b"endif"):
        return False
    # A function that tree-sitter did not understand may end somewhere else: its brace must say so.
    last = body.rpartition(b"\n")[2]
    if node.type == "function_definition" and b"\n}" in body[:-2]:
        return False
    if node.has_error and not (node.type == "function_definition" and last == b"}"):
        return False
    return _stands_alone(text[:start])


def _stands_alone(before: bytes) -> bool:
    """Whether what ends with ``before`` is complete: no attribute or macro that belongs to what follows."""
    previous = before.rstrip(b" \t\n")
    line = previous[previous.rfind(b"\n") + 1 :]
    if not line or (len(before) - len(previous) > 1 and before.endswith(b"\n\n")):
        return True
    return line.endswith((b"}", b";", b"*/")) or line.lstrip().startswith((b"#", b"//"))


def _with_comment(node: Node, text: bytes) -> int:
    """Where ``node`` starts together with the comment right above it."""
    previous = node.prev_sibling
    if previous is None or previous.type != "comment":
        return int(node.start_byte)
    gap = text[previous.end_byte : node.start_byte]
    at_line = text[text.rfind(b"\n", 0, previous.start_byte) + 1 : previous.start_byte] == b""
    if gap == b"\n" and at_line and previous.start_byte > 0:
        return int(previous.start_byte)
    return int(node.start_byte)


def _declarator(node: Node | None, kind: str) -> Any:
    """The declarator of ``kind`` inside ``node``, through pointers and parentheses."""
    while node is not None and node.type != kind:
        node = node.child_by_field_name("declarator")
    return node


def _function_name(node: Node) -> str:
    declarator = _declarator(node.child_by_field_name("declarator"), "function_declarator")
    inner = declarator.child_by_field_name("declarator") if declarator else None
    return inner.text.decode() if inner is not None and inner.type == "identifier" else ""


def _prototype_name(node: Node) -> str:
    declarators = node.children_by_field_name("declarator")
    return _function_name(node) if len(declarators) == 1 and not node.has_error else ""


def _variable_name(node: Node) -> str:
    """The name of a static variable with an initial value; others may be what a linker or macro needs."""
    declarators = node.children_by_field_name("declarator")
    static = any(
        child.type == "storage_class_specifier" and child.text == b"static" for child in node.children
    )
    if not static or len(declarators) != 1 or declarators[0].type != "init_declarator" or node.has_error:
        return ""
    if b"__attribute__" in (node.text or b""):
        return ""
    inner = _declarator(declarators[0], "identifier")
    return inner.text.decode() if inner is not None else ""
