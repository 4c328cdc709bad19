// The only file that knows pybind11: it checks and converts, and turns a Status into a Python exception.
#include <pybind11/pybind11.h>

PYBIND11_MODULE(_C, m) { m.doc() = "Native core of dsr_kernels."; }
