// Forward and grad-input by the GPU's matrix units: as gather.h, of weights rounded to the
// activations' type or, where that is float, of weights and activations rounded to TF32. Sums are
// float32.
//
// A window is 16 consecutive destination channels of a group; a warp computes one at `units`
// positions. The list has the (source channel, tap) pairs at which a window has any non-zero: what
// they meet is read once for all rows of the window, and multiplied by zero for those that have
// none there. A step that is not full repeats the last pair of its segment, with zeros for weights.
// So where a window reads an activation that is infinite, none of its rows is finite: rows without
// a weight there become NaN, as in a dense convolution; rows with one become infinite or, where the
// pair is repeated, NaN, where a dense convolution and gather() give infinity.
#pragma once

#include "cuda/conv/gather.h"
#include "cuda/conv/window_list.h"

namespace dsr::cuda {

// `pass` as for gather(), with windows where that has rows: `rows` is kWindowRows, `row_warps`
// counts windows side by side, segments are (class, block of source channels, group, window), and
// `units` is one of kWindowUnits, of floats 8.
Status window_gather(Queue queue, const Gather& pass, const WindowList& list, Element element,
                     const void* source,                 // [N, groups * source_channels, ...]
                     const float* values,                // [nnz]
                     const float* bias,                  // [groups * dest_channels] or null
                     void* dest,                         // [N, groups * dest_channels, ...]
                     const GatherMaps* maps = nullptr);  // what is done beside

}  // namespace dsr::cuda
