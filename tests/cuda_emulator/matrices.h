// The warp's matrix instructions of csrc/cuda/tensor_core.h: what ldmatrix and mma give each lane.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>

#include "intrinsics.h"
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

// One of the elements of a register: two of 2 bytes or a float, of which TF32 has the upper 19
// bits.
template <class T>
float widened(uint32_t word, int number) {
  if constexpr (sizeof(T) == 4) {
    return bit_cast<float>(word & 0xffffe000u);
  } else {
    uint16_t bits = static_cast<uint16_t>(word >> (16 * number));
    T element;
    std::memcpy(&element, &bits, sizeof(element));
    return static_cast<float>(element);
  }
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
  constexpr int kOfRegister = 4 / sizeof(T);     // elements,
  constexpr int kOfRegisters = 4 * kOfRegister;  // and with those of three lanes more
  constexpr int kDepth = 2 * kOfRegisters;
  const int lane = emulator::current->lane();
  float of_a[2][kDepth], of_b[2][kDepth];  // rows lane / 4 and 8 below; columns 2 (lane % 4), next
  const emulator::Exchange left = emulator::exchange(emulator::kFullMask, a, sizeof(a), where);
  for (int k = 0; k < kDepth; ++k) {
    uint32_t words[4];
    std::memcpy(words, left.slots[lane / 4 * 4 + k % kOfRegisters / kOfRegister], sizeof(words));
    for (int low = 0; low < 2; ++low)
      of_a[low][k] = emulator::widened<T>(words[k / kOfRegisters * 2 + low], k % kOfRegister);
  }
  const uint32_t b[2] = {b0, b1};
  const emulator::Exchange right = emulator::exchange(emulator::kFullMask, b, sizeof(b), where);
  for (int k = 0; k < kDepth; ++k) {
    for (int next = 0; next < 2; ++next) {
      const int from = (2 * (lane % 4) + next) * 4 + k % kOfRegisters / kOfRegister;
      uint32_t words[2];
      std::memcpy(words, right.slots[from], sizeof(words));
      of_b[next][k] = emulator::widened<T>(words[k / kOfRegisters], k % kOfRegister);
    }
  }
  for (int i = 0; i < 4; ++i) {
    double sum = sums[i];
    for (int k = 0; k < kDepth; ++k) sum += static_cast<double>(of_a[i / 2][k]) * of_b[i % 2][k];
    sums[i] = static_cast<float>(sum);
  }
}

// Half a unit of what TF32 keeps is added to the magnitude; infinity stays, NaN becomes the one NaN
// that the instruction knows.
inline float to_tf32(float x) {
  const uint32_t bits = emulator::bit_cast<uint32_t>(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return emulator::bit_cast<float>(0x7fffffffu);
  return emulator::bit_cast<float>((bits + 0x1000u) & 0xffffe000u);
}

}  // namespace dsr::cuda
