// The list of a pattern's windows, as it comes from Python: cuda/conv/window_list.h.
#pragma once

#include <cstdint>
#include <tuple>

#include "bindings/common.h"
#include "cuda/conv/window_list.h"

namespace dsr::bindings {

// Addresses of offsets, bounds, pieces, places and piece_bounds; values of a piece, and of all.
using WindowListTuple =
    std::tuple<uintptr_t, uintptr_t, uintptr_t, uintptr_t, uintptr_t, int, int64_t>;

inline cuda::WindowList window_list(const WindowListTuple& list) {
  const auto& [offsets, bounds, pieces, places, piece_bounds, piece_size, values] = list;
  int shift = 0;
  while (1 << shift < piece_size) ++shift;
  return {pointer<int32_t>(offsets),
          pointer<int32_t>(bounds),
          pointer<int32_t>(pieces),
          pointer<uint8_t>(places),
          pointer<int32_t>(piece_bounds),
          shift,
          values};
}

}  // namespace dsr::bindings
