// The inner loops. A tile of R x C vectors stays in registers while the non-zeros of a segment
// stream past: one broadcast, one offset, R * C multiply-adds that take their operand from L1.
#pragma once

#include "cpu/conv/kernels.h"
#include "cpu/isa/ahead.h"

namespace dsr::cpu::DSR_ISA {

// destination[d] += sum over the non-zeros of segment d of value * packed[offset ...]
template <typename S>
struct TileJob {
  const S* packed;         // the tile's first vector in packed channel 0
  int64_t packed_row;      // scalars from one row of the tile to the next
  const int32_t* offsets;  // of the whole plan
  const S* values;
  const S* bias;          // of the first channel, or null
  const int32_t* bounds;  // [channels + 1], into offsets
  int64_t channels;
  bool first;  // of the blocks: accumulators start at the bias instead of where they were
  const S* accumulators;                     // the tile's first vector in the first channel's
  int64_t channel_step, row_step, col_step;  // scalars between accumulators
  S* results;                                // the same, or the destination itself
  int64_t result_channel;                    // scalars from one channel's results to the next
  bool streams;                              // results go past the caches
  Ahead* ahead;
};

// Keeps a pointer in one register: GCC would rather recompute every row's address from scratch.
template <typename T>
DSR_INLINE T* pinned(T* p) {
  asm("" : "+r"(p));
  return p;
}

template <typename S, int R, int C>
static void accumulate_tile(const TileJob<S>& shared) {
  constexpr int V = kLanes<S>;
  const TileJob<S> job = shared;  // a copy, which stores to memory cannot change
  const bool in_place = job.results == job.accumulators;
  for (int64_t d = 0; d < job.channels; ++d) {
    job.ahead->step();
    const int32_t begin = job.bounds[d], end = job.bounds[d + 1];
    if (begin == end && !job.first && in_place) continue;
    Vec<S> sum[R][C];
    if (job.first) {
      const Vec<S> start = broadcast(job.bias ? job.bias[d] : S{0});
      DSR_UNROLL for (int r = 0; r < R; ++r) DSR_UNROLL for (int c = 0; c < C; ++c) sum[r][c] =
          start;
    } else {
      const S* row = job.accumulators + d * job.channel_step;
      DSR_UNROLL for (int r = 0; r < R; ++r, row = pinned(row + job.row_step)) {
        const S* at = row;
        DSR_UNROLL for (int c = 0; c < C; ++c, at = pinned(at + job.col_step)) sum[r][c] = load(at);
      }
    }
#pragma GCC unroll 1
    for (int32_t k = begin; k < end; ++k) {
      const S* x = job.packed + job.offsets[k];
      const Vec<S> value = broadcast(job.values[k]);
      DSR_UNROLL for (int r = 0; r < R; ++r, x = pinned(x + job.packed_row))
          DSR_UNROLL for (int c = 0; c < C; ++c) sum[r][c] += value * load(x + c * V);
    }
    S* row = job.results + d * job.result_channel;
    DSR_UNROLL for (int r = 0; r < R; ++r, row = pinned(row + job.row_step)) {
      S* at = row;
      if (job.streams) {
        DSR_UNROLL for (int c = 0; c < C; ++c, at = pinned(at + job.col_step))
            stream(at, sum[r][c]);
      } else {
        DSR_UNROLL for (int c = 0; c < C; ++c, at = pinned(at + job.col_step)) store(at, sum[r][c]);
      }
    }
  }
}

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

// One function per tile size, found by its rows and columns.
template <typename S>
using TileFunction = void (*)(const TileJob<S>&);
template <typename S>
using GradTileFunction = void (*)(const GradTileJob<S>&);

template <typename Function, int Most>
class TileTable {
 public:
  static_assert(Most >= 1 && Most <= 32, "a tile must fit the vector registers");
  Function at(int64_t rows, int64_t cols) const { return functions_[rows - 1][cols - 1]; }

  template <template <int, int> class Kernel>
  static constexpr TileTable of() {
    TileTable table;
    fill_rows<Kernel>(table, std::make_integer_sequence<int, kMaxTileRows>{});
    return table;
  }

 private:
  template <template <int, int> class Kernel, int... R>
  static constexpr void fill_rows(TileTable& table, std::integer_sequence<int, R...>) {
    (fill_cols<Kernel, R + 1>(table, std::make_integer_sequence<int, Most>{}), ...);
  }
  template <template <int, int> class Kernel, int R, int... C>
  static constexpr void fill_cols(TileTable& table, std::integer_sequence<int, C...>) {
    (fill_one<Kernel, R, C + 1>(table), ...);
  }
  template <template <int, int> class Kernel, int R, int C>
  static constexpr void fill_one(TileTable& table) {
    if constexpr (R * C <= Most && (R == 1 || C <= kMaxTileCols))
      table.functions_[R - 1][C - 1] = Kernel<R, C>::run;
  }

  Function functions_[kMaxTileRows][Most] = {};
};

template <typename S>
struct TileKernels {
  template <int R, int C>
  struct Gather {
    static constexpr TileFunction<S> run = accumulate_tile<S, R, C>;
  };
  template <int R, int C>
  struct GradWeight {
    static constexpr GradTileFunction<S> run = accumulate_grad_tile<S, R, C>;
  };
};

}  // namespace dsr::cpu::DSR_ISA
