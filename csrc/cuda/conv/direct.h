// Forward, grad-input and grad-weight without a slab, for what the slab kernels do not do: float64,
// kernels whose reach does not fit shared memory, passes of more positions than 32 bits count, and
// layers so sparse that slabs would be mostly idle. A gather has a thread per destination element,
// a grad-weight a block per non-zero; every operand comes from global memory, every bound is
// tested.
#pragma once

#include <cstdint>

#include "common/conv_shape.h"
#include "cuda/device.h"

namespace dsr::cuda {

enum class DirectType { kFloat64, kFloat32, kBFloat16, kFloat16 };  // of activations

// One non-zero: it reads source pixel (row_step * p + dh, col_step * q + dw) of a channel.
struct DirectEntry {
  int32_t channel, dh, dw;  // channel: of the group
  int32_t value;            // index into the values
};

struct Direct {
  int32_t images, height, width;     // of the source
  int32_t rows, cols;                // destination pixels of this class in one image
  int32_t dest_h, dest_w;            // destination pixel of (0, 0)
  int32_t dest_step_h, dest_step_w;  // pixels from one destination position to the next
  int32_t row_step, col_step;        // source pixels from one destination position to the next
  int32_t groups;                    // of the convolution
  int32_t dest_channels;             // of one group
  int32_t source_channels;           // of one group
  int64_t first_segment;             // of the class
  Strides4 source_strides, dest_strides;
};

// dest[n, d, p, q] = bias[d] + sum over the entries of d's segment; values and bias are float64
// beside float64 activations and float32 otherwise.
Status direct_gather(Queue queue, const Direct& pass, DirectType type, const void* source,
                     const DirectEntry* entries,
                     const int32_t* bounds,  // [segments, 2]: first entry, one past the last
                     const void* values, const void* bias, void* dest);

// grad_values[entry.value] = sum over images and pixels of grad (at dest_strides) times source.
Status direct_grad_weight(Queue queue, const Direct& pass, DirectType type, const void* source,
                          const void* grad, int64_t nnz, const DirectEntry* entries,
                          const int32_t* bounds, void* grad_values);

}  // namespace dsr::cuda
