"""Kernels of attention with an error each; the checks must find every one.

Each is a change of the torch backend's call: it gets the right kernel (``eager.attend_paged``, ``eager.attend_ragged``
or ``mla.attend``) and its arguments by name, to do wrong with them. ``PAGED`` and ``RAGGED`` (and ``MLA`` of
broken_latent.py) are caught in every format, ``CAUSAL`` with a mask and several queries, ``FP8_CACHE`` and
``FP8_QUERY`` (paged and ragged) where keys and values, or queries, are FP8. They need random lengths, several heads,
groups of several heads of several key-value heads, and pages that are not used.
"""

from __future__ import annotations

import dataclasses

import torch

from tests.routines.harness import routine_named


def broken(name, change):
    """What prepares the launch of a routine's broken kernel."""

    def prepare(case, problem):
        launch = routine_named(name).backends["torch"].prepare(case, problem)

        def kernel(**call):
            change(launch.fn, **call)

        return dataclasses.replace(launch, fn=kernel)

    return prepare


# ---- Of any layout ----


def zeros(attend, *, out, **call):
    attend(out=out, **call)
    out.zero_()


def writes_nothing(attend, **call):
    pass


def one_nan(attend, *, out, **call):
    attend(out=out, **call)
    out[-1, -1, -1] = float("nan")


def last_token_forgotten(attend, *, out, **call):
    attend(out=out, **call)
    out[-1] = 0


def one_token_off(attend, *, out, **call):
    """Where sequences have one query, one sequence off."""
    attend(out=out, **call)
    out.copy_(out.roll(1, dims=0))


def one_head_off(attend, *, out, **call):
    attend(out=out, **call)
    out.copy_(out.roll(1, dims=1))


def one_element_off(attend, *, out, **call):
    attend(out=out, **call)
    out.copy_(out.roll(1, dims=2))


def unscaled(attend, *, sm_scale, **call):
    attend(sm_scale=1.0, **call)


def scaled_twice(attend, *, sm_scale, **call):
    attend(sm_scale=sm_scale**2, **call)


def unweighted_mean(attend, *, sm_scale, **call):
    attend(sm_scale=0.0, **call)


def changes_the_query(attend, *, q, **call):
    attend(q=q, **call)
    bits(q)[0, 0, 0] += 1


ANY = [
    zeros, writes_nothing, one_nan, last_token_forgotten, one_token_off, one_head_off, one_element_off, unscaled,
    scaled_twice, unweighted_mean, changes_the_query,
]  # fmt: skip


# ---- Pages: of paged and latent attention ----


def other_lengths(attend, call, change):
    """Key-value sequences taken for longer or shorter than they are."""
    name = "lengths" if "lengths" in call else "kv_lens"
    attend(**{**call, name: change(call[name])})


def one_key_short(attend, **call):
    other_lengths(attend, call, lambda lengths: [max(length - 1, 1) for length in lengths])


def one_key_long(attend, **call):
    other_lengths(attend, call, lambda lengths: [length + 1 for length in lengths])


def one_sequence_one_key_short(attend, **call):
    other_lengths(attend, call, lambda lengths: [lengths[0] - 1, *lengths[1:]])


def lengths_of_the_neighbours(attend, **call):
    other_lengths(attend, call, lambda lengths: [*lengths[1:], lengths[0]])


def whole_pages(attend, **call):
    page = cache_of(call).shape[-2]
    other_lengths(attend, call, lambda lengths: [-(-length // page) * page for length in lengths])


def the_next_page(attend, *, block_tables, **call):
    attend(block_tables=(block_tables + 1) % len(cache_of(call)), **call)


def one_wrong_page(attend, *, block_tables, **call):
    wrong = block_tables.clone()
    wrong[-1, 0] = wrong[0, 0]
    attend(block_tables=wrong, **call)


def pages_of_the_neighbours(attend, *, block_tables, **call):
    attend(block_tables=block_tables.roll(1, dims=0), **call)


def pages_in_order(attend, *, block_tables, **call):
    """As if the page table did not matter."""
    attend(block_tables=torch.arange(block_tables.numel(), dtype=torch.int32).view_as(block_tables), **call)


def changes_a_page_that_nobody_uses(attend, **call):
    attend(**call)
    lengths = call["lengths"] if "lengths" in call else call["kv_lens"]
    page, tables = cache_of(call).shape[-2], call["block_tables"].tolist()
    used = {number for table, length in zip(tables, lengths, strict=True) for number in table[: -(-length // page)]}
    unused = set(range(len(cache_of(call)))) - used
    bits(cache_of(call))[min(unused)] += 1


def changes_the_page_table(attend, *, block_tables, **call):
    attend(block_tables=block_tables, **call)
    block_tables[0, 0] += 1


PAGES = [
    one_key_short, one_key_long, one_sequence_one_key_short, lengths_of_the_neighbours, whole_pages, the_next_page,
    one_wrong_page, pages_of_the_neighbours, pages_in_order, changes_a_page_that_nobody_uses, changes_the_page_table,
]  # fmt: skip


# ---- Heads of queries, and of keys and values: of paged and ragged attention ----


def last_sequence_forgotten(attend, *, q_lens, kv_lens, out, **call):
    attend(q_lens=q_lens[:-1], kv_lens=kv_lens[:-1], out=out, **call)
    out[-q_lens[-1] :] = 0


def interleaved_groups(attend, *, q, out, **call):
    """Query head h attends to key-value head h % Hkv, not to h // (Hq / Hkv)."""
    kv_heads = (call["k_cache"] if "k_cache" in call else call["k"]).shape[1]
    order = sorted(range(q.shape[1]), key=lambda head: head % kv_heads)
    found = out[:, order]
    attend(q=like(q, lambda heads: heads[:, order]), out=found, **call)
    out[:, order] = found


HEADS = [last_sequence_forgotten, interleaved_groups]


def keys_and_values_swapped(attend, *, k_cache, v_cache, **call):
    """Both of the same head dimension."""
    attend(k_cache=v_cache, v_cache=k_cache, **call)


def changes_the_values(attend, *, v_cache, **call):
    attend(v_cache=v_cache, **call)
    bits(v_cache)[-1, -1, -1, -1] += 1


PAGED = [*ANY, *PAGES, *HEADS, keys_and_values_swapped, changes_the_values]


# ---- Sequences one behind the other ----


def ragged_lengths(attend, k, v, kv_lens, change, **call):
    """Each sequence's keys and values start where they do, and are as many as ``change`` makes of their number."""
    starts = [sum(kv_lens[:sequence]) for sequence in range(len(kv_lens))]
    wrong = [min(change(length), len(k) - start) for start, length in zip(starts, kv_lens, strict=True)]
    rows = torch.cat([torch.arange(start, start + count) for start, count in zip(starts, wrong, strict=True)])
    keys, values = (like(tensor, lambda elements: elements[rows]) for tensor in (k, v))
    attend(k=keys, v=values, kv_lens=wrong, **call)


def ragged_one_key_short(attend, **call):
    ragged_lengths(attend, change=lambda length: max(length - 1, 1), **call)


def ragged_one_key_long(attend, **call):
    ragged_lengths(attend, change=lambda length: length + 1, **call)


def keys_one_token_off(attend, *, k, **call):
    attend(k=like(k, lambda tokens: tokens.roll(1, dims=0)), **call)


def values_one_token_off(attend, *, v, **call):
    attend(v=like(v, lambda tokens: tokens.roll(1, dims=0)), **call)


def values_one_head_off(attend, *, v, **call):
    attend(v=like(v, lambda tokens: tokens.roll(1, dims=1)), **call)


def ragged_keys_and_values_swapped(attend, *, k, v, **call):
    """Both of the same head dimension."""
    attend(k=v, v=k, **call)


def sequences_in_another_order(attend, *, kv_lens, **call):
    """Where sequences differ in length."""
    attend(kv_lens=sorted(kv_lens), **call)


def changes_the_last_value(attend, *, v, **call):
    attend(v=v, **call)
    bits(v)[-1, -1, -1] += 1


RAGGED = [
    *ANY, *HEADS, ragged_one_key_short, ragged_one_key_long, keys_one_token_off, values_one_token_off,
    values_one_head_off, ragged_keys_and_values_swapped, sequences_in_another_order, changes_the_last_value,
]  # fmt: skip


# ---- Masks: of several queries ----


def mask_missing(attend, *, causal, **call):
    attend(causal=False, **call)


def mask_of_the_first_keys(attend, *, q_lens, kv_lens, **call):
    """Aligned to the start: query i sees the keys up to i, as if there were no more of them than queries."""
    if "k_cache" in call:
        attend(q_lens=q_lens, kv_lens=list(map(min, q_lens, kv_lens)), **call)
    else:
        queries = iter(q_lens)
        ragged_lengths(attend, kv_lens=kv_lens, q_lens=q_lens, change=lambda kv: min(kv, next(queries)), **call)


CAUSAL = [mask_missing, mask_of_the_first_keys]


# ---- Scales of FP8 ----


def other_scales(**changes):
    """A kernel that takes other scales: 1, or another operand's."""

    def kernel(attend, *, scales, **call):
        values = {name: 1.0 if of is None else getattr(scales, of) for name, of in changes.items()}
        attend(scales=dataclasses.replace(scales, **values), **call)

    kernel.__name__ = "_".join(f"{name}_scale_{of or 'forgotten'}" for name, of in changes.items())
    return kernel


FP8_CACHE = [other_scales(k=None), other_scales(v=None), other_scales(k="v", v="k"), other_scales(v="k")]
FP8_QUERY = [other_scales(q=None), other_scales(q="v", v="q"), other_scales(q="k")]


# ---- Bytes: torch has no arithmetic of FP8 ----


def bits(tensor):
    """The same memory as integers."""
    return tensor.view({1: torch.uint8, 2: torch.int16}[tensor.element_size()])


def like(tensor, change):
    """Elements moved."""
    return change(bits(tensor)).view(tensor.dtype)


def cache_of(call):
    return call["k_cache"] if "k_cache" in call else call["kv_cache"]
