// What is done beside a convolution, as it comes from Python: cuda/conv/fused.h.
#pragma once

#include <cstdint>
#include <tuple>
#include <utility>

#include "bindings/common.h"
#include "cuda/conv/fused.h"

namespace dsr::bindings {

// Addresses of center, scale and shift; 0 for what is absent.
using AffineTuple = std::tuple<uintptr_t, uintptr_t, uintptr_t>;

inline cuda::ChannelAffine affine_of(const AffineTuple& affine) {
  const auto& [center, scale, shift] = affine;
  return {pointer<float>(center), pointer<float>(scale), pointer<float>(shift)};
}

// beside, affine, relu
using SourceTuple = std::tuple<uintptr_t, AffineTuple, bool>;

inline cuda::SourceMap source_map(const SourceTuple& map) {
  const auto& [beside, affine, relu] = map;
  return {pointer<void>(beside), affine_of(affine), relu};
}

// input, affine, relu, added, where sums of the channels are to go
using DestTuple =
    std::tuple<uintptr_t, AffineTuple, bool, uintptr_t, std::pair<uintptr_t, uintptr_t>>;

inline cuda::DestMap dest_map(const DestTuple& map) {
  const auto& [input, affine, relu, added, sums] = map;
  cuda::DestMap found{};  // where the parts of sums are is the call's affair
  found.input = pointer<void>(input);
  found.affine = affine_of(affine);
  found.relu = relu;
  found.added = pointer<void>(added);
  return found;
}

}  // namespace dsr::bindings
