// CUDA C++ for the C++ compiler: csrc/cuda/compat.h includes this one under -DDSR_EMULATE_CUDA.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cfloat>
#include <climits>
#include <cstdint>
#include <type_traits>

#include "atomics.h"
#include "copies.h"
#include "intrinsics.h"
#include "launch.h"
#include "matrices.h"
#include "runtime.h"
#include "warp.h"

#undef __global__
#undef __device__
#undef __host__
#undef __shared__  // stays undefined: DSR_SHARED gives each block its own
#undef __forceinline__
#undef __launch_bounds__
#undef __grid_constant__
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__

#define threadIdx (::dsr::emulator::current->thread_index)
#define blockIdx (::dsr::emulator::current->block_index)
#define blockDim (::dsr::emulator::current->block)
#define gridDim (::dsr::emulator::current->grid)
#define warpSize 32

#define DSR_UNWRAP(...) __VA_ARGS__
#define DSR_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                                \
  ((void)(stream), ::dsr::emulator::launch_with<(DSR_UNWRAP kernel)>(                             \
                       (DSR_UNWRAP kernel), {(grid), (block), static_cast<size_t>(shared_bytes)}, \
                       ::dsr::emulator::here(), __VA_ARGS__))
#define DSR_SHARED(T, name, dims) \
  auto& name = ::dsr::emulator::shared_variable<std::remove_reference_t<T(&) dims>>([] {})
#define DSR_DYNAMIC_SHARED(T, name) \
  T* const name = static_cast<T*>(::dsr::emulator::current->dynamic_shared)

namespace dsr::cuda {

// As csrc/cuda/compat.h says. One line of source stands for every call of block_barrier.
inline void block_barrier() { __syncthreads(); }
inline void copy_async(void* shared, const void* global) {
  ::dsr::emulator::begin_copy(shared, global);
}
inline void wait_for_copies() { ::dsr::emulator::wait_for_copies(); }

}  // namespace dsr::cuda
