// What the cost models of the GPU's tilings share. The unit of cost is a wavefront: what the shared
// memory of a multiprocessor moves in a clock, 128 bytes. A multiply-add of a warp needs one (half
// of one in low precision), so the wavefronts of the busiest multiprocessor are the time of a pass
// that keeps up with its shared memory.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "cuda/conv/limits.h"

namespace dsr::cuda {

// Warps of a gather's block that may stand side by side along channels.
inline constexpr std::array<int, 5> kRowWarps{1, 2, 4, 8, 16};
static_assert(kRowWarps.back() == kComputeWarps, "at most all that compute");

// As measured.
inline constexpr double kLatencyClocks = 900;  // of a load from memory
inline constexpr double kStepClocks = 800;  // from one slab to the next that belong to no wavefront

// What the choice depends on.
struct DeviceLimits {
  int64_t multiprocessors;
  int64_t shared_per_block;  // bytes a block may have
};

// Each number once, in the order in which candidates are tried: the first of the cheapest is taken.
std::vector<int64_t> distinct(const std::vector<int64_t>& numbers);

// Source channels of a slab, of which kSlabs must fit `shared` bytes; `plane`: bytes of a channel.
std::vector<int64_t> channel_blocks(int64_t channels, int64_t plane, int64_t shared);

// The first of the cheapest; null of none.
template <class Tiling>
const Tiling* cheapest_of(const std::vector<Tiling>& tilings) {
  const Tiling* best = nullptr;
  for (const Tiling& tiling : tilings)
    if (best == nullptr || tiling.clocks < best->clocks) best = &tiling;
  return best;
}

}  // namespace dsr::cuda
