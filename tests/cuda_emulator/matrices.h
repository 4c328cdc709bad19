// The warp's matrix instructions of csrc/cuda/tensor_core.h: what ldmatrix and mma give each lane.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>

#include "runtime.h"

namespace dsr::emulator {

// Each lane reads its own row, here in code that the sanitizers watch, and only then meets the
// others: a row that another lane wrote without a barrier between is a race.
struct MatrixRow {
  uint32_t pairs[4];
};

inline Exchange exchange_rows(const void* row, Where where) {
  const uint4 read = *static_cast<const uint4*>(row);
  const MatrixRow mine{{read.x, read.y, read.z, read.w}};
  return exchange(kFullMask, &mine, sizeof(mine), where);
}

// One of the two elements of a register.
template <class T>
float widened(uint32_t pair, int half) {
  uint16_t bits = static_cast<uint16_t>(pair >> (16 * half));
  T element;
  std::memcpy(&element, &bits, sizeof(element));
  return static_cast<float>(element);
}

}  // namespace dsr::emulator

namespace dsr::cuda {

inline void load_matrices(const void* row, uint32_t (&to)[4],
                          emulator::Where where = emulator::here()) {
  const emulator::Exchange rows = emulator::exchange_rows(row, where);
  const int lane = emulator::current->lane();
  for (int j = 0; j < 4; ++j)
    std::memcpy(&to[j], rows.slots[8 * j + lane / 4] + 4 * (lane % 4), sizeof(to[j]));
}

inline void load_matrices_transposed(const void* row, uint32_t (&to)[4],
                                     emulator::Where where = emulator::here()) {
  const emulator::Exchange rows = emulator::exchange_rows(row, where);
  const int lane = emulator::current->lane();
  for (int j = 0; j < 4; ++j) {
    uint16_t two[2];
    for (int half = 0; half < 2; ++half) {
      const int from = 8 * j + 2 * (lane % 4) + half;
      std::memcpy(&two[half], rows.slots[from] + 2 * (lane / 4), sizeof(two[half]));
    }
    to[j] = two[0] | static_cast<uint32_t>(two[1]) << 16;
  }
}

// One sum is rounded once; how the hardware orders and rounds within it is not documented.
template <class T>
void multiply_add(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                  emulator::Where where = emulator::here()) {
  const int lane = emulator::current->lane();
  float of_a[2][16], of_b[2][16];  // rows lane / 4 and 8 below; columns 2 (lane % 4) and the next
  const emulator::Exchange left = emulator::exchange(emulator::kFullMask, a, sizeof(a), where);
  for (int k = 0; k < 16; ++k) {
    uint32_t pairs[4];
    std::memcpy(pairs, left.slots[lane / 4 * 4 + k % 8 / 2], sizeof(pairs));
    for (int low = 0; low < 2; ++low)
      of_a[low][k] = emulator::widened<T>(pairs[k / 8 * 2 + low], k % 2);
  }
  const uint32_t b[2] = {b0, b1};
  const emulator::Exchange right = emulator::exchange(emulator::kFullMask, b, sizeof(b), where);
  for (int k = 0; k < 16; ++k) {
    for (int next = 0; next < 2; ++next) {
      uint32_t pairs[2];
      std::memcpy(pairs, right.slots[(2 * (lane % 4) + next) * 4 + k % 8 / 2], sizeof(pairs));
      of_b[next][k] = emulator::widened<T>(pairs[k / 8], k % 2);
    }
  }
  for (int i = 0; i < 4; ++i) {
    double sum = sums[i];
    for (int k = 0; k < 16; ++k) sum += static_cast<double>(of_a[i / 2][k]) * of_b[i % 2][k];
    sums[i] = static_cast<float>(sum);
  }
}

}  // namespace dsr::cuda
