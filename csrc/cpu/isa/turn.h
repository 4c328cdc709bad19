// Lanes along rows (kRow): turning the accumulators between the kernel columns of a segment.
#pragma once

#include "cpu/conv/gather_plan.h"
#include "cpu/isa/simd.h"

namespace dsr::cpu::DSR_ISA {

// Turns rows of lanes: lane j of a slot gets what lane j - amount had.
struct Turn {
  // Where each lane comes from; V and above: lanes of the neighbouring vector.
  alignas(kAlignment) int32_t index[kLanes<float>];
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
  int frames;
  int order[kMaxFrames];       // of the frames
  Turn turns[kMaxFrames + 1];  // before each frame; after the last one, back to shift 0
  LaneMask masks[kMaxFrames][kMaxRowVectors];  // by position in the walk and vector of a slot
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
    for (int v = 0; v < kMaxRowVectors; ++v)
      walk->masks[i][v] = lane_mask(unwrapped(slot_lanes, shift, v));
  }
  walk->turns[walk->frames] = make_turn(slot_lanes, -shift);
}

}  // namespace dsr::cpu::DSR_ISA
