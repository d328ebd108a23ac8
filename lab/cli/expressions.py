"""Expressions of pytest's option -k: checked when a command is parsed, and matched against names."""

from __future__ import annotations

import argparse


def expression(text: str) -> str:
    """Return an expression as it is; ArgumentTypeError if it is none: pytest would fail on it with a traceback."""
    from _pytest.mark.expression import Expression

    try:
        Expression.compile(text)
    except _errors() as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no expression: {error.args[0]}") from error
    return text


def matches(text: str, name: str) -> bool:
    """Tell whether an expression selects a name: each of its words stands for whether the name has it in it."""
    from _pytest.mark.expression import Expression

    def has(word: str, /, **_: object) -> bool:
        return word.lower() in name.lower()

    return Expression.compile(text).evaluate(has)


def _errors() -> tuple[type[Exception], ...]:
    """Return what an invalid expression raises; before pytest 9 that was an error of its own."""
    from _pytest.mark import expression as module

    return SyntaxError, getattr(module, "ParseError", SyntaxError)
