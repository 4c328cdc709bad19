"""explain(model, ...): how each sparse layer's passes will run, why, how fast, and beside dense."""

from dsr_kernels.explain.explain import explain
from dsr_kernels.explain.explanation import Explanation, LayerCost, LayerPass

__all__ = ["Explanation", "LayerCost", "LayerPass", "explain"]
