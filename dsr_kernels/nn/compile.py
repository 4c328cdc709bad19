"""What torch.compile has to know of sparse layers: the number of their non-zeros may change."""

from __future__ import annotations

import torch.compiler.config

# Dynamo's names for a sparse layer's tensors of varying length, wherever in the model that is.
VARYING = r".*_parameters.*\['weight_values'\]", r".*_buffers.*\['col_indices'\]"


def let_nnz_vary() -> None:
    """Tells torch.compile that a rewire may change the length of `weight_values` and `col_indices`.

    Dynamo takes the shapes of a module's tensors for constants and would recompile at every rewire,
    up to its limit. Named as dynamic sources, they serve any number of non-zeros from the first
    compilation on. Both are named: their lengths are compared, so one that is a constant makes one
    of the other. Only tensors of these names are concerned. The setting is read each time, for
    someone else may have replaced it. torch before 2.8 has no such setting.
    """
    sources = getattr(torch.compiler.config, "dynamic_sources", None)
    if sources is None:
        return
    missing = [name for name in VARYING if name not in sources]
    if missing:
        torch.compiler.config.dynamic_sources = ",".join(filter(None, (sources, *missing)))
