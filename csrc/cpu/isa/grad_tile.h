// The inner loops of grad-weight. A tile of the output gradient stays in registers while the
// non-zeros of its row stream past; each leaves one vector of partial sums, and a full set of them
// is reduced at once.
#pragma once

#include "cpu/isa/ahead.h"
#include "cpu/isa/shuffle.h"
#include "cpu/isa/tile_table.h"
#include "cpu/isa/turn.h"

namespace dsr::cpu::DSR_ISA {

// sums[k] += sum over the tile of grad[o] * packed[offset(k) ...], for the non-zeros k of row o
template <typename S>
struct GradTileJob {
  const S* packed;  // the tile's first vector in packed channel 0
  int64_t packed_row;
  const S* grad;  // the tile's first vector in packed gradient channel 0
  int64_t grad_channel, grad_row;
  const int32_t* offsets;
  const int32_t* bounds;  // [channels + 1], into offsets
  int64_t channels;
  S* sums;            // [nnz] of this slice
  Ahead* ahead;       // of the source
  Ahead* ahead_grad;  // of the gradient
};

// Vectors of partial sums of consecutive non-zeros, reduced and added to `sums` V at a time.
template <typename S>
class PartialSums {
 public:
  explicit PartialSums(S* sums) : sums_(sums) {}

  void add(int32_t k, Vec<S> partial) {
    constexpr int V = kLanes<S>;
    partial_[filled_++] = partial;
    if (filled_ == V) {
      S* to = sums_ + k + 1 - V;
      Vec<S> rows[V];  // a copy, which the compiler keeps in registers
      DSR_UNROLL for (int i = 0; i < V; ++i) rows[i] = partial_[i];
      store(to, load(to) + sum_rows<S>(rows));
      filled_ = 0;
    }
  }
  // Those left over; `end` is one past the last non-zero.
  void flush(int32_t end) {
    constexpr int V = kLanes<S>;
    if (filled_ == 0) return;
    for (int i = filled_; i < V; ++i) partial_[i] = Vec<S>{};
    const Vec<S> rest = sum_rows<S>(partial_);
    for (int i = 0; i < filled_; ++i) sums_[end - filled_ + i] += rest[i];
    filled_ = 0;
  }

 private:
  S* sums_;
  Vec<S> partial_[kLanes<S>];
  int filled_ = 0;
};

// The sum of a few vectors.
template <typename S, int Count>
DSR_INLINE Vec<S> fold(Vec<S>* v) {
  DSR_UNROLL for (int width = Count / 2; width > 0; width /= 2)
      DSR_UNROLL for (int i = 0; i < width; ++i) v[i] += v[i + width];
  return v[0];
}

template <typename S, int R, int C>
static void accumulate_grad_tile(const GradTileJob<S>& shared) {
  // Independent sums, so that one multiply-add does not wait for the last.
  constexpr int V = kLanes<S>, T = R * C, chains = T < 4 ? 1 : T < 12 ? 2 : 4;
  const GradTileJob<S> job = shared;
  PartialSums<S> partial(job.sums);
  for (int64_t o = 0; o < job.channels; ++o) {
    job.ahead->step();
    job.ahead_grad->step();
    const int32_t begin = job.bounds[o], end = job.bounds[o + 1];
    if (begin == end) continue;
    Vec<S> grad[R][C];
    const S* from = job.grad + o * job.grad_channel;
    DSR_UNROLL for (int r = 0; r < R; ++r, from = pinned(from + job.grad_row))
        DSR_UNROLL for (int c = 0; c < C; ++c) grad[r][c] = load(from + c * V);
#pragma GCC unroll 1
    for (int32_t k = begin; k < end; ++k) {
      const S* x = pinned(job.packed + job.offsets[k]);
      Vec<S> sum[chains];
      DSR_UNROLL for (int r = 0; r < R; ++r, x = pinned(x + job.packed_row)) {
        DSR_UNROLL for (int c = 0; c < C; ++c) {
          const int t = r * C + c;
          const Vec<S> operand = load(x + c * V);
          if (t < chains) {
            sum[t] = grad[r][c] * operand;
          } else {
            sum[t % chains] += grad[r][c] * operand;
          }
        }
      }
      partial.add(k, fold<S, chains>(sum));
    }
  }
  partial.flush(job.bounds[job.channels]);
}

struct RowGradTileJob {
  const float* packed;  // the tile's first vector in packed channel 0
  const float* grad;    // the tile's first vector in packed gradient channel 0
  int64_t grad_channel;
  const int32_t* offsets;
  const int32_t* bounds;  // [channels * frames + 1], into offsets
  int64_t channels;
  const Walk* walk;    // upwards; turns from shift 0 to each frame's
  const Turn* shifts;  // [frames]
  float* sums;         // [nnz] of this slice, in the plan's order
  Ahead* ahead;        // of the source
  Ahead* ahead_grad;   // of the gradient
};

template <int R, int VW, int SV>
static void accumulate_row_grad_tile(const RowGradTileJob& shared) {
  constexpr int V = kLanes<float>, T = R * VW, chains = T < 4 ? 1 : T < 12 ? 2 : 4;
  const RowGradTileJob job = shared;
  const int frames = job.walk->frames;
  const int32_t* bounds = job.bounds;
  PartialSums<float> partial(job.sums);
  for (int64_t o = 0; o < job.channels; ++o, bounds += frames) {
    job.ahead->step();
    job.ahead_grad->step();
#pragma GCC unroll 1
    for (int f = 0; f < frames; ++f) {
      if (bounds[f] == bounds[f + 1]) continue;
      Vec<float> grad[R][VW];
      const float* from = job.grad + o * job.grad_channel;
      DSR_UNROLL for (int r = 0; r < R; ++r) {
        DSR_UNROLL for (int v = 0; v < VW; ++v) grad[r][v] = load(from + (r * VW + v) * V);
        if (job.shifts[f].amount != 0) turn_row<VW, SV>(grad[r], job.shifts[f]);
        DSR_UNROLL for (int v = 0; v < VW; ++v) grad[r][v] =
            keep(grad[r][v], job.walk->masks[f][v % SV]);
      }
#pragma GCC unroll 1
      for (int32_t k = bounds[f]; k < bounds[f + 1]; ++k) {
        const float* x = pinned(job.packed + job.offsets[k]);
        Vec<float> sum[chains];
        DSR_UNROLL for (int t = 0; t < T; ++t) {
          const Vec<float> operand = load(x + t * V);
          if (t < chains) {
            sum[t] = grad[t / VW][t % VW] * operand;
          } else {
            sum[t % chains] += grad[t / VW][t % VW] * operand;
          }
        }
        partial.add(k, fold<float, chains>(sum));
      }
    }
  }
  partial.flush(job.bounds[job.channels * frames]);
}

template <typename S>
using GradTileFunction = void (*)(const GradTileJob<S>&);
using RowGradTileFunction = void (*)(const RowGradTileJob&);

// The kernel of every tile size.
template <typename S>
struct GradTiles {
  template <int R, int C>
  struct Kernel {
    static constexpr GradTileFunction<S> run = accumulate_grad_tile<S, R, C>;
  };
};

struct RowGradTiles {
  template <int R, int VW, int SV>
  struct Kernel {
    static constexpr RowGradTileFunction run = accumulate_row_grad_tile<R, VW, SV>;
  };
};

}  // namespace dsr::cpu::DSR_ISA
