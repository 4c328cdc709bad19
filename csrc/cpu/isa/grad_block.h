// The inner loops of grad-weight where B = kBlockRows output channels share their positions: the
// sums of B channels x K steps stay in registers while a tile of gradients and operands streams
// past.
#pragma once

#include "cpu/isa/block_row.h"
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
  const int32_t* bounds;  // [channels / B * frames + 1], into offsets
  int64_t channels;
  S* sums;             // [steps][B] of this slice
  Ahead* ahead;        // of the source
  Ahead* ahead_grad;   // of the gradient
  const Walk* walk;    // kRow alone: upwards,
  const Turn* shifts;  // and from shift 0 to each frame's
};

// K steps from k on, of the channels whose gradients begin at `grad`.
template <typename S, int K>
DSR_INLINE void grad_of_steps(const GradBlockJob<S>& job, const S* grad, int32_t k,
                              PartialSums<S>& partial) {
  constexpr int B = kBlockRows;
  Vec<S> sum[K][B] = {};
  const S* x[K];
  DSR_UNROLL for (int i = 0; i < K; ++i) x[i] = job.packed + job.offsets[k + i];
  for (int64_t r = 0; r < job.rows; ++r, grad += job.grad_row) {
#pragma GCC unroll 1
    for (int64_t c = 0; c < job.cols; ++c) {
      Vec<S> gradient[B];
      const S* of_channel = grad + c * kLanes<S>;
      DSR_UNROLL for (int b = 0; b < B; ++b, of_channel = pinned(of_channel + job.grad_channel))
          gradient[b] = load(of_channel);
      DSR_UNROLL for (int i = 0; i < K; ++i) {
        const Vec<S> operand = load(x[i] + c * kLanes<S>);
        DSR_UNROLL for (int b = 0; b < B; ++b) sum[i][b] += gradient[b] * operand;
      }
    }
    DSR_UNROLL for (int i = 0; i < K; ++i) x[i] += job.packed_row;
  }
  DSR_UNROLL for (int i = 0; i < K; ++i) DSR_UNROLL for (int b = 0; b < B; ++b)
      partial.add((k + i) * B + b, sum[i][b]);
}

// The steps [k, end) of one segment.
template <typename S>
DSR_INLINE void grad_of_segment(const GradBlockJob<S>& job, const S* grad, int32_t k, int32_t end,
                                PartialSums<S>& partial) {
  constexpr int K = kLimits.block_vectors;
  for (; k + K <= end; k += K) grad_of_steps<S, K>(job, grad, k, partial);
  for (; k + 2 <= end; k += 2) grad_of_steps<S, 2>(job, grad, k, partial);
  for (; k < end; ++k) grad_of_steps<S, 1>(job, grad, k, partial);
}

template <typename S>
static void accumulate_grad_block(const GradBlockJob<S>& shared) {
  const GradBlockJob<S> job = shared;
  PartialSums<S> partial(job.sums);
  const int32_t* bounds = job.bounds;
  for (int64_t o = 0; o < job.channels; o += kBlockRows, ++bounds) {
    job.ahead->step();
    job.ahead_grad->step();
    grad_of_segment(job, job.grad + o * job.grad_channel, bounds[0], bounds[1], partial);
  }
  partial.flush(*bounds * kBlockRows);
}

// Lanes along rows: the gradients of a block are turned to each frame's columns, in L1.
template <int VW, int SV>
static void accumulate_row_grad_block(const GradBlockJob<float>& shared) {
  constexpr int V = kLanes<float>;
  alignas(kAlignment) float turned[kBlockRows * kGradBlockVectors * V];
  const GradBlockJob<float> job = shared;
  GradBlockJob<float> of_frame = shared;
  of_frame.grad_row = VW * V;
  of_frame.grad_channel = job.rows * VW * V;
  PartialSums<float> partial(job.sums);
  const int32_t* bounds = job.bounds;
  for (int64_t o = 0; o < job.channels; o += kBlockRows) {
    job.ahead->step();
    job.ahead_grad->step();
    const float* grad = job.grad + o * job.grad_channel;
    for (int f = 0; f < job.walk->frames; ++f, ++bounds) {
      if (bounds[0] == bounds[1]) continue;
      if (job.shifts[f].amount == 0) {
        grad_of_segment(job, grad, bounds[0], bounds[1], partial);
        continue;
      }
      float* to = turned;
      for (int64_t b = 0; b < kBlockRows; ++b) {
        for (int64_t r = 0; r < job.rows; ++r, to += VW * V) {
          Vec<float> row[VW];
          const float* from = grad + b * job.grad_channel + r * job.grad_row;
          DSR_UNROLL for (int v = 0; v < VW; ++v) row[v] = load(from + v * V);
          turn_row<VW, SV>(row, job.shifts[f]);
          DSR_UNROLL for (int v = 0; v < VW; ++v)
              store(to + v * V, keep(row[v], job.walk->masks[f][v % SV]));
        }
      }
      grad_of_segment<float>(of_frame, turned, bounds[0], bounds[1], partial);
    }
  }
  partial.flush(*bounds * kBlockRows);
}

template <typename S>
using GradBlockFunction = void (*)(const GradBlockJob<S>&);

// By vectors of a row and of a slot, as in RowTileTable.
constexpr GradBlockFunction<float> kRowGradBlocks[3][3] = {
    {accumulate_row_grad_block<1, 1>},
    {accumulate_row_grad_block<2, 1>, accumulate_row_grad_block<2, 2>},
    {accumulate_row_grad_block<4, 1>, accumulate_row_grad_block<4, 2>,
     accumulate_row_grad_block<4, 4>}};

template <typename S>
static GradBlockFunction<S> grad_block(const GatherPlan& plan) {
  if constexpr (std::is_same_v<S, float>) {
    if (plan.lanes == Lanes::kRow)
      return kRowGradBlocks[plan.row.vectors / 2][slot_vectors(plan) / 2];
  }
  return accumulate_grad_block<S>;
}

}  // namespace dsr::cpu::DSR_ISA
