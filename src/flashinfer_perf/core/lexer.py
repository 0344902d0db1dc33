"""Splits a testlist into lines of words, as a shell would, and remembers what was quoted.

``shlex`` knows neither continuation lines nor whether a word was quoted, and cuts ``run#1`` at the hash.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Word:
    text: str
    quoted: bool = False


@dataclass
class LogicalLine:
    """A line with its continuations. ``number`` counts from 1 and is that of its first physical line."""

    number: int
    text: str = ""
    words: list[Word] = field(default_factory=list)
    error: str = ""


def split_lines(text: str) -> list[LogicalLine]:
    """All lines that hold a word or an error; blank ones and comments are left out.

    Grammar: words are separated by blanks; ``#`` at the start of a word outside quotes begins a comment; ``'…'`` is
    literal; in ``"…"`` a backslash escapes ``"`` and ``\\``; outside quotes it escapes any character; except in
    ``'…'``, one before the end of a line continues the line.
    """
    scanner = _Scanner(text)
    lines = []
    while not scanner.at_end:
        line = scanner.line()
        if line.words or line.error:
            lines.append(line)
    return lines


class _Scanner:
    def __init__(self, text: str) -> None:
        self._text = text.replace("\r\n", "\n").removeprefix("\ufeff")
        self._position = 0
        self._number = 1

    @property
    def at_end(self) -> bool:
        return self._position >= len(self._text)

    def line(self) -> LogicalLine:
        line = LogicalLine(self._number)
        start = self._position
        try:
            self._words(line)
        except ValueError as error:
            line.error = str(error)
            self._skip_to_end_of_line()
        line.text = " ".join(self._text[start : self._position].replace("\\\n", "").split())
        self._take()
        return line

    def _words(self, line: LogicalLine) -> None:
        while self._peek() not in ("", "\n"):
            if self._peek() == "#":
                self._skip_to_end_of_line()
            elif self._peek().isspace() or self._continues():
                self._take()
            else:
                line.words.append(self._word())

    def _word(self) -> Word:
        text, quoted = "", False
        while self._peek() != "" and not self._peek().isspace():
            if self._continues():
                self._take()
            elif (character := self._take()) in "'\"":
                text, quoted = text + self._quoted(character), True
            elif character == "\\":
                text, quoted = text + self._take(), True
            else:
                text += character
        return Word(text, quoted)

    def _quoted(self, quote: str) -> str:
        text = ""
        while (character := self._take()) != quote:
            if character in ("", "\n"):
                self._position -= len(character)
                self._number -= len(character)
                raise ValueError(f"no closing {quote}")
            if quote == '"' and character == "\\" and self._peek() and self._peek() in '"\\\n':
                character = self._take().replace("\n", "")
            text += character
        return text

    def _continues(self) -> bool:
        """At a backslash that ends its physical line, or the file; steps over the backslash."""
        if self._text[self._position : self._position + 2] in ("\\\n", "\\"):
            self._position += 1
            return True
        return False

    def _skip_to_end_of_line(self) -> None:
        while self._peek() not in ("", "\n"):
            self._take()

    def _peek(self) -> str:
        return self._text[self._position : self._position + 1]

    def _take(self) -> str:
        character = self._peek()
        self._position += 1
        self._number += character == "\n"
        return character
