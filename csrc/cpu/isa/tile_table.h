// One function per tile size, found by its rows and columns.
#pragma once

#include <utility>

#include "cpu/isa/simd.h"

namespace dsr::cpu::DSR_ISA {

// Keeps a pointer in one register: GCC would rather recompute every row's address from scratch.
template <typename T>
DSR_INLINE T* pinned(T* p) {
  asm("" : "+r"(p));
  return p;
}

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

// Found by rows, vectors of a row, and vectors of a slot (powers of two). At most `Most` vectors.
template <typename Function, int Most>
class RowTileTable {
 public:
  Function at(int64_t rows, int64_t row_vectors, int64_t slot_vectors) const {
    return functions_[row_vectors / 2][slot_vectors / 2][rows - 1];
  }

  template <template <int, int, int> class Kernel>
  static constexpr RowTileTable of() {
    RowTileTable table;
    fill<Kernel, 1, 1>(table, std::make_integer_sequence<int, Most>{});
    fill<Kernel, 2, 1>(table, std::make_integer_sequence<int, Most / 2>{});
    fill<Kernel, 2, 2>(table, std::make_integer_sequence<int, Most / 2>{});
    fill<Kernel, 4, 1>(table, std::make_integer_sequence<int, Most / 4>{});
    fill<Kernel, 4, 2>(table, std::make_integer_sequence<int, Most / 4>{});
    fill<Kernel, 4, 4>(table, std::make_integer_sequence<int, Most / 4>{});
    return table;
  }

 private:
  template <template <int, int, int> class Kernel, int VW, int SV, int... R>
  static constexpr void fill(RowTileTable& table, std::integer_sequence<int, R...>) {
    ((table.functions_[VW / 2][SV / 2][R] = Kernel<R + 1, VW, SV>::run), ...);
  }

  Function functions_[3][3][Most] = {};
};

}  // namespace dsr::cpu::DSR_ISA
