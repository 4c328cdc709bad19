// Memory that is not the kernel's, or not written yet, and arithmetic that has no result.
#include "cases.h"

namespace dsr::emulator::defects {

namespace {

template <class T>
__global__ void copy(const T* x /* [n] */, T* y /* [n] */, int reads, int writes) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  const T value = i < reads ? x[i] : T(0);
  if (i < writes) y[i] = value;
}

bool run_copy(int beyond_read, int beyond_write) {
  const int n = 100;
  const std::vector<float> x(n, 2.0f);
  std::vector<float> y(n);
  DSR_LAUNCH((copy<float>), 2, kThreads, 0, nullptr, x.data(), y.data(), n + beyond_read,
             n + beyond_write);
  return y == x;
}

bool global_read_out_of_bounds(bool planted) { return run_copy(planted ? 1 : 0, 0); }
bool global_write_out_of_bounds(bool planted) { return run_copy(0, planted ? 1 : 0); }

__global__ void write_static(int* y, int beyond) {
  DSR_SHARED(int, tile, [kThreads]);
  const int t = threadIdx.x;
  int* const shifted = tile + beyond;
  shifted[t] = t;
  __syncthreads();
  y[t] = shifted[t];
}

bool static_shared_overrun(bool planted) {
  std::vector<int> y(kThreads);
  DSR_LAUNCH((write_static), 1, kThreads, 0, nullptr, y.data(), planted ? 1 : 0);
  return y == counting(kThreads);
}

__global__ void index_static(int* y, int columns) {
  DSR_SHARED(int, tile, [2][32]);
  const int t = threadIdx.x;
  tile[t / columns][t % columns] = t;
  __syncthreads();
  y[t] = tile[t / columns][t % columns];
}

bool shared_row_overrun(bool planted) {
  std::vector<int> y(kThreads);
  DSR_LAUNCH((index_static), 1, kThreads, 0, nullptr, y.data(), planted ? 33 : 32);
  return y == counting(kThreads);
}

__global__ void write_dynamic(int* y) {
  DSR_DYNAMIC_SHARED(int, tile);
  const int t = threadIdx.x;
  tile[t] = t;
  __syncthreads();
  y[t] = tile[t];
}

bool dynamic_shared_overrun(bool planted) {
  std::vector<int> y(kThreads);
  const int bytes = 4 * (planted ? kThreads - 1 : kThreads);
  DSR_LAUNCH((write_dynamic), 1, kThreads, bytes, nullptr, y.data());
  return y == counting(kThreads);
}

__global__ void add_shared(float* y, int written) {
  DSR_SHARED(float, tile, [kThreads]);
  const int t = threadIdx.x;
  if (t < written) tile[t] = 1.0f;
  __syncthreads();
  if (t != 0) return;
  float sum = 0.0f;
  for (int i = 0; i < kThreads; ++i) sum += tile[i];
  y[blockIdx.x] = sum;
}

bool uninitialised_shared(bool planted) {
  std::vector<float> y(3);
  DSR_LAUNCH((add_shared), 3, kThreads, 0, nullptr, y.data(), planted ? kThreads - 1 : kThreads);
  return y == std::vector<float>(3, kThreads);
}

__global__ void add_vectors(const float* x, float* y, int shift) {
  const float4 v = *reinterpret_cast<const float4*>(x + 4 * threadIdx.x + shift);
  y[threadIdx.x] = v.x + v.y + v.z + v.w;
}

bool misaligned_vector_load(bool planted) {
  const std::vector<float> x(4 * kThreads + 4, 1.0f);
  std::vector<float> y(kThreads);
  DSR_LAUNCH((add_vectors), 1, kThreads, 0, nullptr, x.data(), y.data(), planted ? 1 : 0);
  return y == std::vector<float>(kThreads, 4.0f);
}

__global__ void index_of(int* y, int rows) { y[threadIdx.x] = rows * 65536 + threadIdx.x; }

bool signed_overflow(bool planted) {
  std::vector<int> y(kThreads);
  DSR_LAUNCH((index_of), 1, kThreads, 0, nullptr, y.data(), planted ? 32768 : 0);
  return planted || y == counting(kThreads);
}

__global__ void lanes_below(unsigned* y, int extra) {
  y[threadIdx.x] = (1u << (threadIdx.x + extra)) - 1;
}

bool shift_out_of_range(bool planted) {
  std::vector<unsigned> y(32);
  DSR_LAUNCH((lanes_below), 1, 32, 0, nullptr, y.data(), planted ? 1 : 0);
  return planted || y[31] == 0x7fffffffu;
}

__global__ void keep_in_registers(int* y, int count) {
  int kept[8];
  for (int i = 0; i < count; ++i) kept[i] = i;
  y[threadIdx.x] = kept[threadIdx.x % 8];
}

bool register_array_overrun(bool planted) {
  std::vector<int> y(8);
  DSR_LAUNCH((keep_in_registers), 1, 8, 0, nullptr, y.data(), planted ? 9 : 8);
  return planted || y == counting(8);
}

}  // namespace

const std::vector<Case> kMemory = {
    {"global_read_out_of_bounds", global_read_out_of_bounds},
    {"global_write_out_of_bounds", global_write_out_of_bounds},
    {"static_shared_overrun", static_shared_overrun},
    {"shared_row_overrun", shared_row_overrun},
    {"dynamic_shared_overrun", dynamic_shared_overrun},
    {"uninitialised_shared", uninitialised_shared},
    {"misaligned_vector_load", misaligned_vector_load},
    {"signed_overflow", signed_overflow},
    {"shift_out_of_range", shift_out_of_range},
    {"register_array_overrun", register_array_overrun},
};

}  // namespace dsr::emulator::defects
