"""Kernels of multi-head latent attention with an error each; the checks must find every one."""

from __future__ import annotations

import math

import torch

from flashinfer_perf.routines.attention.mla import attend
from flashinfer_perf.run.launch import Launch


def launch_with(case, problem, change):
    """A launch whose kernel gets the right kernel's arguments, by name, to do wrong with them."""
    names = ("q_nope", "q_pe", "ckv_cache", "kpe_cache", "kv_indices")
    out = torch.empty_like(problem["q_nope"])
    lists = {"kv_indptr": problem["kv_indptr"].tolist(), "lengths": problem["kv_len"].tolist()}

    def kernel(**tensors):
        change(**tensors, **lists, sm_scale=1 / math.sqrt(128 + case.head_dim_kpe))

    return Launch(kernel, kwargs={**{name: problem[name] for name in names}, "out": out}, mutates=("out",))


def zeros(*, out, **call):
    attend(out=out, **call)
    out.zero_()


def writes_nothing(**call):
    pass


def one_nan(*, out, **call):
    attend(out=out, **call)
    out[-1, -1, -1] = float("nan")


def one_sequence_off(*, out, **call):
    attend(out=out, **call)
    out.copy_(out.roll(1, dims=0))


def one_head_off(*, out, **call):
    attend(out=out, **call)
    out.copy_(out.roll(1, dims=1))


def last_sequence_forgotten(*, out, lengths, **call):
    attend(out=out, lengths=lengths[:-1], **call)
    out[-1] = 0


def one_token_short(*, lengths, **call):
    attend(lengths=[max(length - 1, 1) for length in lengths], **call)


def one_token_long(*, lengths, **call):
    attend(lengths=[length + 1 for length in lengths], **call)


def one_sequence_one_token_short(*, lengths, **call):
    attend(lengths=[lengths[0] - 1, *lengths[1:]], **call)


def whole_pages(*, lengths, ckv_cache, **call):
    page = ckv_cache.shape[1]
    attend(lengths=[-(-length // page) * page for length in lengths], ckv_cache=ckv_cache, **call)


def the_next_page(*, kv_indices, ckv_cache, **call):
    attend(kv_indices=(kv_indices + 1) % len(ckv_cache), ckv_cache=ckv_cache, **call)


def one_wrong_page(*, kv_indices, ckv_cache, **call):
    wrong = kv_indices.clone()
    wrong[-1] = (wrong[-1] + 1) % len(ckv_cache)
    attend(kv_indices=wrong, ckv_cache=ckv_cache, **call)


def pages_in_order(*, kv_indices, **call):
    """As if the page table did not matter."""
    attend(kv_indices=torch.arange(len(kv_indices), dtype=torch.int32), **call)


def kpe_ignored(*, kpe_cache, **call):
    attend(kpe_cache=torch.zeros_like(kpe_cache), **call)


def q_pe_ignored(*, q_pe, **call):
    attend(q_pe=torch.zeros_like(q_pe), **call)


def kpe_from_other_pages(*, kpe_cache, **call):
    attend(kpe_cache=kpe_cache.roll(1, dims=0), **call)


def scale_of_the_compressed_dimension(*, sm_scale, ckv_cache, kpe_cache, **call):
    scale = 1 / math.sqrt(ckv_cache.shape[-1] + kpe_cache.shape[-1] + 64)
    attend(sm_scale=scale, ckv_cache=ckv_cache, kpe_cache=kpe_cache, **call)


def unscaled(*, sm_scale, **call):
    attend(sm_scale=1.0, **call)


def scaled_twice(*, sm_scale, **call):
    attend(sm_scale=sm_scale**2, **call)


def unweighted_mean(*, sm_scale, **call):
    attend(sm_scale=0.0, **call)


def changes_the_query(*, q_nope, **call):
    attend(q_nope=q_nope, **call)
    q_nope.mul_(2)


def changes_a_page_that_nobody_uses(*, ckv_cache, kv_indices, **call):
    attend(ckv_cache=ckv_cache, kv_indices=kv_indices, **call)
    unused = set(range(len(ckv_cache))) - set(kv_indices.tolist())
    ckv_cache[min(unused), 0, 0] += 1


def changes_the_page_table(*, kv_indices, **call):
    attend(kv_indices=kv_indices, **call)
    kv_indices[0] += 1


BROKEN = [
    zeros, writes_nothing, one_nan, one_sequence_off, one_head_off, last_sequence_forgotten, one_token_short,
    one_token_long, one_sequence_one_token_short, whole_pages, the_next_page, one_wrong_page, pages_in_order,
    kpe_ignored, q_pe_ignored, kpe_from_other_pages, scale_of_the_compressed_dimension, unscaled, scaled_twice,
    unweighted_mean, changes_the_query, changes_a_page_that_nobody_uses, changes_the_page_table,
]  # fmt: skip
