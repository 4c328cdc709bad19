// What batch norm, ReLU and additions leave to do outside convolutions: one pass each.
#include "cpu/elementwise/elementwise.h"

#include <array>
#include <cstdint>
#include <string>

#include "bindings/common.h"
#include "cpu/dispatch.h"

namespace dsr::bindings {
namespace {

using cpu::Element;
using Triple = std::array<int64_t, 3>;       // n, channels, pixels
using Addresses = std::array<uintptr_t, 3>;  // center, scale, shift; 0 where there are none

Element element_named(const std::string& name) {
  if (name == "float32") return Element::kFloat32;
  if (name == "float64") return Element::kFloat64;
  if (name == "bfloat16") return Element::kBFloat16;
  throw std::invalid_argument("element: expected 'float32', 'float64' or 'bfloat16', got '" + name +
                              "'");
}

cpu::Grid grid(Triple size, bool channels_last) {
  return cpu::make_grid(size[0], size[1], size[2], channels_last);
}

template <class S>
cpu::ChannelAffine<S> numbers(Addresses a) {
  return {pointer<S>(a[0]), pointer<S>(a[1]), pointer<S>(a[2])};
}

// Calls launch with a typed null pointer to what is computed in.
template <class Launch>
void with_number(Element element, Launch launch) {
  std::string isa;
  require_ok(cpu::active_isa(&isa));
  py::gil_scoped_release release;
  if (element == Element::kFloat64) {
    launch(static_cast<double*>(nullptr));
  } else {
    launch(static_cast<float*>(nullptr));
  }
}

int64_t channel_sums_workspace(Triple size, bool channels_last, int sums) {
  return cpu::partial_bytes(grid(size, channels_last), sums);
}

void channel_moments(const std::string& element, Triple size, bool channels_last, uintptr_t x,
                     uintptr_t mean, uintptr_t variance, int threads, uintptr_t workspace) {
  const cpu::MomentsArgs args{.grid = grid(size, channels_last),
                              .x = pointer<void>(x),
                              .element = element_named(element),
                              .partial = pointer<double>(workspace),
                              .threads = threads};
  with_number(args.element, [&](auto* typed) {
    using S = std::remove_pointer_t<decltype(typed)>;
    cpu::channel_moments<S>(args, pointer<S>(mean), pointer<S>(variance));
  });
}

void channel_affine(const std::string& element, Triple size, bool channels_last, uintptr_t x,
                    Addresses by, bool relu, uintptr_t other, Addresses other_by, uintptr_t out,
                    int threads) {
  const Element stored = element_named(element);
  with_number(stored, [&](auto* typed) {
    using S = std::remove_pointer_t<decltype(typed)>;
    cpu::channel_affine<S>({.grid = grid(size, channels_last),
                            .element = stored,
                            .x = pointer<void>(x),
                            .by = numbers<S>(by),
                            .relu = relu,
                            .other = pointer<void>(other),
                            .other_by = numbers<S>(other_by),
                            .out = pointer<void>(out),
                            .threads = threads});
  });
}

void channel_affine_grad(const std::string& element, Triple size, bool channels_last,
                         uintptr_t grad, uintptr_t x, Addresses by, bool relu, uintptr_t other,
                         Addresses other_by, uintptr_t out, uintptr_t grad_x, uintptr_t grad_other,
                         uintptr_t sums, int threads, uintptr_t workspace) {
  const Element stored = element_named(element);
  with_number(stored, [&](auto* typed) {
    using S = std::remove_pointer_t<decltype(typed)>;
    const cpu::AffineGradArgs<S> args{.grid = grid(size, channels_last),
                                      .element = stored,
                                      .grad = pointer<void>(grad),
                                      .x = pointer<void>(x),
                                      .by = numbers<S>(by),
                                      .relu = relu,
                                      .other = pointer<void>(other),
                                      .other_by = numbers<S>(other_by),
                                      .out = pointer<void>(out),
                                      .grad_x = pointer<void>(grad_x),
                                      .grad_other = pointer<void>(grad_other),
                                      .partial = pointer<double>(workspace),
                                      .threads = threads};
    cpu::channel_affine_grad<S>(args, pointer<S>(sums));
  });
}

}  // namespace

void bind_elementwise(py::module_& m) {
  using py::arg;
  m.def("channel_sums_workspace", &channel_sums_workspace, arg("size"), arg("channels_last"),
        arg("sums"));
  m.def("channel_moments", &channel_moments, arg("element"), arg("size"), arg("channels_last"),
        arg("x"), arg("mean"), arg("variance"), arg("threads"), arg("workspace"));
  m.def("channel_affine", &channel_affine, arg("element"), arg("size"), arg("channels_last"),
        arg("x"), arg("by"), arg("relu"), arg("other"), arg("other_by"), arg("out"),
        arg("threads"));
  m.def("channel_affine_grad", &channel_affine_grad, arg("element"), arg("size"),
        arg("channels_last"), arg("grad"), arg("x"), arg("by"), arg("relu"), arg("other"),
        arg("other_by"), arg("out"), arg("grad_x"), arg("grad_other"), arg("sums"), arg("threads"),
        arg("workspace"));
}

}  // namespace dsr::bindings
