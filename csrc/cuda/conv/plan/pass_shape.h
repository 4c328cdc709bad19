// A pass of the GPU kernels in words: which source pixels a destination pixel reads.
//
// Forward, grad-weight and grad-input are gathers. Destination pixels fall into classes: one class
// in a forward pass; in a grad-input with stride (s, t), s * t of them, by the remainders of row
// and column, each a gather of its own with the taps that reach it. In a class,
//
//     source row of (destination row j, tap) = first_h + j * row_step + dh(tap),   dh >= 0
//
// and likewise for columns. Taps that meet only padding belong to no class.
#pragma once

#include <cstdint>
#include <vector>

#include "common/conv_shape.h"

namespace dsr::cuda {

struct PassTap {
  int64_t tap;     // kh * KW + kw
  int64_t dh, dw;  // source pixels from the first tap's
};

// One class of destination pixels.
struct PassClass {
  int64_t rows, cols;
  int64_t dest_h, dest_w;    // destination pixel of (0, 0)
  int64_t first_h, first_w;  // source pixel of (0, 0) under the first tap; negative: padding
  std::vector<PassTap> taps;

  int64_t reach_h() const;
  int64_t reach_w() const;
};

// Sizes of a pass; channels are those of one group.
struct PassShape {
  int64_t groups;
  int64_t source_channels, dest_channels;
  int64_t height, width;             // of a source image
  int64_t taps;                      // KH * KW
  int64_t row_step, col_step;        // source pixels from one destination position to the next
  int64_t dest_step_h, dest_step_w;  // destination pixels from one position to the next
  bool transposed;
  std::vector<PassClass> classes;
};

// The pass that reads the input, for forward and grad-weight.
PassShape forward_shape(const ConvShape& shape);

// The pass that reads the output's gradient and writes the input's.
PassShape grad_input_shape(const ConvShape& shape);

// A pointwise pass sees an image as one column of pixels where memory does. Tiles of such columns
// hold just the pixels they compute, and run on across images.
void see_as_columns(PassShape& shape, Strides4& source, Strides4& dest);

}  // namespace dsr::cuda
