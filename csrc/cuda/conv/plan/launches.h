// A pass as the kernels take it: native structs, filled with its sizes and strides.
#pragma once

#include <cstdint>
#include <vector>

#include "cuda/conv/plan/conv_plan.h"

namespace dsr::cuda {

// Sizes for the kernels, which count by 32 bits.
class Narrow {
 public:
  int32_t operator()(int64_t size) {
    fits = fits && size == static_cast<int32_t>(size);
    return static_cast<int32_t>(size);
  }
  bool fits = true;  // all of them
};

// A pass with its strides, pointwise images as columns of pixels where memory has them so.
struct StridedPass {
  explicit StridedPass(const ConvProblem& problem)
      : shape(problem.pass()), images(problem.images), source(problem.source), dest(problem.dest) {
    see_as_columns(shape, source, dest);
  }
  PassShape shape;
  int64_t images;
  Strides4 source, dest;
};

// `windows`: whether segments of the list belong to windows rather than to destination channels.
std::vector<Gather> gather_launches(const StridedPass& pass, const GatherTiling& tiling,
                                    const ListKey& key, bool windows, const DeviceLimits& device,
                                    Narrow& narrow);

GradWeight grad_weight_launch(const StridedPass& pass, const GradWeightTiling& tiling,
                              const ListKey& key, Narrow& narrow);

WindowGradWeight window_grad_weight_launch(const StridedPass& pass,
                                           const WindowGradWeightTiling& tiling, const ListKey& key,
                                           Narrow& narrow);

std::vector<Direct> direct_launches(const StridedPass& pass, Narrow& narrow);

}  // namespace dsr::cuda
