// _C.cuda_limits: csrc/cuda/conv/limits.h for dsr_kernels/backends/cuda, which plans for the GPU's
// kernels. In _C, since plans are also made where _cuda is not built.
#include "cuda/conv/limits.h"

#include "bindings/common.h"

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

}  // namespace

void bind_cuda_limits(py::module_& m) {
  py::module_ limits = m.def_submodule("cuda_limits", "What the GPU's kernels are made for.");
  limits.attr("VECTOR_BYTES") = cuda::kVectorBytes;
  limits.attr("COMPUTE_WARPS") = cuda::kComputeWarps;
  limits.attr("FILL_WARPS") = cuda::kFillWarps;
  limits.attr("FILL_BATCH") = cuda::kFillBatch;
  limits.attr("SLABS") = cuda::kSlabs;
  limits.attr("MAX_CLASSES") = cuda::kMaxClasses;
  limits.attr("LIST_ALIGN") = cuda::kListAlign;
  limits.attr("LIST_SLACK") = cuda::kListSlack;
  limits.attr("WINDOW_ROWS") = cuda::kWindowRows;
  limits.attr("STEP_ENTRIES") = cuda::kStepEntries;
  limits.attr("WINDOW_UNITS") = py::tuple(py::cast(cuda::kWindowUnits));
  // By the bytes of an activation: ((rows, units), ...) and (units, ...).
  py::dict gather, grad_weight;
  gather[py::int_(4)] = gather_variants<4>();
  gather[py::int_(2)] = gather_variants<2>();
  grad_weight[py::int_(4)] = grad_weight_units<4>();
  grad_weight[py::int_(2)] = grad_weight_units<2>();
  limits.attr("GATHER_VARIANTS") = gather;
  limits.attr("GRAD_WEIGHT_UNITS") = grad_weight;
}

}  // namespace dsr::bindings
