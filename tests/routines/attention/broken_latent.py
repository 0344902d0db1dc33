"""Kernels of multi-head latent attention with an error each; see broken.py."""

from __future__ import annotations

from flashinfer_perf.routines.attention.operands import E4M3_MAX, LARGEST
from tests.routines.attention.broken import ANY, PAGES, bits, like


def last_sequence_forgotten(attend, *, lengths, out, **call):
    attend(lengths=lengths[:-1], out=out, **call)
    out[-1] = 0


def rotary_part_of_the_keys_ignored(attend, *, kv_cache, ckv, **call):
    attend(kv_cache=without_rotary(kv_cache, ckv), ckv=ckv, **call)


def rotary_part_of_the_query_ignored(attend, *, q, ckv, **call):
    attend(q=without_rotary(q, ckv), ckv=ckv, **call)


def rotary_part_of_other_pages(attend, *, kv_cache, ckv, **call):
    wrong = kv_cache.clone()
    bits(wrong)[..., ckv:] = bits(kv_cache)[..., ckv:].roll(1, dims=0)
    attend(kv_cache=wrong, ckv=ckv, **call)


def last_elements_for_values(attend, *, q, kv_cache, ckv, **call):
    """The end of a key is taken for the value, in place of its beginning."""
    rotary = q.shape[-1] - ckv
    turned = (like(tensor, lambda elements: elements.roll(-rotary, dims=-1)) for tensor in (q, kv_cache))
    attend(**dict(zip(("q", "kv_cache"), turned, strict=True)), ckv=ckv, **call)


def scale_of_the_compressed_dimension(attend, *, sm_scale, q, **call):
    """1 / sqrt(ckv + kpe); the right one is 1 / sqrt(128 + kpe), so that it shows where ckv is not 128."""
    rotary = q.shape[-1] - call["ckv"]
    attend(sm_scale=sm_scale * ((128 + rotary) / q.shape[-1]) ** 0.5, q=q, **call)


def changes_the_cache(attend, *, kv_cache, **call):
    attend(kv_cache=kv_cache, **call)
    bits(kv_cache)[-1, -1, -1] += 1


MLA = [
    *ANY, *PAGES, last_sequence_forgotten, rotary_part_of_the_keys_ignored, rotary_part_of_the_query_ignored,
    rotary_part_of_other_pages, last_elements_for_values, scale_of_the_compressed_dimension, changes_the_cache,
]  # fmt: skip


# ---- Scales of FP8 ----


def query_scale_forgotten(attend, *, sm_scale, **call):
    attend(sm_scale=sm_scale / (LARGEST["q"] / E4M3_MAX), **call)


def key_scale_forgotten(attend, *, sm_scale, **call):
    attend(sm_scale=sm_scale / (LARGEST["k"] / E4M3_MAX), **call)


def value_scale_forgotten(attend, *, v_scale, **call):
    attend(v_scale=1.0, **call)


def query_scale_for_values(attend, *, v_scale, **call):
    attend(v_scale=LARGEST["q"] / E4M3_MAX, **call)


FP8_CACHE = [key_scale_forgotten, value_scale_forgotten, query_scale_for_values]
FP8_QUERY = [query_scale_forgotten]


def without_rotary(tensor, ckv):
    wrong = tensor.clone()
    bits(wrong)[..., ckv:] = 0
    return wrong
