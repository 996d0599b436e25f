"""Names and messages without the characters that neither a page nor a figure may hold."""

from typing import Any

_CONTROLS = (*range(9), *range(11, 32), *range(127, 160), 0xFFFE, 0xFFFF)  # tabs and line ends are none
_SHOWN_AS = dict.fromkeys(_CONTROLS, "\ufffd")


def printable(value: Any) -> Any:
    """Text with a sign in the place of each of them; whatever is no text as it is."""
    return value.translate(_SHOWN_AS) if type(value) is str else value


def all_printable(value: Any) -> Any:
    """Likewise of the texts in lists and mappings, however deep."""
    if isinstance(value, dict):
        return {printable(key): all_printable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [all_printable(inner) for inner in value]
    return printable(value)
