// One unit of a gather whose lanes run along rows.
#pragma once

#include "cpu/isa/pack_row.h"
#include "cpu/isa/row_tile.h"

namespace dsr::cpu::DSR_ISA {

template <typename Source, typename Destination, typename Tiles>
class GatherRow {
 public:
  GatherRow(const GatherArgs<float>& args, const Tiles& tiles, char* workspace)
      : args_(args), plan_(*args.plan), tiles_(tiles), streams_(passes_caches(args)) {
    constexpr int size = sizeof(float);
    packed_ =
        reinterpret_cast<float*>(cut_part(&workspace, packed_bytes(plan_, plan_.source, size)));
    accumulators_ = reinterpret_cast<float*>(cut_part(&workspace, accumulator_bytes(plan_, size)));
    for (size_t t = 0; t < plan_.tables.size(); ++t)
      for (int upwards = 0; upwards < 2; ++upwards)
        make_walk(plan_.tables[t], plan_.slot_lanes, upwards, &walks_[t][upwards]);
  }

  // Destination channels [first, last) of one unit.
  void run(const Unit& unit, const Ahead& next, int64_t first, int64_t last) {
    ahead_ = next;
    pack_rows(static_cast<const Source*>(args_.source), args_.source_strides, plan_, plan_.source,
              unit, packed_);
    const int64_t down = (unit.rows + plan_.tile_rows - 1) / plan_.tile_rows;
    for (int64_t i = 0; i < down; ++i) {
      const int64_t row = part(unit.rows, i, down);
      tile(unit, row, part(unit.rows, i + 1, down) - row, first, last);
    }
  }

 private:
  // Channels whose last block is computed before they are stored, while they are in L1.
  static constexpr int64_t kChunk = 4;

  // Rows [row, row + rows) of the unit, of every class.
  void tile(const Unit& unit, int64_t row, int64_t rows, int64_t first, int64_t last) {
    const int64_t before = plan_.blocks - 1;
    const bool direct = stores_directly();
    for (int64_t b = 0; b < before; ++b)
      for (size_t k = 0; k < plan_.classes.size(); ++k)
        accumulate(k, unit, row, rows, b, first, last, first, false);
    if (direct) return accumulate(0, unit, row, rows, before, first, last, first, true);
    for (int64_t d = first; d < last; d += kChunk) {
      const int64_t end = least(last, d + kChunk), origin = before > 0 ? first : d;
      for (size_t k = 0; k < plan_.classes.size(); ++k)
        accumulate(k, unit, row, rows, before, d, end, origin, false);
      for (size_t k = 0; k < plan_.classes.size(); ++k) drain(k, unit, row, rows, d, end, origin);
    }
  }

  // Whether a tile's rows are whole vectors, one after the other, in the destination too.
  bool stores_directly() const {
    const Strides4& s = args_.destination_strides;
    return std::is_same_v<Destination, float> && plan_.classes.size() == 1 && plan_.images == 1 &&
           s.w == 1 && plan_.destination_width == plan_.source.pitch && s.h == plan_.source.pitch;
  }
  int64_t class_rows(const DestinationClass& k, const Unit& unit, int64_t row, int64_t rows) const {
    return most(0, least(rows, k.rows - unit.row - row));
  }
  // Accumulators of channel d in class k, where those of `origin` come first.
  float* accumulators(size_t k, int64_t d, int64_t origin, int64_t rows) const {
    return accumulators_ + static_cast<int64_t>(k) * row_class_scalars(plan_, V) +
           (d - origin) * rows * plan_.row_vectors * V;
  }

  void accumulate(size_t index, const Unit& unit, int64_t row, int64_t rows, int64_t b,
                  int64_t begin, int64_t end, int64_t origin, bool direct) {
    const DestinationClass& k = plan_.classes[index];
    const Strides4& s = args_.destination_strides;
    rows = class_rows(k, unit, row, rows);
    if (rows == 0 || k.cols == 0 || (k.table < 0 && b > 0)) return;
    static constexpr Walk kNowhere{};
    const bool reached = k.table >= 0;
    float* kept = accumulators(index, begin, origin, rows);
    tiles_.at(rows, plan_.row_vectors, slot_vectors(plan_))(
        {packed_ + row * plan_.source.pitch, plan_.offsets.data(), args_.values,
         args_.bias ? args_.bias + begin : nullptr, plan_.segments(k.table, b, begin), end - begin,
         reached ? &walks_[k.table][b % 2 == 0] : &kNowhere, b == 0, b + 1 == plan_.blocks, kept,
         direct ? static_cast<float*>(args_.destination) + unit.image * s.n + begin * s.c +
                      (unit.row + row) * s.h
                : kept,
         direct ? s.c : rows * plan_.row_vectors * V, direct && streams_, &ahead_});
  }

  // Stores the rows of class `index` and of its right neighbour, if columns have two classes.
  void drain(size_t index, const Unit& unit, int64_t row, int64_t rows, int64_t begin, int64_t end,
             int64_t origin) {
    const DestinationClass& k = plan_.classes[index];
    const Strides4& s = args_.destination_strides;
    const bool paired = plan_.step_w == 2 && plan_.classes.size() > index + 1 &&
                        plan_.classes[index + 1].row0 == k.row0;
    const bool together = paired && s.w == 1;
    if (plan_.step_w == 2 && k.col0 == 1 && s.w == 1) return;  // stored with its left neighbour
    rows = class_rows(k, unit, row, rows);
    const bool grouped = plan_.step_w == 1 && plan_.step_h == 1 && s.w == 1 &&
                         plan_.slot_lanes == k.cols && s.h == k.cols && unit.images == plan_.images;
    const bool halved = together && plan_.destination_width == 2 * plan_.slot_lanes &&
                        2 * plan_.slot_lanes >= V && unit.images == plan_.images;
    for (int64_t d = begin; d < end; ++d) {
      const float* from = accumulators(index, d, origin, rows);
      const float* odd = together ? accumulators(index + 1, d, origin, rows) : nullptr;
      Destination* to = static_cast<Destination*>(args_.destination) + unit.image * s.n + d * s.c +
                        (k.row0 + (unit.row + row) * plan_.step_h) * s.h + k.col0 * s.w;
      int64_t done = 0;
      if (halved) {
        drain_halves(from, odd, plan_, rows, plan_.step_h * s.h, s.n, streams_, to);
        done = rows;
      }
      if (grouped && plan_.slot_lanes == V / 2)
        done = drain_groups<V / 2>(from, plan_.row_vectors, rows, s.n, streams_, to);
      if (grouped && plan_.slot_lanes == V / 4)
        done = drain_groups<V / 4>(from, plan_.row_vectors, rows, s.n, streams_, to);
      drain_rows(k, unit, from, odd, done, rows, to);
    }
  }

  // Rows [first, rows), slot by slot.
  void drain_rows(const DestinationClass& k, const Unit& unit, const float* from, const float* odd,
                  int64_t first, int64_t rows, Destination* to) const {
    const Strides4& s = args_.destination_strides;
    const int64_t row_stride = plan_.step_h * s.h, n = odd ? plan_.destination_width : k.cols;
    for (int64_t g = 0; g < unit.images; ++g) {
      Destination* at = to + g * s.n + first * row_stride;
      int64_t lane = g * plan_.slot_lanes + first * plan_.row_vectors * V;
      for (int64_t r = first; r < rows; ++r, at += row_stride, lane += plan_.row_vectors * V) {
        if (odd || (s.w == 1 && plan_.step_w == 1)) {
          drain_slot(from + lane, odd ? odd + lane : nullptr, n, at);
        } else {
          for (int64_t q = 0; q < n; ++q)
            at[q * plan_.step_w * s.w] = element_of<float, Destination>(from[lane + q]);
        }
      }
    }
  }

  static constexpr int V = kLanes<float>;
  const GatherArgs<float>& args_;
  const GatherPlan& plan_;
  const Tiles& tiles_;
  const bool streams_;
  Ahead ahead_;
  float* packed_;
  float* accumulators_;
  Walk walks_[kMaxTables][2];  // downwards, upwards
};

}  // namespace dsr::cpu::DSR_ISA
