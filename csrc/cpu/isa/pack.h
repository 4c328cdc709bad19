// Packing a unit of an operand, whatever the lanes run along and whatever happens on the way in.
#pragma once

#include "cpu/isa/pack_batch.h"
#include "cpu/isa/pack_plane.h"
#include "cpu/isa/pack_row.h"
#include "cpu/isa/source.h"

namespace dsr::cpu::DSR_ISA {

// `map_memory` holds pixel_map_bytes(), for lanes along the batch.
template <typename S>
static void pack(const Operand<S>& operand, const GatherPlan& plan, const PackLayout& layout,
                 const Unit& unit, char* map_memory, S* packed) {
  with_source<S>(operand, [&](auto source) {
    if constexpr (std::is_same_v<S, float>) {
      if (plan.lanes == Lanes::kRow)
        return pack_rows(source, operand.strides, plan, layout, unit, packed);
    }
    if (plan.lanes == Lanes::kBatch) {
      pack_batch<S>(source, operand.strides, layout, unit, map_memory, packed);
    } else {
      pack_plane<S>(source, operand.strides, layout, unit, packed);
    }
  });
}

// For matrix units: whatever the operand is stored as, rounded to bfloat16.
static inline void pack_plane_in_bfloat16(const Operand<float>& operand, const PackLayout& layout,
                                          const Unit& unit, BFloat16* packed) {
  with_source<float>(operand, [&](auto source) {
    pack_plane<float>(source, operand.strides, layout, unit, packed);
  });
}

}  // namespace dsr::cpu::DSR_ISA
