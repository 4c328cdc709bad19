// How a laid-out pass is cut into tiles, blocks, strips and units, by a model of what each costs.
#pragma once

#include "cpu/conv/layout.h"

namespace dsr::cpu {

// Fills tile, block, strip, unit, and the plane's length. The layout and block_rows are there
// already. `steps`: see GatherPlan.
void choose_tiling(int64_t steps, const Pass& pass, int element_size, GatherPlan* plan);

}  // namespace dsr::cpu
