// How a laid-out pass is cut into tiles, blocks, strips and units, by a model of what each costs.
#pragma once

#include "cpu/conv/gather_plan.h"

namespace dsr::cpu {

// Fills tile, block, strip, unit, and the plane's length. The layout is there already.
void choose_tiling(int64_t nnz, int element_size, GatherPlan* plan);

}  // namespace dsr::cpu
