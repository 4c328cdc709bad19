// What the multiply-add units of this machine deliver from registers: the yardstick of the
// benchmarks and of explain().
#include <chrono>

#include "cpu/isa/entry.h"
#include "cpu/isa/simd.h"

namespace dsr::cpu::DSR_ISA {
namespace {

// One round: `kSteps` multiply-adds into each of `kChains` registers, all in flight.
constexpr int kChains = kLimits.chains, kSteps = 4096;

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
  constexpr double kFlops = 2.0 * kLanes<float> * kChains * kSteps;
  volatile float sink = 0.5f;  // keeps the compiler from seeing through the rounds
  double sum = 0;              // of every thread's fastest round, so that none waits for another
#pragma omp parallel num_threads(threads) reduction(+ : sum)
  {
    const auto begin = Clock::now();
    double best = 0;
    for (auto now = begin; std::chrono::duration<double>(now - begin).count() < seconds;) {
      if (round_of_fmas(sink) == 0.25f) sink = 0.25f;
      const auto end = Clock::now();
      const double rate = kFlops / std::chrono::duration<double>(end - now).count();
      if (rate > best) best = rate;
      now = end;
    }
    sum += best;
  }
  return sum / 1e9;
}

}  // namespace dsr::cpu::DSR_ISA
