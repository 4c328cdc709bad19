// What the slab kernels do beside convolving: batch norm, ReLU and additions, on the way from
// memory into a slab and from sums to memory. Each part may be absent;
// dsr_kernels/backends/fused.py says what they mean.
//
//     on the way in    x -> relu((x - center) * scale + shift)            forward, grad-weight
//                      g -> g + (y - center) * scale + shift              grad-input, grad-weight
//     on the way out   sum -> relu(sum * scale + bias + added)            forward
//                      sum -> sum * 1[not (z <= 0)] * scale + added       grad-input, z of its
//                      input
//
// What is added up over batch and image is added up by warps first: a warp of a gather stores 32 *
// units positions of a channel at once, and leaves two numbers of them in a part of their own.
// combine_parts makes one of them, in the parts' order and in double precision. So there are no
// atomics, and the bits are the same every time.
#pragma once

#include <cstdint>

#include "cuda/device.h"

namespace dsr::cuda {

// Numbers of channels are of all channels of the convolution's side. All three or none.
struct ChannelAffine {
  const float *center, *scale, *shift;  // [channels]
};

// Of what is read into slabs, or as a gradient.
struct SourceMap {
  const void* beside;    // null, or y: of the source's shape, type and strides
  ChannelAffine affine;  // of `beside`, or where there is none, of the source itself
  int32_t relu;          // after the affine map; not with `beside`
};

// Of what a gather stores.
struct DestMap {
  const void* input;     // null (forward), or x: of the destination's shape, type and strides
  ChannelAffine affine;  // of `input`; forward: the scale alone
  int32_t relu;          // of `input` after its affine map; forward: of what is stored
  const void* added;     // null, or of the destination's shape, type and strides
  // Null, or three arrays [channels, parts]. Forward: mean and sum of squared deviations from it of
  // what is stored, and their count. Grad-input: sums of gz * (x - center) and of gz, gz = 0 where
  // ReLU was; the third is not there.
  float* partial;
  int32_t parts;
  int32_t first_part;  // of this launch
};

struct GatherMaps {
  SourceMap source;
  DestMap dest;
};

struct GradWeightMaps {
  SourceMap source, grad;
};

// What the parts of every channel make together: sums of the two, or where `moments`, mean and
// (biased) variance.
Status combine_parts(Queue queue, bool moments, int channels, int parts,
                     const float* partial,          // [3 or 2, channels, parts]
                     float* first, float* second);  // [channels] each

}  // namespace dsr::cuda
