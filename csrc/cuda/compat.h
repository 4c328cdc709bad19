// The one header a kernel file includes. The same kernel text goes through nvcc and, with
// -DDSR_EMULATE_CUDA, through the C++ compiler into the emulator of tests/cuda_emulator.
//
//   DSR_SHARED(float, tile, [32][33]);      __shared__ float tile[32][33];
//   DSR_DYNAMIC_SHARED(float4, slab);       extern __shared__ of the launch, as a pointer
//   DSR_LAUNCH((kernel<float, 4>), grid, block, bytes, stream, arguments...);
#pragma once

#ifdef DSR_EMULATE_CUDA

#include "cuda_emulator.h"

#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#define DSR_UNWRAP(...) __VA_ARGS__
#define DSR_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  (DSR_UNWRAP kernel)<<<(grid), (block), (shared_bytes), (stream)>>>(__VA_ARGS__)
#define DSR_SHARED(T, name, dims) __shared__ T name dims
#define DSR_DYNAMIC_SHARED(T, name)                                    \
  extern __shared__ __align__(128) unsigned char dsr_dynamic_shared[]; \
  T* const name = reinterpret_cast<T*>(dsr_dynamic_shared)

namespace dsr::cuda {

// A barrier of the whole block that warps may reach from different places in the code.
__device__ __forceinline__ void block_barrier() { asm volatile("barrier.sync 0;" ::: "memory"); }

// 4 bytes from global to shared memory, while this thread goes on. They are there for this thread
// after wait_for_copies, for others after a barrier that follows it.
__device__ __forceinline__ void copy_async(void* shared, const void* global) {
  const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to), "l"(global) : "memory");
}
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_all;" ::: "memory");
}

}  // namespace dsr::cuda

#endif
