// The launches of one pass of a convolution on a GPU, chosen by modelled clocks.
//
// A pass goes by slabs of shared memory row by row (gather.h, grad_weight.h), by windows of
// destination channels and matrix units (window_gather.h, window_grad_weight.h), or without slabs
// (direct.h). The plan depends on sizes, strides and the share of non-zeros alone. The pattern's
// list of non-zeros is made from the key (dsr_kernels/backends/cuda/lists.py, window_lists.py).
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "common/conv_shape.h"
#include "common/status.h"
#include "cuda/conv/direct.h"
#include "cuda/conv/gather.h"
#include "cuda/conv/grad_weight.h"
#include "cuda/conv/plan/list_key.h"
#include "cuda/conv/plan/tilings.h"
#include "cuda/conv/window_grad_weight.h"

namespace dsr::cuda {

enum class Direction { kForward, kGradInput, kGradWeight };
enum class Kind { kSlab, kWindow, kDirect };

struct ConvProblem {
  ConvShape shape;
  int64_t images;
  Direction direction;
  double density;      // share of non-zeros
  int64_t block_size;  // of the pattern
  DirectType dtype;    // of activations
  Strides4 source;     // of x; of a grad-input, of y's gradient
  Strides4 dest;       // of y or its gradient; of a grad-input, of x's gradient
  DeviceLimits device;
  bool windows;  // whether matrix units may be taken

  PassShape pass() const {
    return direction == Direction::kGradInput ? grad_input_shape(shape) : forward_shape(shape);
  }
  // Bytes of an activation.
  int element_size() const {
    return dtype == DirectType::kFloat64 ? 8 : dtype == DirectType::kFloat32 ? 4 : 2;
  }
};

// What is to be taken in place of the cheapest; nothing: no kernel of that kind.
struct GatherTilings {
  std::optional<GatherTiling> rows, windows;
};
struct GradWeightTilings {
  std::optional<GradWeightTiling> rows;
  std::optional<WindowGradWeightTiling> windows;
};

// The cheapest of each kind.
GatherTilings choose_gather(const ConvProblem& problem);
GradWeightTilings choose_grad_weight(const ConvProblem& problem);

struct ConvPlan {
  Direction direction;
  DirectType dtype;
  Kind kind;
  ListKey key;
  double clocks;  // modelled; 0 of a direct one

  std::vector<Gather> gathers;  // of a forward or grad-input
  std::vector<Direct> directs;  // one for each class
  GradWeight grad_weight;
  WindowGradWeight window_grad_weight;

  // Of forward and grad-input, and of grad-weight. Errors name what 32 bits do not count.
  static Status make(const ConvProblem& problem, const GatherTilings& tilings, ConvPlan* plan);
  static Status make(const ConvProblem& problem, const GradWeightTilings& tilings, ConvPlan* plan);
  static Status make(const ConvProblem& problem, ConvPlan* plan);  // by the model's choice

  // Parts of a grad-weight's positions that are summed apart; 1 of others.
  int splits() const;
};

}  // namespace dsr::cuda
