// What the parts of the Python module share. The files of this folder are the only ones that know
// pybind11: they check and convert, and turn a Status into a Python exception.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>

#include "common/status.h"

namespace dsr::bindings {

namespace py = pybind11;

inline void require_ok(const Status& status) {
  if (!status.is_ok()) throw std::invalid_argument(status.message);
}

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// 4 or 8.
inline int element_size(const std::string& dtype) {
  if (dtype == "float32") return 4;
  if (dtype == "float64") return 8;
  throw std::invalid_argument("dtype: expected 'float32' or 'float64', got '" + dtype + "'");
}

void bind_conv(py::module_& m);
void bind_calls(py::module_& m);
void bind_fused(py::module_& m);
void bind_grad_bias(py::module_& m);
void bind_elementwise(py::module_& m);
void bind_rewire(py::module_& m);

}  // namespace dsr::bindings
