// A warp's matrix instructions. All 32 lanes call them together.
//
// load_matrices: four matrices of 8 rows of 16 bytes, which are 8 elements of 2 bytes. Lane i says
// where row i % 8 of matrix i / 8 begins (16-byte aligned). In to[j] it gets, of row i / 4 of
// matrix j, the elements 2 (i % 4) and the next one, in the lower and the upper half.
//
// load_matrices_transposed: the same of the transposed matrices, so elements i / 4 of the rows
// 2 (i % 4) and the next one.
//
// multiply_add<T>: sums[16 x 8] += a[16 x 16] * b[16 x 8], in float32. With q = i / 4 and
// r = 2 (i % 4), lane i holds
//
//     a[0]  a(q, r), a(q, r + 1)            b0  b(r, q), b(r + 1, q)
//     a[1]  a(q + 8, r), a(q + 8, r + 1)    b1  b(r + 8, q), b(r + 9, q)
//     a[2]  a(q, r + 8), a(q, r + 9)
//     a[3]  a(q + 8, r + 8), a(q + 8, r + 9)
//
// and of the sums [0], [1] at (q, r), (q, r + 1), and [2], [3] at (q + 8, r), (q + 8, r + 1).
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

}  // namespace dsr::cuda

#endif
