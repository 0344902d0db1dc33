"""What can go wrong on purpose. Anything else that is raised is a failure of the backend or of this program."""

from __future__ import annotations


class InvalidInput(Exception):
    """A line, a flag or a value that cannot be understood. Names the thing, the value and what is allowed."""


class Unsupported(Exception):
    """A backend cannot run this case on this machine; the text says why, in one line."""


class DoesNotFit(Exception):
    """A case needs more memory than the device has free; found out before it was allocated."""

    def __init__(self, tensor: str, needed_bytes: int, available_bytes: int) -> None:
        super().__init__(
            f"needs at least {human_bytes(needed_bytes)} ({needed_bytes} bytes, up to and including tensor "
            f"{tensor!r}), but {human_bytes(available_bytes)} ({available_bytes} bytes) are free for inputs; "
            "take smaller sizes, or a device with more memory"
        )
        self.needed_bytes = needed_bytes
        self.available_bytes = available_bytes


def human_bytes(count: int) -> str:
    """1536 -> '1.5 KiB'; for messages, beside the exact number."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} EiB"
