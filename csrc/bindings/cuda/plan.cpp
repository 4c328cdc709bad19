// _cuda.ConvPlan: the pass of a convolution on the GPU, planned.
#include "bindings/cuda/plan.h"

#include <memory>
#include <utility>

namespace dsr::bindings {
namespace {

using cuda::ConvPlan;

cuda::DirectType type_named(const std::string& dtype) {
  if (dtype == "float64") return cuda::DirectType::kFloat64;
  if (dtype == "float32") return cuda::DirectType::kFloat32;
  if (dtype == "bfloat16") return cuda::DirectType::kBFloat16;
  if (dtype == "float16") return cuda::DirectType::kFloat16;
  throw std::invalid_argument(
      "dtype: expected 'float64', 'float32', 'bfloat16' or 'float16', got '" + dtype + "'");
}

// A tiling in place of the cheapest; None: no kernel of that kind.
template <class Tuple>
auto forced(const py::handle& tiling) {
  using Tiling = decltype(tiling_of(std::declval<Tuple>()));
  return tiling.is_none() ? std::optional<Tiling>()
                          : std::optional<Tiling>(tiling_of(tiling.cast<Tuple>()));
}

Status make(const cuda::ConvProblem& problem, const std::optional<std::array<py::object, 2>>& by,
            ConvPlan* plan) {
  if (by && problem.direction == cuda::Direction::kGradWeight)
    return ConvPlan::make(problem,
                          cuda::GradWeightTilings{forced<GradWeightTilingTuple>((*by)[0]),
                                                  forced<WindowGradWeightTilingTuple>((*by)[1])},
                          plan);
  if (by)
    return ConvPlan::make(problem,
                          cuda::GatherTilings{forced<GatherTilingTuple>((*by)[0]),
                                              forced<GatherTilingTuple>((*by)[1])},
                          plan);
  const py::gil_scoped_release release;
  return ConvPlan::make(problem, plan);
}

std::unique_ptr<ConvPlan> make_plan(const std::string& direction, int64_t images,
                                    const Triple& in_size, const Triple& out_size,
                                    const Pair& kernel, const Pair& stride, const Pair& padding,
                                    const Pair& dilation, int64_t groups, double density,
                                    int64_t block_size, const std::string& dtype,
                                    const Quad& source_strides, const Quad& dest_strides,
                                    const Pair& device, bool windows,
                                    const std::optional<std::array<py::object, 2>>& tilings) {
  const cuda::ConvProblem problem{
      .shape = conv_shape(in_size, out_size, kernel, stride, padding, dilation, groups),
      .images = images,
      .direction = direction_named(direction),
      .density = density,
      .block_size = block_size,
      .dtype = type_named(dtype),
      .source = strides_of(source_strides),
      .dest = strides_of(dest_strides),
      .device = {device[0], device[1]},
      .windows = windows};
  auto plan = std::make_unique<ConvPlan>();
  require_ok(make(problem, tilings, plan.get()));
  return plan;
}

// [KH * KW]: the taps that meet only padding; () if there are none.
py::tuple unmet_taps(const ConvPlan& plan) {
  py::list unmet;
  if (plan.key.has_unmet_taps())
    for (size_t tap = 0; tap < plan.key.tap_class.size(); ++tap) unmet.append(plan.key.unmet(tap));
  return py::tuple(unmet);
}

}  // namespace

void bind_cuda_plan(py::module_& m) {
  py::class_<ConvPlan> plan(m, "ConvPlan", py::module_local());
  plan.def(py::init(&make_plan), py::arg("direction"), py::arg("images"), py::arg("in_size"),
           py::arg("out_size"), py::arg("kernel"), py::arg("stride"), py::arg("padding"),
           py::arg("dilation"), py::arg("groups"), py::arg("density"), py::arg("block_size"),
           py::arg("dtype"), py::arg("source_strides"), py::arg("dest_strides"), py::arg("device"),
           py::arg("windows"), py::arg("tilings") = py::none());
  plan.def_property_readonly("kind", [](const ConvPlan& one) { return name_of(one.kind); });
  plan.def_property_readonly("key", [](const ConvPlan& one) { return tuple_of(one.key); });
  plan.def_property_readonly("unmet", &unmet_taps);
  plan.def_property_readonly("splits", &ConvPlan::splits);
  plan.def_readonly("clocks", &ConvPlan::clocks);
  plan.def("describe", &describe);
  define_calls(plan);
}

}  // namespace dsr::bindings
