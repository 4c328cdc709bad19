"""explain(model, ...): how each sparse layer's passes will run, why, how fast, and beside dense."""

from dsr_kernels.explaining.explanation import Explanation, LayerCost, LayerPass
from dsr_kernels.explaining.whole_model import explain

__all__ = ["Explanation", "LayerCost", "LayerPass", "explain"]
