// How a GPU pass is cut into tiles and blocks, by counting what its thread blocks do (costs.h).
//
// Each function lists what a pass can do, with its modelled time. density: the share of non-zeros;
// element_size: bytes of an activation.
#pragma once

#include <cstdint>
#include <vector>

#include "cuda/conv/plan/costs.h"
#include "cuda/conv/plan/layout.h"
#include "cuda/conv/plan/pass_shape.h"

namespace dsr::cuda {

// Of a forward or grad-input pass. By windows: `rows` is kWindowRows, `units` are of a warp, and
// `row_warps` counts windows.
struct GatherTiling {
  int64_t rows, units, row_warps;
  int64_t channel_block;
  std::vector<Layout> layouts;  // of the classes
  double clocks;                // modelled
};

struct GradWeightTiling {
  int64_t units;
  int64_t channel_block;
  int64_t row_block;  // output channels of a thread block
  int64_t tiles_per_split;
  Layout layout;
  double clocks;
};

struct WindowGradWeightTiling {
  int64_t tile;  // positions
  int64_t compute_warps;
  int64_t grad_warps;    // of the others, which fill: those that bring the gradient
  int64_t window_block;  // windows of a thread block
  int64_t channel_block;
  int64_t tiles_per_split;
  Layout layout;
  double clocks;
};

// Parts of the positions that are summed apart; none is empty.
int64_t splits_of(const Layout& layout, int64_t tiles_per_split);

std::vector<GatherTiling> gather_tilings(const PassShape& shape, int64_t images, double density,
                                         int element_size, const DeviceLimits& device);

std::vector<GradWeightTiling> grad_weight_tilings(const PassShape& shape, int64_t images,
                                                  double density, int element_size,
                                                  const DeviceLimits& device);

// By matrix units: cuda/conv/window_gather.h and window_grad_weight.h. A step of 16 entries costs
// the same however few non-zeros it has. So it is cheap where the rows of a window share their
// entries: in blocks of output channels, or where there are many non-zeros.
std::vector<GatherTiling> window_gather_tilings(const PassShape& shape, int64_t images,
                                                double density, int64_t block_size,
                                                int element_size, const DeviceLimits& device);

std::vector<WindowGradWeightTiling> window_grad_weight_tilings(const PassShape& shape,
                                                               int64_t images, double density,
                                                               int64_t block_size, int element_size,
                                                               const DeviceLimits& device);

}  // namespace dsr::cuda
