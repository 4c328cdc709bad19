// Forward and grad-input by the GPU's matrix units, for 2-byte activations: as gather.h, of weights
// rounded to the activations' type. Sums are float32.
//
// A window is 16 consecutive destination channels of a group; a warp computes one at `units`
// positions. The list has the (source channel, tap) pairs at which a window has any non-zero: what
// they meet is read once for all rows of the window, and multiplied by zero for those that have
// none there. So where an activation is infinite or NaN, those rows become NaN, as a dense
// convolution's do.
#pragma once

#include "cuda/conv/gather.h"
#include "cuda/conv/window_list.h"

namespace dsr::cuda {

// `pass` as for gather(), with windows where that has rows: `rows` is kWindowRows, `row_warps`
// counts windows side by side, segments are (class, block of source channels, group, window), and
// `units` is one of kWindowUnits.
Status window_gather(Queue queue, const Gather& pass, const WindowList& list, Element element,
                     const void* source,                 // [N, groups * source_channels, ...]
                     const float* values,                // [nnz]
                     const float* bias,                  // [groups * dest_channels] or null
                     void* dest,                         // [N, groups * dest_channels, ...]
                     const GatherMaps* maps = nullptr);  // what is done beside

}  // namespace dsr::cuda
