// Prepared calls: passes of the CPU's kernels with everything decided but where their tensors lie.
// `backends/cpu_calls.py` makes one for each look of the tensors, and checks these before.
#include <memory>

#include "bindings/conv.h"
#include "bindings/tensors.h"

namespace dsr::bindings {
namespace {

using Tensor = py::handle;

struct Format {  // of an activation
  Strides4 strides;
  bool bfloat16;
};

Format format_of(const std::pair<bool, Quad>& format) {
  return {.strides = strides4(format.second), .bfloat16 = format.first};
}

cpu::Activation at(const ConvPlan& plan, const Format& format, uintptr_t address) {
  return activation(plan,
                    {address,
                     format.bfloat16,
                     {format.strides.n, format.strides.c, format.strides.h, format.strides.w}});
}

struct Affine {  // addresses of center, scale and shift; 0 each where absent
  uintptr_t center = 0, scale = 0, shift = 0;

  template <class S>
  cpu::ChannelAffine<S> of() const {
    return {pointer<S>(center), pointer<S>(scale), pointer<S>(shift)};
  }
};

Affine affine_at(Tensor center, Tensor scale, Tensor shift) {
  return {address_of(center), address_of(scale), address_of(shift)};
}

template <class S>
cpu::Operand<S> operand_of(const cpu::Activation& from, const Affine& affine, bool relu,
                           uintptr_t other = 0) {
  return {.data = from.data,
          .strides = from.strides,
          .element = from.element,
          .affine = affine.of<S>(),
          .relu = relu,
          .other = pointer<void>(other)};
}

// y = relu(conv2d(pad(z), W) * scale + bias + residual), and its moments.
struct Forward {
  std::shared_ptr<ConvPlan> plan;
  int64_t n;
  Format x, y;
  int threads;

  void run(Tensor out, Tensor input, Tensor values, Tensor bias, Tensor workspace) const {
    const auto from = at(*plan, x, address_of(input)), to = at(*plan, y, address_of(out));
    const uintptr_t w = address_of(values), b = address_of(bias), memory = address_of(workspace);
    with_dtype(*plan, [&](auto* typed) {
      using S = std::remove_pointer_t<decltype(typed)>;
      plan->sparse_conv2d<S>(n, operand<S>(from), pointer<S>(w), pointer<S>(b), to, {}, threads,
                             pointer<char>(memory));
    });
  }

  void run_fused(Tensor out, Tensor input, Tensor values, Tensor bias, Tensor center, Tensor scale,
                 Tensor shift, bool relu, Tensor residual, Tensor mean, Tensor variance,
                 Tensor out_scale, bool out_relu, Tensor workspace) const {
    const auto from = at(*plan, x, address_of(input)), to = at(*plan, y, address_of(out));
    const Affine in = affine_at(center, scale, shift);
    const uintptr_t w = address_of(values), b = address_of(bias), memory = address_of(workspace);
    const uintptr_t added = address_of(residual), by = address_of(out_scale);
    const uintptr_t first = address_of(mean), second = address_of(variance);
    const bool stores = by || added || first || out_relu;
    with_dtype(*plan, [&](auto* typed) {
      using S = std::remove_pointer_t<decltype(typed)>;
      using Finish = cpu::Finish<S>;
      const Affine out_affine = by ? Affine{0, by, b} : Affine{};  // which adds the bias itself
      const Finish finish{.kind = stores ? Finish::kOutput : Finish::kNothing,
                          .affine = out_affine.of<S>(),
                          .relu = out_relu,
                          .companion = pointer<void>(added),
                          .x = nullptr,
                          .sums = {.first = pointer<S>(first), .second = pointer<S>(second)}};
      plan->sparse_conv2d<S>(n, operand_of<S>(from, in, relu), pointer<S>(w),
                             by ? nullptr : pointer<S>(b), to, finish, threads,
                             pointer<char>(memory));
    });
  }
};

// The gradients of x and of the values.
struct Backward {
  std::shared_ptr<ConvPlan> transposed, forward;
  int64_t n;
  Format grad, out, x;
  int threads;

  void run(Tensor grad_x, Tensor grad_values, Tensor grad_y, Tensor values, Tensor input,
           Tensor workspace) const {
    run_fused(grad_x, grad_values, grad_y, values, input, py::none(), py::none(), py::none(), false,
              py::none(), py::none(), py::none(), py::none(), py::none(), py::none(), py::none(),
              workspace);
  }

  void run_fused(Tensor grad_x, Tensor grad_values, Tensor grad_y, Tensor values, Tensor input,
                 Tensor center, Tensor scale, Tensor shift, bool relu, Tensor passed,
                 Tensor grad_scale, Tensor grad_shift, Tensor y, Tensor y_center, Tensor y_scale,
                 Tensor y_shift, Tensor workspace) const {
    const uintptr_t x_at = address_of(input);
    const auto to = at(*transposed, out, address_of(grad_x));
    const auto from = at(*transposed, grad, address_of(grad_y));
    const auto source = at(*forward, x, x_at);
    const Affine by = affine_at(center, scale, shift), y_by = affine_at(y_center, y_scale, y_shift);
    const uintptr_t w = address_of(values), gw = address_of(grad_values);
    const uintptr_t memory = address_of(workspace), beside = address_of(passed);
    const uintptr_t y_at = address_of(y);
    const uintptr_t first = address_of(grad_shift), second = address_of(grad_scale);
    const bool changes = relu || by.scale || beside;
    with_dtype(*transposed, [&](auto* typed) {
      using S = std::remove_pointer_t<decltype(typed)>;
      cpu::Finish<S> finish{};
      if (changes)
        finish = {.kind = cpu::Finish<S>::kInputGrad,
                  .affine = by.of<S>(),
                  .relu = relu,
                  .companion = pointer<void>(beside),
                  .x = pointer<void>(x_at),
                  .sums = {.first = pointer<S>(first), .second = pointer<S>(second)}};
      transposed->sparse_conv2d_backward<S>(
          *forward, n, operand_of<S>(from, y_by, false, y_at), pointer<S>(w), to, finish,
          operand_of<S>(source, by, relu), pointer<S>(gw), threads, pointer<char>(memory));
    });
  }
};

// The gradient of the values alone.
struct GradWeight {
  std::shared_ptr<ConvPlan> plan;
  int64_t n;
  Format x, grad;
  int threads;

  void run(Tensor grad_values, Tensor input, Tensor grad_y, Tensor workspace) const {
    const auto source = at(*plan, x, address_of(input)), from = at(*plan, grad, address_of(grad_y));
    const uintptr_t gw = address_of(grad_values), memory = address_of(workspace);
    with_dtype(*plan, [&](auto* typed) {
      using S = std::remove_pointer_t<decltype(typed)>;
      plan->sparse_conv2d_grad_weight<S>(n, operand<S>(source), operand<S>(from), pointer<S>(gw),
                                         threads, pointer<char>(memory));
    });
  }
};

}  // namespace

void bind_calls(py::module_& m) {
  using FormatTuple = std::pair<bool, Quad>;  // whether it holds bfloat16, strides
  using Plan = std::shared_ptr<ConvPlan>;
  py::class_<Forward>(m, "Forward")
      .def(py::init(
               [](Plan plan, int64_t n, const FormatTuple& x, const FormatTuple& y, int threads) {
                 return Forward{std::move(plan), n, format_of(x), format_of(y), threads};
               }),
           py::arg("plan"), py::arg("n"), py::arg("x"), py::arg("y"), py::arg("threads"))
      .def("run", &Forward::run)
      .def("run_fused", &Forward::run_fused);
  py::class_<Backward>(m, "Backward")
      .def(py::init([](Plan transposed, Plan forward, int64_t n, const FormatTuple& grad,
                       const FormatTuple& out, const FormatTuple& x, int threads) {
             require_direction(*transposed, cpu::Direction::kGradInput);
             require_direction(*forward, cpu::Direction::kForward);
             return Backward{std::move(transposed), std::move(forward), n,      format_of(grad),
                             format_of(out),        format_of(x),       threads};
           }),
           py::arg("transposed"), py::arg("forward"), py::arg("n"), py::arg("grad"), py::arg("out"),
           py::arg("x"), py::arg("threads"))
      .def("run", &Backward::run)
      .def("run_fused", &Backward::run_fused);
  py::class_<GradWeight>(m, "GradWeight")
      .def(py::init([](Plan plan, int64_t n, const FormatTuple& x, const FormatTuple& grad,
                       int threads) {
             require_direction(*plan, cpu::Direction::kForward);
             return GradWeight{std::move(plan), n, format_of(x), format_of(grad), threads};
           }),
           py::arg("plan"), py::arg("n"), py::arg("x"), py::arg("grad"), py::arg("threads"))
      .def("run", &GradWeight::run);
}

}  // namespace dsr::bindings
