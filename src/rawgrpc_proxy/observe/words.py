"""What peers and users have sent, in words for people: bounded, and on one line whatever is in it.

What it does not do: ask objects of users' for their text (`describe.py` does).
"""

MAX_FIELD_CHARACTERS = 4096
"""Of one text in a log. A peer may send a method or a message of 64 KiB, and nobody reads that."""


def cut(text: str, length: int = MAX_FIELD_CHARACTERS) -> str:
    """`text`, or its beginning and its end if it is longer than that, with the number of characters left out."""
    if len(text) <= length:
        return text
    half = length // 2
    return f"{text[:half]}[… {len(text) - 2 * half} characters …]{text[-half:]}"


def beginning(text: str, length: int) -> str:
    """`text`, or so many characters of it and an ellipsis: where it is enough to know it again."""
    return text if len(text) <= length else f"{text[:length]}…"


def word(text: str) -> str:
    """`text` without anything that could end its field, or its line."""
    return printable(text).replace(" ", "\\x20")


def printable(text: str) -> str:
    """`text` with what is no printable character escaped, as in a Python string."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
