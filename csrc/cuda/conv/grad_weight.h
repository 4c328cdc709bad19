// The gradient of the values at the non-zeros on the GPU:
//
//     grad_values[j] = sum over images and positions m of
//                      grad_y[row of j, m] * slab[offset of j + m]
//
// The list of non-zeros is ordered by block of source channels, then output channel; each segment
// (one such pair) starts at an even entry. Up to eight entries past a segment's end are read.
#pragma once

#include <cstdint>

#include "common/conv_shape.h"
#include "cuda/conv/fused.h"
#include "cuda/conv/gather.h"
#include "cuda/conv/slab.h"

namespace dsr::cuda {

struct GradWeight {
  Slab slab;
  int32_t groups;           // of the convolution
  int32_t dest_channels;    // of one group
  int32_t source_channels;  // of one group
  int32_t channel_block;    // source channels in a slab
  int32_t blocks;           // of source channels
  int32_t row_block;        // output channels that a thread block serves
  int32_t tiles;            // of positions
  int32_t splits;           // parts of the tiles that are summed apart
  int32_t tiles_per_split;
  int32_t lanes_on_channels;  // of the source
  int32_t slab_bytes;
  int32_t units;    // the kernel's template argument: one of Variants::grad_weight_units
  int64_t entries;  // of the list
  Strides4 source_strides, grad_strides;
};

Status grad_weight(Queue queue, const GradWeight& pass, Element element,
                   const void* source,          // [N, groups * source_channels, height, width]
                   const void* grad,            // [N, groups * dest_channels, rows, cols]
                   const int32_t* offsets,      // [entries] bytes in a slab
                   const int32_t* value_index,  // [entries], -1 in the gaps
                   const int32_t* bounds,       // [blocks * groups * dest_channels, 2]
                   float* partial,              // [splits, entries]
                   float* grad_values,          // [nnz]
                   const GradWeightMaps* maps = nullptr);  // what is done beside

// grad_values[value_index[i]] = partial[0][i] + partial[1][i] + ..., on the current device. Without
// a value_index, i is that of the value.
Status reduce_splits(Queue queue, int64_t entries, int splits,
                     const int32_t* value_index,  // [entries], -1 in gaps; or null
                     const float* partial,        // [splits, entries]
                     float* grad_values);         // [nnz]

}  // namespace dsr::cuda
