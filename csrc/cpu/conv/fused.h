// What a pass does beside convolving: to its operands while they are packed, and to its result
// while it is stored. dsr_kernels/backends/fused.py has the formulas.
#pragma once

#include <cstdint>

#include "common/conv_shape.h"

namespace dsr::cpu {

// What activations are stored as; they are computed in the type of the values.
enum class Element { kFloat32, kFloat64, kBFloat16 };

// (x - center) * scale + shift, for each channel.
template <typename S>
struct ChannelAffine {
  const S* center = nullptr;  // [C] each, or all null: x as it is
  const S* scale = nullptr;
  const S* shift = nullptr;

  bool is_identity() const { return scale == nullptr; }
};

// What a pack step reads: x, relu(affine(x)), or x + affine(other).
template <typename S>
struct Operand {
  const void* data;  // [N, C, ...] of `element`
  Strides4 strides;
  Element element;
  ChannelAffine<S> affine = {};
  bool relu = false;
  const void* other = nullptr;  // of the same strides and element; null: none

  bool is_plain() const { return affine.is_identity() && !relu; }
};

// Sums over batch and image of what a pass stores, by channel. Each unit leaves its own, and they
// are added up in the order of the units: the same bits for any number of threads.
template <typename S>
struct ChannelSums {
  S* partial = nullptr;  // [3][units][channels], workspace; null: no sums are asked for
  S* first = nullptr;    // [channels] each, to be filled: kOutput: mean, variance;
  S* second = nullptr;   //   kInputGrad: gradients of shift and of scale
};

// What a store step does to the sums v of the inner loops.
template <typename S>
struct Finish {
  enum Kind {
    kNothing,
    kOutput,     // relu(v * scale + shift + companion); moments of the result
    kInputGrad,  // v where z > 0, times scale, + companion; sums of what is left of v. z is made of
                 // x: relu(affine(x))
  };
  Kind kind = kNothing;
  ChannelAffine<S> affine = {};     // kOutput: scale and shift, or identity, without center
  bool relu = false;                // kInputGrad: whether z had one
  const void* companion = nullptr;  // residual, or gradient of x from elsewhere; null: none
  const void* x = nullptr;          // kInputGrad
  ChannelSums<S> sums = {};
  // x and companion have the strides and the element of the destination.
};

}  // namespace dsr::cpu
