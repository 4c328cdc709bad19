// How a laid-out pass is cut into tiles, blocks, strips and units, by a model of what each costs.
#pragma once

#include <utility>

#include "cpu/conv/layout.h"

namespace dsr::cpu {

// Fills tile, block, strip, unit, and the plane's length. The layout and block_rows are there
// already. `steps`: see GatherPlan.
void choose_tiling(int64_t steps, const Pass& pass, int element_size, GatherPlan* plan);

// (height, width) of the pixels of an image that may be cut anywhere (a pointwise convolution's):
// rows of some fourteen of the widest vectors, or a single row where that does not come out even.
// The same for every instruction set and element size.
std::pair<int64_t, int64_t> long_rows(int64_t pixels);

}  // namespace dsr::cpu
