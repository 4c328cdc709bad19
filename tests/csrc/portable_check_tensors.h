// Tensors of the portable check: in memory, and as the numbers that they hold.
#pragma once

#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "common/conv_shape.h"

using dsr::Strides4;

inline std::mt19937_64 generator(7);
inline double random_number() { return std::uniform_real_distribution<double>(-1, 1)(generator); }

// A tensor in memory, and the numbers it holds.
template <typename E>
struct Tensor {
  std::vector<E> memory;
  std::vector<double> exact;
  Strides4 strides;
};

inline uint16_t to_bfloat16(double value) {  // rounded towards zero
  const float narrow = static_cast<float>(value);
  uint32_t bits;
  std::memcpy(&bits, &narrow, 4);
  return static_cast<uint16_t>(bits >> 16);
}
inline double number(uint16_t half) {
  const uint32_t bits = uint32_t{half} << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline double number(float value) { return value; }
inline double number(double value) { return value; }
inline void put(uint16_t* to, double value) { *to = to_bfloat16(value); }
inline void put(float* to, double value) { *to = static_cast<float>(value); }
inline void put(double* to, double value) { *to = value; }

template <typename E>
Tensor<E> random_tensor(int64_t count, Strides4 strides = {}) {
  Tensor<E> t{std::vector<E>(count), std::vector<double>(count), strides};
  for (int64_t i = 0; i < count; ++i) {
    put(&t.memory[i], random_number());
    t.exact[i] = number(t.memory[i]);
  }
  return t;
}

// [N, C, H, W] in memory, or channels_last.
inline Strides4 strides_of(int64_t channels, int64_t height, int64_t width, bool channels_last) {
  const int64_t image = channels * height * width;
  if (channels_last) return {image, 1, width * channels, channels};
  return {image, height * width, width, 1};
}
