"""Callbacks for training loops of other packages, each in a module of its own.

None is imported before it is asked for: `dsr_kernels.integrations.lightning`, `.transformers`.
"""
