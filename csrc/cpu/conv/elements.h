// Single elements of activations, for the passes that take their time.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "cpu/conv/fused.h"

namespace dsr::cpu {

template <typename S>
S load_element(const void* data, Element element, int64_t at) {
  if (element != Element::kBFloat16) return static_cast<const S*>(data)[at];
  const uint32_t bits = uint32_t{static_cast<const uint16_t*>(data)[at]} << 16;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return static_cast<S>(value);
}

// Rounds to the nearest bfloat16, of two to the even one.
template <typename S>
void store_element(void* data, Element element, int64_t at, S number) {
  if (element != Element::kBFloat16) {
    static_cast<S*>(data)[at] = number;
    return;
  }
  constexpr uint16_t kNaN = 0x7fc0;
  const float value = static_cast<float>(number);
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  const auto rounded = static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  static_cast<uint16_t*>(data)[at] = std::isnan(value) ? kNaN : rounded;
}

}  // namespace dsr::cpu
