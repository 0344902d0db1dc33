from __future__ import annotations

import pytest

from flashinfer_perf.core.errors import DoesNotFit, human_bytes


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (3 << 30, "3 GiB"),
        (1 << 50, "1 PiB"),
        (1 << 60, "1 EiB"),
        (1 << 80, "1.049e+06 EiB"),
    ],
)
def test_bytes_are_readable_at_every_size(count, text):
    assert human_bytes(count) == text


def test_does_not_fit_names_the_tensor_and_both_byte_counts():
    error = DoesNotFit("kv_cache", needed_bytes=3 << 30, available_bytes=1536)
    assert str(error) == (
        "needs at least 3 GiB (3221225472 bytes, up to and including tensor 'kv_cache'), "
        "but 1.5 KiB (1536 bytes) are free for inputs; take smaller sizes, or a device with more memory"
    )
    assert (error.needed_bytes, error.available_bytes) == (3 << 30, 1536)
