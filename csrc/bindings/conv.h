// What the bindings of convolutions share: from Python's tuples to the core's structs.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <tuple>
#include <type_traits>

#include "bindings/common.h"
#include "cpu/conv/conv_plan.h"
#include "cpu/dispatch.h"

namespace dsr::bindings {

using cpu::ConvPlan;
using Pair = std::array<int64_t, 2>;
using Quad = std::array<int64_t, 4>;

inline Strides4 strides4(const std::array<int64_t, 4>& s) { return {s[0], s[1], s[2], s[3]}; }

// Calls launch with a typed null pointer that carries the plan's dtype.
template <class Launch>
void with_dtype(const ConvPlan& plan, Launch launch) {
  std::string isa;
  require_ok(cpu::active_isa(&isa));
  py::gil_scoped_release release;
  if (plan.element_size() == 4) {
    launch(static_cast<float*>(nullptr));
  } else {
    launch(static_cast<double*>(nullptr));
  }
}

// address, whether it holds bfloat16, strides
using ActivationTuple = std::tuple<uintptr_t, bool, Quad>;

inline void require_direction(const ConvPlan& plan, cpu::Direction wanted) {
  if (plan.direction() != wanted)
    throw std::invalid_argument(
        "ConvPlan.sparse_conv2d_grad_input needs a plan made with transposed=True; sparse_conv2d "
        "and sparse_conv2d_grad_weight need one made without");
}

inline cpu::Activation activation(const ConvPlan& plan, const ActivationTuple& tuple) {
  using cpu::Element;
  const auto& [address, low, strides] = tuple;
  const Element full = plan.element_size() == 4 ? Element::kFloat32 : Element::kFloat64;
  if (low && full == Element::kFloat64)
    throw std::invalid_argument("bfloat16 activations need float32 values");
  return {pointer<void>(address), low ? Element::kBFloat16 : full, strides4(strides)};
}

// A plain operand of the plan's type of values.
template <class S>
cpu::Operand<S> operand(const cpu::Activation& from) {
  return {.data = from.data, .strides = from.strides, .element = from.element};
}

}  // namespace dsr::bindings
