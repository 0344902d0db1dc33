"""Kernel names as people write them; CUPTI gives those of the linker."""

from __future__ import annotations

import ctypes
from functools import cache

MANGLED = "_Z"
"""How the linker's names begin, by the Itanium C++ ABI, which every compiler of GPU code follows."""


@cache
def readable(name: str) -> str:
    """``_ZN10flashinfer4norm7RMSNormEv`` as ``flashinfer::norm::RMSNorm()``; any other name as it is.

    Kept, since every sample brings the same few.
    """
    if not name.startswith(MANGLED):
        return name
    found = _demangle()(name.encode(), None, None, ctypes.byref(ctypes.c_int()))
    if not found:
        return name
    try:
        return ctypes.string_at(found).decode()
    finally:
        _library(None).free(ctypes.c_void_p(found))


@cache
def _demangle() -> ctypes._NamedFuncPointer:
    function = _library("libstdc++.so.6").__cxa_demangle
    function.restype = ctypes.c_void_p
    return function


@cache
def _library(name: str | None) -> ctypes.CDLL:
    return ctypes.CDLL(name)
