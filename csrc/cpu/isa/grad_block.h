// The inner loop of grad-weight where B output channels share their positions: the sums of B
// channels x K steps stay in registers while a tile of gradients and operands streams past.
#pragma once

#include "cpu/isa/grad_tile.h"

namespace dsr::cpu::DSR_ISA {

// Vectors of a tile: the gradients of B channels stay in L1, and reducing the sums costs little
// beside them.
constexpr int64_t kGradBlockVectors = 32;

// sums[k][b] += sum over the tile of grad[o + b] * packed[offset(k) ...], for the steps k of the
// block of channels from o on
template <typename S>
struct GradBlockJob {
  const S* packed;  // the tile's first vector in packed channel 0
  int64_t packed_row;
  const S* grad;  // the tile's first vector in packed gradient channel 0
  int64_t grad_channel, grad_row;
  int64_t rows, cols;  // of the tile, cols in vectors
  const int32_t* offsets;
  const int32_t* bounds;  // [channels / B + 1], into offsets
  int64_t channels;
  S* sums;            // [steps][B] of this slice
  Ahead* ahead;       // of the source
  Ahead* ahead_grad;  // of the gradient
};

// K steps from k on, of the channels whose gradients begin at `grad`.
template <typename S, int B, int K>
DSR_INLINE void grad_of_steps(const GradBlockJob<S>& job, const S* grad, int32_t k,
                              PartialSums<S>& partial) {
  constexpr int V = kLanes<S>;
  Vec<S> sum[K][B] = {};
  const S* x[K];
  DSR_UNROLL for (int i = 0; i < K; ++i) x[i] = job.packed + job.offsets[k + i];
  for (int64_t r = 0; r < job.rows; ++r, grad += job.grad_row) {
    const S* g = grad;
#pragma GCC unroll 1
    for (int64_t c = 0; c < job.cols; ++c, g += V) {
      Vec<S> operand[K];
      DSR_UNROLL for (int i = 0; i < K; ++i) operand[i] = load(x[i] + c * V);
      const S* of_channel = g;
      DSR_UNROLL for (int b = 0; b < B; ++b, of_channel = pinned(of_channel + job.grad_channel)) {
        const Vec<S> gradient = load(of_channel);
        DSR_UNROLL for (int i = 0; i < K; ++i) sum[i][b] += gradient * operand[i];
      }
    }
    DSR_UNROLL for (int i = 0; i < K; ++i) x[i] += job.packed_row;
  }
  DSR_UNROLL for (int i = 0; i < K; ++i)
      DSR_UNROLL for (int b = 0; b < B; ++b) partial.add((k + i) * B + b, sum[i][b]);
}

template <typename S, int B>
static void accumulate_grad_block(const GradBlockJob<S>& shared) {
  constexpr int K = kLimits.block_vectors * kLimits.block_rows / B;
  const GradBlockJob<S> job = shared;
  PartialSums<S> partial(job.sums);
  const int32_t* bounds = job.bounds;
  for (int64_t o = 0; o < job.channels; o += B, ++bounds) {
    job.ahead->step();
    job.ahead_grad->step();
    const S* grad = job.grad + o * job.grad_channel;
    int32_t k = bounds[0];
    for (; k + K <= bounds[1]; k += K) grad_of_steps<S, B, K>(job, grad, k, partial);
    for (; k < bounds[1]; ++k) grad_of_steps<S, B, 1>(job, grad, k, partial);
  }
  partial.flush(*bounds * B);
}

template <typename S>
using GradBlockFunction = void (*)(const GradBlockJob<S>&);

template <typename S>
static GradBlockFunction<S> grad_block(const GatherPlan& plan) {
  if constexpr (kLimits.block_rows == 8) {
    if (plan.block_rows == 8) return accumulate_grad_block<S, 8>;
  }
  return accumulate_grad_block<S, 4>;
}

}  // namespace dsr::cpu::DSR_ISA
