// The only file that knows pybind11: it checks and converts, and turns a Status into a Python
// exception.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <memory>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

#include "common/feistel.h"
#include "common/philox.h"
#include "common/status.h"
#include "cpu/channel_sum.h"
#include "cpu/conv_plan.h"
#include "cpu/dispatch.h"
#include "cpu/rewire.h"
#include "cpu/rewire_sample.h"

namespace py = pybind11;
using dsr::cpu::ConvPlan;
using Pair = std::array<int64_t, 2>;
using Quad = std::array<int64_t, 4>;

namespace {

void require_ok(const dsr::Status& status) {
  if (!status.is_ok()) throw std::invalid_argument(status.message);
}

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// ---- convolution ----

dsr::Strides4 strides4(const std::array<int64_t, 4>& s) { return {s[0], s[1], s[2], s[3]}; }

int element_size(const std::string& dtype) {
  if (dtype == "float32") return 4;
  if (dtype == "float64") return 8;
  throw std::invalid_argument("dtype: expected 'float32' or 'float64', got '" + dtype + "'");
}

// Calls launch with a typed null pointer that carries the plan's dtype.
template <class Launch>
void with_dtype(const ConvPlan& plan, Launch launch) {
  std::string isa;
  require_ok(dsr::cpu::active_isa(&isa));
  py::gil_scoped_release release;
  if (plan.element_size() == 4) {
    launch(static_cast<float*>(nullptr));
  } else {
    launch(static_cast<double*>(nullptr));
  }
}

dsr::cpu::Lanes lanes_named(const std::string& name) {
  if (name == "plane") return dsr::cpu::Lanes::kPlane;
  if (name == "row") return dsr::cpu::Lanes::kRow;
  if (name == "batch") return dsr::cpu::Lanes::kBatch;
  throw std::invalid_argument("lanes: expected 'plane', 'row' or 'batch', got '" + name + "'");
}

const char* name_of(dsr::cpu::Lanes lanes) {
  using dsr::cpu::Lanes;
  return lanes == Lanes::kPlane ? "plane" : lanes == Lanes::kRow ? "row" : "batch";
}

std::unique_ptr<ConvPlan> make_plan(int64_t out_channels, int64_t in_channels, int64_t height,
                                    int64_t width, Pair kernel, Pair stride, Pair padding,
                                    Pair out_size, Pair dilation, int64_t groups, uintptr_t crow,
                                    uintptr_t col, int64_t nnz, const std::string& dtype,
                                    const std::string& lanes, bool transposed) {
  const dsr::ConvShape shape{in_channels, height,     width,       out_channels, out_size[0],
                             out_size[1], kernel[0],  kernel[1],   stride[0],    stride[1],
                             padding[0],  padding[1], dilation[0], dilation[1],  groups};
  const dsr::CsrPattern pattern{pointer<int32_t>(crow), pointer<int32_t>(col), out_channels, nnz};
  std::string isa;
  require_ok(dsr::cpu::active_isa(&isa));
  auto plan = std::make_unique<ConvPlan>();
  const int size = element_size(dtype);
  const dsr::cpu::Lanes which = lanes_named(lanes);
  const auto direction =
      transposed ? dsr::cpu::Direction::kGradInput : dsr::cpu::Direction::kForward;
  py::gil_scoped_release release;
  require_ok(ConvPlan::make(shape, pattern, size, which, direction, plan.get()));
  return plan;
}

// Only what the choice depends on: lanes run along the batch, or along columns.
dsr::ConvShape lane_shape(int64_t width, int64_t out_width, Pair kernel, Pair stride, Pair padding,
                          Pair dilation) {
  return {1,          1,          width,       1,           1,
          out_width,  kernel[0],  kernel[1],   stride[0],   stride[1],
          padding[0], padding[1], dilation[0], dilation[1], 1};
}

const char* choose_lanes(int64_t n, bool contiguous_rows, int64_t width, int64_t out_width,
                         Pair kernel, Pair stride, Pair padding, Pair dilation,
                         const std::string& dtype) {
  const dsr::ConvShape shape = lane_shape(width, out_width, kernel, stride, padding, dilation);
  return name_of(dsr::cpu::choose_lanes(shape, n, contiguous_rows, element_size(dtype)));
}

std::string lanes_reason(int64_t n, bool contiguous_rows, int64_t width, int64_t out_width,
                         Pair kernel, Pair stride, Pair padding, Pair dilation,
                         const std::string& dtype) {
  const dsr::ConvShape shape = lane_shape(width, out_width, kernel, stride, padding, dilation);
  std::string reason;
  dsr::cpu::choose_lanes(shape, n, contiguous_rows, element_size(dtype), &reason);
  return reason;
}

// address, whether it holds bfloat16, strides
using ActivationTuple = std::tuple<uintptr_t, bool, Quad>;

void require_direction(const ConvPlan& plan, dsr::cpu::Direction wanted) {
  if (plan.direction() != wanted)
    throw std::invalid_argument("grad_input takes a transposed plan, forward and grad_weight not");
}

dsr::cpu::Activation activation(const ConvPlan& plan, const ActivationTuple& tuple) {
  using dsr::cpu::Element;
  const auto& [address, low, strides] = tuple;
  const Element full = plan.element_size() == 4 ? Element::kFloat32 : Element::kFloat64;
  if (low && full == Element::kFloat64)
    throw std::invalid_argument("bfloat16 activations need float32 values");
  return {pointer<void>(address), low ? Element::kBFloat16 : full, strides4(strides)};
}

void plan_forward(const ConvPlan& plan, int64_t n, const ActivationTuple& x, uintptr_t values,
                  uintptr_t bias, const ActivationTuple& y, int threads, uintptr_t workspace) {
  require_direction(plan, dsr::cpu::Direction::kForward);
  const auto from = activation(plan, x), to = activation(plan, y);
  with_dtype(plan, [&](auto* typed) {
    using S = std::remove_pointer_t<decltype(typed)>;
    plan.forward<S>(n, from, pointer<S>(values), pointer<S>(bias), to, threads,
                    pointer<char>(workspace));
  });
}

void plan_grad_input(const ConvPlan& plan, int64_t n, const ActivationTuple& grad_y,
                     uintptr_t values, const ActivationTuple& grad_x, int threads,
                     uintptr_t workspace) {
  require_direction(plan, dsr::cpu::Direction::kGradInput);
  const auto from = activation(plan, grad_y), to = activation(plan, grad_x);
  with_dtype(plan, [&](auto* typed) {
    using S = std::remove_pointer_t<decltype(typed)>;
    plan.grad_input<S>(n, from, pointer<S>(values), to, threads, pointer<char>(workspace));
  });
}

void plan_grad_weight(const ConvPlan& plan, int64_t n, const ActivationTuple& x,
                      const ActivationTuple& grad_y, uintptr_t grad_values, int threads,
                      uintptr_t workspace) {
  require_direction(plan, dsr::cpu::Direction::kForward);
  const auto source = activation(plan, x), grad = activation(plan, grad_y);
  with_dtype(plan, [&](auto* typed) {
    using S = std::remove_pointer_t<decltype(typed)>;
    plan.grad_weight<S>(n, source, grad, pointer<S>(grad_values), threads,
                        pointer<char>(workspace));
  });
}

dsr::cpu::Op op_named(const std::string& op) {
  if (op == "forward") return dsr::cpu::Op::kForward;
  if (op == "grad_input") return dsr::cpu::Op::kGradInput;
  if (op == "grad_weight") return dsr::cpu::Op::kGradWeight;
  throw std::invalid_argument("op: expected 'forward', 'grad_input' or 'grad_weight', got '" + op +
                              "'");
}

// How a pass is carried out, for people and for tests.
py::dict plan_describe(const ConvPlan& plan) {
  using namespace py::literals;
  const dsr::cpu::GatherPlan& p = plan.gather();
  return py::dict(
      "lanes"_a = name_of(p.lanes), "lane_images"_a = p.lane_images, "images"_a = p.images,
      "band_rows"_a = p.band_rows, "bands"_a = p.bands, "tile_rows"_a = p.tile_rows,
      "tile_cols"_a = p.tile_cols, "strip_cols"_a = p.strip_cols,
      "destination_block"_a = p.destination_block, "channel_block"_a = p.channel_block,
      "blocks"_a = p.blocks, "phases"_a = p.source.phases.size(), "classes"_a = p.classes.size(),
      "class_rows"_a = p.classes[0].rows, "class_cols"_a = p.classes[0].cols,
      "image_rows"_a = p.source.image_rows, "pitch"_a = p.source.pitch, "plane"_a = p.source.plane,
      "packed_elements"_a = p.source.elements() * p.lane_images,
      "cycles_per_fma"_a = p.cycles_per_fma);
}

int64_t plan_workspace_bytes(const ConvPlan& plan, const std::string& op, int64_t n, int threads) {
  return plan.workspace_bytes(op_named(op), n, threads);
}

template <class S>
void channel_sums_of(Quad size, uintptr_t x, Quad x_strides, uintptr_t out, int threads,
                     uintptr_t workspace) {
  py::gil_scoped_release release;
  dsr::cpu::channel_sums<S>(size[0], size[1], size[2], size[3], pointer<S>(x), strides4(x_strides),
                            pointer<S>(out), threads, pointer<void>(workspace));
}

void bind_channel_sums(py::module_& m) {
  m.def("channel_sums_workspace", &dsr::cpu::channel_sums_workspace, py::arg("n"),
        py::arg("channels"));
  m.def(
      "channel_sums",
      [](const std::string& dtype, Quad size, uintptr_t x, Quad x_strides, uintptr_t out,
         int threads, uintptr_t workspace) {
        const auto launch =
            element_size(dtype) == 4 ? channel_sums_of<float> : channel_sums_of<double>;
        launch(size, x, x_strides, out, threads, workspace);
      },
      py::arg("dtype"), py::arg("size"), py::arg("x"), py::arg("x_strides"), py::arg("out"),
      py::arg("threads"), py::arg("workspace"), "out [C] = x [N, C, H, W] summed over N, H, W.");
}

void bind_conv(py::module_& m) {
  py::class_<ConvPlan>(m, "ConvPlan")
      .def(py::init(&make_plan), py::arg("out_channels"), py::arg("in_channels"), py::arg("height"),
           py::arg("width"), py::arg("kernel"), py::arg("stride"), py::arg("padding"),
           py::arg("out_size"), py::arg("dilation"), py::arg("groups"), py::arg("crow"),
           py::arg("col"), py::arg("nnz"), py::arg("dtype"), py::arg("lanes") = "plane",
           py::arg("transposed") = false)
      .def_property_readonly("bytes", [](const ConvPlan& plan) { return plan.gather().bytes(); })
      .def("describe", &plan_describe)
      .def("workspace_bytes", &plan_workspace_bytes, py::arg("op"), py::arg("n"),
           py::arg("threads"))
      .def("forward", &plan_forward, py::arg("n"), py::arg("x"), py::arg("values"), py::arg("bias"),
           py::arg("y"), py::arg("threads"), py::arg("workspace"))
      .def("grad_input", &plan_grad_input, py::arg("n"), py::arg("grad_y"), py::arg("values"),
           py::arg("grad_x"), py::arg("threads"), py::arg("workspace"))
      .def("grad_weight", &plan_grad_weight, py::arg("n"), py::arg("x"), py::arg("grad_y"),
           py::arg("grad_values"), py::arg("threads"), py::arg("workspace"));
  m.def("choose_lanes", &choose_lanes, py::arg("n"), py::arg("contiguous_rows"), py::arg("width"),
        py::arg("out_width"), py::arg("kernel"), py::arg("stride"), py::arg("padding"),
        py::arg("dilation"), py::arg("dtype"));
  m.def("lanes_reason", &lanes_reason, py::arg("n"), py::arg("contiguous_rows"), py::arg("width"),
        py::arg("out_width"), py::arg("kernel"), py::arg("stride"), py::arg("padding"),
        py::arg("dilation"), py::arg("dtype"), "Why choose_lanes chooses as it does, in words.");
  m.def(
      "peak_gflops",
      [](int threads, double seconds) {
        py::gil_scoped_release release;
        return dsr::cpu::kernels().peak_gflops(threads, seconds);
      },
      py::arg("threads"), py::arg("seconds") = 0.1,
      "float32 multiply-adds from registers, measured for `seconds` with the active instructions.");
  m.def("isa", [] {
    std::string name;
    require_ok(dsr::cpu::active_isa(&name));
    return name;
  });
  m.def("available_isas", &dsr::cpu::available_isas);
  m.def("set_isa", [](const std::string& name) { require_ok(dsr::cpu::set_isa(name)); });
}

// ---- rewire ----

// name, rows, row_length, nnz, crow, col, values, dtype, stream
using LayerTuple = std::tuple<std::string, int64_t, int64_t, int64_t, uintptr_t, uintptr_t,
                              uintptr_t, std::string, uint32_t>;
// crow, col, [(from, to, item_size), ...]
using OutputTuple =
    std::tuple<uintptr_t, uintptr_t, std::vector<std::tuple<uintptr_t, uintptr_t, int64_t>>>;

dsr::cpu::RewirePlan open_plan(const std::vector<LayerTuple>& layers, int threads) {
  dsr::cpu::RewirePlan plan;
  for (const auto& [name, rows, row_length, nnz, crow, col, values, dtype, stream] : layers) {
    plan.layers.push_back(
        {name, rows, row_length, nnz, pointer<int32_t>(crow), pointer<int32_t>(col),
         pointer<void>(values),
         element_size(dtype) == 4 ? dsr::cpu::ValueType::kFloat32 : dsr::cpu::ValueType::kFloat64,
         stream});
  }
  py::gil_scoped_release release;
  require_ok(dsr::cpu::rewire_open(plan, threads));
  return plan;
}

void apply_plan(const dsr::cpu::RewirePlan& plan, uint64_t seed, uint32_t step,
                const std::vector<OutputTuple>& tuples) {
  std::vector<dsr::cpu::RewireOutput> outputs;
  for (const auto& [crow, col, arrays] : tuples) {
    outputs.push_back({pointer<int32_t>(crow), pointer<int32_t>(col), {}});
    for (const auto& [from, to, item_size] : arrays) {
      outputs.back().arrays.push_back({pointer<void>(from), pointer<void>(to), item_size});
    }
  }
  py::gil_scoped_release release;
  require_ok(dsr::cpu::rewire_apply(plan, seed, step, outputs));
}

template <class F>
std::vector<int64_t> per_layer(const dsr::cpu::RewirePlan& plan, F&& f) {
  std::vector<int64_t> result;
  for (size_t l = 0; l < plan.layers.size(); ++l) result.push_back(f(static_cast<int64_t>(l)));
  return result;
}

// The plan borrows the memory of its layers: the caller keeps their tensors until it is done with
// the plan.
void bind_rewire_plan(py::module_& m) {
  using dsr::cpu::RewirePlan;
  py::class_<RewirePlan>(m, "RewirePlan")
      .def(py::init(&open_plan), py::arg("layers"), py::arg("threads"))
      .def(
          "prune_below",
          [](RewirePlan& plan, double threshold) {
            py::gil_scoped_release release;
            require_ok(dsr::cpu::rewire_prune_below(plan, threshold));
          },
          py::arg("threshold"))
      .def(
          "prune_smallest",
          [](RewirePlan& plan, int64_t count) {
            py::gil_scoped_release release;
            require_ok(dsr::cpu::rewire_prune_smallest(plan, count));
          },
          py::arg("count"))
      .def("grow_proportionally",
           [](RewirePlan& plan) { require_ok(dsr::cpu::rewire_grow_proportionally(plan)); })
      .def("apply", &apply_plan, py::arg("seed"), py::arg("step"), py::arg("outputs"))
      .def_readonly("prunable", &RewirePlan::prunable)
      .def_readonly("below", &RewirePlan::below)
      .def_readonly("room", &RewirePlan::room)
      .def_readonly("cut", &RewirePlan::cut)
      .def_property_readonly("pruned",
                             [](const RewirePlan& plan) {
                               return per_layer(
                                   plan, [&](int64_t l) { return plan.decisions[l].pruned; });
                             })
      .def_property_readonly("grown",
                             [](const RewirePlan& plan) {
                               return per_layer(plan,
                                                [&](int64_t l) { return plan.decisions[l].grown; });
                             })
      .def_property_readonly("nnz_after", [](const RewirePlan& plan) {
        return per_layer(plan, [&](int64_t l) { return plan.nnz_after(l); });
      });
}

void bind_rewire(py::module_& m) {
  bind_rewire_plan(m);
  m.def(
      "sample_pattern",
      [](int64_t rows, int64_t row_length, int64_t nnz, uint64_t seed, uintptr_t crow,
         uintptr_t col) {
        py::gil_scoped_release release;
        require_ok(dsr::cpu::sample_pattern(rows, row_length, nnz, seed, pointer<int32_t>(crow),
                                            pointer<int32_t>(col)));
      },
      py::arg("rows"), py::arg("row_length"), py::arg("nnz"), py::arg("seed"), py::arg("crow"),
      py::arg("col"),
      "Fills crow [rows + 1] and col [nnz] (int32) with distinct uniform positions, sorted.");

  // For the tests of the random numbers, on which everything else rests.
  m.def("_philox", [](std::array<uint32_t, 4> counter, uint64_t key) {
    const dsr::PhiloxBlock block =
        dsr::philox4x32({{counter[0], counter[1], counter[2], counter[3]}}, key);
    return std::array<uint32_t, 4>{block.word[0], block.word[1], block.word[2], block.word[3]};
  });
  m.def("_feistel",
        [](uint64_t n, uint64_t seed, uint32_t step, uint32_t layer, std::vector<uint64_t> points) {
          if (n < 1 || n > (uint64_t{1} << 62)) throw std::invalid_argument("n out of range");
          const auto permutation = dsr::Feistel::make(n, seed, step, layer, dsr::Purpose::kGrowth);
          for (uint64_t& x : points) x = permutation(x);
          return points;
        });
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native core of dsr_kernels.";
  bind_conv(m);
  bind_channel_sums(m);
  bind_rewire(m);
}
