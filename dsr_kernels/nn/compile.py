"""What torch.compile has to know of sparse layers: the number of their non-zeros may change."""

from __future__ import annotations

import torch.compiler.config

# Dynamo's name for the parameter of a sparse layer, wherever in the model that is.
WEIGHT_VALUES = r".*_parameters.*\['weight_values'\]"


def let_nnz_vary() -> None:
    """Tells torch.compile that a rewire may change the length of `weight_values`.

    Dynamo takes the shapes of parameters for constants and would recompile at every rewire, up to
    its limit. Named as a dynamic source, a compiled model is recompiled once and serves any number
    of non-zeros. Only parameters called `weight_values` are concerned. The setting is read each
    time, for someone else may have replaced it. torch before 2.8 has no such setting.
    """
    sources = getattr(torch.compiler.config, "dynamic_sources", None)
    if sources is not None and WEIGHT_VALUES not in sources:
        torch.compiler.config.dynamic_sources = ",".join(filter(None, (sources, WEIGHT_VALUES)))
