// _cuda.limits: what the kernels are made for. _cuda.planning: what there is to choose from, which
// tests look at, and have plans made of.
#include "bindings/cuda/plan.h"
#include "cuda/conv/plan/window_costs.h"

namespace dsr::bindings {
namespace {

template <int kElementBytes>
py::tuple gather_variants() {
  py::list variants;
  for (const auto& [rows, units] : cuda::Variants<kElementBytes>::gather)
    variants.append(py::make_tuple(rows, units));
  return variants;
}

template <int kElementBytes>
py::tuple grad_weight_units() {
  return py::tuple(py::cast(cuda::Variants<kElementBytes>::grad_weight_units));
}

void bind_limits(py::module_& m) {
  m.attr("VECTOR_BYTES") = cuda::kVectorBytes;
  m.attr("BANKS") = cuda::kBanks;
  m.attr("COMPUTE_WARPS") = cuda::kComputeWarps;
  m.attr("LIST_ALIGN") = cuda::kListAlign;
  m.attr("LIST_SLACK") = cuda::kListSlack;
  m.attr("WINDOW_ROWS") = cuda::kWindowRows;
  m.attr("STEP_ENTRIES") = cuda::kStepEntries;
  m.attr("WINDOW_UNITS") = py::tuple(py::cast(cuda::kWindowUnits));
  m.attr("FLOAT_WINDOW_UNITS") = cuda::kFloatWindowUnits;
  m.attr("WINDOW_COMPUTE_WARPS") = py::tuple(py::cast(cuda::kWindowComputeWarps));
  m.attr("TURN_STEPS") = cuda::kTurnSteps;
  m.attr("HELD_TURNS") = cuda::kHeldTurns;
  // By the bytes of an activation: ((rows, units), ...) and (units, ...).
  py::dict gather, grad_weight;
  gather[py::int_(4)] = gather_variants<4>();
  gather[py::int_(2)] = gather_variants<2>();
  grad_weight[py::int_(4)] = grad_weight_units<4>();
  grad_weight[py::int_(2)] = grad_weight_units<2>();
  m.attr("GATHER_VARIANTS") = gather;
  m.attr("GRAD_WEIGHT_UNITS") = grad_weight;
}

// `strides`: of source and destination, where images may be seen as columns.
ShapeTuple pass_shape(const std::string& direction, const Triple& in_size, const Triple& out_size,
                      const Pair& kernel, const Pair& stride, const Pair& padding,
                      const Pair& dilation, int64_t groups,
                      const std::optional<std::array<Quad, 2>>& strides) {
  const auto shape = conv_shape(in_size, out_size, kernel, stride, padding, dilation, groups);
  const bool is_grad_input = direction_named(direction) == cuda::Direction::kGradInput;
  auto pass = is_grad_input ? cuda::grad_input_shape(shape) : cuda::forward_shape(shape);
  if (strides) {
    Strides4 source = strides_of((*strides)[0]), dest = strides_of((*strides)[1]);
    cuda::see_as_columns(pass, source, dest);
  }
  return tuple_of(pass);
}

cuda::DeviceLimits limits_of(const Pair& device) { return {device[0], device[1]}; }

void bind_tilings(py::module_& planning) {
  planning.def(
      "gather_tilings",
      [](const ShapeTuple& shape, int64_t images, double density, int element_size,
         const Pair& device) {
        return tuples_of(cuda::gather_tilings(shape_of(shape), images, density, element_size,
                                              limits_of(device)));
      },
      py::arg("shape"), py::arg("images"), py::arg("density"), py::arg("element_size"),
      py::arg("device"));
  planning.def(
      "grad_weight_tilings",
      [](const ShapeTuple& shape, int64_t images, double density, int element_size,
         const Pair& device) {
        return tuples_of(cuda::grad_weight_tilings(shape_of(shape), images, density, element_size,
                                                   limits_of(device)));
      },
      py::arg("shape"), py::arg("images"), py::arg("density"), py::arg("element_size"),
      py::arg("device"));
  planning.def(
      "window_gather_tilings",
      [](const ShapeTuple& shape, int64_t images, double density, int64_t block_size,
         int element_size, const Pair& device) {
        return tuples_of(cuda::window_gather_tilings(shape_of(shape), images, density, block_size,
                                                     element_size, limits_of(device)));
      },
      py::arg("shape"), py::arg("images"), py::arg("density"), py::arg("block_size"),
      py::arg("element_size"), py::arg("device"));
  planning.def(
      "window_grad_weight_tilings",
      [](const ShapeTuple& shape, int64_t images, double density, int64_t block_size,
         int element_size, const Pair& device) {
        return tuples_of(cuda::window_grad_weight_tilings(
            shape_of(shape), images, density, block_size, element_size, limits_of(device)));
      },
      py::arg("shape"), py::arg("images"), py::arg("density"), py::arg("block_size"),
      py::arg("element_size"), py::arg("device"));
}

}  // namespace

void bind_cuda_planning(py::module_& m) {
  py::module_ limits = m.def_submodule("limits", "What the kernels are made for.");
  bind_limits(limits);
  py::module_ planning = m.def_submodule("planning", "What there is to choose from for a pass.");
  planning.def("pass_shape", &pass_shape, py::arg("direction"), py::arg("in_size"),
               py::arg("out_size"), py::arg("kernel"), py::arg("stride"), py::arg("padding"),
               py::arg("dilation"), py::arg("groups"), py::arg("strides") = py::none());
  bind_tilings(planning);
  planning.def(
      "layouts",
      [](const ClassTuple& c, const Pair& steps, int64_t groups, int64_t tile, int64_t width) {
        return tuples_of(cuda::layouts_of(class_of(c), steps, groups, tile, width));
      },
      py::arg("c"), py::arg("steps"), py::arg("groups"), py::arg("tile"), py::arg("width"));
  planning.def("bank_conflicts", &cuda::bank_conflicts, py::arg("line_step"), py::arg("tile"),
               py::arg("width"));
  planning.def(
      "entries_met",
      [](const ShapeTuple& shape, double density, int64_t block_size) {
        return cuda::entries_met(shape_of(shape), density, block_size);
      },
      py::arg("shape"), py::arg("density"), py::arg("block_size"));
  planning.def(
      "slab_key",
      [](const ShapeTuple& shape, int64_t channel_block, const std::vector<LayoutTuple>& layouts) {
        return tuple_of(cuda::slab_key(shape_of(shape), channel_block, layouts_of(layouts)));
      },
      py::arg("shape"), py::arg("channel_block"), py::arg("layouts"));
  planning.def(
      "direct_key",
      [](const ShapeTuple& shape) { return tuple_of(cuda::direct_key(shape_of(shape))); },
      py::arg("shape"));
}

}  // namespace dsr::bindings
