// Every primitive against what CUDA's manual says it returns; nothing is planted here.
#include "cases.h"

namespace dsr::emulator::defects {

namespace {

constexpr unsigned kAll = 0xffffffffu;

// Results of one thread for each row; the block is a full warp and one of 8 lanes.
constexpr int kLanes = 40;
constexpr int kShuffles = 8;

__global__ void shuffle_all(int* y /* [kShuffles][kLanes] */) {
  const int t = threadIdx.x;
  const int value = 100 + t % 32;
  int row = 0;
  const auto keep = [&](int result) { y[row++ * kLanes + t] = result; };
  keep(__shfl_sync(kAll, value, 5));
  keep(__shfl_sync(kAll, value, 11, 8));
  keep(__shfl_xor_sync(kAll, value, 3));
  keep(__shfl_down_sync(kAll, value, 2, 8));
  keep(__shfl_up_sync(kAll, value, 3, 8));
  keep(static_cast<int>(__shfl_sync(kAll, 0.5 * t, 1)));
  keep(static_cast<int>(__shfl_up_sync(kAll, 1ull << (t % 32), 1) >> 4));
  keep(__shfl_xor_sync(kAll, value, 4, 4));
}

bool shuffles(bool) {
  std::vector<int> y(kShuffles * kLanes, -1);
  DSR_LAUNCH((shuffle_all), 1, kLanes, 0, nullptr, y.data());
  for (int t = 0; t < kLanes; ++t) {
    const int lane = t % 32;
    const int in_segment = lane % 8;
    const int segment = lane - in_segment;
    const unsigned long long bit_below = 1ull << (lane == 0 ? 0 : lane - 1);
    const int expected[kShuffles] = {
        105,
        100 + segment + 3,
        100 + (lane ^ 3),
        100 + (in_segment < 6 ? lane + 2 : lane),
        100 + (in_segment >= 3 ? lane - 3 : lane),
        t < 32 ? 0 : 16,
        static_cast<int>(bit_below >> 4),
        100 + (lane % 8 < 4 ? lane : lane - 4),  // a later segment cannot be read
    };
    for (int row = 0; row < kShuffles; ++row) {
      if (y[row * kLanes + t] != expected[row]) return false;
    }
  }
  return true;
}

constexpr int kVotes = 12;

__global__ void vote_all(int* y /* [kVotes][kLanes] */) {
  const int t = threadIdx.x;
  const int lane = t % 32;
  int row = 0;
  const auto keep = [&](int result) { y[row++ * kLanes + t] = result; };
  keep(static_cast<int>(__ballot_sync(kAll, lane == 1 || lane == 4)));
  keep(__any_sync(kAll, lane == 7));
  keep(__any_sync(kAll, lane == 40));
  keep(__all_sync(kAll, lane < 32));
  keep(__all_sync(kAll, lane != 3));
  keep(__reduce_add_sync(kAll, lane));
  keep(__reduce_max_sync(kAll, lane - 50));
  keep(static_cast<int>(__reduce_min_sync(kAll, static_cast<unsigned>(lane) + 3u)));
  keep(static_cast<int>(__reduce_or_sync(kAll, 1u << (lane % 4))));
  keep(__syncthreads_count(t % 3 == 0));
  keep(__syncthreads_or(t == 39));
  keep(__syncthreads_and(t < 39));
}

bool votes_and_reductions(bool) {
  std::vector<int> y(kVotes * kLanes, -1);
  DSR_LAUNCH((vote_all), 1, kLanes, 0, nullptr, y.data());
  for (int t = 0; t < kLanes; ++t) {
    const bool full = t < 32;
    const int expected[kVotes] = {
        0x12, 1, 0, 1, 0, full ? 496 : 28, full ? -19 : -43, 3, 15, 14, 1, 0,
    };
    for (int row = 0; row < kVotes; ++row) {
      if (y[row * kLanes + t] != expected[row]) return false;
    }
  }
  return true;
}

struct Totals {
  int sum;
  unsigned wrapped;
  long long smallest;
  unsigned long long largest;
  unsigned bits;
  int exchanged;
  float real;
  int order[3 * kThreads];
};

__global__ void count_all(Totals* totals) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  const int place = atomicAdd(&totals->sum, 1);
  totals->order[place] = 1;
  atomicSub(&totals->wrapped, 1);
  atomicMin(&totals->smallest, -5LL * i);
  atomicMax(&totals->largest, (1ull << 40) + i);
  atomicOr(&totals->bits, 1u << (i % 32));
  atomicAnd(&totals->bits, ~2u);
  if (i == 7) atomicExch(&totals->exchanged, 9);
  atomicAdd(&totals->real, 0.5f);
}

bool atomics(bool) {
  Totals totals{};
  DSR_LAUNCH((count_all), 3, kThreads, 0, nullptr, &totals);
  const int n = 3 * kThreads;
  for (const int taken : totals.order) {
    if (taken != 1) return false;
  }
  return totals.sum == n && totals.wrapped == 0u - n && totals.smallest == -5LL * (n - 1) &&
         totals.largest == (1ull << 40) + n - 1 && (totals.bits | 2u) == kAll &&
         totals.exchanged == 9 && totals.real == 0.5f * n;
}

__global__ void compute_bits(unsigned long long* y) {
  int i = 0;
  y[i++] = __popc(0xf0f0u);
  y[i++] = __popcll(~0ull);
  y[i++] = __ffs(0);
  y[i++] = __ffs(8);
  y[i++] = __ffsll(1LL << 40);
  y[i++] = __clz(0);
  y[i++] = __clz(1);
  y[i++] = __clzll(0);
  y[i++] = __clzll(-1);
  y[i++] = __brev(6u);
  y[i++] = __umulhi(0xffffffffu, 0xffffffffu);
  y[i++] = __umul64hi(~0ull, ~0ull);
  y[i++] = __float_as_uint(1.0f);
  y[i++] = static_cast<unsigned long long>(__double_as_longlong(2.0));
  y[i++] = static_cast<unsigned long long>(__uint_as_float(0x40400000u));
  y[i++] = min(3, 7u) + max(2.5, 1.0);
  y[i++] = static_cast<unsigned long long>(__bfloat162float(__float2bfloat16(257.0f)));
  y[i++] = static_cast<unsigned long long>(__half2float(__float2half(2049.0f)));
  const uint4 loaded = __ldg(reinterpret_cast<const uint4*>(y));
  y[i++] = loaded.x + loaded.z;
}

bool bits_and_numbers(bool) {
  const std::vector<unsigned long long> expected = {
      8,           64,    0,           4,          41, 32, 31,  64,   0,  0x60000000u,
      0xfffffffeu, ~1ull, 0x3f800000u, 1ull << 62, 3,  5,  256, 2048, 72,
  };
  std::vector<unsigned long long> y(expected.size());
  DSR_LAUNCH((compute_bits), 1, 1, 0, nullptr, y.data());
  return y == expected;
}

__global__ void place_of(int* y) {
  const int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  y[block * blockDim.x * blockDim.y * blockDim.z + thread] += block * 1000 + thread;
}

bool places(bool) {
  std::vector<int> y(2 * 3 * 4 * 5 * 3 * 2);
  DSR_LAUNCH((place_of), dim3(2, 3, 4), dim3(5, 3, 2), 0, nullptr, y.data());
  for (int i = 0; i < static_cast<int>(y.size()); ++i) {
    if (y[i] != i / 30 * 1000 + i % 30) return false;
  }
  return true;
}

}  // namespace

const std::vector<Case> kPrimitives = {
    {"shuffles", shuffles}, {"votes_and_reductions", votes_and_reductions},
    {"atomics", atomics},   {"bits_and_numbers", bits_and_numbers},
    {"places", places},
};

}  // namespace dsr::emulator::defects
