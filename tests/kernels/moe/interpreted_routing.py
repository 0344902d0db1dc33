"""Routes tokens in Triton's interpreter, a process of its own, and prints {case: what is wrong}; see ``routed``."""

from __future__ import annotations

import json
import os

os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined: before the imports

import numpy as np

from flashinfer_perf.kernels.moe.routing import METHODS
from tests.kernels import rounding_interpreter
from tests.kernels.moe.routed import Routed, cases, faults, weight_of_no_number

if __name__ == "__main__":
    rounding_interpreter.install()
    found = cases() | {"broken": Routed("renormalize", 8, 2, spoilt=True)}
    with np.errstate(all="ignore"):
        hidden = [method for method in METHODS if not np.isnan(weight_of_no_number(method))]
        print(json.dumps({label: faults(case) for label, case in found.items()} | {"hidden": hidden}))
