// What the bindings of the GPU's convolutions share.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <utility>

#include "bindings/common.h"
#include "cuda/conv/gather.h"

namespace dsr::bindings {

// device, stream
using QueueTuple = std::pair<int, uintptr_t>;

inline cuda::Queue queue_of(const QueueTuple& queue) {
  return {queue.first, pointer<CUstream_st>(queue.second)};
}

inline cuda::Element element_named(const std::string& dtype) {
  if (dtype == "float32") return cuda::Element::kFloat32;
  if (dtype == "bfloat16") return cuda::Element::kBFloat16;
  if (dtype == "float16") return cuda::Element::kFloat16;
  throw std::invalid_argument("dtype: expected 'float32', 'bfloat16' or 'float16', got '" + dtype +
                              "'");
}

// Strides travel as (n, c, h, w).
template <class Struct, Strides4 Struct::* kMember>
void set_strides(Struct& pass, const std::array<int64_t, 4>& s) {
  pass.*kMember = {s[0], s[1], s[2], s[3]};
}

}  // namespace dsr::bindings
