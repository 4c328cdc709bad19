// From the geometry of a convolution to the layout of one pass: taps, phases, classes, margins.
#pragma once

#include <utility>
#include <vector>

#include "cpu/conv/gather_plan.h"

namespace dsr::cpu {

inline int64_t floor_div(int64_t a, int64_t b) {
  return a / b - (a % b != 0 && (a % b < 0) != (b < 0));
}
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Along one axis, tap k meets source index p * stride + (k * dilation - pad); with residue and
// quotient of that constant by the stride, it is element (p + quotient) of the residue's phase.
struct Tap {
  int64_t residue, quotient;
};

// One pass over the taps, in the terms both passes share.
struct Pass {
  std::vector<Tap> rows, cols;
  int64_t sign;  // +1: residues are phases of the source (forward); -1: classes of the destination
  int64_t stride_h, stride_w;
  int64_t source_channels, source_h, source_w;
  int64_t destination_channels, destination_h, destination_w;

  bool pointwise() const { return rows.size() * cols.size() == 1; }
};

Pass forward_pass(const ConvShape& shape);
Pass grad_input_pass(const ConvShape& shape);

// Lanes that one image's row takes in kRow; 0 where kRow does not apply: rows too wide, a column
// stride beyond 2, or taps that reach too far to rotate to.
int64_t slot_lanes(const Pass& pass);

// Fills what does not depend on the pattern or on caches: phases, classes, margins, pitch. Fails
// where plan->lanes do not apply.
Status lay_out(const Pass& pass, int element_size, GatherPlan* plan);

// (height, width) of the pixels of an image that may be cut anywhere (a pointwise convolution's):
// rows of some fourteen of the widest vectors, or a single row where that does not come out even.
// The same for every instruction set and element size.
std::pair<int64_t, int64_t> long_rows(int64_t pixels);

}  // namespace dsr::cpu
