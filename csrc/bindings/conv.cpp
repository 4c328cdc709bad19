// Convolutions: plans, their launches, and the instruction set that runs them.
#include <cstdint>
#include <memory>

#include "bindings/conv.h"
#include "cpu/conv/channel_sum.h"
#include "cpu/conv/extents.h"
#include "cpu/conv/layout.h"

namespace dsr::bindings {
namespace {

cpu::Lanes lanes_named(const std::string& name) {
  if (name == "plane") return cpu::Lanes::kPlane;
  if (name == "row") return cpu::Lanes::kRow;
  if (name == "batch") return cpu::Lanes::kBatch;
  if (name == "matrix") return cpu::Lanes::kMatrix;
  throw std::invalid_argument("lanes: expected 'plane', 'row', 'batch' or 'matrix', got '" + name +
                              "'");
}

const char* name_of(cpu::Lanes lanes) {
  using cpu::Lanes;
  return lanes == Lanes::kPlane   ? "plane"
         : lanes == Lanes::kRow   ? "row"
         : lanes == Lanes::kBatch ? "batch"
                                  : "matrix";
}

std::unique_ptr<ConvPlan> make_plan(int64_t out_channels, int64_t in_channels, int64_t height,
                                    int64_t width, Pair kernel, Pair stride, Pair padding,
                                    Pair out_size, Pair dilation, int64_t groups, uintptr_t crow,
                                    uintptr_t col, int64_t blocks, const std::string& dtype,
                                    const std::string& lanes, bool transposed, int64_t block_size) {
  const ConvShape shape{.in_channels = in_channels,
                        .height = height,
                        .width = width,
                        .out_channels = out_channels,
                        .out_height = out_size[0],
                        .out_width = out_size[1],
                        .kernel_h = kernel[0],
                        .kernel_w = kernel[1],
                        .stride_h = stride[0],
                        .stride_w = stride[1],
                        .pad_h = padding[0],
                        .pad_w = padding[1],
                        .dilation_h = dilation[0],
                        .dilation_w = dilation[1],
                        .groups = groups};
  const BsrPattern pattern{.crow_indices = pointer<int32_t>(crow),
                           .col_indices = pointer<int32_t>(col),
                           .rows = out_channels,
                           .blocks = blocks,
                           .block_size = block_size};
  std::string isa;
  require_ok(cpu::active_isa(&isa));
  auto plan = std::make_unique<ConvPlan>();
  const int size = element_size(dtype);
  const cpu::Lanes which = lanes_named(lanes);
  const auto direction = transposed ? cpu::Direction::kGradInput : cpu::Direction::kForward;
  py::gil_scoped_release release;
  require_ok(ConvPlan::make(shape, pattern, size, which, direction, plan.get()));
  return plan;
}

// Only what the choice depends on: lanes run along the batch, or along columns.
ConvShape lane_shape(int64_t width, int64_t out_width, Pair kernel, Pair stride, Pair padding,
                     Pair dilation) {
  const ConvShape shape{.in_channels = 1,
                        .height = 1,
                        .width = width,
                        .out_channels = 1,
                        .out_height = 1,
                        .out_width = out_width,
                        .kernel_h = kernel[0],
                        .kernel_w = kernel[1],
                        .stride_h = stride[0],
                        .stride_w = stride[1],
                        .pad_h = padding[0],
                        .pad_w = padding[1],
                        .dilation_h = dilation[0],
                        .dilation_w = dilation[1],
                        .groups = 1};
  require_ok(cpu::check_extents(shape));
  return shape;
}

const char* choose_lanes(int64_t n, bool contiguous_rows, int64_t width, int64_t out_width,
                         Pair kernel, Pair stride, Pair padding, Pair dilation,
                         const std::string& dtype, int64_t block_size, bool bfloat16) {
  const ConvShape shape = lane_shape(width, out_width, kernel, stride, padding, dilation);
  return name_of(
      cpu::choose_lanes(shape, n, contiguous_rows, element_size(dtype), block_size, bfloat16));
}

std::string lanes_reason(int64_t n, bool contiguous_rows, int64_t width, int64_t out_width,
                         Pair kernel, Pair stride, Pair padding, Pair dilation,
                         const std::string& dtype, int64_t block_size, bool bfloat16) {
  const ConvShape shape = lane_shape(width, out_width, kernel, stride, padding, dilation);
  std::string reason;
  cpu::choose_lanes(shape, n, contiguous_rows, element_size(dtype), block_size, bfloat16, &reason);
  return reason;
}

void sparse_conv2d(const ConvPlan& plan, int64_t n, const ActivationTuple& x, uintptr_t values,
                   uintptr_t bias, const ActivationTuple& y, int threads, uintptr_t workspace) {
  require_direction(plan, cpu::Direction::kForward);
  const auto from = activation(plan, x), to = activation(plan, y);
  with_dtype(plan, [&](auto* typed) {
    using S = std::remove_pointer_t<decltype(typed)>;
    plan.sparse_conv2d<S>(n, operand<S>(from), pointer<S>(values), pointer<S>(bias), to, {},
                          threads, pointer<char>(workspace));
  });
}

void sparse_conv2d_grad_input(const ConvPlan& plan, int64_t n, const ActivationTuple& grad_y,
                              uintptr_t values, const ActivationTuple& grad_x, int threads,
                              uintptr_t workspace) {
  require_direction(plan, cpu::Direction::kGradInput);
  const auto from = activation(plan, grad_y), to = activation(plan, grad_x);
  with_dtype(plan, [&](auto* typed) {
    using S = std::remove_pointer_t<decltype(typed)>;
    plan.sparse_conv2d_grad_input<S>(n, operand<S>(from), pointer<S>(values), to, {}, threads,
                                     pointer<char>(workspace));
  });
}

void sparse_conv2d_grad_weight(const ConvPlan& plan, int64_t n, const ActivationTuple& x,
                               const ActivationTuple& grad_y, uintptr_t grad_values, int threads,
                               uintptr_t workspace) {
  require_direction(plan, cpu::Direction::kForward);
  const auto source = activation(plan, x), grad = activation(plan, grad_y);
  with_dtype(plan, [&](auto* typed) {
    using S = std::remove_pointer_t<decltype(typed)>;
    plan.sparse_conv2d_grad_weight<S>(n, operand<S>(source), operand<S>(grad),
                                      pointer<S>(grad_values), threads, pointer<char>(workspace));
  });
}

cpu::Op op_named(const std::string& op) {
  if (op == "forward") return cpu::Op::kForward;
  if (op == "grad_input") return cpu::Op::kGradInput;
  if (op == "grad_weight") return cpu::Op::kGradWeight;
  throw std::invalid_argument("op: expected 'forward', 'grad_input' or 'grad_weight', got '" + op +
                              "'");
}

// How a pass is carried out, for people and for tests.
py::dict plan_describe(const ConvPlan& plan) {
  using namespace py::literals;
  const cpu::GatherPlan& p = plan.gather_plan();
  return py::dict(
      "lanes"_a = name_of(p.lanes), "lane_images"_a = p.batch.lane_images,
      "images"_a = p.unit.images, "band_rows"_a = p.unit.band_rows, "bands"_a = p.unit.bands,
      "tile_rows"_a = p.tile.rows, "tile_cols"_a = p.tile.cols, "strip_cols"_a = p.strip.cols,
      "destination_block"_a = p.strip.channels, "channel_block"_a = p.block.channels,
      "blocks"_a = p.block.count, "block_rows"_a = p.block_rows,
      "phases"_a = p.source.phases.size(), "classes"_a = p.destination.classes.size(),
      "class_rows"_a = p.destination.classes[0].rows,
      "class_cols"_a = p.destination.classes[0].cols, "image_rows"_a = p.source.image_rows,
      "pitch"_a = p.source.pitch, "plane"_a = p.source.plane,
      "packed_elements"_a = p.source.elements() * p.batch.lane_images,
      "cycles_per_fma"_a = p.cycles_per_fma);
}

int64_t plan_workspace_bytes(const ConvPlan& plan, const std::string& op, int64_t n, int threads,
                             bool sums) {
  return plan.workspace_bytes(op_named(op), n, threads, sums);
}

template <class S>
void sparse_conv2d_grad_bias(Quad size, uintptr_t x, Quad x_strides, uintptr_t out, int threads,
                             uintptr_t workspace) {
  py::gil_scoped_release release;
  cpu::channel_sums<S>(size[0], size[1], size[2], size[3], pointer<S>(x), strides4(x_strides),
                       pointer<S>(out), threads, pointer<void>(workspace));
}

}  // namespace

void bind_grad_bias(py::module_& m) {
  m.def("sparse_conv2d_grad_bias_workspace", &cpu::channel_sums_workspace, py::arg("n"),
        py::arg("channels"));
  m.def(
      "sparse_conv2d_grad_bias",
      [](const std::string& dtype, Quad size, uintptr_t x, Quad x_strides, uintptr_t out,
         int threads, uintptr_t workspace) {
        const auto launch = element_size(dtype) == 4 ? sparse_conv2d_grad_bias<float>
                                                     : sparse_conv2d_grad_bias<double>;
        launch(size, x, x_strides, out, threads, workspace);
      },
      py::arg("dtype"), py::arg("size"), py::arg("x"), py::arg("x_strides"), py::arg("out"),
      py::arg("threads"), py::arg("workspace"), "out [C] = x [N, C, H, W] summed over N, H, W.");
}

void bind_conv(py::module_& m) {
  py::class_<ConvPlan, std::shared_ptr<ConvPlan>>(m, "ConvPlan")
      .def(py::init(&make_plan), py::arg("out_channels"), py::arg("in_channels"), py::arg("height"),
           py::arg("width"), py::arg("kernel"), py::arg("stride"), py::arg("padding"),
           py::arg("out_size"), py::arg("dilation"), py::arg("groups"), py::arg("crow"),
           py::arg("col"), py::arg("blocks"), py::arg("dtype"), py::arg("lanes") = "plane",
           py::arg("transposed") = false, py::arg("block_size") = 1)
      .def_property_readonly("bytes",
                             [](const ConvPlan& plan) { return plan.gather_plan().bytes(); })
      .def("describe", &plan_describe)
      .def("workspace_bytes", &plan_workspace_bytes, py::arg("op"), py::arg("n"),
           py::arg("threads"), py::arg("sums") = false)
      .def("sparse_conv2d", &sparse_conv2d, py::arg("n"), py::arg("x"), py::arg("values"),
           py::arg("bias"), py::arg("y"), py::arg("threads"), py::arg("workspace"))
      .def("sparse_conv2d_grad_input", &sparse_conv2d_grad_input, py::arg("n"), py::arg("grad_y"),
           py::arg("values"), py::arg("grad_x"), py::arg("threads"), py::arg("workspace"))
      .def("sparse_conv2d_grad_weight", &sparse_conv2d_grad_weight, py::arg("n"), py::arg("x"),
           py::arg("grad_y"), py::arg("grad_values"), py::arg("threads"), py::arg("workspace"));
  m.def("choose_lanes", &choose_lanes, py::arg("n"), py::arg("contiguous_rows"), py::arg("width"),
        py::arg("out_width"), py::arg("kernel"), py::arg("stride"), py::arg("padding"),
        py::arg("dilation"), py::arg("dtype"), py::arg("block_size") = 1,
        py::arg("bfloat16") = false);
  m.def("lanes_reason", &lanes_reason, py::arg("n"), py::arg("contiguous_rows"), py::arg("width"),
        py::arg("out_width"), py::arg("kernel"), py::arg("stride"), py::arg("padding"),
        py::arg("dilation"), py::arg("dtype"), py::arg("block_size") = 1,
        py::arg("bfloat16") = false, "Why choose_lanes chooses as it does, in words.");
  m.def("long_rows", &cpu::long_rows, py::arg("pixels"),
        "(height, width) of the same pixels in rows that cut well into vectors.");
  m.def(
      "peak_gflops",
      [](int threads, double seconds) {
        py::gil_scoped_release release;
        return cpu::kernels().peak_gflops(threads, seconds);
      },
      py::arg("threads"), py::arg("seconds") = 0.1,
      "float32 multiply-adds from registers, measured for `seconds` with the active instructions.");
  m.def("isa", [] {
    std::string name;
    require_ok(cpu::active_isa(&name));
    return name;
  });
  m.def("available_isas", &cpu::available_isas);
  m.def("set_isa", [](const std::string& name) { require_ok(cpu::set_isa(name)); });
}

}  // namespace dsr::bindings
