// How far apart the packed channels lie, so that those of a tile share out the sets of the caches.
#pragma once

#include "cpu/conv/layout.h"

namespace dsr::cpu {

// Fills source.plane of a plan that is tiled.
void choose_plane(const Pass& pass, int element_size, GatherPlan* plan);

}  // namespace dsr::cpu
