// The gradient of the values at the non-zeros by the GPU's matrix units; of floats, both operands
// are rounded to TF32.
//
// A window is 16 consecutive output channels of a group. The list has the (source channel, tap)
// pairs at which a window has any non-zero, 16 to a step, and of each step
//
//     C[entry of the step][row of the window] = sum over images and positions m of
//                                               slab[offset of the entry + m] * grad_y[row, m]
//
// is computed whole. Of these 256 sums those are kept that belong to values: each piece of the list
// says where in C it begins and at which value. An entry's vectors are read once for all rows of
// its window, where the kernel of grad_weight.h reads them once for each non-zero.
#pragma once

#include <cstdint>

#include "common/conv_shape.h"
#include "cuda/conv/fused.h"
#include "cuda/conv/gather.h"
#include "cuda/conv/slab.h"
#include "cuda/conv/window_list.h"

namespace dsr::cuda {

struct WindowGradWeight {
  Slab slab;
  int32_t groups;           // of the convolution
  int32_t dest_channels;    // of one group
  int32_t source_channels;  // of one group
  int32_t channel_block;    // source channels in a slab
  int32_t blocks;           // of source channels
  int32_t window_block;     // windows that a thread block serves
  int32_t compute_warps;    // of a thread block; the others fill,
  int32_t grad_warps;       // so many of them with the gradient, and some with the source
  int32_t tile;             // positions, a multiple of 8
  int32_t tiles;            // of positions
  int32_t splits;           // parts of the tiles that are summed apart
  int32_t tiles_per_split;
  int32_t source_lanes_on_channels, grad_lanes_on_channels;
  int32_t slab_bytes;  // of the source's slab
  int32_t grad_plane;  // vectors from channel to channel of the gradient's slab: odd
  Strides4 source_strides, grad_strides;

  int windows() const { return (dest_channels + kWindowRows - 1) / kWindowRows; }
  int window_parts() const { return (windows() + window_block - 1) / window_block; }
  // Of the slab of the gradient, which lies behind that of the source.
  int grad_bytes() const {
    const int rows = kWindowRows * window_block;
    return (rows < dest_channels ? rows : dest_channels) * grad_plane * kVectorBytes;
  }
  // Both slabs, and where each position of the tile is in the source's.
  int stage_bytes() const {
    return slab_bytes + grad_bytes() + tile * static_cast<int>(sizeof(int32_t));
  }
  // One stage is computed on while the next is filled; each warp has room for the sums of a step.
  int shared_bytes() const {
    return kSlabs * stage_bytes() + compute_warps * kStepSums * static_cast<int>(sizeof(float));
  }
};

Status window_grad_weight(Queue queue, const WindowGradWeight& pass, const WindowList& list,
                          Element element,
                          const void* source,  // [N, groups * source_channels, height, width]
                          const void* grad,    // [N, groups * dest_channels, rows, cols]
                          float* partial,      // [splits, nnz]
                          float* grad_values,  // [nnz]
                          const GradWeightMaps* maps = nullptr);  // what is done beside

}  // namespace dsr::cuda
