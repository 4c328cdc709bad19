// What the GPU's convolution kernels are made for: the sizes that whoever plans for them must know.
// Nothing of CUDA.
#pragma once

#include <array>

namespace dsr::cuda {

inline constexpr int kVectorBytes = 16;  // of activations: the same pixel of several images

// A thread block: most warps compute on one slab while the others fill the next one.
inline constexpr int kComputeWarps = 16;
inline constexpr int kFillWarps = 4;
inline constexpr int kSlabs = 2;      // in a thread block's shared memory
inline constexpr int kFillBatch = 4;  // channels a filling lane loads at once, of 2-byte elements

inline constexpr int kMaxClasses = 4;  // of one launch: strides of 2 in both directions

// The list of non-zeros: segments start at multiples of kListAlign entries, since that many are
// loaded at once, and up to kListSlack entries past the last one may be read.
inline constexpr int kListAlign = 2;
inline constexpr int kListSlack = 8;

// What there are kernels for, by the bytes of an activation: destination channels of a warp and
// positions of a lane (gather), positions of a lane (grad-weight).
struct GatherVariant {
  int rows, units;
};
template <int kElementBytes>
struct Variants;
template <>
struct Variants<4> {
  static constexpr std::array<GatherVariant, 3> gather{{{8, 1}, {4, 2}, {4, 1}}};
  static constexpr std::array<int, 2> grad_weight_units{2, 1};
};
template <>
struct Variants<2> {
  static constexpr std::array<GatherVariant, 2> gather{{{4, 1}, {2, 2}}};
  static constexpr std::array<int, 2> grad_weight_units{2, 1};
};

// Tensor-core kernels take windows of kWindowRows destination channels, and kStepEntries positions
// of the list at once; a warp of a gather has so many positions of the destination.
inline constexpr int kWindowRows = 16;
inline constexpr int kStepEntries = 16;
inline constexpr std::array<int, 2> kWindowUnits{8, 4};
inline constexpr int kFloatWindowUnits = 8;  // the only ones of float: four pairs, 4 apart

// A grad-weight by windows: the warps of a block that may compute, while the others fill; steps
// that a warp does at once, and how many times as many it has sums for in its registers.
inline constexpr std::array<int, 3> kWindowComputeWarps{8, 12, 16};
inline constexpr int kTurnSteps = 2;  // with which the gradient's vectors serve 32 entries
inline constexpr int kHeldTurns = 2;

}  // namespace dsr::cuda
