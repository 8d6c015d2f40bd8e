"""What is wrong with an expression, and where."""

from __future__ import annotations

__all__ = ["RuleError"]

_MAX_SHOWN = 100  # characters of a line around the caret
_ELLIPSIS = "…"


class RuleError(Exception):
    """
    An expression that cannot be compiled.

    ``text`` is the expression that holds the mistake: the body of a macro where the
    mistake is in a macro, which ``message`` then names.
    """

    def __init__(self, message: str, text: str, column: int, *, macro: str = "") -> None:
        super().__init__(message, text, column)
        self.message = message
        """One sentence: what is wrong, and the way out."""
        self.text = text
        self.column = column
        """Where in ``text``, counted from 1 in characters."""
        self.macro = macro
        """The macro whose body ``text`` is; empty where it is a rule."""

    def __str__(self) -> str:
        return f"column {self.column}: {self.message}"

    def caret(self) -> str:
        """Return two lines: the part of the text where the mistake is, and ``^`` under it."""
        offset = min(max(self.column - 1, 0), len(self.text))
        start = self.text.rfind("\n", 0, offset) + 1
        end = self.text.find("\n", offset)
        line = self.text[start : end if end >= 0 else len(self.text)]
        line = "".join(character if character.isprintable() else " " for character in line)
        position = offset - start
        if position > _MAX_SHOWN // 2 and len(line) > _MAX_SHOWN:
            cut = min(position - _MAX_SHOWN // 2, len(line) - _MAX_SHOWN)
            line = _ELLIPSIS + line[cut:]
            position -= cut - len(_ELLIPSIS)
        if len(line) > _MAX_SHOWN + len(_ELLIPSIS):
            line = line[:_MAX_SHOWN] + _ELLIPSIS
        return f"{line}\n{' ' * position}^"
