// The list of a pattern's windows: dsr_kernels/backends/cuda/window_lists.py.
//
// A window is 16 consecutive destination channels of a group. Its entries are the (source channel,
// tap) pairs at which any of them has a non-zero, 16 to a step; those of one segment (class, block
// of source channels, group, window) stand together. A step that is not full repeats entries of its
// segment. A piece is 1 << piece_shift consecutive values, and consecutive places in its step.
#pragma once

#include <cstdint>

#include "cuda/conv/limits.h"

namespace dsr::cuda {

inline constexpr int kStepSums = kWindowRows * kStepEntries;

struct WindowList {
  const int32_t* offsets;  // [steps, 16] bytes in a slab
  const int32_t* bounds;   // [segments, 2]: first step, one past the last
  const int32_t* pieces;   // [pieces] first value
  const uint8_t* places;   // [pieces] first place: entry * 16 + row (grad-input: row * 16 + entry)
  const int32_t* piece_bounds;  // [steps + 1] first piece
  int32_t piece_shift;
  int64_t values;  // nnz
};

}  // namespace dsr::cuda
