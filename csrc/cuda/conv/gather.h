// Forward and grad-input as one kernel on the GPU: for each destination channel d and position m,
//
//     destination[d, m] = bias[d] + sum over the non-zeros of row d of value * slab[offset + m]
//
// The list of non-zeros is ordered by class, block of source channels, destination channel; each
// segment of it (one such triple) starts at an even entry, right after the one before.
#pragma once

#include <cstdint>

#include "common/conv_shape.h"
#include "cuda/conv/fused.h"
#include "cuda/conv/limits.h"
#include "cuda/conv/slab.h"
#include "cuda/device.h"

namespace dsr::cuda {

enum class Element { kFloat32, kBFloat16, kFloat16 };

// list[i] = (offset of entry i in bytes of a slab, its value), 0 where value_index is -1: the gaps
// between segments.
Status arrange(Queue queue, int64_t entries,
               const int32_t* offsets,      // [entries]
               const int32_t* value_index,  // [entries]
               const float* values,         // [nnz]
               void* list);                 // [entries] pairs of 4 bytes

struct GatherClass {
  Slab slab;
  int32_t dest_h, dest_w;  // destination pixel of (0, 0)
  int32_t blocks;          // of source channels; 0 where no tap reaches this class
  int32_t first_segment;   // of the class
  int32_t first_tile;      // of the class, among those of the launch
  int32_t run;             // positions that one store can take; window_gather finds it itself
};

struct Gather {
  GatherClass classes[kMaxClasses];
  int32_t class_count;
  int32_t tiles;            // of all classes
  int32_t groups;           // of the convolution
  int32_t dest_channels;    // of one group
  int32_t source_channels;  // of one group
  int32_t channel_block;    // source channels in a slab
  int32_t row_warps;        // 1, 2, 4, 8 or 16 warps side by side along destination channels
  int32_t dest_step_h, dest_step_w;  // pixels from one destination position to the next
  int32_t lanes_on_channels;         // of the source: its channels are contiguous, not its columns
  int32_t slab_bytes;
  int32_t blocks_limit;  // thread blocks to launch, at most: what the device runs at once
  Strides4 source_strides, dest_strides;
  int32_t rows, units;  // the kernel's template arguments: one of Variants::gather
  int32_t transposed;   // a grad-input, which matters to window_gather alone
};

Status gather(Queue queue, const Gather& pass, Element element,
              const void* source,                 // [N, groups * source_channels, height, width]
              const void* list,                   // from arrange
              const int32_t* bounds,              // [segments, 2]: first entry, one past the last
              const float* bias,                  // [groups * dest_channels] or null
              void* dest,                         // [N, groups * dest_channels, ...]
              const GatherMaps* maps = nullptr);  // what is done beside

}  // namespace dsr::cuda
