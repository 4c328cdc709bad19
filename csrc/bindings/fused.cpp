// Convolutions with batch norm, ReLU and additions inside.
#include "bindings/conv.h"

namespace dsr::bindings {
namespace {

using AffineTuple = std::tuple<uintptr_t, uintptr_t, uintptr_t>;  // center, scale, shift, or 0 each

// the activation, affine, relu, address of what is added to it
using OperandTuple = std::tuple<ActivationTuple, AffineTuple, bool, uintptr_t>;

// affine, relu, address of what is added, of x (0: an output is stored), of the two results [C]
using FinishTuple =
    std::tuple<AffineTuple, bool, uintptr_t, uintptr_t, std::tuple<uintptr_t, uintptr_t>>;

template <class S>
cpu::ChannelAffine<S> affine_of(const AffineTuple& tuple) {
  const auto& [center, scale, shift] = tuple;
  return {pointer<S>(center), pointer<S>(scale), pointer<S>(shift)};
}

template <class S>
cpu::Operand<S> operand_of(const ConvPlan& plan, const OperandTuple& tuple) {
  const auto& [from, affine, relu, other] = tuple;
  const cpu::Activation a = activation(plan, from);
  return {.data = a.data,
          .strides = a.strides,
          .element = a.element,
          .affine = affine_of<S>(affine),
          .relu = relu,
          .other = pointer<void>(other)};
}

template <class S>
cpu::Finish<S> finish_of(const FinishTuple& tuple) {
  using cpu::Finish;
  const auto& [affine, relu, companion, x, results] = tuple;
  const bool nothing = !std::get<1>(affine) && !relu && !companion && !std::get<0>(results);
  return {.kind = x         ? Finish<S>::kInputGrad
                  : nothing ? Finish<S>::kNothing
                            : Finish<S>::kOutput,
          .affine = affine_of<S>(affine),
          .relu = relu,
          .companion = pointer<void>(companion),
          .x = pointer<void>(x),
          .sums = {.first = pointer<S>(std::get<0>(results)),
                   .second = pointer<S>(std::get<1>(results))}};
}

void sparse_conv2d_fused(const ConvPlan& plan, int64_t n, const OperandTuple& x, uintptr_t values,
                         uintptr_t bias, const ActivationTuple& y, const FinishTuple& finish,
                         int threads, uintptr_t workspace) {
  const auto to = activation(plan, y);
  with_dtype(plan, [&](auto* typed) {
    using S = std::remove_pointer_t<decltype(typed)>;
    plan.sparse_conv2d<S>(n, operand_of<S>(plan, x), pointer<S>(values), pointer<S>(bias), to,
                          finish_of<S>(finish), threads, pointer<char>(workspace));
  });
}

void sparse_conv2d_fused_grad_weight(const ConvPlan& plan, int64_t n, const OperandTuple& x,
                                     const OperandTuple& grad_y, uintptr_t grad_values, int threads,
                                     uintptr_t workspace) {
  require_direction(plan, cpu::Direction::kForward);
  with_dtype(plan, [&](auto* typed) {
    using S = std::remove_pointer_t<decltype(typed)>;
    plan.sparse_conv2d_grad_weight<S>(n, operand_of<S>(plan, x), operand_of<S>(plan, grad_y),
                                      pointer<S>(grad_values), threads, pointer<char>(workspace));
  });
}

}  // namespace

void bind_fused(py::module_& m) {
  m.def("sparse_conv2d_fused", &sparse_conv2d_fused, py::arg("plan"), py::arg("n"), py::arg("x"),
        py::arg("values"), py::arg("bias"), py::arg("y"), py::arg("finish"), py::arg("threads"),
        py::arg("workspace"),
        "Forward, or grad-input on a transposed plan, with what happens on the way in and out.");
  m.def("sparse_conv2d_fused_grad_weight", &sparse_conv2d_fused_grad_weight, py::arg("plan"),
        py::arg("n"), py::arg("x"), py::arg("grad_y"), py::arg("grad_values"), py::arg("threads"),
        py::arg("workspace"));
}

}  // namespace dsr::bindings
