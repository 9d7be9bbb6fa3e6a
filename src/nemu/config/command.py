"""``nemu run -- COMMAND``: the words behind "--", and ``--env``."""

from __future__ import annotations

from nemu import syntax


class CommandReader:
    """Reads a list of words, the first of which is a program."""

    def __call__(self, value: object) -> tuple[str, ...]:
        if not isinstance(value, list) or not value:
            raise ValueError("must be a list of words, a program and its arguments")
        words = tuple(syntax.text(word) for word in value)
        if not words[0]:
            raise ValueError("must begin with the name of a program")
        return words

    @staticmethod
    def load(values: list[str]) -> tuple[str, ...]:
        """The inverse of what JSON makes of a tuple.  TypeError for anything else."""
        return tuple(values)


def variable(value: object) -> str:
    """``NAME`` or ``NAME=VALUE``."""
    text = syntax.text(value)
    name = text.partition("=")[0]
    if not name.isidentifier() or not name.isascii():
        raise ValueError("must be NAME or NAME=VALUE, a name of letters, digits and underscores")
    return text
