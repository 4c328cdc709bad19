// What store steps do to the sums of the inner loops, in a pass of its own: for the rare call whose
// sums are not final when they are stored (nonfinite.h).
#pragma once

#include "cpu/conv/kernels.h"

namespace dsr::cpu {

// Fills args.destination, and the sums of channels that args.finish asks for, from sums
// [n][channels][height][width] of args.plan's destination.
template <typename S>
void finish_apart(const GatherArgs<S>& args, const S* sums);

}  // namespace dsr::cpu
