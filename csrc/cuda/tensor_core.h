// A warp's matrix instructions. All 32 lanes call them together.
//
// load_matrices: four matrices of 8 rows of 16 bytes. Lane i says where row i % 8 of matrix i / 8
// begins (16-byte aligned). In to[j] it gets word i % 4 of row i / 4 of matrix j: one element of 4
// bytes or, of 2 bytes, the elements 2 (i % 4) and the next one, in the lower and the upper half.
//
// load_matrices_transposed: the same of the transposed matrices of 8 x 8 elements of 2 bytes, so
// elements i / 4 of the rows 2 (i % 4) and the next one. There is no such load of larger elements.
//
// multiply_add<T>: sums[16 x 8] += a[16 x depth] * b[depth x 8], in float32. With q = i / 4 and
// r = i % 4, lane i holds of the sums [0], [1] at (q, 2 r), (q, 2 r + 1), and [2], [3] at
// (q + 8, 2 r), (q + 8, 2 r + 1).
//
// Of 2-byte elements the depth is 16, and lane i holds
//
//     a[0]  a(q, 2 r), a(q, 2 r + 1)            b0  b(2 r, q), b(2 r + 1, q)
//     a[1]  a(q + 8, 2 r), a(q + 8, 2 r + 1)    b1  b(2 r + 8, q), b(2 r + 9, q)
//     a[2]  a(q, 2 r + 8), a(q, 2 r + 9)
//     a[3]  a(q + 8, 2 r + 8), a(q + 8, 2 r + 9)
//
// Of float, which the instruction takes as TF32, the depth is 8, and lane i holds
//
//     a[0]  a(q, r)            b0  b(r, q)
//     a[1]  a(q + 8, r)        b1  b(r + 4, q)
//     a[2]  a(q, r + 4)
//     a[3]  a(q + 8, r + 4)
//
// to_tf32: a float rounded to the 10 bits of mantissa that TF32 has, ties away from zero. What an
// instruction would do with the other 13 bits is not defined.
//
// The emulator's twins are in tests/cuda_emulator/matrices.h.
#pragma once

#include "cuda/compat.h"

#ifndef DSR_EMULATE_CUDA

namespace dsr::cuda {

__device__ __forceinline__ void load_matrices(const void* row, uint32_t (&to)[4]) {
  const unsigned from = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(from)
               : "memory");
}

__device__ __forceinline__ void load_matrices_transposed(const void* row, uint32_t (&to)[4]) {
  const unsigned from = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(from)
               : "memory");
}

template <class T>
__device__ __forceinline__ void multiply_add(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0,
                                             uint32_t b1);

template <>
__device__ __forceinline__ void multiply_add<__nv_bfloat16>(float (&sums)[4],
                                                            const uint32_t (&a)[4], uint32_t b0,
                                                            uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <>
__device__ __forceinline__ void multiply_add<__half>(float (&sums)[4], const uint32_t (&a)[4],
                                                     uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <>
__device__ __forceinline__ void multiply_add<float>(float (&sums)[4], const uint32_t (&a)[4],
                                                    uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ float to_tf32(float x) {
  uint32_t rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(x));
  return __uint_as_float(rounded);
}

}  // namespace dsr::cuda

#endif

namespace dsr::cuda {

// Elements of a row of `a`, and of a column of `b`.
template <class T>
inline constexpr int kDepth = 32 / sizeof(T);

// A register of elements as an instruction takes it: what was loaded from a slab may have more bits
// than TF32.
template <class T>
__device__ __forceinline__ uint32_t as_operand(uint32_t loaded) {
  if constexpr (sizeof(T) == 4) {
    return __float_as_uint(to_tf32(__uint_as_float(loaded)));
  } else {
    return loaded;
  }
}

template <class T>
__device__ __forceinline__ void as_operands(uint32_t (&loaded)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) loaded[i] = as_operand<T>(loaded[i]);
}

}  // namespace dsr::cuda
