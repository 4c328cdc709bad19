// What the multiply-add units of this machine deliver from registers: the yardstick of the
// benchmarks and of explain().
#include <chrono>

#include "cpu/isa/entry.h"
#include "cpu/isa/simd.h"

namespace dsr::cpu::DSR_ISA {
namespace {

// One round: `kSteps` multiply-adds into each of `kChains` registers, all in flight.
constexpr int kChains = kVectorBytes == 64 ? 24 : 12, kSteps = 4096;

float round_of_fmas(float seed) {
  Vec<float> sum[kChains];
  DSR_UNROLL for (int c = 0; c < kChains; ++c) sum[c] = broadcast(seed + static_cast<float>(c));
  const Vec<float> factor = broadcast(seed), term = broadcast(1.0f - seed);
#pragma GCC unroll 1
  for (int s = 0; s < kSteps; ++s)
    DSR_UNROLL for (int c = 0; c < kChains; ++c) sum[c] = sum[c] * factor + term;
  DSR_UNROLL for (int c = 1; c < kChains; ++c) sum[0] += sum[c];
  float lanes = 0;
  for (int j = 0; j < kLanes<float>; ++j) lanes += sum[0][j];
  return lanes;
}

}  // namespace

double peak_gflops(int threads, double seconds) {
  using Clock = std::chrono::steady_clock;
  double best = 0;
  volatile float sink = 0.5f;  // keeps the compiler from seeing through the rounds
  const auto begin = Clock::now();
  while (std::chrono::duration<double>(Clock::now() - begin).count() < seconds) {
    const auto start = Clock::now();
    constexpr int kRounds = 16;
#pragma omp parallel num_threads(threads)
    {
      float total = 0;
      for (int r = 0; r < kRounds; ++r) total += round_of_fmas(sink);
      if (total == 0.25f) sink = total;
    }
    const double taken = std::chrono::duration<double>(Clock::now() - start).count();
    const double flops = 2.0 * kLanes<float> * kChains * kSteps * kRounds * threads;
    if (flops / taken > best) best = flops / taken;
  }
  return best / 1e9;
}

}  // namespace dsr::cpu::DSR_ISA
