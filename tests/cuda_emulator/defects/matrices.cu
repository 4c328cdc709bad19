// The warp's matrix instructions against plain matrices, and rows that are not there yet.
#include <cmath>
#include <cstring>

#include "cases.h"
#include "cuda/tensor_core.h"

namespace dsr::emulator::defects {

namespace {

using cuda::load_matrices;
using cuda::load_matrices_transposed;
using cuda::multiply_add;

constexpr int kLanes = 32, kRows = 32, kColumns = 8;

// Rows of four matrices, upside down, so that rows need not follow each other.
__global__ void load_all(const uint16_t* rows /* [kRows][kColumns] */,
                         uint32_t* plain /* [kLanes][4] */, uint32_t* transposed) {
  DSR_SHARED(uint4, tile, [kRows]);
  const int lane = threadIdx.x;
  tile[kRows - 1 - lane] = reinterpret_cast<const uint4*>(rows)[lane];
  __syncwarp();
  uint32_t found[4];
  load_matrices(&tile[kRows - 1 - lane], found);
  for (int j = 0; j < 4; ++j) plain[lane * 4 + j] = found[j];
  load_matrices_transposed(&tile[kRows - 1 - lane], found);
  for (int j = 0; j < 4; ++j) transposed[lane * 4 + j] = found[j];
}

bool matrices(bool) {
  alignas(16) uint16_t rows[kRows * kColumns];
  for (int i = 0; i < kRows * kColumns; ++i) rows[i] = static_cast<uint16_t>(1000 + i);
  std::vector<uint32_t> plain(kLanes * 4), transposed(kLanes * 4);
  DSR_LAUNCH((load_all), 1, kLanes, 0, nullptr, rows, plain.data(), transposed.data());
  const auto element = [&](int matrix, int row, int column) {
    return static_cast<uint32_t>(rows[(matrix * 8 + row) * kColumns + column]);
  };
  for (int i = 0; i < kLanes * 4; ++i) {
    const int lane = i / 4, j = i % 4, q = lane / 4, r = 2 * (lane % 4);
    if (plain[i] != (element(j, q, r) | element(j, q, r + 1) << 16)) return false;
    if (transposed[i] != (element(j, r, q) | element(j, r + 1, q) << 16)) return false;
  }
  return true;
}

// Fragments straight from memory, as the PTX manual draws them for m16n8k8 of TF32.
__global__ void multiply_floats(const float* a /* [16][8] */, const float* b /* [8][8] */,
                                float* c /* [16][8] */) {
  const int lane = threadIdx.x, q = lane / 4, r = lane % 4;
  uint32_t left[4], right[2];
  for (int i = 0; i < 4; ++i) left[i] = __float_as_uint(a[(q + i % 2 * 8) * 8 + r + i / 2 * 4]);
  for (int i = 0; i < 2; ++i) right[i] = __float_as_uint(b[(r + i * 4) * 8 + q]);
  float sums[4];
  for (int i = 0; i < 4; ++i) sums[i] = c[(q + i / 2 * 8) * 8 + 2 * r + i % 2];
  multiply_add<float>(sums, left, right[0], right[1]);
  for (int i = 0; i < 4; ++i) c[(q + i / 2 * 8) * 8 + 2 * r + i % 2] = sums[i];
}

// Fragments straight from memory, as the PTX manual draws them for m16n8k16.
template <class T>
__global__ void multiply_all(const T* a /* [16][16] */, const T* b /* [16][8] */,
                             float* c /* [16][8] */) {
  const int lane = threadIdx.x, q = lane / 4, r = 2 * (lane % 4);
  T low[2], of_b[2][2];
  uint32_t left[4], right[2];
  for (int i = 0; i < 4; ++i) {
    for (int half = 0; half < 2; ++half) low[half] = a[(q + i % 2 * 8) * 16 + r + i / 2 * 8 + half];
    memcpy(&left[i], low, sizeof(left[i]));
  }
  for (int i = 0; i < 2; ++i) {
    for (int half = 0; half < 2; ++half) of_b[i][half] = b[(r + i * 8 + half) * 8 + q];
    memcpy(&right[i], of_b[i], sizeof(right[i]));
  }
  float sums[4];
  for (int i = 0; i < 4; ++i) sums[i] = c[(q + i / 2 * 8) * 8 + r + i % 2];
  multiply_add<T>(sums, left, right[0], right[1]);
  for (int i = 0; i < 4; ++i) c[(q + i / 2 * 8) * 8 + r + i % 2] = sums[i];
}

template <class T>
bool products_of() {
  constexpr int kDepth = 32 / sizeof(T);
  std::vector<T> a(16 * kDepth), b(kDepth * 8);
  std::vector<float> c(16 * 8), expected(16 * 8);
  for (int i = 0; i < 16 * kDepth; ++i) a[i] = T(static_cast<float>(i * 7 % 31 - 15));
  for (int i = 0; i < kDepth * 8; ++i) b[i] = T(static_cast<float>(i * 5 % 23 - 11) / 4);
  for (int m = 0; m < 16; ++m) {
    for (int n = 0; n < 8; ++n) {
      float sum = c[m * 8 + n] = static_cast<float>(100 * m + n);
      for (int k = 0; k < kDepth; ++k)
        sum += static_cast<float>(a[m * kDepth + k]) * static_cast<float>(b[k * 8 + n]);
      expected[m * 8 + n] = sum;
    }
  }
  if constexpr (sizeof(T) == 4) {
    DSR_LAUNCH((multiply_floats), 1, kLanes, 0, nullptr, a.data(), b.data(), c.data());
  } else {
    DSR_LAUNCH((multiply_all<T>), 1, kLanes, 0, nullptr, a.data(), b.data(), c.data());
  }
  return c == expected;  // quarters of small integers: exact
}

bool products(bool) {
  return products_of<__nv_bfloat16>() && products_of<__half>() && products_of<float>();
}

// Rounded numbers of TF32, and what an instruction makes of a number that was not: the lower bits
// are cut off.
__global__ void round_and_multiply(const float* x, float* rounded, float* cut) {
  const int lane = threadIdx.x;
  rounded[lane] = cuda::to_tf32(x[lane]);
  const uint32_t left[4] = {__float_as_uint(x[lane / 4 * 4]), 0, 0, 0};
  float sums[4] = {};
  multiply_add<float>(sums, left, __float_as_uint(lane % 4 == 0 ? 1.f : 0.f), 0);
  if (lane % 4 == 0) cut[lane / 4] = sums[0];
}

bool tf32(bool) {
  const float unit = 1.f / 1024, half = unit / 2, infinity = INFINITY;
  std::vector<float> x(kLanes, 1.f + 0.75f * unit), rounded(kLanes), cut(8);
  const float cases[][2] = {{1.f + half, 1.f + unit},
                            {1.f + half - unit / 4096, 1.f},
                            {1.f + 3 * half, 1.f + 2 * unit},
                            {-1.f - half, -1.f - unit},
                            {2.f - half, 2.f},
                            {0x1p-149f * 4096, 0x1p-149f * 8192},
                            {3.4028235e38f, infinity},
                            {-infinity, -infinity},
                            {-0.f, -0.f}};
  constexpr int kCases = sizeof(cases) / sizeof(cases[0]);
  for (int i = 0; i < kCases; ++i) x[i] = cases[i][0];
  x[kCases] = NAN;
  DSR_LAUNCH((round_and_multiply), 1, kLanes, 0, nullptr, x.data(), rounded.data(), cut.data());
  for (int i = 0; i < kCases; ++i) {
    if (std::memcmp(&rounded[i], &cases[i][1], sizeof(float)) != 0) return false;
  }
  return std::isnan(rounded[kCases]) && rounded[kLanes - 1] == 1.f + unit && cut[7] == 1.f;
}

__global__ void load_from_others(const uint16_t* rows, uint32_t* y, bool planted) {
  DSR_SHARED(uint4, tile, [kRows]);
  const int lane = threadIdx.x;
  tile[kRows - 1 - lane] = reinterpret_cast<const uint4*>(rows)[lane];
  if (!planted) __syncwarp();
  uint32_t found[4];
  load_matrices(&tile[lane], found);
  for (int j = 0; j < 4; ++j) y[lane * 4 + j] = found[j];
}

bool matrix_row_without_syncwarp(bool planted) {
  alignas(16) uint16_t rows[kRows * kColumns];
  for (int i = 0; i < kRows * kColumns; ++i) rows[i] = static_cast<uint16_t>(i);
  std::vector<uint32_t> y(kLanes * 4);
  DSR_LAUNCH((load_from_others), 1, kLanes, 0, nullptr, rows, y.data(), planted);
  for (int i = 0; i < kLanes * 4; ++i) {
    const int lane = i / 4, row = kRows - 1 - (i % 4 * 8 + lane / 4);
    const uint32_t first = static_cast<uint32_t>(row * kColumns + 2 * (lane % 4));
    if (y[i] != (first | (first + 1) << 16)) return false;
  }
  return true;
}

}  // namespace

const std::vector<Case> kMatrices = {
    {"matrices", matrices},
    {"products", products},
    {"tf32", tf32},
    {"matrix_row_without_syncwarp", matrix_row_without_syncwarp},
};

}  // namespace dsr::emulator::defects
