// The inner loops of kRow: as in tile.h, but the taps of one kernel column after the other, with
// the accumulators (grad-weight: the gradient) turned by the distance of the columns in between.
#pragma once

#include "cpu/isa/tile.h"

namespace dsr::cpu::DSR_ISA {

#if defined(__AVX512F__)
inline constexpr int kRowTileVectors = 20;
#else
inline constexpr int kRowTileVectors = kTileVectors - 2;
#endif

// Turns rows of lanes: lane j of a slot gets what lane j - amount had.
struct Turn {
  alignas(64) int32_t index[kLanes<float>];  // V and above: lanes of the neighbouring vector
  int32_t amount;
};

// Of a slot narrower than a vector, or of one that spans several.
static Turn make_turn(int64_t slot_lanes, int64_t amount) {
  constexpr int V = kLanes<float>;
  Turn turn{};
  turn.amount = static_cast<int32_t>(amount);
  for (int j = 0; j < V; ++j) {
    if (slot_lanes <= V) {
      const int64_t slot = j & ~(slot_lanes - 1);
      turn.index[j] = static_cast<int32_t>(slot | ((j - amount) & (slot_lanes - 1)));
    } else {
      const int64_t from = j - amount;  // below 0 the previous vector, from V on the next
      turn.index[j] = static_cast<int32_t>(from < 0 ? 2 * V + from : from);
    }
  }
  return turn;
}

#if defined(__AVX512F__)
using LaneMask = __mmask16;
DSR_INLINE LaneMask lane_mask(uint32_t bits) { return static_cast<LaneMask>(bits); }
DSR_INLINE Vec<float> keep(Vec<float> v, LaneMask mask) {
  return (Vec<float>)_mm512_maskz_mov_ps(mask, (__m512)v);
}
// The lanes of the mask get value * x more.
DSR_INLINE Vec<float> add_product(Vec<float> sum, Vec<float> value, Vec<float> x, LaneMask mask) {
  return (Vec<float>)_mm512_mask3_fmadd_ps((__m512)value, (__m512)x, (__m512)sum, mask);
}
#else
typedef int32_t LaneMask __attribute__((vector_size(kVectorBytes), may_alias));
DSR_INLINE LaneMask lane_mask(uint32_t bits) {
  LaneMask mask;
  for (int j = 0; j < kLanes<float>; ++j) mask[j] = bits >> j & 1 ? -1 : 0;
  return mask;
}
DSR_INLINE Vec<float> keep(Vec<float> v, LaneMask mask) { return (Vec<float>)((LaneMask)v & mask); }
DSR_INLINE Vec<float> add_product(Vec<float> sum, Vec<float> value, Vec<float> x, LaneMask mask) {
  return sum + value * keep(x, mask);
}
#endif

// Lanes of vector v of a slot that turning by `shift` does not wrap around, as bits.
DSR_INLINE uint32_t unwrapped(int64_t slot_lanes, int64_t shift, int64_t v) {
  uint32_t bits = 0;
  for (int64_t j = 0; j < kLanes<float>; ++j) {
    const int64_t lane = (v * kLanes<float> + j) % slot_lanes, from = lane - shift;
    if (from >= 0 && from < slot_lanes) bits |= uint32_t{1} << j;
  }
  return bits;
}

// One row of VW vectors, of slots that span SV vectors each.
template <int VW, int SV>
DSR_INLINE void turn_row(Vec<float>* row, const Turn& turn) {
#if defined(__AVX512F__)
  const __m512i index = _mm512_load_si512(turn.index);
  if constexpr (SV == 1) {
    DSR_UNROLL for (int v = 0; v < VW; ++v) row[v] =
        (Vec<float>)_mm512_permutexvar_ps(index, (__m512)row[v]);
  } else {
    Vec<float> old[VW];
    DSR_UNROLL for (int v = 0; v < VW; ++v) old[v] = row[v];
    const bool up = turn.amount > 0;
    DSR_UNROLL for (int v = 0; v < VW; ++v) {
      const int slot = v / SV * SV, before = slot + (v - slot + SV - 1) % SV,
                after = slot + (v - slot + 1) % SV;
      row[v] = (Vec<float>)_mm512_permutex2var_ps((__m512)old[v], index,
                                                  (__m512)(up ? old[before] : old[after]));
    }
  }
#else
  constexpr int V = kLanes<float>;
  float old[VW * V];
  for (int v = 0; v < VW; ++v) store(old + v * V, row[v]);
  for (int v = 0; v < VW; ++v) {
    const int slot = v / SV * SV, step = turn.amount > 0 ? SV - 1 : 1;
    const float* neighbour = old + (slot + (v - slot + step) % SV) * V;
    for (int j = 0; j < V; ++j) {
      const int from = turn.index[j];
      row[v][j] = from < V ? old[v * V + from] : neighbour[from - V];
    }
  }
#endif
}

// How the frames of one table are walked in one direction.
struct Walk {
  static constexpr int kMaxFrames = 16;
  int frames;
  int order[kMaxFrames];          // of the frames
  Turn turns[kMaxFrames + 1];     // before each frame; after the last one, back to shift 0
  LaneMask masks[kMaxFrames][4];  // by position in the walk and vector of a slot
};

[[maybe_unused]] static void make_walk(const Table& table, int64_t slot_lanes, bool upwards,
                                       Walk* walk) {
  walk->frames = static_cast<int>(table.shifts.size());
  int64_t shift = 0;
  for (int i = 0; i < walk->frames; ++i) {
    const int frame = upwards ? i : walk->frames - 1 - i;
    walk->order[i] = frame;
    walk->turns[i] = make_turn(slot_lanes, i == 0 ? 0 : table.shifts[frame] - shift);
    shift = table.shifts[frame];
    for (int v = 0; v < 4; ++v) walk->masks[i][v] = lane_mask(unwrapped(slot_lanes, shift, v));
  }
  walk->turns[walk->frames] = make_turn(slot_lanes, -shift);
}

struct RowTileJob {
  const float* packed;  // the tile's first vector in packed channel 0; its rows follow each other
  const int32_t* offsets;
  const float* values;
  const float* bias;      // of the first channel, or null
  const int32_t* bounds;  // [channels * frames + 1], into offsets
  int64_t channels;
  const Walk* walk;
  bool first, last;  // of the blocks: start at the bias; turn back to where the lanes belong
  const float* accumulators;  // [channels][R][VW] vectors
  float* results;             // the same, or rows of the destination itself
  int64_t result_channel;     // scalars from one channel's results to the next
  bool streams;               // results go past the caches
  Ahead* ahead;
};

template <int R, int VW, int SV>
static void accumulate_row_tile(const RowTileJob& shared) {
  constexpr int V = kLanes<float>;
  const RowTileJob job = shared;
  const Walk& walk = *job.walk;
  const int frames = walk.frames;
  const int32_t* bounds = job.bounds;
  for (int64_t d = 0; d < job.channels; ++d, bounds += frames) {
    job.ahead->step();
    Vec<float> sum[R][VW];
    if (job.first) {
      const Vec<float> start = broadcast(job.bias ? job.bias[d] : 0.0f);
      DSR_UNROLL for (int t = 0; t < R * VW; ++t) sum[t / VW][t % VW] = start;
    } else {
      const float* from = job.accumulators + d * R * VW * V;
      DSR_UNROLL for (int t = 0; t < R * VW; ++t) sum[t / VW][t % VW] = load(from + t * V);
    }
#pragma GCC unroll 1
    for (int i = 0; i < frames; ++i) {
      if (i > 0) DSR_UNROLL for (int r = 0; r < R; ++r) turn_row<VW, SV>(sum[r], walk.turns[i]);
      LaneMask masks[SV];
      DSR_UNROLL for (int v = 0; v < SV; ++v) masks[v] = walk.masks[i][v];
      const int32_t end = bounds[walk.order[i] + 1];
#pragma GCC unroll 1
      for (int32_t k = bounds[walk.order[i]]; k < end; ++k) {
        const float* x = pinned(job.packed + job.offsets[k]);
        const Vec<float> value = broadcast(job.values[k]);
        DSR_UNROLL for (int t = 0; t < R * VW; ++t) sum[t / VW][t % VW] =
            add_product(sum[t / VW][t % VW], value, load(x + t * V), masks[t % VW % SV]);
      }
    }
    if (job.last && walk.turns[frames].amount != 0)
      DSR_UNROLL for (int r = 0; r < R; ++r) turn_row<VW, SV>(sum[r], walk.turns[frames]);
    float* to = job.results + d * job.result_channel;
    if (job.streams) {
      DSR_UNROLL for (int t = 0; t < R * VW; ++t) stream(to + t * V, sum[t / VW][t % VW]);
    } else {
      DSR_UNROLL for (int t = 0; t < R * VW; ++t) store(to + t * V, sum[t / VW][t % VW]);
    }
  }
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

using RowTileFunction = void (*)(const RowTileJob&);
using RowGradTileFunction = void (*)(const RowGradTileJob&);

// Found by rows, vectors of a row, and vectors of a slot (powers of two).
template <typename Function>
class RowTileTable {
 public:
  Function at(int64_t rows, int64_t row_vectors, int64_t slot_vectors) const {
    return functions_[row_vectors / 2][slot_vectors / 2][rows - 1];
  }

  template <template <int, int, int> class Kernel>
  static constexpr RowTileTable of() {
    RowTileTable table;
    fill<Kernel, 1, 1>(table, std::make_integer_sequence<int, kRowTileVectors>{});
    fill<Kernel, 2, 1>(table, std::make_integer_sequence<int, kRowTileVectors / 2>{});
    fill<Kernel, 2, 2>(table, std::make_integer_sequence<int, kRowTileVectors / 2>{});
    fill<Kernel, 4, 1>(table, std::make_integer_sequence<int, kRowTileVectors / 4>{});
    fill<Kernel, 4, 2>(table, std::make_integer_sequence<int, kRowTileVectors / 4>{});
    fill<Kernel, 4, 4>(table, std::make_integer_sequence<int, kRowTileVectors / 4>{});
    return table;
  }

 private:
  template <template <int, int, int> class Kernel, int VW, int SV, int... R>
  static constexpr void fill(RowTileTable& table, std::integer_sequence<int, R...>) {
    ((table.functions_[VW / 2][SV / 2][R] = Kernel<R + 1, VW, SV>::run), ...);
  }

  Function functions_[3][3][kRowTileVectors] = {};
};

template <int R, int VW, int SV>
struct RowGatherKernel {
  static constexpr RowTileFunction run = accumulate_row_tile<R, VW, SV>;
};
template <int R, int VW, int SV>
struct RowGradWeightKernel {
  static constexpr RowGradTileFunction run = accumulate_row_grad_tile<R, VW, SV>;
};

}  // namespace dsr::cpu::DSR_ISA
